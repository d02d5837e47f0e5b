"""What is due is tidied when it is quiet, or has waited long enough; one after another."""

import logging
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio.to_process
import pytest
import trio
from prometheus_client import CollectorRegistry

from goblet_node.errors import MirrorDamaged
from goblet_node.fill.tidy import Tidier, TidyRules
from goblet_node.metrics import NodeMetrics
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.layout import CacheRoot
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.merge import LEFT_ALONE
from goblet_node.mirror.store import MirrorStore
from goblet_node.mirror.wear import Bounds
from goblet_node.serve.renew import renew
from goblet_shared.repo_key import RepoKey
from goblet_testing.mirrors import blob_id, grow, heads
from goblet_testing.rooms import room_of

ONE, TWO = RepoKey("example.org/one"), RepoKey("example.org/two")
RULES = TidyRules(quiet=5.0, patience=100.0, bounds=Bounds(orphans=0.25, depth=200))

# Each that tidies starts a worker process.
pytestmark = pytest.mark.slow


class WatchedDisk(Disk):
    """A disk that tells when a folder is about to go."""

    def __init__(self) -> None:
        self.before_removal: Callable[[], None] = lambda: None

    def remove_tree(self, path: Path) -> None:
        self.before_removal()
        super().remove_tree(path)


class House:
    """A store with a tidier, and all that the tidier goes by."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.disk = WatchedDisk()
        self.store = MirrorStore(root, disk=self.disk)
        self.store.open()
        self.metrics = NodeMetrics(CollectorRegistry())
        self.now = 1000.0
        self.since_use = 60.0
        self.refreshing: set[RepoKey] = set()
        self.dropped: list[Mirror] = []
        self.discarded: list[RepoKey] = []

    def tidier(
        self, *, cap: int = 1 << 30, is_refreshing: Callable[[RepoKey], bool] | None = None
    ) -> Tidier:
        self.room = room_of(cap, mirrors=self.store)
        return Tidier(
            store=self.store,
            room=self.room,
            is_refreshing=is_refreshing or self.refreshing.__contains__,
            drop=self.drop,
            renew=renew,
            discard=self.discarded.append,
            rules=RULES,
            metrics=self.metrics,
            clock=lambda: self.now,
            wall_clock=lambda: max(map(self.store.used_at, self.store.keys())) + self.since_use,
        )

    async def drop(self, mirror: Mirror, damage: MirrorDamaged) -> None:
        self.dropped.append(mirror)
        self.store.drop(mirror.key)

    def mirror(self, key: RepoKey = ONE) -> Mirror:
        found = self.store.get(key)
        assert found is not None
        return found

    def fill(self, key: RepoKey = ONE, *, segments: int = LEFT_ALONE + 1) -> Mirror:
        """Grow a mirror by so many segments; all tips stay, so it is clean."""
        refs = {}
        for number in range(segments):
            refs[f"b{number}"] = b"%d" % number
            grow(self.store, key, heads(**refs), [refs[f"b{number}"]])
        return self.mirror(key)

    def fill_idle(self) -> Mirror:
        """Have a second mirror, larger and longer unused."""
        content = random.Random(1).randbytes(20_000)
        mirror = grow(self.store, TWO, heads(main=content), [content])
        os.utime(mirror.directory / "manifest.json", (1000.0, 1000.0))
        self.store.close()
        self.store.open()
        return self.mirror(TWO)

    def counted(self, outcome: str) -> float:
        found = self.metrics.registry.get_sample_value(
            "goblet_node_tidied_total", {"outcome": outcome}
        )
        return found or 0.0


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path / "root")
    yield house
    assert list(CacheRoot(house.root).scratch.iterdir()) == []
    house.store.close()


async def test_small_segments_are_joined_when_it_is_quiet(house: House) -> None:
    before = house.fill()
    assert await house.tidier().tidy_next()
    after = house.mirror()
    assert len(after.segments) == 1
    assert after.generations == before.generations
    assert after.missing(after.tips) == []
    assert sorted(after.directory.glob("seg-*")) == sorted(after.files[0])
    assert house.counted("joined") == 1
    assert house.discarded == []
    assert not await house.tidier().tidy_next()


@pytest.mark.parametrize("cause", ["used", "read", "busy", "refreshing"])
async def test_it_waits_for_quiet_but_not_for_ever(house: House, cause: str) -> None:
    """Except for a refresh, which ends by itself."""
    mirror = house.fill()
    tidier = house.tidier()
    with house.store.reading(mirror), house.metrics.in_flight.track_inprogress():
        match cause:
            case "used":
                house.since_use = 1.0
            case "busy":
                house.metrics.in_flight.inc()
            case "refreshing":
                house.refreshing.add(ONE)
        assert not await tidier.tidy_next()
        house.now += RULES.patience - 1
        assert not await tidier.tidy_next()
        house.now += 1
        if cause == "refreshing":
            assert not await tidier.tidy_next()
            house.refreshing.clear()
        assert await tidier.tidy_next()
    assert len(house.mirror().segments) == 1


async def test_too_many_segments_are_joined_in_the_midst_of_work(house: House) -> None:
    """Pushes every few seconds would else use up the node's descriptors."""
    house.since_use = 0.0
    tidier = house.tidier()
    house.fill(segments=13)
    assert not await tidier.tidy_next()
    house.fill(segments=14)
    assert await tidier.tidy_next()


async def test_who_waited_longest_is_first(house: House) -> None:
    tidier = house.tidier()
    house.fill(TWO)
    with house.metrics.in_flight.track_inprogress(), house.metrics.in_flight.track_inprogress():
        assert not await tidier.tidy_next()
        house.now += 1
        house.fill(ONE)
        assert not await tidier.tidy_next()
    assert await tidier.tidy_next()
    assert (len(house.mirror(ONE).segments), len(house.mirror(TWO).segments)) == (9, 1)
    assert await tidier.tidy_next()
    assert len(house.mirror(ONE).segments) == 1


async def test_a_worn_log_is_renewed(house: House) -> None:
    grow(house.store, ONE, heads(main=b"old" * 100), [b"old" * 100])
    before = grow(house.store, ONE, heads(main=b"new"), [b"new"])
    assert not before.current.is_clean
    tidier = house.tidier()
    assert await tidier.tidy_next()
    after = house.mirror()
    assert after.current.is_clean
    assert after.refs == before.refs
    assert after.missing([blob_id(b"new"), blob_id(b"old" * 100)]) == [blob_id(b"old" * 100)]
    assert house.counted("renewed") == 1
    assert house.discarded == [ONE]
    assert not await tidier.tidy_next()


async def test_a_log_with_few_orphans_is_let_be_and_looked_at_again_later(house: House) -> None:
    """When it has lost more."""
    refs = heads(main=b"much\n" * 1000 + bytes(range(256)) * 9, side=b"s")
    grow(house.store, ONE, refs, [b"much\n" * 1000 + bytes(range(256)) * 9, b"s"])
    grow(house.store, ONE, refs[:1])
    tidier = house.tidier()
    assert await tidier.tidy_next()
    assert house.counted("left") == 1
    house.now += RULES.again_after
    assert not await tidier.tidy_next()
    grow(house.store, ONE, heads(main=b"little"), [b"little"])
    assert await tidier.tidy_next()
    assert house.counted("renewed") == 1


async def test_a_renewal_gives_way_to_a_refresh(house: House) -> None:
    """What is being taken in was made for the log that is there."""
    grow(house.store, ONE, heads(main=b"old" * 100), [b"old" * 100])
    before = grow(house.store, ONE, heads(main=b"new"), [b"new"])
    said = iter([False])  # and from then on that it is being refreshed
    tidier = house.tidier(is_refreshing=lambda key: next(said, True))
    assert await tidier.tidy_next()
    assert house.mirror() is before
    assert house.counted("failed") == 1


async def test_without_room_nothing_is_done_and_nothing_evicted(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    idle = house.fill_idle()
    mirror = house.fill()
    tidier = house.tidier(cap=house.store.total_bytes + 100)
    with caplog.at_level(logging.WARNING):
        assert await tidier.tidy_next()
    assert (house.mirror(ONE), house.mirror(TWO)) == (mirror, idle)
    assert "there is no room" in caplog.text
    assert not await tidier.tidy_next()
    house.now += RULES.again_after
    assert await house.tidier().tidy_next()
    assert len(house.mirror().segments) == 1


async def test_where_there_are_too_many_segments_what_is_idle_makes_room(house: House) -> None:
    """A cache is full most of its time, and a log must not have ever more segments."""
    house.fill_idle()
    mirror = house.fill(segments=14)
    assert await house.tidier(cap=house.store.total_bytes + 100).tidy_next()
    assert len(house.mirror().segments) == 1
    assert house.mirror().generations == mirror.generations
    assert house.store.get(TWO) is None


async def test_a_mirror_that_fills_the_cache_has_its_last_segments_joined(house: House) -> None:
    """There is never room for a second one of its first."""
    grow(house.store, ONE, heads(big=b"big"), [random.Random(1).randbytes(100_000), b"big"])
    for number in range(LEFT_ALONE):
        grow(house.store, ONE, heads(big=b"big", small=b"%d" % number), [b"%d" % number])
    mirror = house.mirror()
    tidier = house.tidier(cap=house.store.total_bytes + 50_000)
    assert await tidier.tidy_next()
    after = house.mirror()
    assert [after.segments[0], len(after.segments)] == [mirror.segments[0], 2]
    assert after.missing(after.tips) == []


async def test_what_was_joined_is_not_counted_twice(house: House) -> None:
    """For as long as scratch is cleared away, others would be evicted for it."""
    house.fill()
    tidier = house.tidier()
    used: list[int] = []
    house.disk.before_removal = lambda: used.append(house.room.used)
    assert await tidier.tidy_next()
    assert used == [house.store.total_bytes]


async def test_a_damaged_mirror_is_dropped(house: House) -> None:
    mirror = house.fill()
    content = bytearray(mirror.segments[3].pack.read_bytes())
    content[20] ^= 1
    mirror.segments[3].pack.write_bytes(content)
    assert await house.tidier().tidy_next()
    assert house.dropped == [mirror]


async def test_cancelled_it_leaves_everything_as_it_was(house: House) -> None:
    mirror = house.fill()
    # One that is cancelled while it starts anyio leaves to end by itself.
    await anyio.to_process.run_sync(os.getpid)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.tidier().tidy_next)
        while not list(CacheRoot(house.root).scratch.iterdir()):  # noqa: ASYNC110 - no event
            await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    assert house.mirror() is mirror
    assert not house.store.is_in_use(ONE)
    assert mirror.missing(mirror.tips) == []

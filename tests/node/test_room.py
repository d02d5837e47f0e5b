"""Claims of disk space, and what makes way for them."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry

from goblet_node.errors import DiskFailed
from goblet_node.fill.room import NoRoom, Room, cap_in
from goblet_node.metrics import NodeMetrics
from goblet_node.mirror.budget import BadCap, Cap
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.store import MirrorStore
from goblet_node.serve.recordings import Recordings
from goblet_shared.repo_key import RepoKey
from goblet_testing.mirrors import grow, heads
from goblet_testing.rooms import SizedMirrors, SizedRecordings, room_of

NEW = RepoKey("host/new")


async def test_a_claim_is_counted_and_given_back() -> None:
    room = room_of(100)
    with room.claim(NEW) as claim:
        await claim.grow_to(60)
        await claim.grow_to(40)  # it has more
        assert room.used == 60
        claim.shrink_to(50)
        assert room.used == 50
        with pytest.raises(NoRoom, match="its 100 bytes are in use"):
            await claim.grow_to(101)
        assert (room.used, claim.bytes) == (50, 50)
    assert room.used == 0


async def test_recordings_go_before_mirrors_and_mirrors_by_their_use() -> None:
    mirrors, recordings = SizedMirrors({"a": 30, "b": 30, "c": 30}), SizedRecordings(10)
    room = room_of(100, mirrors=mirrors, recordings=recordings)
    with room.claim(NEW) as claim:
        await claim.grow_to(5)
        assert (recordings.total, mirrors.evicted) == (5, [])
        await claim.grow_to(20)
        assert (recordings.total, mirrors.evicted) == (0, ["a"])
        await claim.grow_to(41)
        assert mirrors.evicted == recordings.discarded == ["a", "b"]
        assert room.used <= room.cap


async def test_mirrors_are_not_looked_at_where_recordings_are_enough() -> None:
    class Unseen(SizedMirrors):
        def sizes(self) -> Mapping[RepoKey, int]:
            raise AssertionError("thousands of them take long")

    room = room_of(100, mirrors=Unseen({"a": 50}), recordings=SizedRecordings(50))
    with room.claim(NEW) as claim:
        await claim.grow_to(50)
        assert room.used == 100


async def test_what_is_in_use_stays_and_nothing_goes_in_vain() -> None:
    mirrors = SizedMirrors({"read": 30, "written": 30, "asks": 30})
    mirrors.in_use.add("read")
    room = room_of(100, mirrors=mirrors)
    with (
        room.claim(RepoKey("written")),
        room.claim(RepoKey("asks")) as claim,
        pytest.raises(NoRoom),
    ):
        await claim.grow_to(20)
    assert mirrors.evicted == []
    with room.claim(NEW) as claim:
        await claim.grow_to(20)
    assert mirrors.evicted == ["written"]


async def test_a_mirror_that_is_read_again_meanwhile_stays_and_another_goes() -> None:
    """Between the choice and its deletion somebody begins to read it."""
    mirrors = SizedMirrors({"a": 50, "b": 50})
    mirrors.before_eviction = lambda key: mirrors.in_use.add("a")
    room = room_of(100, mirrors=mirrors)
    with room.claim(NEW) as claim:
        await claim.grow_to(10)
    assert mirrors.evicted == ["b"]


async def test_a_mirror_that_cannot_be_deleted_is_passed_over() -> None:
    class Stubborn(SizedMirrors):
        def evict(self, key: RepoKey, *, only: Mirror) -> int:
            if key == "a":
                raise DiskFailed("read-only file system")
            return super().evict(key, only=only)

    mirrors = Stubborn({"a": 50, "b": 50})
    with room_of(100, mirrors=mirrors).claim(NEW) as claim:
        await claim.grow_to(10)
        with pytest.raises(NoRoom):
            await claim.grow_to(60)
    assert mirrors.evicted == ["b"]


async def test_what_is_replaced_and_read_still_is_counted_and_not_evicted() -> None:
    class Replaced(SizedMirrors):
        @property
        def total_bytes(self) -> int:
            return super().total_bytes + 30

    mirrors = Replaced({"a": 50})
    with room_of(100, mirrors=mirrors).claim(NEW) as claim:
        with pytest.raises(NoRoom):
            await claim.grow_to(71)
        await claim.grow_to(70)
    assert mirrors.evicted == ["a"]


async def test_recordings_that_do_not_go_are_not_waited_for() -> None:
    class Stuck(SizedRecordings):
        def free(self, bytes: int) -> int:
            return super().free(bytes // 2)

    mirrors = SizedMirrors({"a": 50})
    with room_of(100, mirrors=mirrors, recordings=Stuck(50)).claim(NEW) as claim:
        await claim.grow_to(20)
    assert mirrors.evicted == ["a"]


async def test_claims_at_once_never_pass_the_cap_and_evict_no_more_than_they_need() -> None:
    mirrors = SizedMirrors({str(number): 10 for number in range(10)})
    room = room_of(100, mirrors=mirrors)
    most, refused, done = 0, 0, trio.Event()

    async def grow(number: int) -> None:
        nonlocal most, refused
        with room.claim(RepoKey(f"new/{number}")) as claim:
            try:
                for size in (3, 6, 9):
                    await claim.grow_to(size)
                    held = mirrors.total_bytes + claimed_by(room)
                    most = max(most, held)
            except NoRoom:
                refused += 1
            await done.wait()

    async with trio.open_nursery() as nursery:
        for number in range(15):
            nursery.start_soon(grow, number)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert 0 < refused < 15
        assert mirrors.total_bytes == 0
        assert 90 < most <= 100
        done.set()
    assert room.used == 0


def claimed_by(room: Room) -> int:
    return room.kinds()["claimed"]()


async def test_a_small_claim_does_not_take_what_is_being_freed_for_a_large_one() -> None:
    entered, go = trio.Event(), trio.Event()
    mirrors = SizedMirrors({"old": 80})

    def wait(_: str) -> None:
        trio.from_thread.run_sync(entered.set)
        trio.from_thread.run(go.wait)

    mirrors.before_eviction = wait
    room = room_of(100, mirrors=mirrors)

    async def small() -> None:
        with room.claim(RepoKey("small")) as claim, pytest.raises(NoRoom):
            await claim.grow_to(20)

    async with trio.open_nursery() as nursery:
        with room.claim(NEW) as claim:
            nursery.start_soon(claim.grow_to, 90)
            await entered.wait()
            nursery.start_soon(small)
            await trio.testing.wait_all_tasks_blocked()
            go.set()
            while nursery.child_tasks:
                await trio.testing.wait_all_tasks_blocked()
                await trio.lowlevel.checkpoint()
            assert claim.bytes == 90


async def test_a_claim_that_is_cancelled_while_room_is_made_leaves_nothing() -> None:
    """It needs two mirrors gone, and is cancelled while the first one goes."""
    mirrors = SizedMirrors({"a": 80, "b": 10})
    room = room_of(100, mirrors=mirrors)
    with room.claim(NEW) as claim:
        with trio.CancelScope() as scope:
            mirrors.before_eviction = lambda _: trio.from_thread.run_sync(scope.cancel)
            await claim.grow_to(95)
        assert scope.cancelled_caught
        assert (claim.bytes, claimed_by(room), mirrors.evicted) == (0, 0, ["a"])
        mirrors.before_eviction = lambda _: None
        await claim.grow_to(95)  # the next one is not kept out
    assert room.used == mirrors.total_bytes == 0


async def test_a_node_with_a_smaller_cap_than_before_settles_at_its_start() -> None:
    mirrors, recordings = SizedMirrors({"a": 50, "b": 50}), SizedRecordings(20)
    room = room_of(60, mirrors=mirrors, recordings=recordings)
    await room.settle()
    assert (recordings.total, mirrors.evicted, room.used) == (0, ["a"], 50)
    stuck = SizedMirrors({"a": 50})
    stuck.in_use.add("a")
    await room_of(10, mirrors=stuck).settle()  # says so and goes on
    assert stuck.evicted == []


def test_a_share_is_of_the_file_system_as_a_whole(tmp_path: Path) -> None:
    whole = cap_in(tmp_path, Cap(share=1.0))
    assert cap_in(tmp_path, Cap(share=0.5)) == whole // 2
    assert cap_in(tmp_path, Cap(bytes=whole)) == whole
    with pytest.raises(BadCap):
        cap_in(tmp_path, Cap(bytes=whole + 1))
    with pytest.raises(DiskFailed, match="cannot be read"):
        cap_in(tmp_path / "missing", Cap(share=0.5))


async def test_nothing_is_evicted_for_what_is_only_gladly_had() -> None:
    mirrors = SizedMirrors({"a": 50})
    with room_of(100, mirrors=mirrors).claim(NEW) as claim:
        await claim.grow_to(10, gladly=20)
        assert claim.bytes == 30
        await claim.grow_to(31, gladly=100)
        assert (claim.bytes, mirrors.evicted) == (50, [])
        await claim.grow_to(51, gladly=100)
        assert (claim.bytes, mirrors.evicted) == (51, ["a"])


async def test_the_metrics_show_what_takes_the_disk_and_what_made_way() -> None:
    metrics = NodeMetrics(CollectorRegistry())
    mirrors, recordings = SizedMirrors({"a": 50, "b": 20}), SizedRecordings(20)
    room = Room(cap=100, mirrors=mirrors, recordings=recordings, metrics=metrics)
    metrics.count_disk_with(room.kinds(), cap=room.cap)

    def shown(name: str, kind: str | None = None) -> float | None:
        labels = {} if kind is None else {"kind": kind}
        return metrics.registry.get_sample_value(f"goblet_node_{name}", labels)

    with room.claim(NEW) as claim:
        await claim.grow_to(40)
        with pytest.raises(NoRoom):
            await claim.grow_to(101)
        assert shown("disk_bytes", "claimed") == 40
    assert shown("disk_cap_bytes") == 100
    assert [shown("disk_bytes", kind) for kind in ("mirrors", "recordings", "claimed")] == [
        20,
        0,
        0,
    ]
    assert [shown("evicted_bytes_total", kind) for kind in ("mirror", "recordings")] == [50, 20]
    assert shown("evictions_total", "mirror") == shown("no_room_total") == 1


def bytes_below(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def opened(root: Path) -> tuple[MirrorStore, Recordings]:
    store = MirrorStore(root, disk=Disk())
    recordings = Recordings(root, budget=1 << 20, disk=Disk())
    store.open()
    recordings.open()
    return store, recordings


def filled(root: Path) -> tuple[MirrorStore, Recordings]:
    """Return a cache root with three mirrors of about 10 kB each, and a recording of `a`."""
    store, recordings = (
        MirrorStore(root, disk=Disk()),
        Recordings(root, budget=1 << 20, disk=Disk()),
    )
    store.open()
    recordings.open()
    for name in "abc":
        contents = [name.encode() + os.urandom(10_000)]
        grow(store, RepoKey(name), heads(main=contents[0]), contents)
    file = store.new_scratch() / "answer"
    file.write_bytes(b"answer")
    with recordings.writing(RepoKey("a"), "0" * 64) as writing:
        assert writing.keep(file, has_pack=True)
    return store, recordings


async def test_real_mirrors_and_recordings_make_way_and_a_mirror_that_is_read_does_not(
    tmp_path: Path,
) -> None:
    store, recordings = filled(tmp_path / "cache")
    store.touch(RepoKey("a"))
    b = store.get(RepoKey("b"))
    assert b is not None
    cap = store.total_bytes + recordings.total
    room = room_of(cap, mirrors=store, recordings=recordings)
    with room.claim(NEW) as claim, store.reading(b):
        await claim.grow_to(1)
        assert (recordings.total, len(store.keys())) == (0, 3)
        await claim.grow_to(5_000)
        assert set(store.keys()) == {"a", "b"}  # b was used before a, but is read
        assert b.files[0].pack.exists()
        await claim.grow_to(17_000)
        assert set(store.keys()) == {"b"}
        with pytest.raises(NoRoom):
            await claim.grow_to(30_000)
    assert room.used == store.total_bytes
    store.close()


async def test_after_a_crash_use_is_what_the_disk_holds(tmp_path: Path) -> None:
    """What was being written is gone with its claim; what is found counts itself."""
    store, recordings = filled(tmp_path / "cache")
    room = room_of(mirrors=store, recordings=recordings)
    with room.claim(NEW) as claim:
        await claim.grow_to(100_000)
        (store.new_scratch() / "received.pack").write_bytes(bytes(100_000))
        before = room.used
        # No more is heard of it: a new process opens the root.
        store.close()
    again, found = opened(tmp_path / "cache")
    assert room_of(mirrors=again, recordings=found).used == before - 100_000
    on_disk = bytes_below(tmp_path)
    assert on_disk <= before - 100_000 < on_disk + 4096  # recordings count whole blocks
    again.close()

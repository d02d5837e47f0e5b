"""Which refs stand in while upstream is down."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry

from goblet_node.errors import UpstreamDown
from goblet_node.fill.outages import Outages
from goblet_node.fill.refs import MIRRORED, RefsDesk
from goblet_node.fill.stale import StaleRefs
from goblet_node.metrics import NodeMetrics
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.store import MirrorStore
from goblet_node.wire.refs import Ref
from goblet_testing.listers import FakeLister, body_of, grant_to
from goblet_testing.mirrors import blob_id, grow

BOUND = 3600.0
KEY = grant_to().key
OWN = Ref(name=b"refs/heads/main", oid=blob_id(b"own"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MirrorStore]:
    store = MirrorStore(tmp_path / "cache", disk=Disk())
    store.open()
    yield store
    store.close()


class House:
    """Stale refs before an upstream in memory, and a real store."""

    def __init__(
        self, nursery: trio.Nursery, store: MirrorStore, *, stale: float = BOUND, memory: int = 9999
    ) -> None:
        self.lister = FakeLister(body_of("refs/heads/main"))
        self.confirmed: float | None = None
        self.desk = RefsDesk(upstream=self.lister, nursery=nursery, memory=memory)
        self.refs = StaleRefs(
            desk=self.desk,
            store=store,
            confirmed=lambda _: self.confirmed,
            stale=stale,
            stale_after=10,
            outages=Outages(metrics=NodeMetrics(CollectorRegistry())),
        )

    async def ask(self, question: tuple[bytes, ...] | None = MIRRORED) -> tuple[Ref, bool]:
        """Return the only ref, and whether it is stale."""
        listing, is_stale = await self.refs.ask(grant_to(), question)
        (ref,) = listing.refs
        return ref, is_stale

    def goes_down(self) -> None:
        self.lister.failure = UpstreamDown("down")


async def test_what_was_told_last_stands_in_within_the_bound_and_no_longer(
    nursery: trio.Nursery, store: MirrorStore, autojump_clock: trio.testing.MockClock
) -> None:
    house = House(nursery, store)
    told, _ = await house.ask()
    house.goes_down()
    await trio.sleep(BOUND - 1)
    assert await house.ask() == (told, True)
    await trio.sleep(1)
    with pytest.raises(UpstreamDown):
        await house.ask()


async def test_with_a_bound_of_0_nothing_stands_in(
    nursery: trio.Nursery, store: MirrorStore
) -> None:
    house = House(nursery, store, stale=0)
    await house.ask()
    house.goes_down()
    with pytest.raises(UpstreamDown):
        await house.ask()


async def test_the_mirrors_own_refs_stand_in_if_upstream_said_them_within_the_bound(
    nursery: trio.Nursery, store: MirrorStore, autojump_clock: trio.testing.MockClock
) -> None:
    """As where the listing was dropped for others."""
    grow(store, KEY, [OWN], [b"own"])
    house = House(nursery, store, memory=0)
    await house.ask()
    house.confirmed = trio.current_time()
    house.goes_down()
    await trio.sleep(BOUND - 1)
    assert await house.ask() == (OWN, True)
    for question in (None, (*MIRRORED, b"refs/pull/")):
        with pytest.raises(UpstreamDown):
            await house.ask(question)
    await trio.sleep(1)
    with pytest.raises(UpstreamDown):
        await house.ask()


async def test_a_mirror_whose_refs_were_not_confirmed_since_the_start_tells_nothing(
    nursery: trio.Nursery, store: MirrorStore
) -> None:
    grow(store, KEY, [OWN], [b"own"])
    house = House(nursery, store)
    house.goes_down()
    with pytest.raises(UpstreamDown):
        await house.ask()


async def test_what_can_be_cloned_goes_before_what_is_newer(
    nursery: trio.Nursery, store: MirrorStore, autojump_clock: trio.testing.MockClock
) -> None:
    """A push was heard of, and then upstream went down before its pack was had."""
    grow(store, KEY, [OWN], [b"own"])
    house = House(nursery, store)
    house.confirmed = trio.current_time()
    await trio.sleep(60)
    told, _ = await house.ask()
    assert told != OWN
    house.goes_down()
    assert await house.ask() == (OWN, True)
    house.confirmed = None
    assert await house.ask() == (told, True)


async def test_a_slow_upstream_is_waited_for_once_and_its_answer_is_for_those_who_come_later(
    nursery: trio.Nursery, store: MirrorStore, autojump_clock: trio.testing.MockClock
) -> None:
    house = House(nursery, store)
    await house.ask()
    await trio.sleep(1)
    house.lister.seconds = 40
    began = trio.current_time()
    assert (await house.ask())[1]
    assert trio.current_time() - began == 10
    assert (await house.ask())[1]
    assert trio.current_time() - began == 10
    assert len(house.lister.asked) == 2
    await trio.sleep(31)
    house.lister.seconds = 9
    assert (await house.ask())[1] is False, "it answered at last: it is waited for again"


async def test_an_upstream_that_just_failed_is_given_a_second(
    nursery: trio.Nursery, store: MirrorStore, autojump_clock: trio.testing.MockClock
) -> None:
    house = House(nursery, store)
    await house.ask()
    await trio.sleep(1)
    house.goes_down()
    await house.ask()
    house.lister.failure, house.lister.seconds = None, 9
    began = trio.current_time()
    assert (await house.ask())[1]
    assert trio.current_time() - began == 1
    await trio.sleep(9)
    assert not (await house.ask())[1]


async def test_a_damaged_refs_file_is_no_answer(nursery: trio.Nursery, store: MirrorStore) -> None:
    grow(store, KEY, [OWN], [b"own"])
    store.close()
    store.open()  # which checks the file, and reads it when it is asked for
    mirror = store.get(KEY)
    assert mirror is not None
    (mirror.directory / mirror.current.refs_file).write_bytes(b"rot")
    house = House(nursery, store)
    house.confirmed = trio.current_time()
    house.goes_down()
    with pytest.raises(UpstreamDown):
        await house.ask()

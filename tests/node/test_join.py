"""What a new node copies, from whom, and when it stops."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.cluster.join import Join, wanted
from goblet_node.fill.pace import Pace
from goblet_node.fill.peers import PeerFailed, PeerMirror
from goblet_shared.contract import NodeName
from goblet_shared.members import MemberState
from goblet_shared.repo_key import RepoKey
from goblet_shared.ring import Ring
from goblet_testing.seen_members import SeenMembers

ME = NodeName("goblet-4")
OTHERS = [NodeName(f"goblet-{number}") for number in (1, 2, 3)]
OLD = Ring.of(OTHERS)
NEW = Ring.of([*OTHERS, ME])
MINE = [
    key
    for key in (RepoKey(f"h.test/r{number}") for number in range(200))
    if NEW.owners(key)[0] == ME
][:12]


def mirror(key: RepoKey, *, used_at: float = 1.0, size: int = 10) -> PeerMirror:
    return PeerMirror(key=key, bytes=size, used_at=used_at)


held_by = st.dictionaries(
    st.sampled_from(OTHERS),
    st.dictionaries(
        st.integers(0, 60).map(lambda number: RepoKey(f"h.test/r{number}")), st.floats(1, 100)
    ).map(lambda used: [mirror(key, used_at=at) for key, at in used.items()]),
)


@given(held_by, st.sets(st.integers(0, 60).map(lambda number: RepoKey(f"h.test/r{number}"))))
def test_what_is_wanted_is_what_others_hold_and_the_node_will_own(
    held: dict[NodeName, list[PeerMirror]], here: set[RepoKey]
) -> None:
    found = wanted(me=ME, now=OLD, then=NEW, held=held, here=here)
    there = {one.key for mirrors in held.values() for one in mirrors}
    assert {want.key for want in found} == {key for key in there - here if NEW.owners(key)[0] == ME}
    assert len(found) == len({want.key for want in found})
    for want in found:
        holders = {node for node, mirrors in held.items() if want.key in {m.key for m in mirrors}}
        assert want.sources == tuple(node for node in OLD.owners(want.key) if node in holders)
    uses = [want.used_at for want in found]
    assert uses == sorted(uses, reverse=True)


def test_who_is_on_no_ring_is_asked_for_a_copy_last() -> None:
    held = {NodeName("a-stranger"): [mirror(MINE[0])], OTHERS[2]: [mirror(MINE[0])]}
    (want,) = wanted(me=ME, now=OLD, then=NEW, held=held, here=())
    assert want.sources == (OTHERS[2], NodeName("a-stranger"))


@dataclass
class Peers:
    """Others that hold mirrors; some fail, some never answer."""

    holds: Mapping[NodeName, Sequence[PeerMirror]]
    broken: Iterable[RepoKey] = ()
    deaf: frozenset[NodeName] = frozenset()
    failing: frozenset[NodeName] = frozenset()
    takes: float = 1.0
    here: set[RepoKey] = field(default_factory=set)
    asked: list[tuple[RepoKey, NodeName]] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0

    async def mirrors(self, node: NodeName) -> tuple[PeerMirror, ...]:
        await trio.sleep(0.1)
        if node in self.deaf:
            await trio.sleep_forever()
        if node in self.failing:
            raise PeerFailed(f"{node}: connection refused")
        return tuple(self.holds.get(node, ()))

    async def copy(self, key: RepoKey, source: NodeName, *, pace: Pace | None = None) -> object:
        self.asked.append((key, source))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await trio.sleep(self.takes)
        finally:
            self.under_way -= 1
        if key in self.broken:
            return None
        self.here.add(key)
        return object()


def join(peers: Peers, *, others: Sequence[NodeName] = OTHERS, free: int = 1000) -> Join:
    return Join(
        me=ME,
        neighbours=SeenMembers(me=ME, others=dict.fromkeys(others, MemberState.READY)),
        lists=peers,
        copies=peers,
        here=lambda: peers.here,
        free=lambda: free,
        pace=None,
        at_once=2,
        report=lambda progress: None,
    )


async def test_what_is_used_most_is_copied_first_several_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    holds: dict[NodeName, list[PeerMirror]] = {OLD.owners(key)[0]: [] for key in MINE}
    for rank, key in enumerate(MINE):
        holds[OLD.owners(key)[0]].append(mirror(key, used_at=100.0 - rank))
    peers = Peers(holds)
    await join(peers).run()
    assert peers.asked == [(key, OLD.owners(key)[0]) for key in MINE]
    assert peers.most_under_way == 2
    assert peers.here == set(MINE)


async def test_a_copy_that_fails_is_tried_from_the_next_holder_and_once_more_and_then_left(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = MINE[:2]
    holders = OLD.owners(first)[1:]
    peers = Peers(
        {holder: [mirror(first, used_at=9), mirror(second)] for holder in holders}, broken=[first]
    )
    with caplog.at_level(logging.INFO):
        await join(peers).run()
    assert [source for key, source in peers.asked if key == first] == 2 * list(holders)
    assert peers.here == {second}
    assert "joined: 1 of 2 mirrors copied" in caplog.text


async def test_what_finds_no_room_is_left_and_smaller_ones_are_copied(
    autojump_clock: trio.testing.MockClock,
) -> None:
    large, small = MINE[:2]
    held = [mirror(large, used_at=9, size=500), mirror(small, size=100)]
    peers = Peers({OTHERS[0]: held})
    await join(peers, free=100).run()
    assert peers.here == {small}


async def test_what_comes_to_the_others_meanwhile_is_copied_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    holds = {OTHERS[0]: [mirror(MINE[0])]}
    peers = Peers(holds)

    async def client() -> None:
        await trio.sleep(0.5)  # during the first copy
        holds[OTHERS[0]] = [*holds[OTHERS[0]], mirror(MINE[1])]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client)
        await join(peers).run()
    assert peers.here == set(MINE[:2])


async def test_a_join_that_was_cut_short_goes_on_where_it_stopped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peers = Peers({OTHERS[0]: [mirror(key) for key in MINE]})
    with trio.move_on_after(3.5):
        await join(peers).run()
    before = set(peers.here)
    assert 0 < len(before) < len(MINE)
    assert peers.under_way == 0
    peers.asked.clear()
    await join(peers).run()
    assert {key for key, _ in peers.asked} == set(MINE) - before
    assert peers.here == set(MINE)


async def test_others_that_do_not_answer_delay_nobody_for_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peers = Peers({OTHERS[0]: [mirror(MINE[0])]}, deaf=frozenset(OTHERS[1:]))
    await join(peers).run()
    assert peers.here == {MINE[0]}
    assert trio.current_time() < 20


async def test_a_ready_node_that_did_not_answer_is_asked_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peers = Peers({node: [mirror(MINE[rank])] for rank, node in enumerate(OTHERS)})
    peers.failing = frozenset(OTHERS[1:])

    async def recover() -> None:
        await trio.sleep(1)
        peers.failing = frozenset()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(recover)
        await join(peers).run()
    assert peers.here == set(MINE[:3])


@pytest.mark.parametrize("how", ["deaf", "failing"])
async def test_where_nobody_answers_at_all_there_is_nothing_to_copy(
    autojump_clock: trio.testing.MockClock, how: str
) -> None:
    peers = Peers({}, **{how: frozenset(OTHERS)})  # type: ignore[arg-type]
    await join(peers).run()
    assert not peers.asked
    assert 4 < trio.current_time() < 12


async def test_a_node_that_is_alone_waits_for_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    await join(Peers({}), others=[]).run()
    assert trio.current_time() == 0

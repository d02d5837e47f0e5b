"""Who takes over what a node held that goes, and how long it waits for that."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.cluster.drain import Drain, heirs
from goblet_node.fill.peers import PeerFailed, PeerMirror
from goblet_shared.contract import NodeName
from goblet_shared.members import MemberState
from goblet_shared.repo_key import RepoKey
from goblet_shared.ring import Ring
from goblet_testing.seen_members import SeenMembers

ME = NodeName("goblet-4")
OTHERS = [NodeName(f"goblet-{number}") for number in (1, 2, 3)]
RING = Ring.of([*OTHERS, ME])
WITHOUT = Ring.of(OTHERS)
KEYS = [RepoKey(f"h.test/r{number}") for number in range(80)]
MINE = [key for key in KEYS if RING.owners(key)[0] == ME]
READY = dict.fromkeys(OTHERS, MemberState.READY)


@given(
    st.lists(st.sampled_from(KEYS), unique=True),
    st.fixed_dictionaries({node: st.sampled_from(MemberState) for node in OTHERS}),
)
def test_an_heir_is_whom_routers_will_ask_of_those_that_are_ready(
    keys: list[RepoKey], states: dict[NodeName, MemberState]
) -> None:
    found = heirs(me=ME, now=RING, then=WITHOUT, keys=keys, state=states.__getitem__)
    ready = [node for node in OTHERS if states[node] is MemberState.READY]
    taken = [key for share in found.values() for key in share]
    # What it took over from who goes, too, is asked of it already.
    asked = [key for key in keys if _first(RING.owners(key), {*ready, ME}) == ME]
    assert set(asked) >= set(MINE).intersection(keys)
    assert sorted(taken) == sorted(asked if ready else [])
    for heir, share in found.items():
        assert list(share) == [key for key in keys if key in share]
        for key in share:
            assert heir == next(node for node in WITHOUT.owners(key) if node in ready)


def _first(order: Sequence[NodeName], nodes: set[NodeName]) -> NodeName:
    return next(node for node in order if node in nodes)


def test_who_is_not_on_the_ring_has_nothing_to_hand_over() -> None:
    assert heirs(me=ME, now=WITHOUT, then=WITHOUT, keys=KEYS, state=READY.__getitem__) == {}


@dataclass
class Takers:
    """Others that copy what they are told to, one mirror a second.

    Who is `unable` tries in vain; who is `busy` misses so many questions, and then answers.
    """

    holds: dict[NodeName, list[RepoKey]] = field(default_factory=dict)
    failing: frozenset[NodeName] = frozenset()
    slow: frozenset[NodeName] = frozenset()
    unable: frozenset[NodeName] = frozenset()
    busy: dict[NodeName, int] = field(default_factory=dict)
    told: dict[NodeName, Sequence[RepoKey]] = field(default_factory=dict)
    since: dict[NodeName, float] = field(default_factory=dict)

    async def hand_over(self, node: NodeName, keys: Sequence[RepoKey]) -> None:
        assert node not in self.told
        self._answer(node)
        self.told[node] = keys
        self.since[node] = trio.current_time()

    async def mirrors(self, node: NodeName) -> tuple[PeerMirror, ...]:
        self._answer(node)
        held = list(self.holds.get(node, ()))
        if node in self.told and node not in self.unable:
            held += self.told[node][: self._tried(node)]
        return tuple(PeerMirror(key=key, bytes=1, used_at=1.0) for key in held)

    async def awaited(self, node: NodeName) -> frozenset[RepoKey]:
        self._answer(node)
        return frozenset(self.told[node][self._tried(node) :])

    def _answer(self, node: NodeName) -> None:
        self.busy[node] = self.busy.get(node, 0) - 1
        if node in self.failing or self.busy[node] >= 0:
            raise PeerFailed(f"{node}: no answer")

    def _tried(self, node: NodeName) -> int:
        return 0 if node in self.slow else int(trio.current_time() - self.since[node])


def drain(takers: Takers, said: list[str], states: dict[NodeName, MemberState]) -> Drain:
    return Drain(
        me=ME,
        neighbours=SeenMembers(me=ME, others=states, is_on_ring=True),
        takers=takers,
        here=lambda: KEYS,
        report=said.append,
    )


SHARES = heirs(me=ME, now=RING, then=WITHOUT, keys=KEYS, state=READY.__getitem__)


async def test_a_drain_ends_when_the_heirs_hold_what_they_were_told_to_take(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    takers, said = Takers(), list[str]()
    with caplog.at_level(logging.INFO):
        await drain(takers, said, READY).run()
    assert takers.told == SHARES
    longest = max(map(len, SHARES.values()))
    assert longest <= trio.current_time() < longest + 1
    assert said[-1] == f"{len(MINE)} of {len(MINE)} mirrors handed over"
    assert f"{len(MINE)} of {len(MINE)} mirrors handed over" in caplog.text


async def test_what_an_heir_holds_it_need_not_take(
    autojump_clock: trio.testing.MockClock,
) -> None:
    heir = next(iter(SHARES))
    takers = Takers(holds={heir: list(SHARES[heir])})
    await drain(takers, [], READY).run()
    assert heir not in takers.told
    assert set(takers.told) == set(SHARES) - {heir}


async def test_an_heir_that_fails_holds_nobody_up(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    heir = next(iter(SHARES))
    takers, said = Takers(failing=frozenset([heir])), list[str]()
    await drain(takers, said, READY).run()
    rest = len(MINE) - len(SHARES[heir])
    assert said[-1] == f"{rest} of {len(MINE)} mirrors handed over"
    assert f"{heir} takes nothing over any more" in caplog.text


async def test_an_heir_that_cannot_take_a_mirror_is_not_waited_for(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    heir = next(iter(SHARES))
    said = list[str]()
    await drain(Takers(unable=frozenset([heir])), said, READY).run()
    assert trio.current_time() < max(map(len, SHARES.values())) + 1
    rest = len(MINE) - len(SHARES[heir])
    assert said[-1] == f"{rest} of {len(MINE)} mirrors handed over"
    assert f"{heir} could not take {len(SHARES[heir])} mirrors over" in caplog.text


async def test_an_heir_that_is_busy_for_a_moment_takes_all_the_same(
    autojump_clock: trio.testing.MockClock,
) -> None:
    said = list[str]()
    await drain(Takers(busy=dict.fromkeys(SHARES, 3)), said, READY).run()
    assert said[-1] == f"{len(MINE)} of {len(MINE)} mirrors handed over"


async def test_a_drain_waits_for_an_heir_until_its_caller_has_enough(
    autojump_clock: trio.testing.MockClock,
) -> None:
    heir = next(iter(SHARES))
    said = list[str]()
    with trio.move_on_after(50) as patience:
        await drain(Takers(slow=frozenset([heir])), said, READY).run()
    assert patience.cancelled_caught
    rest = len(MINE) - len(SHARES[heir])
    assert said[-1] == f"{rest} of {len(MINE)} mirrors handed over"


async def test_a_drain_among_nodes_that_go_too_ends_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    takers = Takers()
    await drain(takers, [], dict.fromkeys(OTHERS, MemberState.DRAINING)).run()
    assert (takers.told, trio.current_time()) == ({}, 0)

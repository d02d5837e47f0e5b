"""What a node says that it is, and when it says something else."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.cluster.life import NEXT, STATUS, Fact, Life, stop_after_notice
from goblet_shared.members import MemberState, state_said

OWN = [MemberState.JOINING, MemberState.READY, MemberState.DRAINING]


def life(state: MemberState = MemberState.JOINING) -> tuple[Life, list[MemberState]]:
    heard: list[MemberState] = []
    return Life(state, observers=[heard.append]), heard


def test_a_node_joins_serves_and_goes_and_observers_hear_of_each_turn_once() -> None:
    node, heard = life()
    for fact in (Fact.JOINED, Fact.JOINED, Fact.TOLD_TO_GO, Fact.TOLD_TO_GO, Fact.JOINED):
        node.happens(fact)
    assert heard == OWN


def test_a_node_that_still_joins_can_be_told_to_go() -> None:
    node, heard = life()
    node.happens(Fact.TOLD_TO_GO)
    assert heard == [MemberState.JOINING, MemberState.DRAINING]


@given(st.lists(st.sampled_from(Fact)))
def test_whatever_happens_a_state_never_comes_back(facts: list[Fact]) -> None:
    node, heard = life()
    for fact in facts:
        node.happens(fact)
    assert heard == [state for state in OWN if state in heard]
    assert heard[-1] is node.state


def test_every_state_has_a_row_and_a_status() -> None:
    assert set(NEXT) == set(STATUS) == set(OWN)


@pytest.mark.parametrize("state", OWN)
def test_others_understand_what_readyz_says(state: MemberState) -> None:
    node, _ = life(state)
    node.report("3 of 4 mirrors copied")
    assert state_said(node.status, f"{node.sentence}\n".encode()) is state


def test_progress_is_said_until_the_state_changes() -> None:
    node, _ = life()
    assert node.sentence == "joining"
    node.report("3 of 4 mirrors copied")
    assert node.sentence == "joining: 3 of 4 mirrors copied"
    node.happens(Fact.JOINED)
    assert (node.sentence, node.progress) == ("ready", "")


async def test_who_is_a_member_of_nothing_stops_after_its_notice(
    autojump_clock: trio.testing.MockClock,
) -> None:
    node, _ = life(MemberState.READY)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_after_notice, node, 3.0, stop)
        await trio.sleep(100)
        assert not stop.is_set()
        node.happens(Fact.TOLD_TO_GO)
        told = trio.current_time()
        await stop.wait()
        assert trio.current_time() - told == 3.0

"""What is believed of members: the table, the ring's rule, and departures."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_shared.contract import NodeName
from goblet_shared.members import Member, MemberState
from goblet_shared.membership import (
    DEPARTURES_COUNT_FOR,
    SAID,
    Fact,
    Membership,
    Rules,
    at,
    heard,
    listed,
)

A, B, C = NAMES = tuple(map(NodeName, ("a", "b", "c")))
RULES = Rules(rise=2, fall=2, gone_after=60, interval=2, timeout=2)
HEARD = [fact for fact in Fact if fact not in (Fact.UNLISTED, Fact.OVERDUE)]
FAILURES = (Fact.PROBE_FAILED, Fact.REQUEST_FAILED)
JOINING, READY = MemberState.JOINING, MemberState.READY
SUSPECT, DRAINING, GONE = MemberState.SUSPECT, MemberState.DRAINING, MemberState.GONE


def member(name: NodeName, number: int = 1) -> Member:
    return Member(name=name, url=f"http://10.0.0.{number}:8080")


class Told:
    """A membership that is told one thing after the other."""

    def __init__(self, *names: NodeName) -> None:
        self.now = 0.0
        self.value = Membership()
        self.heard_last: tuple[NodeName, Fact] | None = None
        self.lists(*names)

    def lists(self, *names: NodeName) -> None:
        self.value = listed(self.value, [member(name) for name in names], self.now, RULES)

    def ring(self) -> tuple[NodeName, ...]:
        return self.value.ring

    def hears(self, name: NodeName, *facts: Fact) -> MemberState:
        for fact in facts:
            self.heard_last = (name, fact)
            self.value = heard(self.value, name, fact, self.now, RULES)
        return self.value.state(name)

    def waits(self, seconds: float) -> None:
        self.now += seconds
        self.value = at(self.value, self.now)


def cluster(*names: NodeName) -> Told:
    told = Told(*names)
    for name in names:
        told.hears(name, Fact.SAID_READY)
    return told


def in_state(state: MemberState) -> Told:
    told = cluster(A, B)
    fact = Fact.REQUEST_FAILED if state is SUSPECT else SAID[state]
    assert told.hears(A, fact) is state
    return told


def test_those_listed_first_are_on_the_ring_before_they_are_heard_of() -> None:
    told = Told(B, A)
    assert told.ring() == (A, B)
    assert told.value.state(A) is JOINING


def test_one_listed_later_comes_onto_the_ring_when_it_is_ready() -> None:
    told = cluster(A)
    told.lists(A, B)
    assert told.hears(B, *FAILURES, *FAILURES) is JOINING
    told.hears(B, Fact.SAID_JOINING, Fact.PROBE_FAILED, Fact.PROBE_FAILED, Fact.REQUEST_FAILED)
    assert (told.value.state(B), told.ring(), told.value.epoch) == (JOINING, (A,), 1)
    assert told.hears(B, Fact.SAID_READY) is READY
    assert (told.ring(), told.value.epoch) == ((A, B), 2)


def test_one_listed_first_that_joins_leaves_the_ring_until_it_is_ready() -> None:
    told = Told(A, B)
    told.hears(A, Fact.SAID_READY)
    told.hears(B, Fact.SAID_JOINING)
    assert told.ring() == (A,)
    told.hears(B, Fact.SAID_READY)
    assert told.ring() == (A, B)


def test_one_that_was_ready_and_joins_again_keeps_its_place_and_is_asked_last() -> None:
    told = cluster(A, B)
    assert told.hears(A, Fact.SAID_JOINING) is JOINING
    assert told.ring() == (A, B)
    assert told.value.willing([A, B]) == (B, A)


def test_where_everybody_joins_the_ring_is_over_all() -> None:
    told = Told(A, B)
    told.hears(A, Fact.SAID_JOINING)
    told.hears(B, Fact.SAID_JOINING)
    assert told.ring() == (A, B)


@pytest.mark.parametrize("state", [JOINING, DRAINING])
def test_what_a_node_says_of_itself_is_believed_at_once(state: MemberState) -> None:
    for before in (JOINING, READY, SUSPECT, DRAINING):
        assert in_state(before).hears(A, SAID[state]) is state


@pytest.mark.parametrize(("before", "needed"), [(JOINING, 1), (DRAINING, 1), (SUSPECT, 2)])
def test_all_but_a_suspect_are_ready_when_they_first_say_so(
    before: MemberState, needed: int
) -> None:
    told = in_state(before)
    assert [told.hears(A, Fact.SAID_READY) for _ in range(needed)][-1] is READY
    told = in_state(before)
    assert all(told.hears(A, Fact.SAID_READY) is before for _ in range(needed - 1))


def test_a_ready_member_falls_after_bad_probes_in_a_row() -> None:
    told = cluster(A)
    assert told.hears(A, Fact.PROBE_FAILED, Fact.SAID_READY, Fact.PROBE_FAILED) is READY
    assert told.hears(A, Fact.PROBE_FAILED) is SUSPECT


def test_a_suspect_rises_after_good_probes_in_a_row() -> None:
    told = in_state(SUSPECT)
    assert told.hears(A, Fact.SAID_READY, Fact.PROBE_FAILED, Fact.SAID_READY) is SUSPECT
    assert told.hears(A, Fact.SAID_READY, Fact.SAID_READY) is READY


def test_a_suspect_that_was_never_ready_has_only_just_come_up() -> None:
    told = Told(A)
    assert told.hears(A, Fact.PROBE_FAILED, Fact.PROBE_FAILED) is SUSPECT
    assert told.hears(A, Fact.SAID_READY) is READY


@pytest.mark.parametrize("state", [JOINING, DRAINING])
def test_one_that_told_why_it_is_asked_last_is_not_suspected(state: MemberState) -> None:
    assert in_state(state).hears(A, *FAILURES, *FAILURES) is state


@given(st.permutations(NAMES), st.lists(st.sampled_from(HEARD), max_size=9))
def test_the_willing_are_all_owners_with_the_ready_first(
    owners: Sequence[NodeName], facts: list[Fact]
) -> None:
    told = cluster(*NAMES)
    for number, fact in enumerate(facts):
        told.hears(NAMES[number % 3], fact)
    willing = told.value.willing(owners)
    ranks = [[READY, SUSPECT, DRAINING, JOINING].index(told.value.state(name)) for name in willing]
    assert ranks == sorted(ranks)
    for state in MemberState:
        of_state = [name for name in owners if told.value.state(name) is state]
        assert [name for name in willing if told.value.state(name) is state] == of_state


def test_one_that_is_not_listed_is_suspect_and_goes_after_its_time() -> None:
    told = cluster(A, B)
    told.lists(A)
    assert told.value.state(B) is SUSPECT
    assert told.value.next_departure == 60
    told.hears(B, *[Fact.SAID_READY] * 3)
    told.waits(59.9)
    assert (told.value.state(B), told.ring()) == (SUSPECT, (A, B))
    told.waits(0.1)
    assert (told.value.state(B), told.ring(), told.value.epoch) == (GONE, (A,), 2)


@pytest.mark.parametrize("state", [JOINING, DRAINING])
def test_one_that_said_why_it_is_not_ready_keeps_its_place_as_long_as_others(
    state: MemberState,
) -> None:
    told = in_state(state)
    told.lists(B)
    told.waits(59.9)
    assert (told.value.state(A), told.ring()) == (state, (A, B))
    told.waits(0.1)
    assert (told.value.state(A), told.ring()) == (GONE, (B,))


def test_a_rolling_restart_changes_the_ring_for_none_of_its_nodes() -> None:
    told = cluster(*NAMES)
    for name in NAMES:
        told.hears(name, Fact.SAID_DRAINING)
        told.lists(*(other for other in NAMES if other != name))
        assert told.value.willing(NAMES)[-1] == name
        told.hears(name, *FAILURES)
        told.waits(30)
        told.lists(*NAMES)
        assert told.hears(name, Fact.SAID_READY) is READY
    assert (told.ring(), told.value.epoch) == (NAMES, 1)


@pytest.mark.parametrize("state", [JOINING, DRAINING])
def test_one_that_has_no_place_goes_as_soon_as_it_is_not_listed(state: MemberState) -> None:
    told = cluster(A)
    told.lists(A, B)
    told.hears(B, SAID[state])
    told.lists(A)
    assert (told.value.state(B), told.ring(), told.value.epoch) == (GONE, (A,), 1)


def test_one_that_is_not_listed_and_says_that_it_drains_goes_no_sooner() -> None:
    told = cluster(A, B)
    told.lists(B)
    told.waits(5)
    assert told.hears(A, Fact.SAID_DRAINING) is DRAINING
    assert told.value.next_departure == 60


def test_one_that_comes_back_in_time_keeps_its_place_and_must_rise() -> None:
    told = cluster(A, B)
    told.lists(A)
    told.waits(50)
    told.lists(A, B)
    told.waits(50)
    assert (told.ring(), told.value.state(B)) == ((A, B), SUSPECT)
    assert told.hears(B, Fact.SAID_READY, Fact.SAID_READY) is READY


def test_an_empty_list_lets_nobody_go_at_once() -> None:
    told = cluster(A, B)
    told.lists(*NAMES)
    told.lists()
    assert told.ring() == (A, B)
    assert {*told.value.standings} == {*NAMES}
    told.waits(60)
    assert told.ring() == ()
    assert not told.value.standings


def test_an_empty_list_at_first_is_not_the_first() -> None:
    told = Told()
    told.lists(A, B)
    told.hears(A, Fact.SAID_READY)
    assert told.ring() == (A, B)


def leave_and_return(told: Told, seconds: float) -> float:
    """Have B leave the ring once, and return how long it kept its place."""
    told.lists(A)
    began = told.now
    while B in told.ring():
        assert told.value.next_departure is not None
        told.waits(told.value.next_departure - told.now)
    kept = told.now - began
    told.waits(seconds)
    told.lists(A, B)
    told.hears(B, Fact.SAID_READY)
    assert B in told.ring()
    return kept


def test_each_departure_within_an_hour_doubles_the_time_to_the_next() -> None:
    told = cluster(A, B)
    assert [leave_and_return(told, 10) for _ in range(4)] == [60, 120, 240, 480]
    told.waits(DEPARTURES_COUNT_FOR)
    assert leave_and_return(told, 10) == 60


def test_an_empty_list_is_not_the_sooner_believed_for_one_that_comes_and_goes() -> None:
    told = cluster(A, B)
    leave_and_return(told, 10)
    began = told.now
    told.lists()
    told.waits(60)
    assert told.ring() == (B,)
    assert told.value.next_departure == began + 120


def test_a_new_address_keeps_the_place_and_forgets_what_was_counted() -> None:
    told = cluster(A)
    told.hears(A, Fact.PROBE_FAILED)
    told.value = listed(told.value, [member(A, 2)], 0, RULES)
    assert told.hears(A, Fact.PROBE_FAILED) is READY
    assert (told.value.standings[A].member.url, told.value.epoch) == ("http://10.0.0.2:8080", 1)


def test_news_of_somebody_unknown_is_no_news() -> None:
    told = cluster(A)
    assert heard(told.value, B, Fact.SAID_READY, 0, RULES) is told.value


Step = Callable[[Told], object]


def _steps(*, lists: bool = True, hears: Sequence[Fact] = HEARD) -> st.SearchStrategy[Step]:
    names = st.sampled_from(NAMES)
    tell = st.builds(
        lambda name, fact: lambda told: told.hears(name, fact), names, st.sampled_from(hears)
    )
    wait = st.builds(lambda seconds: lambda told: told.waits(seconds), st.integers(0, 100))
    name_them = st.builds(
        lambda chosen: lambda told: told.lists(*chosen), st.sets(names, min_size=1)
    )
    return st.one_of(tell, wait, *([name_them] if lists else []))


@given(st.lists(_steps(), max_size=40))
def test_the_ring_is_never_empty_and_changes_for_a_reason_alone(steps: list[Step]) -> None:
    told = cluster(*NAMES)
    for step in steps:
        before, told.heard_last = told.value, None
        step(told)
        after = told.value
        assert after.ring, "everybody left"
        assert set(after.ring) <= after.standings.keys()
        assert after.epoch - before.epoch == (after.ring != before.ring)
        for name in {*before.ring} - {*after.ring}:
            known = before.standings[name]
            waited = known.leaves_at is not None and known.leaves_at <= told.now
            joins = not known.was_ready and told.heard_last == (name, Fact.SAID_JOINING)
            stood_in = not known.is_on_ring
            assert waited or joins or stood_in, f"{name} left without a reason"
        for name in {*after.ring} - {*before.ring}:
            assert after.state(name) is READY or not any(
                one.is_on_ring for one in after.standings.values()
            )


@given(st.lists(_steps(), max_size=40))
def test_one_that_was_ready_never_leaves_before_its_time(steps: list[Step]) -> None:
    told = cluster(*NAMES)
    missing_since: dict[NodeName, float] = {}
    for step in steps:
        before = told.value
        step(told)
        for name in NAMES:
            standing = told.value.standings.get(name)
            known = before.standings.get(name)
            # One that stands in for want of others has no place to keep.
            if standing is None and known is not None and known.is_on_ring:
                assert told.now - missing_since[name] >= RULES.gone_after
            if standing is not None and standing.leaves_at is not None:
                missing_since.setdefault(name, told.now)
            else:
                missing_since.pop(name, None)


@given(st.lists(_steps(lists=False, hears=[Fact.SAID_READY, *FAILURES]), max_size=40))
def test_no_failure_ever_changes_the_ring(steps: list[Step]) -> None:
    told = cluster(*NAMES)
    for step in steps:
        step(told)
    assert (told.ring(), told.value.epoch) == (NAMES, 1)


@given(
    st.lists(
        st.tuples(st.floats(0, 59.9), st.floats(0, 100), st.sets(st.sampled_from(FAILURES))),
        max_size=20,
    )
)
def test_one_that_flaps_faster_than_its_time_never_changes_the_ring(
    flaps: list[tuple[float, float, set[Fact]]],
) -> None:
    told = cluster(*NAMES)
    for away, there, facts in flaps:
        told.lists(A, B)
        told.hears(C, *facts)
        told.waits(away)
        told.lists(*NAMES)
        told.hears(C, Fact.SAID_READY)
        told.waits(there)
    assert (told.ring(), told.value.epoch) == (NAMES, 1)


@given(st.lists(_steps(), max_size=30), st.permutations(NAMES))
def test_the_same_facts_make_the_same_membership(
    steps: list[Step], order: Sequence[NodeName]
) -> None:
    one, other = Told(*NAMES), Told(*order)
    for step in steps:
        step(one)
        step(other)
    assert one.value == other.value

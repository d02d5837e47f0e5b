"""The plan for each kind of fetch, from facts alone."""

import pytest

from goblet_node.mirror.log import Generation
from goblet_node.serve.plan import Follow, Forward, Held, Plan, Refill, Whole, plan
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.requests import Fetch

A, B, C = (ObjectId(digit * 40) for digit in (b"a", b"b", b"c"))
NONE: frozenset[ObjectId] = frozenset()


def generation(number: int, segments: int, *orphans: ObjectId) -> Generation:
    return Generation(number=number, segments=segments, refs_file="-", orphans=orphans)


def held(
    *within: Generation, reach: int = 1, unknown: frozenset[ObjectId] = NONE, is_clean: bool = True
) -> Held:
    return Held(within=within, unknown=unknown, reach=reach, is_clean=is_clean)


CLONE = Fetch(wants=(A, B), done=True, include_tag=True, thin_pack=True, ofs_delta=True)


def planned(
    fetch: Fetch = CLONE,
    held: Held | None = None,
    arriving: frozenset[ObjectId] | None = None,
    may_refill: bool = True,
) -> Plan:
    return plan(fetch, held=held, arriving=arriving, may_refill=may_refill)


def test_a_clone_of_a_clean_generation_is_whole() -> None:
    current = generation(3, 2)
    assert planned(held=held(current, reach=2)) == Whole(current)


def test_a_clone_of_an_older_generation_gets_just_that() -> None:
    older = generation(2, 1)
    assert planned(held=held(older, reach=1)) == Whole(older)


def test_the_newest_generation_that_fits_is_taken() -> None:
    newest, older = generation(3, 2), generation(2, 1)
    assert planned(held=held(newest, older, reach=1)) == Whole(newest)


def test_a_generation_that_lacks_a_further_want_is_not_taken() -> None:
    """All tips of an older generation are wanted, and an object that came later."""
    assert isinstance(planned(held=held(generation(2, 1), reach=2)), Forward)


def test_a_dirty_generation_is_never_sent_whole() -> None:
    chosen = planned(held=held(generation(3, 2, C), is_clean=False))
    assert chosen == Forward("the log holds what no ref reaches")


def test_a_clean_generation_before_a_dirty_one_still_is() -> None:
    dirty, clean = generation(3, 2, C), generation(2, 1)
    assert planned(held=held(dirty, clean, reach=1, is_clean=False)) == Whole(clean)


def test_a_single_branch_is_forwarded() -> None:
    assert planned(held=held()) == Forward("not every tip")


@pytest.mark.parametrize(
    "fetch",
    [
        Fetch(wants=(A,), haves=(B,), done=True),
        Fetch(wants=(A,), deepen=1, done=True),
        Fetch(wants=(A,), deepen_since=1, done=True),
        Fetch(wants=(A,), deepen_not=(b"x",), done=True),
        Fetch(wants=(A,), shallow=(B,), done=True),
        Fetch(wants=(A,), filter_spec="blob:none", done=True),
        Fetch(wants=(), done=True),
    ],
)
@pytest.mark.parametrize("here", [None, held(generation(1, 1))])
def test_what_is_no_whole_clone_is_forwarded_at_once(fetch: Fetch, here: Held | None) -> None:
    """Also on a cold repository: one shallow clone must not have all of it fetched."""
    assert isinstance(planned(fetch, held=here), Forward)


def test_an_unknown_want_is_waited_for_once() -> None:
    facts = held(unknown=frozenset({B}))
    assert planned(held=facts) == Refill()
    assert isinstance(planned(held=facts, may_refill=False), Forward)


def test_a_cold_repository_is_filled_and_its_clones_follow() -> None:
    assert planned() == Refill()
    assert planned(arriving=frozenset({A, B}), may_refill=False) == Follow()


@pytest.mark.parametrize("arriving", [frozenset({A}), frozenset({A, B, C})])
def test_who_wants_other_than_what_arrives_is_forwarded(arriving: frozenset[ObjectId]) -> None:
    assert isinstance(planned(arriving=arriving), Forward)


def test_a_cold_repository_that_cannot_be_filled_is_forwarded() -> None:
    assert isinstance(planned(may_refill=False), Forward)

"""The plan for each kind of fetch, from facts alone."""

import pytest

from goblet_node.fill.policy import Standing
from goblet_node.mirror.log import Generation
from goblet_node.serve.plan import (
    Behind,
    Bring,
    Follow,
    Forward,
    Held,
    Plan,
    Refill,
    Refuse,
    Select,
    Suffix,
    Tried,
    Whole,
    plan,
)
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.requests import Fetch

A, B, C = (ObjectId(digit * 40) for digit in (b"a", b"b", b"c"))
NONE: frozenset[ObjectId] = frozenset()


def generation(number: int, objects: int, *orphans: ObjectId) -> Generation:
    return Generation(number=number, objects=objects, bytes=9, refs_file="-", orphans=orphans)


def held(
    *within: Generation,
    reach: int = 1,
    unknown: frozenset[ObjectId] = NONE,
    behind: Behind | None = None,
) -> Held:
    return Held(within=within, unknown=unknown, reach=reach, behind=behind)


CLONE = Fetch(wants=(A, B), done=True, include_tag=True, thin_pack=True, ofs_delta=True)
FETCH = Fetch(wants=(A,), haves=(B,), done=True, thin_pack=True, ofs_delta=True)
SHALLOW = Fetch(wants=(A,), deepen=1, done=True, ofs_delta=True)
FILTERED = Fetch(wants=(A,), filter_spec="blob:none", done=True, ofs_delta=True)


def planned(
    fetch: Fetch = CLONE,
    held: Held | None = None,
    arriving: frozenset[ObjectId] | None = None,
    tried: Tried = Tried.NOTHING,
    standing: Standing = Standing.SELDOM,
) -> Plan:
    return plan(fetch, held=held, arriving=arriving, tried=tried, standing=standing)


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
    assert planned(held=held(generation(2, 1), reach=2)) == Select()


def test_a_dirty_generation_is_never_sent_whole() -> None:
    assert planned(held=held(generation(3, 2, C))) == Select()


def test_a_clean_generation_before_a_dirty_one_still_is() -> None:
    dirty, clean = generation(3, 2, C), generation(2, 1)
    assert planned(held=held(dirty, clean, reach=1)) == Whole(clean)


def test_a_single_branch_is_selected() -> None:
    assert planned(held=held()) == Select()


def test_a_client_without_offset_deltas_gets_no_segments() -> None:
    """Segments hold them as they came."""
    plain = Fetch(wants=(A, B), done=True)
    assert planned(plain, held=held(generation(1, 1))) == Select()
    behind = Behind(generation=generation(1, 1), is_asked_for=True)
    bare = Fetch(wants=(A,), haves=(B,), done=True, thin_pack=True)
    assert planned(bare, held=held(behind=behind)) == Select()
    cold = planned(plain, arriving=frozenset({A, B}), tried=Tried.REFRESH)
    assert isinstance(cold, Forward)


@pytest.mark.parametrize("fetch", [FETCH, SHALLOW, FILTERED, Fetch(done=True)])
def test_everything_else_is_selected_where_there_is_a_mirror(fetch: Fetch) -> None:
    assert planned(fetch, held=held(generation(1, 1))) == Select()


def test_who_holds_all_of_a_clean_generation_gets_what_came_later() -> None:
    older = generation(1, 1)
    behind = Behind(generation=older, is_asked_for=True)
    assert planned(FETCH, held=held(behind=behind, reach=2)) == Suffix(older)


@pytest.mark.parametrize(
    "fetch",
    [
        Fetch(wants=(A,), haves=(B,), done=True, ofs_delta=True),  # takes no thin pack
        Fetch(wants=(A,), haves=(B,), shallow=(C,), thin_pack=True, ofs_delta=True),
        Fetch(wants=(A,), haves=(B,), deepen=3, thin_pack=True, ofs_delta=True),
        Fetch(wants=(A,), haves=(B,), filter_spec="tree:0", thin_pack=True, ofs_delta=True),
        Fetch(haves=(B,), wait_for_done=True, thin_pack=True, ofs_delta=True),
    ],
)
def test_not_every_client_that_holds_it_can_take_it(fetch: Fetch) -> None:
    behind = Behind(generation=generation(1, 1), is_asked_for=True)
    assert planned(fetch, held=held(behind=behind)) == Select()


def test_who_asks_for_one_branch_does_not_get_them_all() -> None:
    behind = Behind(generation=generation(1, 1), is_asked_for=False)
    assert planned(FETCH, held=held(behind=behind)) == Select()


@pytest.mark.parametrize("fetch", [CLONE, FETCH, SHALLOW, FILTERED])
def test_an_unknown_want_is_refreshed_for_then_fetched_by_name_then_refused(fetch: Fetch) -> None:
    facts = held(unknown=frozenset({A, B}))
    assert planned(fetch, held=facts) == Refill()
    assert planned(fetch, held=facts, tried=Tried.REFRESH) == Bring(frozenset({A, B}))
    assert planned(fetch, held=facts, tried=Tried.REFUSED) == Refuse(A)


def test_what_could_not_be_had_for_another_reason_is_upstreams_to_answer() -> None:
    facts = held(unknown=frozenset({A}))
    assert isinstance(planned(held=facts, tried=Tried.ALL), Forward)


def test_a_thousand_pull_requests_are_not_brought_one_by_one() -> None:
    many = frozenset(ObjectId(b"%040x" % number) for number in range(1000))
    assert isinstance(planned(held=held(unknown=many), tried=Tried.REFRESH), Forward)


def test_a_cold_repository_is_filled_and_its_clones_follow() -> None:
    assert planned() == Refill()
    assert planned(arriving=frozenset({A, B}), tried=Tried.REFRESH) == Follow()


@pytest.mark.parametrize("arriving", [frozenset({A}), frozenset({A, B, C})])
def test_who_wants_other_than_what_arrives_is_forwarded(arriving: frozenset[ObjectId]) -> None:
    assert isinstance(planned(arriving=arriving), Forward)


def test_a_cold_repository_that_cannot_be_filled_is_forwarded() -> None:
    assert planned(tried=Tried.REFRESH) == Forward("cold")


@pytest.mark.parametrize("fetch", [SHALLOW, FILTERED])
def test_one_shallow_or_partial_clone_does_not_have_all_of_a_repository_fetched(
    fetch: Fetch,
) -> None:
    assert planned(fetch) == Forward("cold")


@pytest.mark.parametrize("fetch", [SHALLOW, FILTERED])
def test_many_shallow_or_partial_clones_have_it_fetched_behind_them(fetch: Fetch) -> None:
    assert planned(fetch, standing=Standing.OFTEN) == Forward("cold", fill=True)


@pytest.mark.parametrize("fetch", [CLONE, FETCH, SHALLOW, FILTERED])
def test_what_is_too_large_for_a_mirror_is_forwarded_and_not_fetched(fetch: Fetch) -> None:
    facts = planned(fetch, standing=Standing.TOO_LARGE)
    assert facts == Forward("too large for a mirror", fill=False)
    following = planned(fetch, arriving=frozenset({A, B}), standing=Standing.TOO_LARGE)
    assert isinstance(following, Forward)


def test_a_mirror_that_is_there_answers_though_it_could_not_grow() -> None:
    current = generation(3, 2)
    assert planned(held=held(current, reach=1), standing=Standing.TOO_LARGE) == Whole(current)


@pytest.mark.parametrize("fetch", [CLONE, FETCH, SHALLOW, FILTERED])
def test_what_the_operator_excludes_is_forwarded_even_if_a_mirror_is_there(fetch: Fetch) -> None:
    for facts in (None, held(generation(1, 1))):
        chosen = planned(fetch, held=facts, standing=Standing.NEVER)
        assert isinstance(chosen, Forward)
        assert not chosen.fill


def test_who_holds_all_of_history_has_a_cold_repository_filled_for_the_next() -> None:
    assert planned(FETCH) == Forward("cold", fill=True)


@pytest.mark.parametrize(
    "fetch",
    [
        Fetch(want_refs=(b"refs/heads/main",), done=True),
        Fetch(wants=(A,), packfile_uris="https", done=True),
        Fetch(wants=(A,), sideband_all=True, done=True),
    ],
)
def test_what_was_not_offered_is_upstreams_to_answer(fetch: Fetch) -> None:
    assert isinstance(planned(fetch, held=held(generation(1, 1))), Forward)

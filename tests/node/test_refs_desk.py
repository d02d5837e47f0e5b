"""Which refs are asked for, who shares the answer, and how long it is told."""

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.errors import ProtocolError
from goblet_node.fill.failures import Refused
from goblet_node.fill.refs import (
    MAX_QUESTIONS,
    MIRRORED,
    Listing,
    RefsDesk,
    mirrored,
    question_for,
    read_listing,
)
from goblet_node.mirror.refs import tips
from goblet_node.wire.refs import Ref
from goblet_testing.listers import FakeLister, body_of, grant_to, oid


def test_a_clone_and_a_fetch_of_a_branch_ask_the_same() -> None:
    clone = [b"HEAD", b"refs/heads/", b"refs/tags/"]
    fetch = [b"main", b"refs/tags/main", b"refs/heads/main", b"refs/tags/"]
    assert question_for(clone) == question_for(fetch) == MIRRORED


def test_refs_beyond_a_mirror_widen_the_question() -> None:
    assert question_for([b"refs/pull/7/head"]) == (*MIRRORED, b"refs/pull/7/head")
    assert question_for([b"refs/heads/x", b"refs/"]) == (*MIRRORED, b"refs/")


def test_no_prefix_asks_for_all() -> None:
    assert question_for([]) is None


names = st.sampled_from(
    [b"HEAD", b"refs/heads/main", b"refs/tags/v1", b"refs/pull/1/head", b"refs/notes/commits"]
)


@given(names, st.integers(0, 20))
def test_every_ref_that_a_prefix_names_is_covered(name: bytes, length: int) -> None:
    question = question_for([name[:length]])
    assert question is None or name.startswith(question)


def test_equal_listings_in_any_order_are_equal_mirrors() -> None:
    refs = [
        Ref(name=b"refs/tags/v1", oid=oid("1"), peeled=oid("2")),
        Ref(name=b"HEAD", oid=oid("2"), symref_target=b"refs/heads/main"),
        Ref(name=b"refs/pull/1/head", oid=oid("3")),
        Ref(name=b"refs/heads/main", oid=oid("2")),
    ]
    assert mirrored(refs) == mirrored(reversed(refs))
    assert [ref.name for ref in mirrored(refs)] == [b"HEAD", b"refs/heads/main", b"refs/tags/v1"]
    assert tips(mirrored(refs)) == {oid("1"), oid("2")}


def test_an_unborn_head_is_no_tip() -> None:
    head = Ref(name=b"HEAD", oid=None, symref_target=b"refs/heads/main")
    assert tips(mirrored([head])) == frozenset()


def test_a_listing_holds_what_was_said_and_what_a_mirror_holds_of_it() -> None:
    listing = read_listing(body_of("HEAD", "refs/heads/main", "refs/pull/1/head"), begun=5.0)
    assert [ref.name for ref in listing.refs] == [b"HEAD", b"refs/heads/main", b"refs/pull/1/head"]
    assert [ref.name for ref in listing.mirrored] == [b"HEAD", b"refs/heads/main"]
    assert listing.tips == {oid("1")}
    assert listing.begun == 5.0


def test_what_says_the_same_is_not_read_again() -> None:
    first = read_listing(body_of("HEAD"), begun=1.0)
    again = read_listing(body_of("HEAD"), begun=2.0, known=first)
    other = read_listing(body_of("HEAD", digit="2"), begun=3.0, known=first)
    assert again.refs is first.refs
    assert again.mirrored is first.mirrored
    assert again.begun == 2.0
    assert other.digest != first.digest
    assert other.tips == {oid("2")}


def test_what_is_no_listing_is_an_error_also_if_one_is_known() -> None:
    known = read_listing(body_of("HEAD"), begun=1.0)
    with pytest.raises(ProtocolError):
        read_listing(b"0005x", begun=2.0, known=known)


async def test_a_burst_is_one_question(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    lister = FakeLister(body_of("HEAD"))
    lister.seconds = 1
    desk = RefsDesk(upstream=lister, nursery=nursery)
    heard: list[Listing] = []

    async def ask() -> None:
        heard.append(await desk.ask(grant_to(), MIRRORED))

    async with trio.open_nursery() as burst:
        for _ in range(200):
            burst.start_soon(ask)
    assert len(lister.asked) == 1
    assert len(heard) == 200
    await desk.ask(grant_to(), MIRRORED)
    assert len(lister.asked) == 2, "what comes later asks anew"


async def test_who_is_refused_does_not_fail_those_who_joined(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    lister = FakeLister(body_of("HEAD"))
    lister.seconds = 1
    lister.refused = {"bad"}
    desk = RefsDesk(upstream=lister, nursery=nursery)
    failed: list[Refused] = []

    async def ask_in_vain() -> None:
        try:
            await desk.ask(grant_to(authorization="bad"), MIRRORED)
        except Refused as exc:
            failed.append(exc)

    async with trio.open_nursery() as both:
        both.start_soon(ask_in_vain)
        await trio.testing.wait_all_tasks_blocked()
        listing = await desk.ask(grant_to(authorization="good"), MIRRORED)
    assert listing.tips == {oid("1")}
    assert len(failed) == 1


async def test_a_listing_is_fresh_for_its_time_and_no_longer(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    lister = FakeLister(body_of("HEAD"))
    lister.seconds = 2
    desk = RefsDesk(upstream=lister, nursery=nursery, freshness=5)
    grant = grant_to()
    assert desk.fresh(grant.key, MIRRORED) is None
    listing = await desk.ask(grant, MIRRORED)
    assert desk.fresh(grant.key, MIRRORED) is listing
    assert desk.age_of(listing) == pytest.approx(2), "its age counts from the question"
    await trio.sleep(2.9)
    assert desk.fresh(grant.key, MIRRORED) is listing
    await trio.sleep(0.2)
    assert desk.fresh(grant.key, MIRRORED) is None
    assert desk.told(grant.key, within=0) is None
    assert desk.told(grant.key, within=6) is listing


async def test_with_a_freshness_of_0_nothing_is_fresh_but_what_was_told_is_known(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    desk = RefsDesk(upstream=FakeLister(body_of("HEAD")), nursery=nursery)
    grant = grant_to()
    listing = await desk.ask(grant, MIRRORED)
    assert desk.fresh(grant.key, MIRRORED) is None
    assert desk.told(grant.key, within=5) is listing
    await trio.sleep(5)
    assert desk.told(grant.key, within=5) is None


async def test_all_refs_answer_every_question_and_a_part_of_them_only_its_own(
    nursery: trio.Nursery,
) -> None:
    desk = RefsDesk(upstream=FakeLister(body_of("HEAD")), nursery=nursery, freshness=60)
    some, whole = grant_to("org/some"), grant_to("org/whole")
    await desk.ask(some, MIRRORED)
    assert desk.fresh(some.key, None) is None
    assert desk.fresh(some.key, (*MIRRORED, b"refs/pull/")) is None
    listing = await desk.ask(whole, None)
    assert desk.fresh(whole.key, MIRRORED) is listing
    assert desk.fresh(whole.key, (*MIRRORED, b"refs/pull/")) is listing


async def test_what_is_forgotten_is_asked_for_anew(nursery: trio.Nursery) -> None:
    desk = RefsDesk(upstream=FakeLister(body_of("HEAD")), nursery=nursery, freshness=60)
    grant = grant_to()
    await desk.ask(grant, MIRRORED)
    desk.forget(grant.key)
    assert desk.fresh(grant.key, MIRRORED) is None
    assert desk.told(grant.key, within=60) is None
    desk.forget(grant.key)


async def test_what_is_kept_is_bounded_in_bytes_and_the_oldest_goes_first(
    nursery: trio.Nursery,
) -> None:
    lister = FakeLister(body_of(*(f"refs/heads/{number}" for number in range(100))))
    each = read_listing(lister.body, begun=0).bytes
    desk = RefsDesk(upstream=lister, nursery=nursery, freshness=60, memory=3 * each + 1000)
    grants = [grant_to(f"org/{number}") for number in range(4)]
    for grant in grants[:3]:
        await desk.ask(grant, MIRRORED)
    assert desk.fresh(grants[0].key, MIRRORED) is not None, "and is used again by that"
    await desk.ask(grants[3], MIRRORED)
    kept = [desk.fresh(grant.key, MIRRORED) is not None for grant in grants]
    assert kept == [True, False, True, True]
    await desk.ask(grants[3], MIRRORED)
    assert desk.fresh(grants[0].key, MIRRORED) is not None, "a new answer takes the old one's place"


async def test_who_invents_questions_does_not_fill_the_memory(nursery: trio.Nursery) -> None:
    desk = RefsDesk(upstream=FakeLister(body_of("HEAD")), nursery=nursery, freshness=60)
    grant = grant_to()
    questions = [(*MIRRORED, b"refs/x/%d" % number) for number in range(20)]
    for question in questions:
        await desk.ask(grant, question)
    kept = [question for question in questions if desk.fresh(grant.key, question)]
    assert kept == questions[-MAX_QUESTIONS:]


async def test_a_listing_larger_than_the_memory_is_told_and_not_kept(
    nursery: trio.Nursery,
) -> None:
    desk = RefsDesk(upstream=FakeLister(body_of("HEAD")), nursery=nursery, freshness=60, memory=10)
    assert (await desk.ask(grant_to(), MIRRORED)).tips == {oid("1")}
    assert desk.fresh(grant_to().key, MIRRORED) is None


async def test_a_listing_larger_than_the_memory_takes_nobodys_place(nursery: trio.Nursery) -> None:
    lister = FakeLister(body_of("HEAD"))
    desk = RefsDesk(upstream=lister, nursery=nursery, freshness=60, memory=10_000)
    small, large = grant_to("org/small"), grant_to("org/large")
    await desk.ask(small, MIRRORED)
    await desk.ask(large, MIRRORED)
    lister.body = body_of(*(f"refs/heads/{number}" for number in range(100)))
    await desk.ask(large, MIRRORED)
    assert desk.fresh(small.key, MIRRORED) is not None
    assert desk.fresh(large.key, MIRRORED) is None, "what it said before is outdated"


async def test_long_questions_do_not_fill_the_memory(nursery: trio.Nursery) -> None:
    desk = RefsDesk(
        upstream=FakeLister(body_of("HEAD")), nursery=nursery, freshness=60, memory=100_000
    )
    questions = [(*MIRRORED, b"refs/%d/" % number + b"x" * 20_000) for number in range(8)]
    grants = [grant_to(f"org/{number}") for number in range(8)]
    for grant, question in zip(grants, questions, strict=True):
        await desk.ask(grant, question)
    asked = zip(grants, questions, strict=True)
    kept = [grant for grant, question in asked if desk.fresh(grant.key, question)]
    assert kept == grants[-4:]


async def test_what_is_asked_anew_is_asked_after_the_call(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Of those who call while another question is under way, all share the next."""
    lister = FakeLister(body_of("HEAD"))
    lister.seconds = 10
    desk = RefsDesk(upstream=lister, nursery=nursery, freshness=60)
    heard: list[Listing] = []

    async def ask_anew() -> None:
        heard.append(await desk.ask_anew(grant_to(), MIRRORED))

    async with trio.open_nursery() as asking:
        asking.start_soon(desk.ask, grant_to(), MIRRORED)
        await trio.sleep(1)
        lister.body = body_of("HEAD", digit="2")
        for _ in range(3):
            asking.start_soon(ask_anew)
    assert [listing.tips for listing in heard] == [{oid("2")}] * 3
    assert len(lister.asked) == 2
    await ask_anew()
    assert len(lister.asked) == 3, "nothing is fresh enough"


async def test_how_an_older_question_fails_does_not_matter_to_who_asks_anew(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    lister = FakeLister(body_of("HEAD"))
    lister.seconds = 10
    lister.refused = {"bad"}
    desk = RefsDesk(upstream=lister, nursery=nursery)
    async with trio.open_nursery() as asking:

        async def ask_in_vain() -> None:
            with pytest.raises(Refused):
                await desk.ask(grant_to(authorization="bad"), MIRRORED)

        asking.start_soon(ask_in_vain)
        await trio.sleep(1)
        assert (await desk.ask_anew(grant_to(), MIRRORED)).tips == {oid("1")}

"""Answers that list refs: encoded once, right for each who asks, bounded in memory."""

from dataclasses import replace

import pytest
import trio

from goblet_node.fill.refs import Listing, read_listing
from goblet_node.serve.listed import MAX_PREFIXES, ListedRefs
from goblet_node.wire import v0, v2
from goblet_node.wire.pktline import encode
from goblet_node.wire.refs import Ref
from goblet_node.wire.requests import LsRefs

CLONE = LsRefs(peel=True, symrefs=True, prefixes=(b"HEAD", b"refs/heads/", b"refs/tags/"))


def listing_of(count: int = 3, *, digit: int = 1) -> Listing:
    lines = [b"%040x refs/heads/%06d\n" % (digit, number) for number in range(count)]
    return read_listing(b"".join([*map(encode, lines), b"0000"]), begun=0)


def answers(nursery: trio.Nursery, memory: int = 1 << 20) -> ListedRefs:
    return ListedRefs(agent="goblet/test", nursery=nursery, memory=memory)


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[LsRefs]:
    """Every question whose answer was encoded, not found."""
    seen: list[LsRefs] = []
    encode_ls_refs = v2.encode_ls_refs

    def noted(refs: tuple[Ref, ...], request: LsRefs) -> object:
        seen.append(request)
        return encode_ls_refs(refs, request)

    monkeypatch.setattr(v2, "encode_ls_refs", noted)
    return seen


async def test_the_same_question_is_encoded_once_whoever_asks_it(
    nursery: trio.Nursery, encodings: list[LsRefs]
) -> None:
    listed, listing = answers(nursery), listing_of()
    first = await listed.ls_refs(listing, CLONE)
    again = await listed.ls_refs(listing_of(), replace(CLONE, agent=b"git/2", session_id=b"7"))
    assert first is again
    assert first == b"".join(v2.encode_ls_refs(listing.refs, CLONE))
    assert encodings == [CLONE, CLONE]  # the second is this test's own


async def test_whatever_changes_an_answer_is_another_answer(nursery: trio.Nursery) -> None:
    listed = answers(nursery)
    questions = [
        CLONE,
        LsRefs(peel=True, symrefs=True),
        LsRefs(peel=True, symrefs=True, prefixes=(b"refs/heads/000001",)),
        LsRefs(symrefs=True),
        LsRefs(peel=True),
        LsRefs(peel=True, symrefs=True, unborn=True),
    ]
    head = Ref(name=b"HEAD", oid=None, symref_target=b"refs/heads/main")
    for listing in (listing_of(), listing_of(digit=2), _with(listing_of(), head)):
        for question in questions:
            own = b"".join(v2.encode_ls_refs(listing.refs, question))
            assert await listed.ls_refs(listing, question) == own
        for version in (0, 1):
            pieces = v0.encode_advertisement(listing.refs, agent="goblet/test", version=version)
            assert await listed.advertisement(listing, version=version) == b"".join(pieces)


async def test_a_long_listing_is_encoded_once_for_all_who_ask_at_once(
    nursery: trio.Nursery, encodings: list[LsRefs]
) -> None:
    listed, listing = answers(nursery, memory=10), listing_of(5000)
    heard: list[bytes] = []

    async def ask() -> None:
        heard.append(await listed.ls_refs(listing, CLONE))

    async with trio.open_nursery() as burst:
        for _ in range(20):
            burst.start_soon(ask)
    assert len(encodings) == 1
    assert len(set(heard)) == 1


async def test_what_is_kept_is_bounded_and_the_least_used_goes_first(
    nursery: trio.Nursery, encodings: list[LsRefs]
) -> None:
    listings = [listing_of(10, digit=digit) for digit in range(1, 5)]
    size = len(await answers(nursery).ls_refs(listings[0], CLONE))
    listed = answers(nursery, memory=3 * (size + 700))
    for listing in listings[:3]:
        await listed.ls_refs(listing, CLONE)
    await listed.ls_refs(listings[0], CLONE)
    await listed.ls_refs(listings[3], CLONE)
    encodings.clear()
    for number in (0, 2, 3):
        await listed.ls_refs(listings[number], CLONE)
    assert encodings == []
    await listed.ls_refs(listings[1], CLONE)
    assert encodings == [CLONE]


async def test_a_question_that_nobody_else_asks_is_answered_and_not_kept(
    nursery: trio.Nursery, encodings: list[LsRefs]
) -> None:
    own = LsRefs(prefixes=tuple(b"refs/heads/%06d" % n for n in range(MAX_PREFIXES + 1)))
    listed = answers(nursery)
    for _ in range(2):
        assert (await listed.ls_refs(listing_of(), own)).count(b"refs/heads/") == 3
    assert len(encodings) == 2


async def test_long_questions_do_not_fill_the_memory(
    nursery: trio.Nursery, encodings: list[LsRefs]
) -> None:
    listed, listing = answers(nursery, memory=100_000), listing_of(1)
    questions = [
        LsRefs(prefixes=(b"refs/tags/%d/" % number + b"x" * 20_000,)) for number in range(20)
    ]
    for question in questions:
        await listed.ls_refs(listing, question)
    encodings.clear()
    for question in reversed(questions):
        await listed.ls_refs(listing, question)
    assert len(encodings) == 20 - 4


def _with(listing: Listing, head: Ref) -> Listing:
    return replace(listing, refs=(head, *listing.refs), digest=b"another")

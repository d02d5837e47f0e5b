"""requests: which refs a question is for, and what makes a fetch plain."""

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.wire.refs import ObjectId
from goblet_node.wire.requests import Fetch, Limits, LsRefs

ID = ObjectId(b"1" * 40)
PLAIN = Fetch(wants=(ID,), done=True, thin_pack=True, ofs_delta=True, agent=b"git/2.39.5")
_short = st.binary(max_size=4).map(lambda raw: bytes(byte % 3 + 97 for byte in raw))


@given(st.lists(_short, max_size=8), _short)
def test_a_name_matches_if_and_only_if_it_begins_with_a_prefix(
    prefixes: list[bytes], name: bytes
) -> None:
    """The search gives what asking every prefix gives; no prefix at all asks for everything."""
    expected = not prefixes or name.startswith(tuple(prefixes))
    assert LsRefs(prefixes=tuple(prefixes)).matches(name) == expected


def test_many_prefixes_cost_no_more_per_name_than_few() -> None:
    """65,000 prefixes and 20,000 names: asking one by one takes minutes."""
    asked = LsRefs(prefixes=tuple(b"refs/heads/%d" % n for n in range(10_000, 75_000)))
    begun = time.perf_counter()
    assert sum(asked.matches(b"refs/tags/%d" % n) for n in range(20_000)) == 0
    assert time.perf_counter() - begun < 2


def test_how_prefixes_are_searched_is_no_part_of_the_value() -> None:
    assert LsRefs(prefixes=(b"b", b"a")) != LsRefs(prefixes=(b"a", b"b"))
    assert LsRefs(prefixes=(b"b", b"a")).prefixes == (b"b", b"a")
    assert "_shortest" not in repr(LsRefs())
    assert hash(LsRefs(prefixes=(b"a",))) == hash(LsRefs(prefixes=(b"a",)))


def test_the_bound_on_all_packets_leaves_room_for_the_other_bounds() -> None:
    """But for shallow ids, which no client has by the hundred thousand beside all the others."""
    limits = Limits()
    assert limits.packets > limits.wants + limits.haves + limits.refs + limits.capabilities


def test_what_a_clone_asks_for_is_plain() -> None:
    assert PLAIN.is_plain
    assert replace(PLAIN, include_tag=True, no_progress=True, done=False).is_plain


@pytest.mark.parametrize(
    "fetch",
    [
        replace(PLAIN, wants=()),
        replace(PLAIN, want_refs=(b"refs/heads/main",)),
        replace(PLAIN, haves=(ID,)),
        replace(PLAIN, shallow=(ID,)),
        replace(PLAIN, deepen=1),
        replace(PLAIN, deepen_since=1),
        replace(PLAIN, deepen_not=(b"v1",)),
        replace(PLAIN, deepen_relative=True),
        replace(PLAIN, filter_spec="blob:none"),
        replace(PLAIN, packfile_uris="https"),
        replace(PLAIN, sideband_all=True),
    ],
)
def test_whatever_changes_the_answer_makes_a_fetch_not_plain(fetch: Fetch) -> None:
    assert not fetch.is_plain


@pytest.mark.parametrize(
    ("fetch", "has_depth"),
    [
        (PLAIN, False),
        (replace(PLAIN, shallow=(ID,)), False),
        (replace(PLAIN, deepen=1), True),
        (replace(PLAIN, deepen_since=1), True),
        (replace(PLAIN, deepen_not=(b"v1",)), True),
    ],
)
def test_only_deepen_lines_move_the_end_of_the_history(fetch: Fetch, has_depth: bool) -> None:
    assert fetch.has_depth == has_depth


def test_a_fetch_that_names_no_object_wants_nothing() -> None:
    assert Fetch(haves=(ID,)).wants_nothing
    assert not PLAIN.wants_nothing
    assert not Fetch(want_refs=(b"refs/heads/main",)).wants_nothing

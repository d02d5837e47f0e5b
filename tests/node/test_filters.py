"""filters: every filter-spec that git takes becomes one Filter; all others are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.errors import ProtocolError
from goblet_node.wire.filters import KINDS, MAX_SPEC, Filter, parse_filter


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("blob:none", Filter(blob_limit=0)),
        ("blob:limit=0", Filter(blob_limit=0)),
        ("blob:limit=1023", Filter(blob_limit=1023)),
        ("blob:limit=2k", Filter(blob_limit=2048)),
        ("blob:limit=3M", Filter(blob_limit=3 << 20)),
        ("blob:limit=1g", Filter(blob_limit=1 << 30)),
        ("blob:limit=0x10", Filter(blob_limit=16)),
        ("blob:limit=010", Filter(blob_limit=8)),
        ("blob:limit=18446744073709551615", Filter(blob_limit=2**64 - 1)),
        ("tree:0", Filter(tree_depth=0)),
        ("tree:2", Filter(tree_depth=2)),
        ("tree:1k", Filter(tree_depth=1024)),
        ("object:type=commit", Filter(kinds=frozenset({"commit"}))),
        ("object:type=tree", Filter(kinds=frozenset({"tree"}))),
        ("object:type=blob", Filter(kinds=frozenset({"blob"}))),
        ("object:type=tag", Filter(kinds=frozenset({"tag"}))),
        ("combine:blob:none+tree:3", Filter(blob_limit=0, tree_depth=3)),
        ("combine:tree:3+tree:1", Filter(tree_depth=1)),
        ("combine:blob:limit=5+blob:limit=7k", Filter(blob_limit=5)),
        ("combine:object:type=blob+object:type=tree", Filter(kinds=frozenset())),
        ("combine:+blob:none+", Filter(blob_limit=0)),
        ("combine:blob%3anone+tr%65e:1", Filter(blob_limit=0, tree_depth=1)),
        ("combine:combine%3Atree%3A2%2Bblob:none+tree:4", Filter(blob_limit=0, tree_depth=2)),
    ],
)
def test_a_filter_spec_says_what_passes(spec: str, expected: Filter) -> None:
    assert parse_filter(spec) == expected


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("", "invalid filter-spec ''"),
        ("blob", "invalid filter-spec 'blob'"),
        ("blob:none ", "invalid filter-spec 'blob:none '"),
        ("BLOB:NONE", "invalid filter-spec"),
        ("blob:limit", "invalid filter-spec"),
        ("blob:limit=", "invalid number in filter-spec 'blob:limit='"),
        ("blob:limit=-1", "invalid number"),
        ("blob:limit=1.5k", "invalid number"),
        ("blob:limit=09", "invalid number"),
        ("blob:limit=1t", "invalid number"),
        ("blob:limit=18446744073709551616", "invalid number"),
        ("blob:limit=17179869184g", "invalid number"),
        ("tree:", "invalid number"),
        ("tree:x", "invalid number"),
        ("object:type=", "invalid filter-spec"),
        ("object:type=blobs", "invalid filter-spec"),
        ("sparse:oid=main:spec", "sparse:oid filters are not supported"),
        ("sparse:path=x", "invalid filter-spec"),
        ("auto", "invalid filter-spec"),
        ("combine:", "something after combine:"),
        ("combine:+", "something after combine:"),
        ("combine:blob:none+tree", "invalid filter-spec 'tree'"),
        ("combine:blob:none tree:0", "' ' in a part of a combined filter-spec: want %20"),
        ("combine:blob~none", "'~' in a part"),
        ("x" * 5000, "5000 characters: want at most 4096"),
    ],
)
def test_what_is_no_filter_spec_is_refused_in_one_sentence(spec: str, complaint: str) -> None:
    with pytest.raises(ProtocolError) as refused:
        parse_filter(spec)
    assert complaint in str(refused.value)
    assert len(str(refused.value)) < 200


def test_combinations_in_combinations_neither_recurse_nor_take_long() -> None:
    nested = "combine:" * (MAX_SPEC // 8 - 2) + "tree:7"
    assert parse_filter(nested) == Filter(tree_depth=7)


@given(text=st.text(st.characters(codec="utf-8"), max_size=40))
def test_no_text_raises_anything_but_a_protocol_error(text: str) -> None:
    for spec in (text, f"combine:{text}", f"combine:combine%3A{text}", f"blob:limit={text}"):
        try:
            parsed = parse_filter(spec)
        except ProtocolError:
            continue
        assert isinstance(parsed, Filter)


def test_a_filter_knows_which_objects_cannot_pass_at_all() -> None:
    assert Filter().passes_blobs
    assert Filter().passes_trees
    assert not parse_filter("blob:none").passes_blobs
    assert parse_filter("blob:none").passes_trees
    assert not parse_filter("object:type=tree").passes_blobs
    assert not parse_filter("object:type=blob").passes_trees
    assert parse_filter("blob:limit=1").passes_blobs


kinds = st.sets(st.sampled_from(sorted(KINDS))).map(frozenset)
numbers = st.none() | st.integers(0, 9)
filters = st.builds(Filter, kinds=kinds, blob_limit=numbers, tree_depth=numbers)


@given(one=filters, other=filters)
def test_the_order_of_a_combination_never_matters(one: Filter, other: Filter) -> None:
    assert one & other == other & one
    assert one & one == one
    assert one & Filter() == one

"""Which refs are asked for, and who shares the answer."""

from hypothesis import given
from hypothesis import strategies as st

from goblet_node.fill.refs import MIRRORED, mirrored, question_for
from goblet_node.mirror.refs import tips
from goblet_node.wire.refs import ObjectId, Ref


def oid(digit: str) -> ObjectId:
    return ObjectId(digit.encode() * 40)


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

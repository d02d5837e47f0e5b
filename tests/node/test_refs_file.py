"""The refs file: what is written comes back, and nothing else does."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.errors import MirrorDamaged
from goblet_node.mirror.refs import check_refs, decode_refs, encode_refs, tips
from goblet_node.wire.refs import ObjectId, Ref
from goblet_testing.strategies import refs as advertised

A, B = ObjectId(b"a" * 40), ObjectId(b"b" * 40)
SOME = (
    Ref(name=b"HEAD", oid=A, symref_target=b"refs/heads/main"),
    Ref(name=b"refs/heads/main", oid=A),
    Ref(name=b"refs/tags/\xff-not-utf8", oid=B, peeled=A),
)


@given(advertised())
def test_refs_come_back_in_their_order(refs: tuple[Ref, ...]) -> None:
    assert decode_refs(encode_refs(refs)) == refs


def test_an_unborn_head_and_no_refs_at_all_come_back() -> None:
    unborn = (Ref(name=b"HEAD", oid=None, symref_target=b"refs/heads/main"),)
    assert decode_refs(encode_refs(unborn)) == unborn
    assert decode_refs(encode_refs(())) == ()


@given(st.data())
def test_any_changed_byte_and_any_missing_end_is_damage(data: st.DataObject) -> None:
    content = encode_refs(SOME)
    place = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[place] ^= data.draw(st.integers(1, 255))
    for damaged in (bytes(changed), content[:place], content + b"\n", b"\0" * len(content)):
        with pytest.raises(MirrorDamaged):
            check_refs(damaged)
        with pytest.raises(MirrorDamaged):
            decode_refs(damaged)


@pytest.mark.parametrize("name", [b"refs/heads/a b", b"refs/heads/a\nb"])
def test_a_name_that_would_break_a_line_is_never_written(name: bytes) -> None:
    with pytest.raises(ValueError, match="space or a line feed"):
        encode_refs([Ref(name=name, oid=A)])


def test_tips_are_what_refs_name_once_each_and_not_what_tags_peel_to() -> None:
    unborn = Ref(name=b"HEAD", oid=None, symref_target=b"refs/heads/main")
    peeled = Ref(name=b"refs/tags/t", oid=B, peeled=ObjectId(b"c" * 40))
    assert tips([*SOME, unborn, peeled]) == {A, B}


@pytest.mark.slow
def test_a_hundred_thousand_refs_take_no_time_worth_mentioning() -> None:
    """Measured 0.07 s to write and 0.3 s to read; the bound leaves room for a busy machine."""
    many = [
        Ref(name=b"refs/heads/%d" % n, oid=ObjectId(b"%040x" % n), peeled=ObjectId(b"%040x" % ~-n))
        for n in range(1, 100_001)
    ]
    started = time.process_time()
    content = encode_refs(many)
    written = time.process_time()
    assert decode_refs(content) == tuple(many)
    read = time.process_time()
    print(f"encode {written - started:.3f} s, decode {read - written:.3f} s")
    assert read - started < 2.0

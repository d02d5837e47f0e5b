"""delta: what it makes of the base is the content, and it is small where little changed."""

import time
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.objects import BLOB, TREE, apply_delta
from goblet_node.serve.delta import make_delta

lines = st.lists(
    st.sampled_from([b"", b"a", b"common line", b"another line", b"x" * 200, b"}"]), max_size=12
).map(b"\n".join)
contents = lines | st.binary(max_size=300)


@given(contents, contents, st.sampled_from([BLOB, TREE]))
def test_a_delta_makes_the_content_of_the_base(base: bytes, content: bytes, kind: int) -> None:
    assert apply_delta(base, make_delta(kind, base, content)) == content


@given(lines, st.integers(0, 20), st.integers(0, 20), st.binary(max_size=90))
def test_any_edit_of_any_text_is_followed(base: bytes, start: int, size: int, new: bytes) -> None:
    content = base[:start] + new + base[start + size :]
    assert apply_delta(base, make_delta(BLOB, base, content)) == content


def text(lines: int, seed: int = 1) -> list[bytes]:
    """Return lines that are alike and not the same."""
    random = Random(seed)
    return [b"line %x of a file\n" % random.getrandbits(60) for _ in range(lines)]


def test_a_tree_with_one_changed_entry_takes_little_more_than_its_id() -> None:
    random = Random(1)
    ids = [random.randbytes(20) for _ in range(1000)]
    names = [b"100644 file%04d\0" % number for number in range(1000)]
    base = b"".join(name + oid for name, oid in zip(names, ids, strict=True))
    ids[500] = random.randbytes(20)
    content = b"".join(name + oid for name, oid in zip(names, ids, strict=True))
    assert len(make_delta(TREE, base, content)) < 50


def test_entries_that_changed_far_apart_do_not_bring_those_between() -> None:
    random = Random(1)
    entries = [b"100644 file%04d\0" % number + random.randbytes(20) for number in range(1000)]
    base = b"".join(entries)
    for changed in (10, 500, 990):
        entries[changed] = entries[changed][:-20] + random.randbytes(20)
    del entries[700]
    content = b"".join(entries)
    delta = make_delta(TREE, base, content)
    assert len(delta) < 200
    assert apply_delta(base, delta) == content


def test_lines_that_changed_far_apart_do_not_bring_those_between() -> None:
    """Nor do lines that moved, or that stand in the base more than once."""
    base = [*text(500), b"}\n", *text(500, seed=2), b"}\n"]
    content = [b"new\n", *base[700:], *base[:300], b"}\n", b"other\n", *base[300:690]]
    delta = make_delta(BLOB, b"".join(base), b"".join(content))
    assert len(delta) < 100
    assert apply_delta(b"".join(base), delta) == b"".join(content)


def test_more_than_one_copy_can_say_is_copied_by_several() -> None:
    base = Random(1).randbytes(300_000)
    content = base[:150_000] + b"!" + base[150_000:]
    delta = make_delta(BLOB, base, content)
    assert len(delta) < 60
    assert apply_delta(base, delta) == content


@pytest.mark.parametrize("name", [b"7" * 200_000, b"100644 " * 30_000], ids=["digits", "modes"])
def test_a_name_that_somebody_made_long_takes_no_longer_than_its_bytes(name: bytes) -> None:
    base = b"100644 x" + b"z\0" + bytes(20)
    content = b"100644 a" + name + b"b\0" + bytes(20)
    begun = time.process_time()
    delta = make_delta(TREE, base, content)
    assert time.process_time() - begun < 1
    assert apply_delta(base, delta) == content


@pytest.mark.parametrize(
    ("base", "content"),
    [(b"", b""), (b"", b"new"), (b"old", b""), (b"aaaa", b"aa"), (b"aa", b"aaaa")],
)
def test_nothing_and_repetitions_are_contents_too(base: bytes, content: bytes) -> None:
    assert apply_delta(base, make_delta(BLOB, base, content)) == content

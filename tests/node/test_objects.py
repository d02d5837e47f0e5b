"""objects: what of a git object the mirror understands, and what it refuses."""

import io
import pickle
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_node import objects
from goblet_node.errors import UpstreamError
from goblet_node.objects import ObjectBroken, PackRejected
from goblet_node.wire.refs import ObjectId
from goblet_testing.packs import Repo, copy_delta, insert_delta, make_bare, run_git

A, B, C = (ObjectId(letter * 40) for letter in (b"a", b"b", b"c"))
modes = st.sampled_from([b"40000", b"040000", b"100644", b"160000", b"0160000", b"1160755", b"16"])
names = st.binary(min_size=1, max_size=5).filter(lambda name: b"\0" not in name)
PERSON = b"C <c@example.test> 1700000060 +0000"


def test_an_object_has_the_id_that_git_gives_it(tmp_path: Path) -> None:
    origin = Repo.create(tmp_path / "origin")
    assert objects.hex_id(objects.object_id(objects.BLOB, b"some\0bytes")) == origin.blob(
        b"some\0bytes"
    )


@given(st.binary(min_size=20, max_size=20))
def test_hex_and_raw_ids_are_two_forms_of_one_thing(raw: bytes) -> None:
    assert objects.raw_id(objects.hex_id(raw)) == raw


def test_a_commit_refers_to_its_tree_and_parents() -> None:
    content = b"tree %s\nparent %s\nparent %s\nauthor %s\ncommitter %s\n\nparent %s\n" % (
        A,
        B,
        C,
        PERSON,
        PERSON,
        A,
    )
    expected = b"".join(map(objects.raw_id, (A, B, C))), 1700000060
    assert objects.raw_references(objects.COMMIT, content) == expected
    assert objects.parse_commit(content).committed == 1700000060


@pytest.mark.parametrize(
    ("committer", "seconds"),
    [
        (b"committer C <c@example.test> 12 +0000", 12),
        (b"committer nobody", 0),
        (b"committer C <c> -7 +0000", 0),
        (b"committer C <c> 99999999999999999999 +0000", 0),
        (b"author only", 0),
    ],
)
def test_a_commit_with_a_broken_clock_is_still_a_commit(committer: bytes, seconds: int) -> None:
    content = b"tree %s\nauthor x\n%s\n\nthe message\ncommitter M <m> 5 +0000\n" % (A, committer)
    assert objects.parse_commit(content).committed == seconds


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"parent %s\n" % A,
        b"tree %s" % A,
        b"tree %s\n" % A[:39],
        b"tree %s\nparent \n" % A,
        b"tree %s\n" % A.upper(),
    ],
)
def test_a_commit_without_a_readable_tree_or_parent_is_refused(content: bytes) -> None:
    with pytest.raises(ObjectBroken):
        objects.raw_references(objects.COMMIT, content)


def test_a_tree_refers_to_its_entries_but_not_to_submodules() -> None:
    raw = [objects.raw_id(oid) for oid in (A, B, C)]
    content = b"100644 f\0%s160000 module\0%s40000 t\0%s" % tuple(raw)
    assert objects.raw_references(objects.TREE, content) == (raw[0] + raw[2], 0)


@given(st.lists(st.tuples(modes, names, st.binary(min_size=20, max_size=20)), max_size=8))
def test_whatever_ids_and_names_hold_a_tree_is_read_as_git_reads_it(
    entries: list[tuple[bytes, bytes, bytes]],
) -> None:
    """Ids hold digits, spaces and NULs; modes have leading zeros or more than they should."""
    content = b"".join(b"%s %s\0%s" % entry for entry in entries)
    expected = b"".join(oid for mode, _, oid in entries if int(mode, 8) & 0o170000 != 0o160000)
    assert objects.raw_references(objects.TREE, content) == (expected, 0)


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b"100644 a",
        b"100644 a\0short",
        b"9 a\0" + b"1" * 20,
        b"100644 \0" + b"1" * 20,
        b"100644 a\0" + b"1" * 20 + b"rest",
    ],
)
def test_a_tree_that_cannot_be_parsed_is_refused(content: bytes) -> None:
    with pytest.raises(ObjectBroken):
        objects.raw_references(objects.TREE, content)


def test_a_tag_refers_to_its_target() -> None:
    content = b"object %s\ntype tag\ntag x\n\nmessage" % A
    assert objects.raw_references(objects.TAG, content) == (objects.raw_id(A), 0)
    assert objects.parse_tag(content).type == objects.TAG


@pytest.mark.parametrize(
    "content", [b"", b"object %s\n" % A, b"object %s\ntype x\n" % A, b"object %s\ntag x\n" % A]
)
def test_a_tag_without_target_or_type_is_refused(content: bytes) -> None:
    with pytest.raises(ObjectBroken):
        objects.raw_references(objects.TAG, content)


def test_a_blob_refers_to_nothing() -> None:
    assert objects.raw_references(objects.BLOB, b"tree " + A) == (b"", 0)


def test_a_delta_makes_its_result_and_states_both_sizes() -> None:
    delta = copy_delta(b"base", 3)
    assert objects.apply_delta(b"base", delta) == b"base" * 3
    assert objects.delta_sizes(delta) == (4, 12)
    assert objects.apply_delta(b"x" * 300, insert_delta(b"x" * 300, b"new")) == b"new"


@given(st.binary(max_size=60))
def test_any_bytes_are_a_delta_or_are_refused(delta: bytes) -> None:
    try:
        _, size = objects.delta_sizes(delta)
        result = objects.apply_delta(b"some base", delta)
    except ObjectBroken:
        return
    assert len(result) == size


@given(st.sampled_from(sorted(objects.WHOLE_KINDS)), st.binary(max_size=200))
def test_any_bytes_have_references_or_are_refused(kind: int, content: bytes) -> None:
    try:
        found, _ = objects.raw_references(kind, content)
    except ObjectBroken:
        return
    assert len(found) % 20 == 0


def test_a_rejection_survives_the_way_out_of_a_worker_process() -> None:
    error = pickle.loads(pickle.dumps(PackRejected("one sentence")))
    assert (type(error), str(error), error.status) == (PackRejected, "one sentence", 502)
    assert isinstance(error, UpstreamError)


def test_git_reads_the_index_that_is_written(tmp_path: Path) -> None:
    rows = [(bytes([n]) * 20, n * 100, zlib.crc32(bytes([n]))) for n in range(3)]
    file = io.BytesIO()
    objects.write_index(file, rows, b"c" * 20)
    shown = run_git("show-index", repo=make_bare(tmp_path / "r"), stdin=file.getvalue())
    assert shown.decode().splitlines() == [
        f"{offset} {oid.hex()} ({crc:08x})" for oid, offset, crc in rows
    ]

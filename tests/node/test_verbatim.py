"""Segments as one pack."""

import hashlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.errors import MirrorDamaged
from goblet_node.mirror.log import Segment
from goblet_node.serve.pieces import SLICE
from goblet_node.serve.verbatim import whole_pack


def segment(directory: Path, number: int, objects: int, entries: bytes) -> Segment:
    """Write a segment of so many objects; what its entries are does not matter here."""
    head = struct.pack(">4sLL", b"PACK", 2, objects) + entries
    pack = directory / f"seg-{number}.pack"
    pack.write_bytes(head + hashlib.sha1(head).digest())
    return Segment(
        number=number,
        pack=pack,
        table=directory / "none",
        objects=objects,
        bytes=pack.stat().st_size,
        checksum="",
    )


@given(st.lists(st.tuples(st.integers(0, 2**20), st.binary(max_size=300)), max_size=5))
def test_a_log_is_one_header_all_entries_and_one_trailer(
    tmp_path_factory: pytest.TempPathFactory, parts: list[tuple[int, bytes]]
) -> None:
    directory = tmp_path_factory.mktemp("log")
    segments = [segment(directory, n, objects, data) for n, (objects, data) in enumerate(parts)]
    pack = b"".join(whole_pack(segments, trailer=None))
    head = struct.pack(">4sLL", b"PACK", 2, sum(objects for objects, _ in parts))
    assert pack[:-20] == head + b"".join(data for _, data in parts)
    assert pack[-20:] == hashlib.sha1(pack[:-20]).digest()
    assert b"".join(whole_pack(segments, trailer=pack[-20:])) == pack


def test_the_trailer_comes_alone_and_slices_are_bounded(tmp_path: Path) -> None:
    pieces = list(whole_pack([segment(tmp_path, 0, 1, bytes(3 * SLICE + 5))], trailer=None))
    assert [len(piece) for piece in pieces] == [12, SLICE, SLICE, SLICE, 5, 20]


def test_a_segment_that_became_shorter_is_damage(tmp_path: Path) -> None:
    short = segment(tmp_path, 0, 1, bytes(1000))
    short.pack.write_bytes(short.pack.read_bytes()[:500])
    with pytest.raises(MirrorDamaged, match="shorter"):
        list(whole_pack([short], trailer=None))


def test_a_segment_that_is_gone_is_damage(tmp_path: Path) -> None:
    gone = segment(tmp_path, 0, 1, bytes(1000))
    gone.pack.unlink()
    with pytest.raises(MirrorDamaged, match="missing"):
        list(whole_pack([gone], trailer=None))

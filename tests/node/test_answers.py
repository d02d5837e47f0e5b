"""answers: one turn, written in either dialect, and a pack that travels in three ways."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.wire.answers import (
    NAK,
    READY,
    Dialect,
    SideBand,
    Status,
    Turn,
    V0Dialect,
    V2Dialect,
    ack,
)
from goblet_node.wire.pktline import Band, Marker, Packet, decode_all, split_band
from goblet_node.wire.refs import ObjectId
from goblet_shared.parts import FileSpan, Part

A, B = ObjectId(b"a" * 40), ObjectId(b"b" * 40)
DELIM, FLUSH = Marker.DELIM, Marker.FLUSH
BARE = V0Dialect()
SMALL = V0Dialect(side_band=SideBand.SMALL)
LARGE = V0Dialect(side_band=SideBand.LARGE)


@pytest.mark.parametrize(
    ("turn", "packets"),
    [
        (Turn(), []),
        (Turn(has_pack=True), [b"packfile\n"]),
        (Turn(acknowledgments=(NAK,)), [b"acknowledgments\n", b"NAK\n", FLUSH]),
        (
            Turn(acknowledgments=(ack(A), READY), has_pack=True),
            [b"acknowledgments\n", b"ACK " + A + b"\n", b"ready\n", DELIM, b"packfile\n"],
        ),
        (
            Turn(tells_boundary=True, has_pack=True),
            [b"shallow-info\n", b"shallow " + A, b"unshallow " + B, DELIM, b"packfile\n"],
        ),
        (
            Turn(acknowledgments=(ack(A), READY), tells_boundary=True, has_pack=True),
            [
                *[b"acknowledgments\n", b"ACK " + A + b"\n", b"ready\n", DELIM],
                *[b"shallow-info\n", b"shallow " + A, b"unshallow " + B, DELIM],
                b"packfile\n",
            ],
        ),
    ],
)
def test_version_2_parts_its_sections_by_delims(turn: Turn, packets: list[Packet]) -> None:
    assert decode_all(V2Dialect().head(turn, shallow=(A,), unshallow=(B,))) == packets


@pytest.mark.parametrize(
    ("turn", "packets"),
    [
        (Turn(), []),
        (Turn(acknowledgments=(NAK,), has_pack=True), [b"NAK\n"]),
        (Turn(tells_boundary=True), [b"shallow " + A, b"unshallow " + B, FLUSH]),
        (
            Turn(
                acknowledgments=(ack(B, Status.COMMON), ack(B, Status.READY), ack(B)),
                tells_boundary=True,
                has_pack=True,
            ),
            [
                *[b"shallow " + A, b"unshallow " + B, FLUSH],
                *[b"ACK " + B + b" common\n", b"ACK " + B + b" ready\n", b"ACK " + B + b"\n"],
            ],
        ),
    ],
)
def test_version_0_tells_the_boundary_first_and_ends_it(turn: Turn, packets: list[Packet]) -> None:
    assert decode_all(BARE.head(turn, shallow=(A,), unshallow=(B,))) == packets


@pytest.mark.parametrize("dialect", [V2Dialect(), LARGE])
def test_a_boundary_that_is_not_asked_for_is_not_told(dialect: Dialect) -> None:
    assert b"shallow" not in dialect.head(Turn(has_pack=True), shallow=(A,), unshallow=(B,))


@pytest.mark.parametrize(
    ("dialect", "most"), [(V2Dialect(), 65515), (LARGE, 65515), (SMALL, 995)], ids=repr
)
@given(data=st.data())
def test_a_pack_travels_in_packets_as_full_as_may_be(
    dialect: Dialect, most: int, data: st.DataObject
) -> None:
    size = data.draw(st.integers(0, 3 * most))
    pack = bytes(range(256)) * (size // 256 + 1)
    packets = decode_all(dialect.pack(pack[:size]) + dialect.end)
    assert packets.pop() is FLUSH
    pieces = [split_band(packet) for packet in packets if isinstance(packet, bytes)]
    assert b"".join(piece for _, piece in pieces) == pack[:size]
    assert {band for band, _ in pieces} <= {Band.PACK}
    assert all(len(piece) == most for _, piece in pieces[:-1])
    assert all(0 < len(piece) <= most for _, piece in pieces)


@pytest.mark.parametrize("dialect", [V2Dialect(), LARGE, SMALL, BARE], ids=repr)
@given(data=st.data())
def test_a_pack_that_lies_in_files_travels_as_one_that_was_read(
    dialect: Dialect, data: st.DataObject
) -> None:
    """In the same packets, wherever its parts begin and end, and of the length that was told."""
    most = int(dialect.side_band) or 1000
    content = bytes(range(256)) * (4 * most // 256 + 1)
    ends = sorted(data.draw(st.lists(st.integers(0, 4 * most), max_size=6)))
    parts: list[Part] = []
    for start, stop in pairwise([0, *ends]):
        in_file = FileSpan(file=9, offset=start, count=stop - start)
        parts.append(in_file if data.draw(st.booleans()) else content[start:stop])
    pack = content[: ends[-1] if ends else 0]
    framed = dialect.framed(parts)
    sent = b"".join(
        content[part.offset : part.offset + part.count] if isinstance(part, FileSpan) else part
        for part in framed
    )
    assert sent == dialect.pack(pack)
    assert len(sent) == dialect.framed_size(len(pack))
    copied = sum(len(part) for part in parts if isinstance(part, bytes))
    heads = dialect.framed_size(len(pack)) - len(pack)
    assert sum(len(part) for part in framed if isinstance(part, bytes)) == copied + heads


@pytest.mark.parametrize("dialect", [V2Dialect(), LARGE, SMALL], ids=repr)
def test_a_side_band_carries_progress_errors_and_signs_of_life(dialect: Dialect) -> None:
    said = dialect.progress(b"half\r") + dialect.keepalive + dialect.error("the disk is gone")
    assert decode_all(said) == [b"\2half\r", b"\1", b"\3the disk is gone"]


def test_a_sentence_longer_than_a_small_packet_is_told_whole() -> None:
    packets = decode_all(SMALL.error("x" * 2000))
    assert b"".join(packet[1:] for packet in packets if isinstance(packet, bytes)) == (b"x" * 2000)


def test_without_a_side_band_there_is_only_the_pack() -> None:
    assert BARE.pack(b"PACK...") == b"PACK..."
    assert BARE.progress(b"half\r") == BARE.error("no") == BARE.keepalive == BARE.end == b""

"""pktline: packets and side-band packets, out and back, whole and spoiled."""

import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.errors import ProtocolError
from goblet_node.wire.pktline import (
    KEEPALIVE,
    MAX_BAND_DATA,
    MAX_DATA,
    MAX_PKT,
    Band,
    Marker,
    Packet,
    PacketReader,
    decode_all,
    encode,
    encode_band,
    encode_error,
    packets_of,
    split_band,
)
from goblet_testing.strategies import cuts, mutations, packets


def drain(reader: PacketReader) -> list[Packet]:
    taken: list[Packet] = []
    while (packet := reader.next_packet()) is not None:
        taken.append(packet)
    return taken


@given(packets)
def test_what_was_encoded_decodes_to_itself(sent: list[Packet]) -> None:
    assert decode_all(b"".join(map(encode, sent))) == sent


@given(packets, st.data())
def test_where_the_bytes_are_cut_never_matters(sent: list[Packet], data: st.DataObject) -> None:
    reader = PacketReader()
    got: list[Packet] = []
    for piece in data.draw(cuts(b"".join(map(encode, sent)))):
        reader.feed(piece)
        got += drain(reader)
    assert got == sent
    assert reader.pending == 0


@given(packets, st.data())
def test_packets_may_be_taken_later_than_they_arrive(
    sent: list[Packet], data: st.DataObject
) -> None:
    reader = PacketReader()
    got: list[Packet] = []
    for piece in data.draw(cuts(b"".join(map(encode, sent)))):
        reader.feed(piece)
        if (packet := reader.next_packet()) is not None:
            got.append(packet)
    assert got + drain(reader) == sent


@pytest.mark.slow
@given(packets, st.data())
def test_mutated_bytes_raise_protocol_error_or_nothing(
    sent: list[Packet], data: st.DataObject
) -> None:
    """Both readers agree on whether a spoiled body is sound, and on its packets."""
    wire = data.draw(mutations(b"".join(map(encode, sent))))
    whole: list[Packet] | None = None
    with suppress(ProtocolError):
        whole = decode_all(wire)
    reader = PacketReader()
    reader.feed(wire)
    try:
        got = drain(reader)
    except ProtocolError:
        assert whole is None
    else:
        assert (got if reader.pending == 0 else None) == whole


@pytest.mark.parametrize(
    ("wire", "packet"),
    [
        (b"0000", Marker.FLUSH),
        (b"0001", Marker.DELIM),
        (b"0002", Marker.RESPONSE_END),
        (b"0004", b""),
        (b"0006a\n", b"a\n"),
        (b"000Aabcdef", b"abcdef"),
        (b"fff0" + b"x" * MAX_DATA, b"x" * MAX_DATA),
    ],
)
def test_each_kind_of_packet_is_told_apart(wire: bytes, packet: Packet) -> None:
    reader = PacketReader()
    reader.feed(wire)
    assert reader.next_packet() == packet
    assert decode_all(wire) == [packet]
    assert encode(packet) == wire.lower()


@pytest.mark.parametrize(
    "head", [b"0003", b"fff1", b"ffff", b"0x1f", b"+0a1", b"0_1f", b" 0a1", b"<htm", b"00\xb9\xb2"]
)
def test_a_wrong_length_is_refused_after_four_bytes(head: bytes) -> None:
    """Nothing is waited for, and asking again does not find a packet further on."""
    reader = PacketReader()
    reader.feed(head)
    for _ in range(2):
        with pytest.raises(ProtocolError, match="want"):
            reader.next_packet()
    with pytest.raises(ProtocolError, match="want"):
        decode_all(head + b"0000")


@pytest.mark.parametrize("body", [b"0", b"00000", b"0006a", b"0005"])
def test_a_body_must_end_where_a_packet_does(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="ends inside a packet"):
        decode_all(body)


def test_a_packet_is_read_only_when_it_is_asked_for() -> None:
    found = packets_of(b"0006a\n" + b"0000" + b"<htm")
    assert [next(found), next(found)] == [b"a\n", Marker.FLUSH]
    with pytest.raises(ProtocolError, match="want 4 hex digits"):
        next(found)


def test_no_more_packets_are_read_than_the_caller_allows() -> None:
    body = b"0005a" * 3
    assert list(packets_of(body, most=3)) == [b"a"] * 3
    found = packets_of(body, most=2)
    assert [next(found), next(found)] == [b"a"] * 2
    with pytest.raises(ProtocolError, match="more than 2 packets in one body"):
        next(found)


def test_a_reader_waits_for_a_packet_that_has_begun() -> None:
    reader = PacketReader()
    reader.feed(b"000")
    assert reader.next_packet() is None
    reader.feed(b"8abc")
    assert reader.next_packet() is None
    assert reader.pending == 7
    reader.feed(b"d")
    assert reader.next_packet() == b"abcd"
    assert reader.pending == 0


def test_no_packet_is_longer_than_git_reads() -> None:
    with pytest.raises(ValueError, match="65517 bytes in one packet: it holds 65516"):
        encode(b"x" * (MAX_DATA + 1))


def test_reading_costs_the_same_per_byte_however_much_waits() -> None:
    """Byte by byte through a full buffer: a reader that moved its tail each time needs minutes."""
    wire = encode(b"x" * 100) * 20_000
    reader = PacketReader()
    reader.feed(wire)
    begun = time.perf_counter()
    for _ in range(19_000):
        reader.feed(b"0")
        assert reader.next_packet() is not None
    # 0.02 s where this was written; moving 1 MB each time would take 2 s and more.
    assert time.perf_counter() - begun < 1


@given(st.sampled_from(Band), st.binary(max_size=100), st.integers(0, 3 * MAX_BAND_DATA))
def test_banded_data_comes_back_whole_in_packets_of_allowed_size(
    band: Band, seed: bytes, size: int
) -> None:
    data = (seed or b"z") * (size // len(seed or b"z") + 1)
    data = data[:size]
    got = [
        split_band(packet)
        for packet in decode_all(encode_band(band, data))
        if isinstance(packet, bytes)
    ]
    assert all(found is band for found, _ in got)
    assert b"".join(piece for _, piece in got) == data
    assert len(got) == -(-size // MAX_BAND_DATA)


def test_the_largest_band_packet_is_the_largest_packet() -> None:
    assert len(encode_band(Band.PACK, b"x" * MAX_BAND_DATA)) == MAX_PKT


def test_a_keepalive_is_a_pack_packet_without_data() -> None:
    (packet,) = decode_all(KEEPALIVE)
    assert isinstance(packet, bytes)
    assert split_band(packet) == (Band.PACK, b"")


@pytest.mark.parametrize("packet", [b"", b"\0x", b"\4x", b"PACK"])
def test_a_packet_of_no_band_is_refused(packet: bytes) -> None:
    with pytest.raises(ProtocolError, match="want 1, 2 or 3"):
        split_band(packet)


@pytest.mark.parametrize("sentence", ["no", "größer", "\ud800", "x" * 100_000])
def test_an_error_is_always_one_packet(sentence: str) -> None:
    (packet,) = decode_all(encode_error(sentence))
    assert isinstance(packet, bytes)
    assert packet == b"ERR " + sentence.encode("utf-8", "replace")[: MAX_DATA - 4]

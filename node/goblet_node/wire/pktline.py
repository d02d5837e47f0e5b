"""Frame and unframe pkt-lines, and the side-band that travels inside them.

The format is git's `gitprotocol-common` (pkt-line), `gitprotocol-v2` (the
markers) and `gitprotocol-pack` (side-band-64k).
"""

from binascii import Error as NotHexadecimal
from binascii import unhexlify
from collections.abc import Iterator
from enum import Enum, IntEnum
from itertools import count
from typing import TypeAlias

from goblet_node.errors import ProtocolError

# Largest pkt-line git sends (LARGE_PACKET_MAX), its four length digits
# included. Anything above is not git, so it fails before it is buffered.
MAX_PKT = 65520
MAX_DATA = MAX_PKT - 4
MAX_BAND_DATA = MAX_DATA - 1


class Marker(Enum):
    """A packet without data. Each means something else: never compare them by truth or length."""

    FLUSH = b"0000"
    DELIM = b"0001"
    RESPONSE_END = b"0002"


Packet: TypeAlias = bytes | Marker
_MARKERS = (Marker.FLUSH, Marker.DELIM, Marker.RESPONSE_END)


class Band(IntEnum):
    """What a side-band packet carries, by its first byte."""

    PACK = 1
    PROGRESS = 2
    ERROR = 3


_BANDS = {int(band): band for band in Band}

KEEPALIVE = b"0005\x01"
"""An empty PACK packet: upload-pack sends it so that a long silence is not taken for a death."""


def encode(packet: Packet) -> bytes:
    """Return `packet` as it travels.

    Raises:
        ValueError: the data is longer than one packet holds; nothing cuts it silently.
    """
    if isinstance(packet, Marker):
        return packet.value
    if len(packet) > MAX_DATA:
        raise ValueError(f"{len(packet)} bytes in one packet: it holds {MAX_DATA}")
    return b"%04x%s" % (len(packet) + 4, packet)


def encode_error(sentence: str) -> bytes:
    """Return the `ERR` packet that makes git stop and print `sentence`.

    A sentence that does not fit into one packet is cut: it is the last thing that
    the client hears, so it must not fail.
    """
    return encode(b"ERR " + sentence.encode("utf-8", "replace")[: MAX_DATA - 4])


def encode_band(band: Band, data: bytes) -> bytes:
    """Return `data` on `band`, in as many full packets as it needs; none for no data."""
    if len(data) <= MAX_BAND_DATA:
        return b"%04x%c%s" % (len(data) + 5, band, data) if data else b""
    with memoryview(data) as view:
        pieces = [view[at : at + MAX_BAND_DATA] for at in range(0, len(data), MAX_BAND_DATA)]
        return b"".join([b"%04x%c%s" % (len(piece) + 5, band, piece) for piece in pieces])


def split_band(packet: bytes) -> tuple[Band, bytes]:
    """Return the band of a side-band packet and its data.

    Raises:
        ProtocolError: the packet is empty or names no band.
    """
    if not packet:
        raise ProtocolError("side-band packet without a band: want 1, 2 or 3")
    band = _BANDS.get(packet[0])
    if band is None:
        raise ProtocolError(f"side-band {packet[0]}: want 1, 2 or 3")
    return band, packet[1:]


class PacketReader:
    """Turn bytes that arrive in any pieces into packets.

    After a ProtocolError the stream has no next packet: there is nothing to
    synchronise on, and each further call raises the same.
    """

    def __init__(self) -> None:
        # What arrived and how far it was taken. The taken part is dropped only
        # when it is the larger one, so each byte is moved a bounded number of
        # times however small the pieces are.
        self._arrived = bytearray()
        self._taken = 0

    @property
    def pending(self) -> int:
        """How many bytes have arrived and belong to no packet that was taken."""
        return len(self._arrived) - self._taken

    def feed(self, data: bytes) -> None:
        """Append `data`; packets come out of next_packet."""
        if self._taken * 2 >= len(self._arrived):
            del self._arrived[: self._taken]
            self._taken = 0
        self._arrived += data

    def next_packet(self) -> Packet | None:
        """Return the next whole packet, or None if more bytes are needed.

        Raises:
            ProtocolError: the length is not one that git sends. Known after four
                bytes, so that no more than one packet is ever waited for.
        """
        start = self._taken
        body = start + 4
        if len(self._arrived) < body:
            return None
        length = _length(bytes(self._arrived[start:body]))
        if length < 4:
            self._taken = body
            return _MARKERS[length]
        end = start + length
        if len(self._arrived) < end:
            return None
        self._taken = end
        with memoryview(self._arrived) as view:
            return bytes(view[body:end])


def packets_of(body: bytes, *, most: int | None = None) -> Iterator[Packet]:
    """Yield the packets of a body that is complete, each only when it is asked for.

    So whoever refuses a packet pays for none behind it: 16 MB may hold four million.

    Raises:
        ProtocolError: a length is wrong, the body ends inside a packet, or there are
            more packets than `most`.
    """
    start, size = 0, len(body)
    # Lines of ids have one length: read again only where it changes.
    last, length = b"", 0
    for _ in count() if most is None else range(most):
        if start == size:
            return
        data = start + 4
        if data > size:
            raise ProtocolError(f"body of {size} bytes ends inside a packet's length")
        head = body[start:data]
        if head != last:
            last, length = head, _length(head)
        if length < 4:
            yield _MARKERS[length]
            start = data
            continue
        start += length
        if start > size:
            raise ProtocolError(f"body of {size} bytes ends inside a packet of {length} bytes")
        yield body[data:start]
    if start < size:
        raise ProtocolError(f"more than {most} packets in one body")


def decode_all(body: bytes) -> list[Packet]:
    """Return the packets of a body that is complete and known to be small.

    Raises:
        ProtocolError: a length is wrong, or the body ends inside a packet.
    """
    return list(packets_of(body))


def _length(head: bytes) -> int:
    # unhexlify, not int(head, 16): int() also takes "+0a1", "0x1f" and "0_1f".
    try:
        length = int.from_bytes(unhexlify(head), "big")
    except NotHexadecimal:
        raise ProtocolError(f"pkt-line length {head!r}: want 4 hex digits") from None
    if length == 3 or length > MAX_PKT:
        raise ProtocolError(f"pkt-line length {head!r}: want 0000 to 0002 or 0004 to fff0")
    return length

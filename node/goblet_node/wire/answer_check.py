"""Is the answer of an upstream to a client's own fetch whole and sound? Known while it passes.

It goes to others too if it is, so what a client would find out for itself is found out
here: that the sections and the side-band end as they should, that no error stands among
them, that the pack's SHA-1 is the one that it ends with. Sans-IO.
"""

import hashlib
from enum import Enum

from goblet_node.errors import ProtocolError
from goblet_node.wire.answers import Dialect, V0Dialect
from goblet_node.wire.pktline import Band, Marker, Packet, PacketReader, split_band
from goblet_node.wire.v2 import PACKFILE_SECTION

_TRAILER = 20
_SIGNATURE = b"PACK"
_PACKFILE = PACKFILE_SECTION[4:].rstrip(b"\n")
# What may come before the pack in version 2, to a client that names no haves.
_SECTIONS = (b"shallow-info", b"acknowledgments")


class _Due(Enum):
    SECTION = "a section"
    LINES = "the end of a section"
    BOUNDARY = "the boundary"
    ACKNOWLEDGMENTS = "the acknowledgments"
    PACK = "the pack"
    NOTHING = "nothing more"


class AnswerCheck:
    """Takes one answer apart and gives it on in whole packets, as it came.

    The client speaks `dialect`, has a side-band and named no haves.
    """

    def __init__(self, dialect: Dialect, *, tells_boundary: bool) -> None:
        """`tells_boundary` is whether the client asked where its history is to end."""
        self._is_old = isinstance(dialect, V0Dialect)
        if not self._is_old:
            self._due = _Due.SECTION
        else:
            self._due = _Due.BOUNDARY if tells_boundary else _Due.ACKNOWLEDGMENTS
        self._reader = PacketReader()
        self._part = b""  # of a packet that is not whole yet
        self._said_error = False
        self._start = b""
        self._last = b""
        self._running = hashlib.sha1()

    @property
    def is_good(self) -> bool:
        """Whether all of the answer was seen, and it is what it should be."""
        return (
            self._due is _Due.NOTHING
            and not self._said_error
            and self._start == _SIGNATURE
            and self._running.digest() == self._last
        )

    @property
    def has_head(self) -> bool:
        """Whether all before the pack has passed, or an error instead of it."""
        return self._said_error or self._due in (_Due.PACK, _Due.NOTHING)

    def take(self, data: bytes) -> bytes:
        """Take the next bytes and return those of the packets that are whole by now.

        After an error of the upstream's everything is whole: the client must read it.

        Raises:
            ProtocolError: this is no answer that git could use.
        """
        if self._said_error:
            return data
        self._reader.feed(data)
        while not self._said_error and (packet := self._reader.next_packet()) is not None:
            self._judge(packet)
        arrived = self._part + data
        cut = len(arrived) if self._said_error else len(arrived) - self._reader.pending
        self._part = arrived[cut:]
        return arrived[:cut]

    def end(self) -> None:
        """Accept the end of the body. Raises ProtocolError if it came too early."""
        if not (self._said_error or (self._due is _Due.NOTHING and not self._part)):
            raise ProtocolError(f"the answer to fetch ends where {self._due.value} was due")

    def _judge(self, packet: Packet) -> None:
        if isinstance(packet, bytes) and packet.startswith(b"ERR "):
            self._said_error = True
        elif self._due is _Due.PACK and isinstance(packet, bytes):
            self._judge_band(packet)
        else:
            self._due = self._after_old(packet) if self._is_old else self._after(packet)

    def _judge_band(self, packet: bytes) -> None:
        band, data = split_band(packet)
        if band is Band.ERROR:
            self._said_error = True
        elif band is Band.PACK and data:
            if len(self._start) < len(_SIGNATURE):
                self._start += data[: len(_SIGNATURE) - len(self._start)]
            # All but the last bytes: those may be the pack's own SHA-1.
            data = self._last + data
            self._running.update(data[:-_TRAILER])
            self._last = data[-_TRAILER:]

    def _after(self, packet: Packet) -> _Due:
        """Return what is due in version 2 after this packet."""
        line = packet.removesuffix(b"\n") if isinstance(packet, bytes) else packet
        match self._due, line:
            case _Due.SECTION, bytes() if line == _PACKFILE:
                return _Due.PACK
            case _Due.SECTION, bytes() if line in _SECTIONS:
                return _Due.LINES
            case _Due.LINES, bytes():
                return _Due.LINES
            case _Due.LINES, Marker.DELIM:
                return _Due.SECTION
            case _Due.PACK, Marker.FLUSH:
                return _Due.NOTHING
            case _:
                raise self._unexpected(packet)

    def _after_old(self, packet: Packet) -> _Due:
        """Return what is due in version 0 after this packet."""
        match self._due, packet:
            case _Due.BOUNDARY, Marker.FLUSH:
                return _Due.ACKNOWLEDGMENTS
            case _Due.BOUNDARY, bytes() if packet.startswith((b"shallow ", b"unshallow ")):
                return _Due.BOUNDARY
            case _Due.ACKNOWLEDGMENTS, bytes() if packet.startswith(b"NAK"):
                return _Due.PACK
            case _Due.PACK, Marker.FLUSH:
                return _Due.NOTHING
            case _:
                raise self._unexpected(packet)

    def _unexpected(self, packet: Packet) -> ProtocolError:
        got = packet.name.lower() if isinstance(packet, Marker) else repr(packet[:80])
        return ProtocolError(f"{got} in the answer to fetch: {self._due.value} was due")

"""Answers to a fetch, in either dialect: what is said before the pack, and how the pack travels.

What there is to say is a Turn, decided elsewhere; a Dialect writes it as git 2.39's
upload-pack does. The grammar is git's `gitprotocol-v2` and `gitprotocol-pack`. Before
its head an answer can still be an ERR packet instead, which is the same in both
dialects: pktline.encode_error.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum

from goblet_node.wire.pktline import (
    KEEPALIVE,
    MAX_BAND_DATA,
    Band,
    Marker,
    encode,
    encode_band,
)
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.v2 import PACKFILE_SECTION
from goblet_shared.parts import Part, cut, size_of

NAK = b"NAK"
"""Says that none of the client's objects is here."""

READY = b"ready"
"""Says in version 2 that the negotiation is over: the pack follows at once."""

_DELIM = Marker.DELIM.value
_FLUSH = Marker.FLUSH.value


class Status(Enum):
    """What an acknowledgment adds to the id, by the word that says it."""

    PLAIN = b""
    CONTINUE = b" continue"
    COMMON = b" common"
    READY = b" ready"


class AckMode(Enum):
    """How a client of version 0 wants its haves acknowledged: the capability that it chose."""

    NONE = ""
    MULTI_ACK = "multi_ack"
    DETAILED = "multi_ack_detailed"


class SideBand(IntEnum):
    """How many bytes of a pack one packet may hold; NONE is a pack that travels bare."""

    NONE = 0
    SMALL = 995  # DEFAULT_PACKET_MAX, 1000, less the length and the band
    LARGE = MAX_BAND_DATA


def ack(oid: ObjectId, status: Status = Status.PLAIN) -> bytes:
    """Return the line that acknowledges `oid`, as a Turn holds it."""
    return b"ACK " + oid + status.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one answer says, and whether the negotiation ends with it.

    `acknowledgments` are lines without their newlines, None where version 2 leaves
    out their section. `tells_boundary` is whether the answer must say where the
    client's history ends now: only then that needs to be known. Without `has_pack`
    the head is the whole answer.
    """

    acknowledgments: tuple[bytes, ...] | None = None
    tells_boundary: bool = False
    has_pack: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect(ABC):
    """Writes one answer: `head`, then any of `pack`, `progress` and `keepalive`, then `end`.

    Whoever has no side-band hears only the pack. For them everything else is no
    bytes, `error` too: then only a connection that closes early says it.
    """

    side_band: SideBand = SideBand.NONE

    @abstractmethod
    def head(
        self, turn: Turn, *, shallow: Sequence[ObjectId] = (), unshallow: Sequence[ObjectId] = ()
    ) -> bytes:
        """Return all that comes before the pack, and the whole answer if there is none.

        `shallow` and `unshallow` are told, in their order, if the turn tells the boundary.
        """

    @property
    def keepalive(self) -> bytes:
        """What may be sent, once the head was, so that silence is not taken for death."""
        return KEEPALIVE if self.side_band else b""

    @property
    def end(self) -> bytes:
        """What follows a pack that was sent whole."""
        return _FLUSH if self.side_band else b""

    def pack(self, data: bytes) -> bytes:
        """Return the next bytes of the pack as they travel."""
        return self._on(Band.PACK, data) if self.side_band else data

    def framed(self, parts: Iterable[Part]) -> list[Part]:
        """Return the next bytes of the pack as they travel; what lies in files stays there.

        Every packet but the last is full: `framed_size` knows the length of a pack
        that is framed in one go, or in several of which all but the last are a
        multiple of `side_band`.
        """
        if self.side_band is SideBand.NONE:
            return list(parts)
        full = _band_head(int(self.side_band))
        found: list[Part] = []
        last: list[Part] = []
        for packet in cut(parts, int(self.side_band)):
            found += last
            last = [full, *packet]
        if last:
            found += [_band_head(size_of(last[1:])), *last[1:]]
        return found

    def framed_size(self, size: int) -> int:
        """Return how many bytes `size` bytes of a pack are once they are `framed`."""
        if self.side_band is SideBand.NONE:
            return size
        packets = -(-size // int(self.side_band))
        return size + 5 * packets

    def progress(self, text: bytes) -> bytes:
        """Return `text`, its newlines included, for the terminal of the client's user."""
        return self._on(Band.PROGRESS, text)

    def error(self, sentence: str) -> bytes:
        """Return what makes the client fail with `sentence` after the head; nothing follows it."""
        # Without a newline, as upload-pack ends its own: git would show an empty line.
        return self._on(Band.ERROR, sentence.encode("utf-8", "replace"))

    def _on(self, band: Band, data: bytes) -> bytes:
        if self.side_band is SideBand.NONE:
            return b""
        if self.side_band is SideBand.LARGE:
            return encode_band(band, data)
        most = int(self.side_band)
        pieces = (data[at : at + most] for at in range(0, len(data), most))
        return b"".join([encode_band(band, piece) for piece in pieces])


@dataclass(frozen=True, slots=True, kw_only=True)
class V2Dialect(Dialect):
    """Protocol version 2: sections, one of them the pack, always on the large side-band."""

    side_band: SideBand = field(default=SideBand.LARGE, init=False)

    def head(
        self, turn: Turn, *, shallow: Sequence[ObjectId] = (), unshallow: Sequence[ObjectId] = ()
    ) -> bytes:
        """Return the sections before the pack and the line that opens the pack's own.

        Nothing at all for a turn that says nothing: a client that named no want
        hears nothing from upload-pack either.
        """
        sections = []
        if turn.acknowledgments is not None:
            sections.append(_lines([b"acknowledgments", *turn.acknowledgments]))
        if turn.tells_boundary:
            sections.append(encode(b"shallow-info\n") + _boundary(shallow, unshallow))
        if turn.has_pack:
            sections.append(PACKFILE_SECTION)
            return _DELIM.join(sections)
        return _DELIM.join(sections) + _FLUSH if sections else b""


@dataclass(frozen=True, slots=True, kw_only=True)
class V0Dialect(Dialect):
    """Protocol versions 0 and 1 over HTTP, as one client chose to speak them.

    `no_done` is whether the client takes the pack as soon as it was told that the
    server is ready. `negotiates` is whether a list of haves, perhaps an empty one,
    came after the wants: a request that ends before it asks only for the boundary.
    """

    acks: AckMode = AckMode.NONE
    no_done: bool = False
    negotiates: bool = True

    def head(
        self, turn: Turn, *, shallow: Sequence[ObjectId] = (), unshallow: Sequence[ObjectId] = ()
    ) -> bytes:
        """Return the boundary, which a flush ends, and the acknowledgments, which nothing ends."""
        told = _boundary(shallow, unshallow) + _FLUSH if turn.tells_boundary else b""
        return told + _lines(turn.acknowledgments or ())


def _band_head(size: int) -> bytes:
    return b"%04x%c" % (size + 5, Band.PACK)


def _lines(lines: Iterable[bytes]) -> bytes:
    return b"".join([encode(line + b"\n") for line in lines])


def _boundary(shallow: Iterable[ObjectId], unshallow: Iterable[ObjectId]) -> bytes:
    # send_shallow and send_unshallow end these lines, and only these, without a newline.
    lines = [*(b"shallow " + oid for oid in shallow), *(b"unshallow " + oid for oid in unshallow)]
    return b"".join(map(encode, lines))

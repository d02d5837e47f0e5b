"""Read an upstream's answer to a fetch of protocol version 2 while it arrives."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import groupby
from typing import TypeAlias

from goblet_node.errors import ProtocolError
from goblet_node.wire.pktline import Band, Marker, Packet, PacketReader, split_band
from goblet_node.wire.v2_client import line_of, refuse
from goblet_shared.errors import GobletError


@dataclass(frozen=True, slots=True)
class PackData:
    """The next bytes of the pack, never none."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes for the user's terminal, cut anywhere."""

    data: bytes


FetchEvent: TypeAlias = PackData | Progress


class _Section(Enum):
    NONE = "the first section"
    ACKNOWLEDGMENTS = "acknowledgments"
    PACKFILE = "the pack"
    FINISHED = "nothing more"


class FetchReader:
    """Take an upstream's answer to encode_fetch_request apart, in whatever pieces it arrives.

    Feed, then take the events; at the end of the body call `end`. Bytes wait here
    only until their packet is whole.
    """

    def __init__(self) -> None:
        self._reader = PacketReader()
        self._section = _Section.NONE

    @property
    def finished(self) -> bool:
        """Whether the flush after the pack was read: only then the pack is complete."""
        return self._section is _Section.FINISHED

    def feed(self, data: bytes) -> None:
        """Append the next bytes of the body."""
        self._reader.feed(data)

    def events(self) -> Iterator[FetchEvent]:
        """Yield what the bytes so far hold; may be left and called again at any point.

        Raises:
            RemoteError: the upstream ended the answer with an error.
            ProtocolError: the bytes are not an answer to what we ask.
        """
        while (packet := self._reader.next_packet()) is not None:
            if self._section is _Section.PACKFILE and isinstance(packet, bytes):
                event = _demultiplex(packet)
                if event is not None:
                    yield event
            else:
                self._section = self._section_after(packet)

    def end(self) -> None:
        """Accept the end of the body.

        Raises:
            ProtocolError: the answer is not finished, or goes on after its end.
        """
        if not self.finished:
            raise ProtocolError(f"the answer to fetch ends where {self._section.value} was due")
        if self._reader.pending:
            raise ProtocolError("the answer to fetch goes on after its flush packet")

    def _section_after(self, packet: Packet) -> _Section:
        line = packet if isinstance(packet, Marker) else line_of(packet)
        match self._section, line:
            case _Section.NONE, b"acknowledgments":
                return _Section.ACKNOWLEDGMENTS
            case _Section.NONE, b"packfile":
                return _Section.PACKFILE
            case _Section.ACKNOWLEDGMENTS, bytes():
                return _Section.ACKNOWLEDGMENTS
            case _Section.ACKNOWLEDGMENTS, Marker.DELIM:
                return _Section.NONE
            case _Section.PACKFILE, Marker.FLUSH:
                return _Section.FINISHED
            case _:
                # Also shallow-info, wanted-refs and packfile-uris: we never ask for them.
                got = line.name.lower() if isinstance(line, Marker) else repr(line[:80])
                raise ProtocolError(f"{got} in the answer to fetch: {self._section.value} was due")


class Batch:
    """Events of one reader that are kept back, so that pieces of the pack are joined."""

    def __init__(self, reader: FetchReader) -> None:
        self._reader = reader
        self._waiting: list[FetchEvent] = []
        self.size = 0
        """How many bytes of the body were taken since the last events."""

    def take(self, data: bytes) -> GobletError | None:
        """Feed `data`; return what is wrong with it, which comes after the events before it."""
        self.size += len(data)
        self._reader.feed(data)
        try:
            self._waiting.extend(self._reader.events())
        except GobletError as exc:
            return exc
        return None

    def events(self) -> Iterator[FetchEvent]:
        """Yield all that waits, with neighbouring pieces of the pack as one; then none waits."""
        waiting, self._waiting, self.size = self._waiting, [], 0
        for kind, run in groupby(waiting, type):
            if kind is PackData:
                yield PackData(b"".join([event.data for event in run]))
            else:
                yield from run


def _demultiplex(packet: bytes) -> FetchEvent | None:
    if packet.startswith(b"ERR "):
        refuse(packet[4:])  # "E" is no band, so this can only be the packet of that name
    band, data = split_band(packet)
    if band is Band.ERROR:
        refuse(data)
    if not data:
        return None  # a keepalive
    return PackData(data) if band is Band.PACK else Progress(data)

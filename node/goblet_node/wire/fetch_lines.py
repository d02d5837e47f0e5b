"""Collect the lines of a fetch into one Fetch.

The words are the same in both dialects; v2 says all of them as arguments, v0
some as capabilities of its first want.
"""

import re

from goblet_node.errors import ProtocolError
from goblet_node.wire.names import as_object_id, is_ref_name, shown
from goblet_node.wire.pktline import Marker, Packet
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.requests import Fetch, Limits

# --depth=2147483647 is how git says --unshallow (INFINITE_DEPTH); its own
# argument is a C int, so nothing above can be meant.
MAX_DEPTH = 0x7FFFFFFF
_MAX_TIMESTAMP = 2**63 - 1
_DECIMAL = re.compile(rb"[1-9][0-9]{0,18}")

_FLAGS = frozenset(
    {
        b"done",
        b"thin-pack",
        b"ofs-delta",
        b"no-progress",
        b"include-tag",
        b"wait-for-done",
        b"sideband-all",
        b"deepen-relative",
    }
)


def client_line(packet: Packet) -> bytes:
    """Return the line that a client sent, without its newline.

    Raises:
        ProtocolError: it is a marker, or more than one line.
    """
    if isinstance(packet, Marker):
        raise ProtocolError(f"unexpected {packet.name.lower()} packet in a request")
    line = packet[:-1] if packet.endswith(b"\n") else packet
    # git reads C strings: what stands behind a NUL would mean nothing to an
    # upstream that this request may be passed to.
    if b"\0" in line or b"\n" in line:
        raise ProtocolError(f"NUL or newline inside the line {shown(line)}")
    return line


class FetchLines:
    """Take a request's lines one by one, then give the Fetch that they say.

    `object_format` may be set while lines are taken, for those that follow.
    """

    def __init__(self, *, object_format: str, limits: Limits) -> None:
        self.object_format = object_format
        self._ids: dict[bytes, dict[ObjectId, None]] = {b"want": {}, b"have": {}, b"shallow": {}}
        self._names: dict[bytes, dict[bytes, None]] = {b"want-ref": {}, b"deepen-not": {}}
        self._numbers: dict[bytes, int] = {}
        self._texts: dict[bytes, str] = {}
        self._flags: set[bytes] = set()
        self._most = {
            b"want": limits.wants,
            b"have": limits.haves,
            b"shallow": limits.shallow,
            b"want-ref": limits.refs,
            b"deepen-not": limits.refs,
        }

    def take(self, line: bytes) -> None:
        """Note what `line` says; it has no newline.

        Raises:
            ProtocolError: fetch has no such line, its value is malformed, or there
                are more of its kind than the limits allow.
        """
        word, _, value = line.partition(b" ")
        if (ids := self._ids.get(word)) is not None:
            ids[self._object_id(value, line)] = None
            if len(ids) > self._most[word]:
                raise self._too_many(word)
        elif line in _FLAGS:
            self._flags.add(line)
        elif (names := self._names.get(word)) is not None:
            names[self._name(word, value, line)] = None
            if len(names) > self._most[word]:
                raise self._too_many(word)
        elif word == b"deepen":
            self._numbers[word] = _number(value, line, most=MAX_DEPTH)
        elif word == b"deepen-since":
            self._numbers[word] = _number(value, line, most=_MAX_TIMESTAMP)
        elif word in (b"filter", b"packfile-uris"):
            if word in self._texts:
                raise ProtocolError(f"more than one {word.decode()} line in one request")
            self._texts[word] = _text(value, line)
        else:
            raise ProtocolError(f"unexpected line {shown(line)}")

    def fetch(
        self,
        *,
        agent: bytes | None,
        session_id: bytes | None = None,
        server_options: tuple[bytes, ...] = (),
    ) -> Fetch:
        """Return what the lines so far ask for.

        Raises:
            ProtocolError: two of them exclude each other, as upload-pack has it.
        """
        by_date_or_name = b"deepen-since" in self._numbers or self._names[b"deepen-not"]
        if b"deepen" in self._numbers and by_date_or_name:
            raise ProtocolError("deepen and deepen-since (or deepen-not) cannot be used together")
        return Fetch(
            wants=tuple(self._ids[b"want"]),
            want_refs=tuple(self._names[b"want-ref"]),
            haves=tuple(self._ids[b"have"]),
            done=b"done" in self._flags,
            thin_pack=b"thin-pack" in self._flags,
            ofs_delta=b"ofs-delta" in self._flags,
            no_progress=b"no-progress" in self._flags,
            include_tag=b"include-tag" in self._flags,
            wait_for_done=b"wait-for-done" in self._flags,
            sideband_all=b"sideband-all" in self._flags,
            shallow=tuple(self._ids[b"shallow"]),
            deepen=self._numbers.get(b"deepen"),
            deepen_relative=b"deepen-relative" in self._flags,
            deepen_since=self._numbers.get(b"deepen-since"),
            deepen_not=tuple(self._names[b"deepen-not"]),
            filter_spec=self._texts.get(b"filter"),
            packfile_uris=self._texts.get(b"packfile-uris"),
            agent=agent,
            session_id=session_id,
            server_options=server_options,
            object_format=self.object_format,
        )

    def _object_id(self, value: bytes, line: bytes) -> ObjectId:
        oid = as_object_id(value, self.object_format)
        if oid is None:
            raise ProtocolError(f"expected a {self.object_format} object id in {shown(line)}")
        return oid

    def _name(self, word: bytes, name: bytes, line: bytes) -> bytes:
        # deepen-not carries what the user typed ("v1.0"), want-ref a full name.
        if not name or (word == b"want-ref" and not is_ref_name(name)):
            raise ProtocolError(f"invalid ref name in {shown(line)}")
        if word == b"want-ref" and name in self._names[word]:
            raise ProtocolError(f"duplicate {shown(line)}")
        return name

    def _too_many(self, word: bytes) -> ProtocolError:
        most = self._most[word]
        return ProtocolError(f"more than {most} {word.decode()} lines in one request")


def _number(value: bytes, line: bytes, *, most: int) -> int:
    if not _DECIMAL.fullmatch(value) or int(value) > most:
        raise ProtocolError(f"invalid number in {shown(line)}: want 1 to {most}")
    return int(value)


def _text(value: bytes, line: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise ProtocolError(f"{shown(line)} is not UTF-8") from None
    if not text:
        raise ProtocolError(f"nothing after {shown(line)}")
    return text

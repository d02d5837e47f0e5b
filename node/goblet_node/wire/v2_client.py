"""Protocol version 2, the client's side: what a node says to an upstream, and what it hears.

An upstream is not trusted: whatever it sends becomes a value that was checked, a
RemoteError (it refused, in the protocol) or a ProtocolError (it does not speak it).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NoReturn

from goblet_node.errors import ProtocolError, UpstreamError
from goblet_node.wire.names import as_object_id, is_ref_name
from goblet_node.wire.pktline import Marker, Packet, PacketReader, encode, packets_of
from goblet_node.wire.refs import ObjectId, Ref
from goblet_node.wire.requests import Fetch, LsRefs

_NO_OBJECT = b"0" * 40
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\s]+")
# Our own clients get an upstream's sentence as an error line: no more than fits there.
_SENTENCE = 1000


class RemoteError(UpstreamError):
    """The upstream refused in the protocol's own way; the text is its sentence, made printable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advertisement:
    """What an upstream said about itself in answer to `GET info/refs`."""

    version: int
    features: Mapping[str, str | None]

    @property
    def speaks_v2(self) -> bool:
        """Whether this module's requests can be sent there."""
        return self.version == 2

    @property
    def object_format(self) -> str:
        """How objects are named; a server that does not say so has SHA-1."""
        return self.features.get("object-format") or "sha1"

    def has(self, feature: str, detail: str | None = None) -> bool:
        """Whether `feature` was named, and `detail` among the words of its value if asked for."""
        if feature not in self.features:
            return False
        return detail is None or detail in (self.features[feature] or "").split(" ")


def parse_advertisement(body: bytes) -> Advertisement:
    """Return what the upstream can do; of versions 0 and 1 only their capabilities, no ref.

    Raises:
        RemoteError: the upstream refused with an `ERR` packet.
        ProtocolError: the body is no advertisement, a login page for example.
    """
    reader = PacketReader()
    reader.feed(body)
    first = _taken(reader)
    if isinstance(first, bytes) and first.startswith(b"# service="):
        if line_of(first) != b"# service=git-upload-pack" or _taken(reader) is not Marker.FLUSH:
            raise ProtocolError(f"info/refs begins with {first[:80]!r}: want git-upload-pack")
        first = _taken(reader)
    if first is Marker.FLUSH and not reader.pending:
        # All that git says in version 0 about a repository without refs.
        return Advertisement(version=0, features=MappingProxyType({}))
    match line_of(first):
        case b"version 2":
            return Advertisement(version=2, features=_features(_lines_to_flush(reader)))
        case b"version 1":
            return _first_ref_line(_taken(reader), version=1)
        case _:
            return _first_ref_line(first, version=0)


def _taken(reader: PacketReader) -> Packet:
    try:
        packet = reader.next_packet()
    except ProtocolError as exc:
        raise ProtocolError(f"info/refs is not in the git protocol: {exc}") from None
    if packet is None:
        raise ProtocolError("info/refs ends before its flush packet")
    return packet


def _lines_to_flush(reader: PacketReader) -> Iterator[bytes]:
    while (packet := _taken(reader)) is not Marker.FLUSH:
        yield line_of(packet)
    if reader.pending:
        raise ProtocolError("info/refs goes on after its flush packet")


def _first_ref_line(packet: Packet, *, version: int) -> Advertisement:
    """Read `<oid> <name> NUL <capabilities>`, the first line of versions 0 and 1."""
    if packet is Marker.FLUSH:
        return Advertisement(version=version, features=MappingProxyType({}))
    ref, nul, capabilities = line_of(packet).partition(b"\0")
    oid, space, _name = ref.partition(b" ")
    # 64 digits: a sha256 repository must be recognised to be passed on.
    if not (nul and space and (as_object_id(oid) or as_object_id(oid, "sha256"))):
        raise ProtocolError(f"info/refs begins with {ref[:80]!r}: that is no git protocol")
    return Advertisement(version=version, features=_features(capabilities.split()))


def _features(words: Iterator[bytes] | Sequence[bytes]) -> Mapping[str, str | None]:
    features: dict[str, str | None] = {}
    for word in words:
        key, equals, value = word.decode("utf-8", "replace").partition("=")
        features[key] = value if equals else None
    return MappingProxyType(features)


def encode_request(request: LsRefs | Fetch) -> bytes:
    """Return the body that v2.parse_request reads back as `request`."""
    if isinstance(request, LsRefs):
        command, arguments = b"ls-refs", _ls_refs_arguments(request)
    else:
        command, arguments = b"fetch", _fetch_arguments(request)
    packets: list[Packet] = [b"command=%s\n" % command]
    if request.agent is not None:
        packets.append(b"agent=%s\n" % request.agent)
    if request.session_id is not None:
        packets.append(b"session-id=%s\n" % request.session_id)
    # Left out for SHA-1, which it means then: servers older than git 2.28 die
    # of the unknown capability.
    if request.object_format != "sha1":
        packets.append(b"object-format=%s\n" % request.object_format.encode())
    packets += [b"server-option=%s\n" % option for option in request.server_options]
    packets.append(Marker.DELIM)
    packets += [line + b"\n" for line in arguments]
    packets.append(Marker.FLUSH)
    return b"".join(map(encode, packets))


def encode_ls_refs_request(*, prefixes: Sequence[bytes] | None, unborn: bool, agent: str) -> bytes:
    """Return the request for all refs, or those below `prefixes`, with all that is known of each.

    `unborn` only where the upstream advertised it: others die of the word.
    """
    return encode_request(
        LsRefs(
            peel=True,
            symrefs=True,
            unborn=unborn,
            prefixes=tuple(prefixes or ()),
            agent=agent.encode(),
        )
    )


def encode_fetch_request(
    *, wants: Sequence[ObjectId], haves: Sequence[ObjectId], agent: str, thin_pack: bool = True
) -> bytes:
    """Return the request for one pack, without negotiation: what `wants` reach and `haves` do not.

    Without include-tag: the wants are exact, and tags are among them by their own ids.
    """
    return encode_request(
        Fetch(
            wants=tuple(wants),
            haves=tuple(haves),
            done=True,
            thin_pack=thin_pack,
            ofs_delta=True,
            agent=agent.encode(),
        )
    )


def _ls_refs_arguments(request: LsRefs) -> Iterator[bytes]:
    flags = {b"peel": request.peel, b"symrefs": request.symrefs, b"unborn": request.unborn}
    yield from (word for word, is_set in flags.items() if is_set)
    yield from (b"ref-prefix " + prefix for prefix in request.prefixes)


def _fetch_arguments(request: Fetch) -> Iterator[bytes]:
    flags = {
        b"thin-pack": request.thin_pack,
        b"no-progress": request.no_progress,
        b"include-tag": request.include_tag,
        b"ofs-delta": request.ofs_delta,
        b"sideband-all": request.sideband_all,
        b"wait-for-done": request.wait_for_done,
        b"deepen-relative": request.deepen_relative,
    }
    yield from (word for word, is_set in flags.items() if is_set)
    yield from (b"shallow " + oid for oid in request.shallow)
    if request.deepen is not None:
        yield b"deepen %d" % request.deepen
    if request.deepen_since is not None:
        yield b"deepen-since %d" % request.deepen_since
    yield from (b"deepen-not " + name for name in request.deepen_not)
    if request.filter_spec is not None:
        yield b"filter " + request.filter_spec.encode()
    if request.packfile_uris is not None:
        yield b"packfile-uris " + request.packfile_uris.encode()
    yield from (b"want-ref " + name for name in request.want_refs)
    yield from (b"want " + oid for oid in request.wants)
    yield from (b"have " + oid for oid in request.haves)
    if request.done:
        yield b"done"


def parse_ls_refs(body: bytes) -> tuple[Ref, ...]:
    """Return the refs of an answer to ls-refs in its order, each name once and valid.

    Raises:
        RemoteError: the upstream refused with an `ERR` packet.
        ProtocolError: the answer is incomplete, or names what no repository can have.
    """
    refs: list[Ref] = []
    packets = packets_of(body)
    for packet in packets:
        if packet is Marker.FLUSH:
            break
        refs.append(_ref(line_of(packet)))
    else:
        raise ProtocolError("the answer to ls-refs does not end with a flush packet")
    if next(packets, None) is not None:
        raise ProtocolError("the answer to ls-refs goes on after its flush packet")
    if len({ref.name for ref in refs}) != len(refs):
        raise ProtocolError("the answer to ls-refs names a ref twice")
    return tuple(refs)


def _ref(line: bytes) -> Ref:
    word, *rest = line.split(b" ")
    name = rest[0] if rest else b""
    if not is_ref_name(name):
        raise ProtocolError(f"the answer to ls-refs has no valid ref name in {line[:200]!r}")
    target: bytes | None = None
    peeled: ObjectId | None = None
    for attribute in rest[1:]:
        key, _, value = attribute.partition(b":")
        # Attributes that are not known yet are skipped, as git does.
        if key == b"symref-target":
            if not is_ref_name(value):
                raise ProtocolError(f"{name!r} points to {value[:200]!r}: that is no ref name")
            target = value
        elif key == b"peeled":
            peeled = _object_id(value, name)
    if word != b"unborn":
        return Ref(name=name, oid=_object_id(word, name), symref_target=target, peeled=peeled)
    if target is None or name != b"HEAD" or peeled is not None:
        raise ProtocolError(f"unborn {name!r}: only a HEAD with a symref target can be")
    return Ref(name=name, oid=None, symref_target=target)


def _object_id(text: bytes, name: bytes) -> ObjectId:
    oid = as_object_id(text)
    if oid is None or oid == _NO_OBJECT:
        raise ProtocolError(f"{name!r} has the object id {text[:80]!r}: want 40 hex digits")
    return oid


def line_of(packet: Packet) -> bytes:
    """Return the line that an upstream sent, without its newline.

    Raises:
        RemoteError: it is an `ERR` packet.
        ProtocolError: it is a marker.
    """
    if isinstance(packet, Marker):
        raise ProtocolError(f"unexpected {packet.name.lower()} packet from the upstream")
    if packet.startswith(b"ERR "):
        refuse(packet[4:])
    return packet[:-1] if packet.endswith(b"\n") else packet


def refuse(said: bytes) -> NoReturn:
    """Raise what an upstream said in an `ERR` packet or on the error band as a RemoteError."""
    words = _UNPRINTABLE.sub(" ", said.decode("utf-8", "replace")).strip()
    raise RemoteError(words[:_SENTENCE] or "the upstream refused without saying why")

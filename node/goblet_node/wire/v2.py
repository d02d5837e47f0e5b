"""Protocol version 2, the server's side: read what a client asks, write what it is answered.

The grammar is git's `gitprotocol-v2`; where that leaves a choice, git 2.39's
serve.c, ls-refs.c and upload-pack.c decide. v2_client is the other side.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from goblet_node.errors import ProtocolError
from goblet_node.wire.fetch_lines import FetchLines, client_line
from goblet_node.wire.names import OBJECT_FORMATS, shown
from goblet_node.wire.pktline import MAX_DATA, Marker, Packet, encode, packets_of
from goblet_node.wire.refs import Ref
from goblet_node.wire.requests import TOO_MANY_PREFIXES, Fetch, Limits, LsRefs

PACKFILE_SECTION = encode(b"packfile\n")
"""Opens the section that carries the pack on side-band-64k; a flush ends it and the answer."""

# Pieces of an ls-refs answer: large enough to cost few calls, small enough that
# 100,000 refs are not held twice.
_PIECE = 64 * 1024

_LS_REFS_FLAGS = frozenset({b"peel", b"symrefs", b"unborn"})

# A packet that tells a ref holds its id, a space, its name and a newline, so no name
# is longer than this leaves room for, and ours to an upstream has room for a newline.
_LONGEST_PREFIX_LINE = len(b"ref-prefix ") + MAX_DATA - 42

_NO_END = "the request does not end with a flush packet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advertised:
    """What a server says that it can do.

    `fetch` names features of that command: `shallow`, `wait-for-done`, `filter`,
    `ref-in-want`, `sideband-all`, `packfile-uris`. git sends no argument whose
    feature was not advertised.
    """

    fetch: tuple[str, ...]
    unborn: bool = True
    server_option: bool = False
    object_format: str = "sha1"


def encode_advertisement(*, agent: str, features: Advertised) -> bytes:
    """Return the body of `GET info/refs` for a client that said `Git-Protocol: version=2`.

    Framed and ordered as git http-backend 2.39 does it: without the
    `# service=git-upload-pack` line that versions 0 and 1 begin with.
    """
    lines = ["version 2", f"agent={agent}", "ls-refs=unborn" if features.unborn else "ls-refs"]
    lines.append("=".join(filter(None, ["fetch", " ".join(features.fetch)])))
    if features.server_option:
        lines.append("server-option")
    lines.append(f"object-format={features.object_format}")
    packets: list[Packet] = [f"{line}\n".encode() for line in lines]
    return b"".join(map(encode, [*packets, Marker.FLUSH]))


def encode_ls_refs(refs: Iterable[Ref], request: LsRefs) -> Iterator[bytes]:
    """Yield the answer to `request` in pieces of about 64 KiB, ended by its flush.

    The refs keep the order they have. As in git's send_possibly_unborn_head, an
    unborn HEAD is told only to those who asked for `unborn` and `symrefs`.
    """
    lines: list[bytes] = []
    size = 0
    for ref in refs:
        if not request.matches(ref.name):
            continue
        line = _ref_line(ref, request)
        lines.append(line)
        size += len(line)
        if size >= _PIECE:
            yield b"".join(lines)
            lines.clear()
            size = 0
    lines.append(Marker.FLUSH.value)
    yield b"".join(lines)


def _ref_line(ref: Ref, request: LsRefs) -> bytes:
    """Return one ref as a packet, or no bytes where the client may not be told."""
    target = ref.symref_target if request.symrefs else None
    if ref.oid is None and not (request.unborn and target):
        return b""
    symref = b" symref-target:" + target if target else b""
    peeled = b" peeled:" + ref.peeled if request.peel and ref.peeled else b""
    return encode(b"%s %s%s%s\n" % (ref.oid or b"unborn", ref.name, symref, peeled))


def parse_request(body: bytes, *, limits: Limits | None = None) -> LsRefs | Fetch:
    """Return what the whole body of a POST to `git-upload-pack` asks for.

    Over HTTP a body holds one request (`serve --stateless-rpc` reads one). As lenient
    as git: a newline at a line's end is optional, capabilities come in any order,
    the delim may be missing when no argument follows, ids may be in upper case.
    Stricter where no client is known to need it: nothing may follow an id or the
    flush, and numbers are decimal.

    Raises:
        ProtocolError: the body is anything else, or asks for more than `limits`.
    """
    limits = limits or Limits()
    packets = packets_of(body, most=limits.packets)
    preamble = _read_preamble(packets, most=limits.capabilities)
    if preamble.command == b"ls-refs":
        return _read_ls_refs(_arguments(packets, preamble), preamble)
    if preamble.command == b"fetch":
        lines = FetchLines(object_format=preamble.object_format, limits=limits)
        for line in _arguments(packets, preamble):
            lines.take(line)
        return lines.fetch(
            agent=preamble.agent,
            session_id=preamble.session_id,
            server_options=tuple(preamble.server_options),
        )
    # object-info and bundle-uri exist, but we advertise neither.
    raise ProtocolError(f"unknown command {shown(preamble.command)}")


@dataclass(slots=True)
class _Preamble:
    command: bytes = b""
    agent: bytes | None = None
    session_id: bytes | None = None
    object_format: str = "sha1"
    server_options: list[bytes] = field(default_factory=list)
    has_arguments: bool = False


def _read_preamble(packets: Iterable[Packet], *, most: int) -> _Preamble:
    """Take the packets up to the delim, or the flush where no argument follows."""
    preamble = _Preamble()
    for number, packet in enumerate(packets):
        if packet is Marker.FLUSH or packet is Marker.DELIM:
            preamble.has_arguments = packet is Marker.DELIM
            break
        if number == most:
            raise ProtocolError(f"more than {most} capabilities in one request")
        _take_capability(client_line(packet), preamble)
    else:
        raise ProtocolError(_NO_END)
    if not preamble.command:
        raise ProtocolError("no command requested")
    return preamble


def _take_capability(line: bytes, preamble: _Preamble) -> None:
    key, equals, value = line.partition(b"=")
    match key if equals else b"":
        case b"command":
            if preamble.command:
                raise ProtocolError(
                    f"command {shown(value)} requested after already requesting "
                    f"command {shown(preamble.command)}"
                )
            preamble.command = value
        case b"agent":
            preamble.agent = value
        case b"session-id":
            preamble.session_id = value
        case b"server-option":
            preamble.server_options.append(value)
        case b"object-format":
            preamble.object_format = _object_format(value)
        case _:
            # serve.c dies too: a client may name only what was advertised.
            raise ProtocolError(f"unknown capability {shown(line)}")


def _arguments(packets: Iterator[Packet], preamble: _Preamble) -> Iterator[bytes]:
    """Yield the lines behind the preamble, and see to it that the request ends with its flush."""
    if preamble.has_arguments:
        for packet in packets:
            if packet is Marker.FLUSH:
                break
            yield client_line(packet)
        else:
            raise ProtocolError(_NO_END)
    if next(packets, None) is not None:
        raise ProtocolError("the request goes on after its flush packet")


def _object_format(value: bytes) -> str:
    name = value.decode("ascii", "replace")
    if name not in OBJECT_FORMATS:
        raise ProtocolError(f"unknown object format {shown(value)}")
    return name


def _read_ls_refs(arguments: Iterable[bytes], preamble: _Preamble) -> LsRefs:
    flags: set[bytes] = set()
    prefixes: dict[bytes, None] = {}
    asks_for_all = False
    for line in arguments:
        if line in _LS_REFS_FLAGS:
            flags.add(line)
        elif line.startswith(b"ref-prefix "):
            if len(line) > _LONGEST_PREFIX_LINE:
                raise ProtocolError(
                    f"{shown(line)} has {len(line)} bytes: no ref's name is so long"
                )
            if asks_for_all:
                continue
            prefixes[line.removeprefix(b"ref-prefix ")] = None
            if len(prefixes) == TOO_MANY_PREFIXES:
                asks_for_all = True
                prefixes.clear()
        else:
            raise ProtocolError(f"unexpected line {shown(line)}")
    return LsRefs(
        peel=b"peel" in flags,
        symrefs=b"symrefs" in flags,
        unborn=b"unborn" in flags,
        prefixes=tuple(prefixes),
        agent=preamble.agent,
        session_id=preamble.session_id,
        server_options=tuple(preamble.server_options),
        object_format=preamble.object_format,
    )

"""Protocol versions 0 and 1 over smart HTTP, the server's side.

Both are one dialect: version 1 only adds a line to the advertisement. The grammar
is git's `gitprotocol-pack`, `gitprotocol-http` and `gitprotocol-capabilities`; where
they leave a choice, git 2.39's upload-pack.c with `--stateless-rpc` decides. What is
answered to a fetch is in answers.
"""

from collections.abc import Iterable, Iterator, Sequence

from goblet_node.errors import ProtocolError
from goblet_node.wire.answers import AckMode, SideBand, V0Dialect
from goblet_node.wire.fetch_lines import FetchLines, client_line
from goblet_node.wire.names import OBJECT_FORMATS, shown
from goblet_node.wire.pktline import Marker, Packet, encode, packets_of
from goblet_node.wire.refs import ObjectId, Ref
from goblet_node.wire.requests import Fetch, Limits

CAPABILITIES = (
    "multi_ack",
    "thin-pack",
    "side-band",
    "side-band-64k",
    "ofs-delta",
    "shallow",
    "deepen-since",
    "deepen-not",
    "deepen-relative",
    "no-progress",
    "include-tag",
    "multi_ack_detailed",
    "allow-tip-sha1-in-want",
    "allow-reachable-sha1-in-want",
    "no-done",
    "filter",
)
"""All that we offer, in git's order."""

# Where there is no ref to hang the capabilities on; git says so since 2.42, and
# older clients understand it.
_NO_REF = Ref(name=b"capabilities^{}", oid=ObjectId(b"0" * 40))

# Pieces of an advertisement, as large as those of an ls-refs answer.
_PIECE = 64 * 1024

# Capabilities of a client that are arguments in version 2.
_ARGUMENTS = (b"thin-pack", b"ofs-delta", b"no-progress", b"include-tag", b"deepen-relative")

# What may stand beside the wants, before the first flush.
_BESIDE_WANTS = frozenset({b"shallow", b"deepen", b"deepen-since", b"deepen-not", b"filter"})


def encode_advertisement(
    refs: Sequence[Ref], *, agent: str, version: int, capabilities: Sequence[str] = CAPABILITIES
) -> Iterator[bytes]:
    """Yield the body of `GET info/refs` in pieces of about 64 KiB.

    Framed as git http-backend 2.39 does it for a client that said `version=1`, or no
    version that we speak (0). HEAD comes first and the others keep their order; a
    HEAD that is unborn has no place in this dialect.
    """
    start = [encode(b"# service=git-upload-pack\n"), Marker.FLUSH.value]
    if version == 1:
        start.append(encode(b"version 1\n"))
    piece, size = start, 0
    for line in _ref_lines(refs, agent=agent, capabilities=capabilities):
        piece.append(line)
        size += len(line)
        if size >= _PIECE:
            yield b"".join(piece)
            piece, size = [], 0
    piece.append(Marker.FLUSH.value)
    yield b"".join(piece)


def _ref_lines(refs: Sequence[Ref], *, agent: str, capabilities: Sequence[str]) -> Iterator[bytes]:
    born = [ref for ref in refs if ref.oid is not None]
    born.sort(key=lambda ref: ref.name != b"HEAD")
    words = [word.encode() for word in capabilities]
    words += [
        b"symref=%s:%s" % (ref.name, ref.symref_target)
        for ref in born[:1]
        if ref.name == b"HEAD" and ref.symref_target
    ]
    words += [b"object-format=sha1", b"agent=" + agent.encode()]
    # The NUL hides the capabilities from clients that are older than them.
    ending = b"\0" + b" ".join(words)
    for ref in born or [_NO_REF]:
        yield encode(b"%s %s%s\n" % (ref.oid, ref.name, ending))
        ending = b""
        if ref.peeled is not None:
            yield encode(b"%s %s^{}\n" % (ref.peeled, ref.name))


def parse_request(body: bytes, *, limits: Limits | None = None) -> tuple[Fetch, V0Dialect]:
    """Return what the whole body of a POST to `git-upload-pack` asks for, and how to answer it.

    A body is the wants and what stands beside them, a flush, the haves, and a flush
    or `done`. As in git, capabilities count on every want, unknown ones mean
    nothing, and what follows the end of the haves is not read: there a server
    without state answers. A client that wants nothing sends a flush and no more.

    Raises:
        ProtocolError: the body is anything else, or asks for more than `limits`.
    """
    limits = limits or Limits()
    packets = packets_of(body, most=limits.packets)
    collected = FetchLines(object_format="sha1", limits=limits)
    said, wants_something = _read_wants(packets, collected, most=limits.capabilities)
    negotiates = wants_something and _read_haves(packets, collected)
    for argument in _ARGUMENTS:
        if argument in said:
            collected.take(argument)
    fetch = collected.fetch(agent=_value(said, b"agent"), session_id=_value(said, b"session-id"))
    if fetch.filter_spec is not None and b"filter" not in said:
        raise ProtocolError("filter line from a client that did not choose the filter capability")
    return fetch, V0Dialect(
        acks=_ack_mode(said),
        no_done=b"no-done" in said,
        negotiates=negotiates,
        side_band=_side_band(said),
    )


def _read_wants(
    packets: Iterable[Packet], collected: FetchLines, *, most: int
) -> tuple[dict[bytes, None], bool]:
    """Take the packets up to the first flush; return the capabilities, and whether there is a want.

    Ids that come before the first want are read as sha1: the grammar has it first.
    """
    said: dict[bytes, None] = {}
    wants_something = False
    for packet in packets:
        if packet is Marker.FLUSH:
            return said, wants_something
        line = client_line(packet)
        word, _, rest = line.partition(b" ")
        if word == b"want":
            wants_something = True
            oid, _, capabilities = rest.partition(b" ")
            if capabilities:
                line = b"want " + oid
                if _are_new(capabilities, said, most=most):
                    collected.object_format = _object_format(said)
        elif word not in _BESIDE_WANTS:
            raise ProtocolError(f"unexpected line {shown(line)} among the wants")
        collected.take(line)
    raise ProtocolError("the request does not reach the flush packet after its wants")


def _are_new(capabilities: bytes, said: dict[bytes, None], *, most: int) -> bool:
    """Add a want's capabilities to what was `said`; return whether there is one more now."""
    before = len(said)
    words = capabilities.split(maxsplit=most)
    said.update(dict.fromkeys(words))
    if len(words) > most or len(said) > most:
        raise ProtocolError(f"more than {most} capabilities in one request")
    return len(said) > before


def _read_haves(packets: Iterable[Packet], collected: FetchLines) -> bool:
    """Take the packets up to what ends the haves; return whether there was anything at all."""
    is_empty = True
    for packet in packets:
        is_empty = False
        if packet is Marker.FLUSH:
            return True
        line = client_line(packet)
        if line != b"done" and not line.startswith(b"have "):
            raise ProtocolError(f"unexpected line {shown(line)} among the haves")
        collected.take(line)
        if line == b"done":
            return True
    if not is_empty:
        raise ProtocolError("the request ends among its haves: want done or a flush packet")
    return False


def _object_format(said: Iterable[bytes]) -> str:
    value = _value(said, b"object-format")
    if value is None:
        return "sha1"
    name = value.decode("ascii", "replace")
    if name not in OBJECT_FORMATS:
        raise ProtocolError(f"unknown object format {shown(value)}")
    return name


def _ack_mode(said: dict[bytes, None]) -> AckMode:
    if b"multi_ack_detailed" in said:
        return AckMode.DETAILED
    return AckMode.MULTI_ACK if b"multi_ack" in said else AckMode.NONE


def _side_band(said: dict[bytes, None]) -> SideBand:
    if b"side-band-64k" in said:
        return SideBand.LARGE
    return SideBand.SMALL if b"side-band" in said else SideBand.NONE


def _value(said: Iterable[bytes], name: bytes) -> bytes | None:
    start = name + b"="
    return next((word.removeprefix(start) for word in said if word.startswith(start)), None)

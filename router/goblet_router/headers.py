"""Which headers pass, which stop at this hop, and which we add. Pure."""

import re
import secrets
from collections.abc import Iterable

from goblet_shared.contract import NODE_HEADER, REQUEST_ID_HEADER, NodeName

Headers = list[tuple[bytes, bytes]]

# RFC 9110, section 7.6.1, and its predecessors' names. Everything that begins
# with proxy- is meant for the next hop as well.
_HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    )
)

# Set anew for the node. `Expect` was answered by our own server already.
_OWN_OF_REQUEST = frozenset((b"host", b"expect", b"content-length", REQUEST_ID_HEADER))

# Our server writes its own date, and two would contradict each other.
_OWN_OF_ANSWER = frozenset((b"date", b"server", REQUEST_ID_HEADER))

_SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


def for_node(
    headers: Iterable[tuple[bytes, bytes]], *, peer: str | None, request_id: str
) -> Headers:
    """Return the client's headers as a node gets them, without Host.

    The body keeps its framing: a chunked one stays chunked, a length is passed on.
    """
    given = _lowered(headers)
    passed = [field for field in _end_to_end(given) if field[0] not in _OWN_OF_REQUEST]
    passed += _framing(given)
    passed.append((REQUEST_ID_HEADER, request_id.encode("ascii")))
    if peer is not None:
        passed.append((b"x-forwarded-for", peer.encode("ascii", "replace")))
    return passed


def for_client(headers: Iterable[tuple[bytes, bytes]], *, node: NodeName) -> Headers:
    """Return a node's headers as the client gets them; Goblet-Node is there exactly if known."""
    passed = [field for field in _end_to_end(_lowered(headers)) if field[0] not in _OWN_OF_ANSWER]
    if not any(name == NODE_HEADER for name, _ in passed):
        passed.append((NODE_HEADER, node.encode("ascii")))
    return passed


def may_outgrow(headers: Iterable[tuple[bytes, bytes]], limit: int) -> bool:
    """Tell whether the body that these headers announce may have more than `limit` bytes."""
    framing = dict(_framing(_lowered(headers)))
    length = framing.get(b"content-length", b"0")
    return b"transfer-encoding" in framing or int(length) > limit


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the client's request id if it is harmless in a log and a header, else a new one."""
    for name, value in headers:
        if name.lower() == REQUEST_ID_HEADER and _SANE_REQUEST_ID.fullmatch(value):
            return value.decode("ascii")
    return secrets.token_hex(8)


def _lowered(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    return [(bytes(name).lower(), bytes(value)) for name, value in headers]


def _end_to_end(headers: Headers) -> Headers:
    named = {
        token.strip().lower()
        for name, value in headers
        if name == b"connection"
        for token in value.split(b",")
    }
    # A message's length belongs to the message. Were it dropped because someone
    # wrote `Connection: content-length`, the next hop would see another message.
    stops = _HOP_BY_HOP | (named - {b"content-length"})
    return [
        (name, value)
        for name, value in headers
        if name not in stops and not name.startswith(b"proxy-")
    ]


def _framing(headers: Headers) -> Headers:
    # RFC 9112, section 6.3: Transfer-Encoding overrides Content-Length, and our
    # server has already taken the chunks apart by that rule.
    if any(name == b"transfer-encoding" for name, _ in headers):
        return [(b"transfer-encoding", b"chunked")]
    return [field for field in headers if field[0] == b"content-length"][:1]

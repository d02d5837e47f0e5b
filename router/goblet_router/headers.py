"""Which headers pass, which stop at this hop, and which we add. Pure."""

import re
import secrets
from collections.abc import Iterable

from goblet_shared.asgi import is_of_a_connection
from goblet_shared.contract import (
    CACHE_HEADER,
    NODE_HEADER,
    PEER_HEADER,
    REQUEST_ID_HEADER,
    NodeName,
)

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

# Set anew for the node. `Expect` was answered by our own server already. A proof of
# being a member is for the one it was made for: nobody gets one passed on.
_OWN_OF_REQUEST = frozenset((b"host", b"expect", b"content-length", REQUEST_ID_HEADER, PEER_HEADER))

# Our server writes its own date, and two would contradict each other.
_OWN_OF_ANSWER = frozenset((b"date", b"server", REQUEST_ID_HEADER))

# What an upstream needs to know of a client, and no more: it is not of this house.
_FOR_UPSTREAM = frozenset(
    (
        b"accept",
        b"accept-encoding",
        b"accept-language",
        b"authorization",
        b"content-encoding",
        b"content-type",
        b"git-protocol",
        b"pragma",
        b"user-agent",
    )
)

# What of an upstream's answer says something about its bytes or to its client. Its
# cookies do not: all clients of this router share its address.
_FROM_UPSTREAM = frozenset(
    (
        b"cache-control",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"expires",
        b"pragma",
        b"retry-after",
        b"www-authenticate",
    )
)

# What Goblet-Cache says on an answer that the router fetched from upstream itself.
_BYPASS = b"bypass"

_SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


def for_node(
    headers: Iterable[tuple[bytes, bytes]], *, peer: str | None, request_id: str
) -> Headers:
    """Return the client's headers as a node gets them, without Host.

    The body keeps its framing: a chunked one stays chunked, a length is passed on.
    """
    given = lowered(headers)
    passed = [field for field in _end_to_end(given) if field[0] not in _OWN_OF_REQUEST]
    passed += _framing(given)
    passed.append((REQUEST_ID_HEADER, request_id.encode("ascii")))
    if peer is not None:
        passed.append((b"x-forwarded-for", peer.encode("ascii", "replace")))
    return passed


def for_client(headers: Iterable[tuple[bytes, bytes]], *, node: NodeName) -> Headers:
    """Return a node's headers as the client gets them; Goblet-Node is there exactly if known."""
    passed = [field for field in _end_to_end(lowered(headers)) if field[0] not in _OWN_OF_ANSWER]
    if not any(name == NODE_HEADER for name, _ in passed):
        passed.append((NODE_HEADER, node.encode("ascii")))
    return passed


def for_upstream(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return the client's headers as an upstream gets them, without Host."""
    given = lowered(headers)
    passed = [
        (name, value)
        for name, value in given
        if name in _FOR_UPSTREAM and not (name == b"authorization" and is_of_a_connection(value))
    ]
    return passed + _framing(given)


def from_upstream(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return an upstream's headers as the client gets them; they say that no node answered."""
    passed = [field for field in lowered(headers) if field[0] in _FROM_UPSTREAM]
    return [*passed, (CACHE_HEADER, _BYPASS)]


def redirected(location: bytes) -> Headers:
    """Return the headers of an answer that sends a client elsewhere, this once."""
    return [(b"location", location), (b"cache-control", b"no-store")]


def may_outgrow(headers: Iterable[tuple[bytes, bytes]], limit: int) -> bool:
    """Tell whether the body that these headers announce may have more than `limit` bytes."""
    framing = dict(_framing(lowered(headers)))
    length = framing.get(b"content-length", b"0")
    return b"transfer-encoding" in framing or int(length) > limit


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the client's request id if it is harmless in a log and a header, else a new one."""
    for name, value in headers:
        if name.lower() == REQUEST_ID_HEADER and _SANE_REQUEST_ID.fullmatch(value):
            return value.decode("ascii")
    return secrets.token_hex(8)


def lowered(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return header lines with their names in lower case."""
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

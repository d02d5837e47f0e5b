"""The members of a cluster: a stable name, the address that answers to it today, and a state."""

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from goblet_shared.contract import NodeName

# A name becomes a header value, a metric label and a directory, and uhashring
# hashes it: plain characters only, so that it is spelled the same everywhere.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

# With a zone that is plain as well (ipaddress takes any): hosts stand in HAProxy's
# configuration, and in commands to it, which a space or a semicolon ends.
_IPV6 = re.compile(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?")
# Resolvers raise what nobody expects of an empty label, or of one that is longer.
_LABEL = re.compile(r"[A-Za-z0-9_-]{1,63}")


# A ring of so many takes a second to compute, and one of a thousand eleven (each node ranks
# all slots), while nothing else is answered; its nodes own 16 slots each.
MOST_MEMBERS: Final = 256
# Of what is not a name or URL, so much is repeated.
_SHOWN = 200


class MemberState(enum.Enum):
    """What a member is to those who send it requests."""

    JOINING = "joining"
    """It copies what it will own: not on the ring yet."""
    READY = "ready"
    SUSPECT = "suspect"
    """Probes or a request failed: on the ring, asked last."""
    DRAINING = "draining"
    """It is about to go, and answers what it has: on the ring, asked last."""
    GONE = "gone"


_SAID = {
    (200, b"ready"): MemberState.READY,
    (503, b"joining"): MemberState.JOINING,
    (404, b"draining"): MemberState.DRAINING,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A node as others know it."""

    name: NodeName
    url: str  # scheme and authority only: http://10.0.0.7:8080


def is_node_name(name: str) -> bool:
    """Say whether a node may be called so."""
    return _NAME.fullmatch(name) is not None


def state_said(status: int, body: bytes) -> MemberState | None:
    """Return what a node says of itself at `/readyz`; None if no node of ours answers so.

    The status is for load balancers, which read nothing else; the first word of the
    body tells a node from whatever may listen at its address now.
    """
    return _SAID.get((status, body[:16].split(b":")[0].strip()))


def members_of(nodes: Mapping[str, str]) -> tuple[Member, ...]:
    """Return the members, sorted by name.

    Raises:
        ValueError: there are too many, or a name or URL is not usable; the text never
            shows userinfo.
    """
    if len(nodes) > MOST_MEMBERS:
        raise ValueError(f"{len(nodes)} nodes: want at most {MOST_MEMBERS}")
    return tuple(_member(name, url) for name, url in sorted(nodes.items()))


def _is_host(host: str) -> bool:
    """Say whether a host can be looked up. A name with other letters is written as xn--..."""
    if ":" in host:
        return _IPV6.fullmatch(host) is not None
    return all(_LABEL.fullmatch(label) for label in host.removesuffix(".").split("."))


def _member(name: str, url: str) -> Member:
    if not is_node_name(name):
        raise ValueError(
            f"node name {name[:_SHOWN]!r}: use letters, digits, dots, hyphens and underscores"
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"the URL of node {name}: not a URL") from None
    # Anywhere: `user:password@host` without a scheme has no authority to look into.
    if "@" in url:
        raise ValueError(f"the URL of node {name}: leave out the user and password")
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise ValueError(f"the URL of node {name}: want http://HOST:PORT, not {url[:_SHOWN]!r}")
    if not _is_host(host):
        raise ValueError(
            f"the URL of node {name}: {host[:_SHOWN]!r} is no name of a host, and no address"
        )
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(
            f"the URL of node {name}: want no path after the port, not {url[:_SHOWN]!r}"
        )
    return Member(name=NodeName(name), url=f"{parts.scheme}://{parts.netloc}")

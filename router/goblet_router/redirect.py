"""Redirect mode: clients are sent to the node that owns their repository. Pure.

git follows a redirect of its first question, `info/refs`, and sends what follows to
where it led (`http.followRedirects=initial`, its default), so the router is out of the
way of the bytes. What it cannot do then: try another node, or bound a node's load.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from goblet_router.target import target_of
from goblet_shared.contract import NodeName
from goblet_shared.errors import BadRequest
from goblet_shared.git_route import UPLOAD_PACK, Endpoint, Route

# What may hold a credential: git's own, a session, and what GitLab's jobs send.
_CREDENTIALS = frozenset((b"authorization", b"cookie", b"private-token", b"job-token"))


class CredentialsNotRedirected(BadRequest):
    """A request that would be redirected carries a credential, which would go along."""

    status = 403


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirects:
    """Which requests are redirected, and where to.

    `advertised` names nodes that clients reach at another URL than routers do.
    """

    advertised: Mapping[NodeName, str]
    with_credentials: bool

    def may_redirect(self, route: Route, *, raw_path: bytes) -> bool:
        """Say whether git would follow a redirect of this request, and go on there.

        Not a push, which no node takes, and not one of a client that has us for its
        proxy: it would come to us for the node as well.
        """
        return (
            route.endpoint is Endpoint.INFO_REFS
            and route.service == UPLOAD_PACK
            and raw_path.startswith(b"/")
        )

    def must_be_bare(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Return if these headers of a request may be seen by the node it is sent to.

        Raises:
            CredentialsNotRedirected: they hold a credential, and none may go along.
        """
        if self.with_credentials:
            return
        if any(name.lower() in _CREDENTIALS for name, _ in headers):
            raise CredentialsNotRedirected(
                "this Goblet redirects to its nodes, and does not take credentials: use it for "
                "public repositories, or ask its operator for --redirect-credentials"
            )

    def location(self, route: Route, node: NodeName, url: str) -> bytes:
        """Return where a request goes on: at `node`, which routers reach at `url`."""
        base = self.advertised.get(node, url).rstrip("/")
        return base.encode("ascii") + target_of(route, b"")

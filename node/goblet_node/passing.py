"""What goes to the upstream as it comes: pushes, and LFS."""

from goblet_node.access.callers import Caller
from goblet_node.serve.reply import Reply
from goblet_shared.asgi import Receive, Scope
from goblet_shared.git_route import Endpoint, Route, must_be_served


class Passing:
    """Passes on what is no clone or fetch."""

    async def pass_on(
        self, route: Route, caller: Caller, scope: Scope, receive: Receive, reply: Reply
    ) -> None:
        """Answer a push or a question of LFS with what upstream says to it.

        Raises:
            NotServed: it is not passed on here.
        """
        must_be_served(route)


def is_passed_on(route: Route) -> bool:
    """Say whether a request is no part of a clone or fetch."""
    return route.endpoint in (Endpoint.LFS, Endpoint.RECEIVE_PACK) or (
        route.service is not None and route.service != Endpoint.UPLOAD_PACK.value
    )

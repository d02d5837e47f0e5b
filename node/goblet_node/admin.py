"""What an operator asks of a node: which mirrors it holds, and to forget one.

Both tell or take names of repositories, so both are for those who run the node: whoever
asks from its own machine, or knows the cluster's secret.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Protocol

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from goblet_shared import repo_key
from goblet_shared.cluster_secret import ClusterSecret, check_administrator
from goblet_shared.errors import BadRequest, GobletError
from goblet_shared.repo_key import RepoKey

log = logging.getLogger(__name__)


class Mirrors(Protocol):
    """What is asked of a node's mirrors; `drop` may take long and is called in a thread."""

    def sizes(self) -> Mapping[RepoKey, int]:
        """Return how many bytes each mirror takes on disk."""

    def used_at(self, key: RepoKey) -> float:
        """Return when a mirror was used last, in seconds since 1970; 0 if there is none."""

    def drop(self, key: RepoKey) -> None:
        """Forget and delete a mirror; dropping none is no error."""


def build_admin(
    *,
    mirrors: Mirrors,
    discard: Callable[[RepoKey], None],
    secret: ClusterSecret | None,
    forget: Callable[[RepoKey], None] = lambda _: None,
) -> list[Route]:
    """Return the routes `GET /-/mirrors` and `POST /-/purge?repo=`.

    `discard` deletes what was made of a mirror, its recordings; it is called in a thread.
    `forget` is called before: what is purged is not to come back from elsewhere.
    """

    async def show(_: Request) -> Response:
        return JSONResponse({"mirrors": holdings(mirrors)})

    async def purge(request: Request) -> Response:
        key = _repo_of(request)
        held = mirrors.sizes().get(key)
        forget(key)
        try:
            await trio.to_thread.run_sync(mirrors.drop, key)
        finally:
            # Also if the disk refused: what was made of a mirror that nobody should
            # read must not be sent either.
            await trio.to_thread.run_sync(discard, key)
        log.info("purged %s, %d bytes", key, held or 0)
        return JSONResponse({"repo": key, "was_held": held is not None, "bytes": held or 0})

    return [
        Route("/-/mirrors", partial(_guarded, show, secret)),
        Route("/-/purge", partial(_guarded, purge, secret), methods=["POST"]),
    ]


def holdings(mirrors: Mirrors) -> list[dict[str, object]]:
    """Return what is held as JSON has it, the most recently used first."""
    held = [
        {"key": key, "bytes": size, "used_at": mirrors.used_at(key)}
        for key, size in mirrors.sizes().items()
    ]
    return sorted(held, key=lambda one: (-float(str(one["used_at"])), str(one["key"])))


async def _guarded(
    endpoint: Callable[[Request], Awaitable[Response]],
    secret: ClusterSecret | None,
    request: Request,
) -> Response:
    try:
        check_administrator(request.scope, secret)
        return await endpoint(request)
    except GobletError as exc:
        return PlainTextResponse(f"{exc}\n", status_code=exc.status)


def _repo_of(request: Request) -> RepoKey:
    repos = request.query_params.getlist("repo")
    if len(repos) != 1:
        raise BadRequest(f"name one repository: {request.url.path}?repo=github.com/org/repo")
    return repo_key.parse(repos[0])

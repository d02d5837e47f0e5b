"""The router's own pages: health, metrics, and the ring as JSON."""

import re

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, Router

from goblet_shared import repo_key
from goblet_shared.asgi import ASGIApp
from goblet_shared.errors import BadRequest
from goblet_shared.members import MemberState
from goblet_shared.ring import SLOTS, ring_id, slot_of
from goblet_shared.watch import MemberWatch

# What may be repeated from a Host header into text that people copy to a shell.
_PLAIN_AUTHORITY = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}")


def build_pages(*, watch: MemberWatch, registry: CollectorRegistry) -> ASGIApp:
    """Return an application for `/`, `/healthz`, `/readyz`, `/metrics` and `/-/`.

    It is a bare router: what it raises (BadRequest) goes to whoever called it.
    """

    async def index(request: Request) -> Response:
        host = request.headers.get("host", "")
        base = f"http://{host if _PLAIN_AUTHORITY.fullmatch(host) else 'HOST:PORT'}"
        return PlainTextResponse(
            "This is Goblet, a cache for git: run `git config --global "
            f"url.{base}/github.com/.insteadOf https://github.com/`, and clone as ever.\n"
        )

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(_: Request) -> Response:
        if any(view.state is MemberState.READY for view in watch.views):
            return PlainTextResponse("ready\n")
        return PlainTextResponse("no cache node is ready: look at /-/ring\n", status_code=503)

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def show_ring(_: Request) -> Response:
        ring = watch.ring
        members = [
            {
                "name": view.name,
                "url": view.url,
                "state": view.state.value,
                "is_on_ring": view.is_on_ring,
            }
            for view in watch.views
        ]
        shown = {"ring": ring_id(ring), "epoch": watch.epoch, "slots": SLOTS, "members": members}
        return JSONResponse(shown)

    async def locate(request: Request) -> Response:
        repos = request.query_params.getlist("repo")
        if len(repos) != 1:
            raise BadRequest("name one repository: /-/ring/locate?repo=github.com/org/repo")
        key = repo_key.parse(repos[0])
        owners = list(watch.ring.owners(key))
        return JSONResponse({"key": key, "slot": slot_of(key), "owners": owners})

    return Router(
        [
            Route("/", index),
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
            Route("/-/ring", show_ring),
            Route("/-/ring/locate", locate),
        ],
        redirect_slashes=False,
    )

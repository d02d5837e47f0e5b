"""A node's own endpoints: how it is, for people, probes and Prometheus."""

from collections.abc import Callable, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from goblet_shared.asgi import ASGIApp


def build_own(
    *, registry: CollectorRegistry, status: Callable[[], Mapping[str, object]]
) -> ASGIApp:
    """Return the application for everything that is not git.

    `/-/status` says nothing of single repositories: their names are known to those
    who may read them.
    """

    async def index(request: Request) -> Response:
        return PlainTextResponse(
            "This is a Goblet node: clone http://<this address>/<host>/<owner>/<repo>.\n"
        )

    async def alive(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(request: Request) -> Response:
        return PlainTextResponse("ready\n")

    async def metrics(request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def show_status(request: Request) -> Response:
        return JSONResponse(dict(status()))

    return Starlette(
        routes=[
            Route("/", index),
            Route("/healthz", alive),
            Route("/readyz", ready),
            Route("/metrics", metrics),
            Route("/-/status", show_status),
        ]
    )

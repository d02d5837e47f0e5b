"""A node's own endpoints: how it is, for people, probes and Prometheus; and to have it go."""

from collections.abc import Callable, Mapping, Sequence

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from goblet_node.cluster.life import Fact, Life
from goblet_shared.asgi import ASGIApp
from goblet_shared.cluster_secret import ClusterSecret, NotAMember, check_administrator


def build_own(
    *,
    registry: CollectorRegistry,
    life: Life,
    status: Callable[[], Mapping[str, object]],
    secret: ClusterSecret | None,
    routes: Sequence[BaseRoute] = (),
) -> ASGIApp:
    """Return the application for everything that is not git; `routes` are further ones.

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
        return PlainTextResponse(f"{life.sentence}\n", status_code=life.status)

    async def metrics(request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def show_status(request: Request) -> Response:
        shown = {"state": life.state.value, "progress": life.progress}
        return JSONResponse({**status(), **shown})

    async def drain(request: Request) -> Response:
        try:
            check_administrator(request.scope, secret)
        except NotAMember as exc:
            return PlainTextResponse(f"{exc}\n", status_code=exc.status)
        life.happens(Fact.TOLD_TO_GO)
        return PlainTextResponse(f"{life.sentence}\n", status_code=202)

    return Starlette(
        routes=[
            Route("/", index),
            Route("/healthz", alive),
            Route("/readyz", ready),
            Route("/metrics", metrics),
            Route("/-/status", show_status),
            Route("/-/drain", drain, methods=["POST"]),
            *routes,
        ]
    )

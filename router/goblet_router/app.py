"""The router as an ASGI application; the only place where errors become statuses."""

import logging
from time import perf_counter

from starlette.datastructures import QueryParams

from goblet_router import headers
from goblet_router.errors import ClientGone
from goblet_router.metrics import RouterMetrics
from goblet_router.proxy import Proxy
from goblet_shared import repo_key
from goblet_shared.asgi import ASGIApp, Message, Receive, Scope, Send, send_text
from goblet_shared.contract import CACHE_HEADER, NODE_HEADER, REQUEST_ID_HEADER
from goblet_shared.errors import BadRequest, GobletError
from goblet_shared.git_route import Route, is_own, parse_target
from goblet_shared.repo_key import RepoKey, host_of, url_path

_log = logging.getLogger(__name__)

# What Goblet-Node says on an answer that no node gave.
NO_NODE = b"none"

# To be told that a repository is up to date; its owner answers, and checks who asks.
_ENSURE = b"/-/ensure"


def build_app(*, proxy: Proxy, pages: ASGIApp, metrics: RouterMetrics) -> ASGIApp:
    """Return the router's application: `pages` for what is our own, `proxy` for git.

    It stands in front of Starlette's routing, which knows no absolute-form target
    and decodes paths. Every answer carries X-Request-Id and Goblet-Node. An answer
    that broke off gets no end: the application returns, and the server cuts the
    connection.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        visit = _Visit(scope, send)
        is_ensure = scope["raw_path"] == _ENSURE
        is_page = not is_ensure and is_own(scope["raw_path"])
        try:
            if is_page:
                await pages(scope, receive, visit.send)
            elif is_ensure:
                await ensure(visit, scope, receive)
            else:
                await git(visit, scope, receive)
        except GobletError as exc:
            await visit.fail(exc.status, str(exc))
        except Exception:
            _log.exception("request %s met an unexpected error", visit.request_id)
            await visit.fail(500, f"the router failed; its log has why, under {visit.request_id}")
        finally:
            # Probes and scrapes are no news.
            _log.log(logging.DEBUG if is_page else logging.INFO, "%s", visit)
            if not is_page:
                metrics.answers.labels(visit.endpoint, visit.status).inc()

    async def git(visit: "_Visit", scope: Scope, receive: Receive) -> None:
        visit.route = parse_target(
            method=scope["method"], raw_path=scope["raw_path"], query=scope["query_string"]
        )
        await proxy.forward(visit.route, scope, receive, visit.send, request_id=visit.request_id)

    async def ensure(visit: "_Visit", scope: Scope, receive: Receive) -> None:
        repos = QueryParams(scope["query_string"]).getlist("repo")
        if len(repos) != 1:
            raise BadRequest("name one repository: POST /-/ensure?repo=github.com/org/repo")
        visit.ensured = repo_key.parse(repos[0])
        await proxy.pass_on(visit.ensured, scope, receive, visit.send, request_id=visit.request_id)

    return app


class _Visit:
    """One request, and what is seen of its answer on the way to the client."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.request_id = headers.request_id(scope["headers"])
        self.route: Route | None = None
        self.ensured: RepoKey | None = None
        self.status = ClientGone.status  # until there is an answer, nobody had one
        self._method = scope["method"]
        self._send = send
        self._begun = perf_counter()
        self._answers = False
        self._bytes = 0
        self._node = self._cache = "-"
        self._error = ""

    @property
    def endpoint(self) -> str:
        if self.route is not None:
            return self.route.endpoint.value
        return "none" if self.ensured is None else "ensure"

    async def send(self, message: Message) -> None:
        """Pass a message on, with the two headers that every answer has."""
        if message["type"] == "http.response.start":
            message = {**message, "headers": self._signed(message)}
            self._answers = True
            self.status = message["status"]
        await self._send(message)
        self._bytes += len(message.get("body", b""))

    async def fail(self, status: int, sentence: str) -> None:
        """Answer with a sentence if nothing was answered yet, and if anyone is there."""
        self._error = sentence
        if not self._answers and status != ClientGone.status:
            await send_text(self.send, status, sentence)

    def __str__(self) -> str:
        """Return the request's one line in the log: no secrets, nothing that forges a line."""
        route = self.route
        key = route.key if route else self.ensured
        fields = [
            f"method={self._method}",
            f"key={f'{host_of(key)}/{url_path(key)}' if key else '-'}",
            f"endpoint={self.endpoint}",
            f"service={route.service or '-' if route else '-'}",
            f"status={self.status}",
            f"bytes={self._bytes}",
            f"seconds={perf_counter() - self._begun:.3f}",
            f"node={self._node}",
            f"cache={self._cache}",
            f"id={self.request_id}",
        ]
        if self._error:
            fields.append(f"error={self._error!a}")
        return " ".join(fields)

    def _signed(self, message: Message) -> headers.Headers:
        fields: headers.Headers = [*message.get("headers", ())]
        found = dict(fields)
        if NODE_HEADER not in found:
            fields.append((NODE_HEADER, NO_NODE))
        self._node = found.get(NODE_HEADER, b"-").decode("ascii", "replace")
        self._cache = found.get(CACHE_HEADER, b"-").decode("ascii", "replace")
        return [*fields, (REQUEST_ID_HEADER, self.request_id.encode("ascii"))]

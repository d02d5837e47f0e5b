"""Forward one request to the first owner that is willing, and stream its answer back."""

from collections.abc import Callable, Mapping
from time import perf_counter

from goblet_router import headers
from goblet_router.body import ReplayableBody
from goblet_router.errors import (
    AnswerCut,
    ClientGone,
    FailureKind,
    NodeFailed,
    NoNodeAnswered,
    NotRepeatable,
)
from goblet_router.health import Health
from goblet_router.lane import Answer, Ask, Lane
from goblet_router.metrics import RouterMetrics
from goblet_shared.asgi import Receive, Scope, Send, cancelled_on_disconnect
from goblet_shared.contract import NodeName
from goblet_shared.git_route import Endpoint, Route
from goblet_shared.repo_key import RepoKey, host_of, url_path
from goblet_shared.ring import Ring


def target_of(route: Route, query: bytes) -> bytes:
    """Return the request target that a node gets: path form, however the client spelled it.

    `query` is the client's; it matters to LFS alone.
    """
    dot_git = ".git" if route.dot_git else ""
    path = f"/{host_of(route.key)}/{url_path(route.key)}{dot_git}/{route.endpoint.value}"
    if route.endpoint is Endpoint.INFO_REFS:
        return f"{path}?service={route.service}".encode("ascii")
    if route.endpoint is Endpoint.LFS:
        question = b"?" + query if query else b""
        return f"{path}/{route.lfs_path}".encode("ascii") + question
    return path.encode("ascii")


class Proxy:
    """Sends requests to the nodes that own them.

    `rings` is asked once a request: a ring that is swapped meanwhile changes
    nothing for it.
    """

    def __init__(
        self,
        *,
        rings: Callable[[], Ring],
        health: Health,
        lanes: Mapping[NodeName, Lane],
        metrics: RouterMetrics,
        fallbacks: int,
        replay_bytes: int,
        idle: float,
    ) -> None:
        self._rings = rings
        self._health = health
        self._lanes = lanes
        self._metrics = metrics
        self._fallbacks = fallbacks
        self._replay_bytes = replay_bytes
        self._idle = idle

    async def forward(
        self, route: Route, scope: Scope, receive: Receive, send: Send, *, request_id: str
    ) -> None:
        """Answer the request with what its first willing owner says.

        The request to the node is cancelled as soon as the client leaves.

        Raises:
            NoNodeAnswered, NotRepeatable: nothing was sent to the client.
            ClientTooSlow: nothing was sent to the client.
            AnswerCut: the answer had begun; its end must not look like one.
            ClientGone: nobody is left to tell.
        """
        body = ReplayableBody(receive, keep=self._replay_bytes, idle=self._idle)
        peer = scope["client"][0] if scope.get("client") else None
        ask = Ask(
            method=scope["method"],
            target=target_of(route, scope["query_string"]),
            headers=headers.for_node(scope["headers"], peer=peer, request_id=request_id),
            body=body,
            may_outgrow=headers.may_outgrow(scope["headers"], self._replay_bytes),
        )
        is_whole = False
        with self._metrics.in_flight.track_inprogress():
            async with cancelled_on_disconnect(body.receive_rest):
                begun = perf_counter()
                node, answer = await self._first_willing(route.key, ask)
                self._metrics.first_byte.observe(perf_counter() - begun)
                body.let_go()
                await self._relay(node, answer, send)
                is_whole = True
            if not is_whole:
                raise ClientGone("the client left before its answer was complete")
            # Not inside: our server reports the end of an exchange as a disconnect
            # too, and would cancel the very send that ends it.
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _first_willing(self, key: RepoKey, ask: Ask) -> tuple[NodeName, Answer]:
        failures: list[NodeFailed] = []
        for node in self._health.willing(self._rings().owners(key))[: 1 + self._fallbacks]:
            if failures:
                self._may_repeat(ask, failures[-1])
            try:
                # Nothing was sent to the client yet, so a failure costs only time.
                # git's POSTs are questions: asking twice changes nothing.
                answer = await self._begin(node, ask)
            except NodeFailed as exc:
                self._note(exc)
                failures.append(exc)
                continue
            return node, answer
        self._metrics.no_owner.inc()
        raise NoNodeAnswered(_nobody(key, failures))

    def _may_repeat(self, ask: Ask, failure: NodeFailed) -> None:
        if not ask.body.is_replayable:
            raise NotRepeatable(
                f"{failure}, and the request is larger than the {self._replay_bytes} bytes "
                "that are kept for a second try: try again"
            ) from failure
        self._metrics.retried.labels("next node").inc()

    async def _begin(self, node: NodeName, ask: Ask) -> Answer:
        answer = await self._lanes[node].begin(ask)
        if answer.is_declined:
            await answer.aclose()
            raise NodeFailed(f"{node}: declined", node=node, kind=FailureKind.DECLINED)
        return answer

    def _note(self, failure: NodeFailed) -> None:
        self._metrics.failed_attempts.labels(failure.node, failure.kind.value).inc()
        if failure.is_suspicious:
            self._health.note_failure(failure.node, str(failure))

    async def _relay(self, node: NodeName, answer: Answer, send: Send) -> None:
        """Pass on the head and all of the body, but not the end; the answer is closed then."""
        # From the first send on there is no second try: the client has seen the head.
        outcome = "client-gone"
        passed = self._metrics.response_bytes.labels(node)
        try:
            fields = headers.for_client(answer.headers, node=node)
            await send({"type": "http.response.start", "status": answer.status, "headers": fields})
            while (chunk := await answer.next_chunk()) is not None:
                # Returns when the kernel has taken the bytes: a slow client slows the node.
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                passed.inc(len(chunk))
            outcome = "error" if answer.status >= 500 else "ok"
        except AnswerCut:
            outcome = "cut"
            raise
        finally:
            self._metrics.forwarded.labels(node, outcome).inc()
            await answer.aclose()


def _nobody(key: RepoKey, failures: list[NodeFailed]) -> str:
    if not failures:
        return f"no cache node is configured for {key}: start the router with --node NAME=URL"
    return f"no cache node answered for {key} ({'; '.join(map(str, failures))}): try again"

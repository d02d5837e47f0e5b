"""Forward one request to the first owner that is willing, and stream its answer back."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from goblet_router import headers
from goblet_router.answer import Answer
from goblet_router.body import ReplayableBody
from goblet_router.bypass import Bypass
from goblet_router.errors import (
    AnswerCut,
    ClientGone,
    FailureKind,
    NodeFailed,
    NoNodeAnswered,
    NotRepeatable,
    UpstreamFailed,
)
from goblet_router.lane import Ask
from goblet_router.lanes import Lanes
from goblet_router.metrics import RouterMetrics
from goblet_router.redirect import Redirects
from goblet_router.spread import Spread
from goblet_router.target import target_of
from goblet_shared.asgi import Receive, Scope, Send, cancelled_on_disconnect, send_text
from goblet_shared.cluster_secret import target_of as own_target_of
from goblet_shared.contract import CACHE_HEADER, FROM_A_MIRROR, NodeName
from goblet_shared.errors import GobletError
from goblet_shared.git_route import Route
from goblet_shared.members import Member, MemberState
from goblet_shared.repo_key import RepoKey
from goblet_shared.ring import Ring
from goblet_shared.upstreams import HostNotAllowed

# What the metrics call the node of an answer that no node gave.
NO_NODE = "none"


class Members(Protocol):
    """The nodes of the cluster, as they are thought of now."""

    @property
    def ring(self) -> Ring:
        """The ring: an immutable value, swapped for another."""

    def member(self, name: NodeName, /) -> Member | None:
        """Return where a node is; None if it has left."""

    def state(self, name: NodeName, /) -> MemberState:
        """Return what is thought of a node."""

    def willing(self, owners: Sequence[NodeName], /) -> tuple[NodeName, ...]:
        """Return the owners in the order in which to ask them."""

    def note_failure(self, name: NodeName, why: str, /) -> None:
        """Take note that a request to a node failed."""


class Proxy:
    """Sends requests to the nodes that own them.

    The ring is looked at once a request: one that is swapped meanwhile changes
    nothing for it.
    """

    def __init__(
        self,
        *,
        members: Members,
        lanes: Lanes,
        spread: Spread,
        metrics: RouterMetrics,
        fallbacks: int,
        replay_bytes: int,
        idle: float,
        bypass: Bypass | None = None,
        redirects: Redirects | None = None,
    ) -> None:
        """Without `bypass`, what no node answers is an error; without `redirects`, none is sent."""
        self._members = members
        self._lanes = lanes
        self._spread = spread
        self._metrics = metrics
        self._fallbacks = fallbacks
        self._replay_bytes = replay_bytes
        self._idle = idle
        self._bypass = bypass
        self._redirects = redirects

    async def forward(
        self, route: Route, scope: Scope, receive: Receive, send: Send, *, request_id: str
    ) -> None:
        """Answer a git request with what its first willing owner says.

        The request to the node is cancelled as soon as the client leaves. If no owner
        answers, upstream is asked; in redirect mode the client is sent to its owner.

        Raises:
            NoNodeAnswered, NotRepeatable: nothing was sent to the client.
            CredentialsNotRedirected, NotServed, UpstreamFailed: the same.
            ClientTooSlow: nothing was sent to the client.
            AnswerCut: the answer had begun; its end must not look like one.
            ClientGone: nobody is left to tell.
        """
        if await self._redirect(route, scope, send):
            return
        exchange = self._exchange(scope, receive, send)
        ask = self._ask(exchange, target_of(route, scope["query_string"]), request_id)

        async def answer() -> None:
            key = route.key
            willing = self._owners(key)
            owners = self._spread.order(key, willing, is_ready=self._is_ready)
            if owners[:1] != willing[:1]:
                self._metrics.spread.inc()
            try:
                await self._from_nodes(key, owners, ask, exchange)
            except NoNodeAnswered as exc:
                if self._bypass is None:
                    raise
                await self._from_upstream(route, exchange, self._bypass, because=exc)

        await self._until_left(exchange, answer)

    async def pass_on(
        self, key: RepoKey, scope: Scope, receive: Receive, send: Send, *, request_id: str
    ) -> None:
        """Answer a question about a repository that is not git's, as its owner does.

        Its target goes out as it came. Raises as `forward` does.
        """
        exchange = self._exchange(scope, receive, send)
        ask = self._ask(exchange, own_target_of(scope), request_id)
        owners = self._owners(key)
        await self._until_left(exchange, lambda: self._from_nodes(key, owners, ask, exchange))

    async def aclose(self) -> None:
        """Close the connections that are kept."""
        await self._lanes.aclose()
        if self._bypass is not None:
            await self._bypass.aclose()

    async def _redirect(self, route: Route, scope: Scope, send: Send) -> bool:
        """Send the client to its owner, and say so; not if that is not sure to answer."""
        if self._redirects is None or not self._redirects.may_redirect(
            route, raw_path=scope["raw_path"]
        ):
            return False
        node = next(iter(self._owners(route.key)), None)
        member = None if node is None else self._members.member(node)
        if member is None or not self._is_ready(member.name):
            return False
        self._redirects.must_be_bare(scope["headers"])
        self._metrics.redirected.labels(member.name).inc()
        location = self._redirects.location(route, member.name, member.url)
        await send_text(send, 307, "go on at the node that owns this", headers.redirected(location))
        return True

    def _exchange(self, scope: Scope, receive: Receive, send: Send) -> "_Exchange":
        body = ReplayableBody(receive, keep=self._replay_bytes, idle=self._idle)
        return _Exchange(scope=scope, body=body, send=send, begun=perf_counter())

    def _ask(self, exchange: "_Exchange", target: bytes, request_id: str) -> Ask:
        scope = exchange.scope
        peer = scope["client"][0] if scope.get("client") else None
        return Ask(
            method=scope["method"],
            target=target,
            headers=headers.for_node(scope["headers"], peer=peer, request_id=request_id),
            body=exchange.body,
            may_outgrow=headers.may_outgrow(scope["headers"], self._replay_bytes),
        )

    def _owners(self, key: RepoKey) -> tuple[NodeName, ...]:
        return self._members.willing(self._members.ring.owners(key))

    def _is_ready(self, node: NodeName) -> bool:
        return self._members.state(node) is MemberState.READY

    async def _until_left(
        self, exchange: "_Exchange", answer: Callable[[], Awaitable[None]]
    ) -> None:
        is_whole = False
        with self._metrics.in_flight.track_inprogress():
            async with cancelled_on_disconnect(exchange.body.receive_rest):
                await answer()
                is_whole = True
            if not is_whole:
                raise ClientGone("the client left before its answer was complete")
            # Not inside: our server reports the end of an exchange as a disconnect
            # too, and would cancel the very send that ends it.
            await exchange.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _from_nodes(
        self, key: RepoKey, owners: Sequence[NodeName], ask: Ask, exchange: "_Exchange"
    ) -> None:
        failures: list[NodeFailed] = []
        for node in owners[: 1 + self._fallbacks]:
            if failures:
                self._may_repeat(exchange, failures[-1])
                self._metrics.retried.labels("next node").inc()
            member = self._members.member(node)
            with self._spread.under_way(key, node):
                try:
                    # Nothing was sent to the client yet, so a failure costs only time.
                    # git's POSTs are questions: asking twice changes nothing.
                    answer = await self._begin(node, member, ask)
                except NodeFailed as exc:
                    self._note(exc, asked=member)
                    failures.append(exc)
                    continue
                fields = headers.for_client(answer.headers, node=node)
                cache = dict(fields).get(CACHE_HEADER)
                if cache is not None:
                    self._spread.note_held(key, is_held=cache in FROM_A_MIRROR)
                await self._relay(answer, fields, exchange, node=node)
                return
        self._metrics.no_owner.inc()
        raise NoNodeAnswered(_nobody(key, failures))

    async def _from_upstream(
        self, route: Route, exchange: "_Exchange", bypass: Bypass, *, because: NoNodeAnswered
    ) -> None:
        self._may_repeat(exchange, because)
        try:
            answer, fields = await bypass.begin(route, exchange.scope, exchange.body)
        except HostNotAllowed:
            # Nodes may have a longer list than we: that they are down is what happened.
            raise because from None
        except UpstreamFailed as exc:
            self._metrics.forwarded.labels(NO_NODE, "failed").inc()
            raise UpstreamFailed(f"{because}; nor did upstream: {exc}") from exc
        await self._relay(answer, fields, exchange, node=NO_NODE)

    def _may_repeat(self, exchange: "_Exchange", failure: GobletError) -> None:
        if not exchange.body.is_replayable:
            raise NotRepeatable(
                f"{failure}, and the request is larger than the {self._replay_bytes} bytes "
                "that are kept for a second try: try again"
            ) from failure

    async def _begin(self, node: NodeName, member: Member | None, ask: Ask) -> Answer:
        if member is None:
            raise NodeFailed(f"{node}: left the cluster", node=node, kind=FailureKind.GONE)
        answer = await self._lanes.of(member).begin(ask)
        if answer.is_declined:
            await answer.aclose()
            raise NodeFailed(f"{node}: declined", node=node, kind=FailureKind.DECLINED)
        return answer

    def _note(self, failure: NodeFailed, *, asked: Member | None) -> None:
        self._metrics.failed_attempts.labels(failure.node, failure.kind.value).inc()
        # One that has moved meanwhile is not suspect for what happened where it was.
        if failure.is_suspicious and self._members.member(failure.node) == asked:
            self._members.note_failure(failure.node, str(failure))

    async def _relay(
        self, answer: Answer, fields: headers.Headers, exchange: "_Exchange", *, node: str
    ) -> None:
        """Pass on the head and all of the body, but not the end; the answer is closed then."""
        # From the first send on there is no second try: the client has seen the head.
        self._metrics.first_byte.observe(perf_counter() - exchange.begun)
        exchange.body.let_go()
        outcome = "client-gone"
        passed = self._metrics.response_bytes.labels(node)
        send = exchange.send
        try:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Exchange:
    """One request of a client, the way back to it, and when it came."""

    scope: Scope
    body: ReplayableBody
    send: Send
    begun: float


def _nobody(key: RepoKey, failures: list[NodeFailed]) -> str:
    if not failures:
        return f"no cache node is known for {key}: start the router with --node NAME=URL"
    return f"no cache node answered for {key} ({'; '.join(map(str, failures))})"

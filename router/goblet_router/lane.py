"""The way to one node: its connections, one attempt at a time, and what can go wrong on it.

The only module that meets httpx's exceptions. It uses httpx's transport and not
its client: a client keeps one cookie jar for all users, adds headers of its own
and logs every URL.
"""

import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import httpx
import trio

from goblet_router.body import ReplayableBody
from goblet_router.config import Member
from goblet_router.errors import AnswerCut, FailureKind, NodeFailed, StaleConnection
from goblet_router.headers import DECLINED_HEADER, Headers
from goblet_shared.contract import ROUTER_KEEPALIVE_EXPIRY


class _Leave(Protocol):
    def __call__(self, *, is_whole: bool) -> Awaitable[None]: ...


# Closing a socket takes no time; what could is a TLS farewell to a dead node.
_CLOSE_GRACE = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one lane may take: connections, and seconds to wait for each thing."""

    connections: int
    connect: float
    first_byte: float
    idle: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request as it goes to a node; `headers` come without Host.

    `may_outgrow` says that the body may be larger than what is kept of it.
    """

    method: str
    target: bytes
    headers: Headers
    body: ReplayableBody
    may_outgrow: bool = False


class Lane:
    """All connections to one node.

    Each node has its own, so that a node that hangs can use up only its own
    connections. And each connection has a transport of its own: httpx's pool looks
    at every connection for every idle one at each request, which with 500 idle
    connections is a quarter of a million looks.
    """

    def __init__(
        self, member: Member, *, limits: Limits, tls: ssl.SSLContext, on_stale: Callable[[], None]
    ) -> None:
        self._node = member.name
        self._url = httpx.URL(member.url)
        self._limits = limits
        self._tls = tls
        self._on_stale = on_stale
        self._room = trio.Semaphore(limits.connections)
        # All mutable state: idle connections, and since when, the latest on top.
        # The top is taken first, so those that a rush left behind grow old.
        self._idle: list[tuple[httpx.AsyncHTTPTransport, float]] = []

    async def begin(self, ask: Ask) -> "Answer":
        """Return the node's answer as soon as its head is here; the caller closes it.

        A kept connection that breaks before the head is taken for one that the
        node had closed meanwhile, and the request goes out once more on a new one.
        A body that may then be too large to go out again never takes a kept one.

        Raises:
            NodeFailed: no head came. The body may have been read to some point.
            ClientGone, ClientTooSlow: from the body.
        """
        await self._enter()
        try:
            if self._idle and not ask.may_outgrow:
                try:
                    return await self._attempt(self._idle.pop()[0], ask)
                except StaleConnection:
                    self._on_stale()
            return await self._attempt(self._transport(), ask)
        except BaseException:
            self._room.release()
            raise

    async def probe(self) -> bool:
        """Tell whether the node says that it is ready, on a connection of its own."""
        request = httpx.Request("GET", self._url.copy_with(path="/readyz"))
        transport = self._transport()
        try:
            response = await transport.handle_async_request(request)
        except httpx.TransportError:
            return False
        finally:
            await _close(transport)
        return response.status_code == httpx.codes.OK

    async def aclose(self) -> None:
        """Close what is idle; what is in use is closed by those who use it."""
        while self._idle:
            await _close(self._idle.pop()[0])

    async def _enter(self) -> None:
        with trio.move_on_after(self._limits.connect):
            await self._room.acquire()
            return
        text = f"{self._node}: all {self._limits.connections} connections are in use"
        raise NodeFailed(text, node=self._node, kind=FailureKind.BUSY)

    async def _leave(self, transport: httpx.AsyncHTTPTransport, *, is_whole: bool) -> None:
        """Keep the connection of an answer that was read to its end; close any other."""
        self._room.release()
        now = trio.current_time()
        old = [] if is_whole else [transport]
        if is_whole:
            self._idle.append((transport, now))
        while self._idle and self._idle[0][1] < now - ROUTER_KEEPALIVE_EXPIRY:
            old.append(self._idle.pop(0)[0])
        for one in old:
            await _close(one)

    def _transport(self) -> httpx.AsyncHTTPTransport:
        limits = httpx.Limits(
            max_connections=1,
            max_keepalive_connections=1,
            keepalive_expiry=ROUTER_KEEPALIVE_EXPIRY,
        )
        return httpx.AsyncHTTPTransport(verify=self._tls, trust_env=False, limits=limits)

    async def _attempt(self, transport: httpx.AsyncHTTPTransport, ask: Ask) -> "Answer":
        connected = False

        async def trace(event: str, _: dict[str, Any]) -> None:
            nonlocal connected
            connected = connected or event.startswith("connection.connect_tcp")

        # httpcore looks the limits up at each wait, so they can change between
        # the head and the body.
        waits = {
            "connect": self._limits.connect,
            "write": self._limits.idle,
            "read": self._limits.first_byte,
        }
        request = httpx.Request(
            ask.method,
            self._url,
            headers=[(b"host", self._url.netloc), *ask.headers],
            stream=ask.body,
            extensions={"timeout": waits, "trace": trace, "target": ask.target},
        )
        try:
            response = await transport.handle_async_request(request)
        except BaseException as exc:
            await _close(transport)
            if isinstance(exc, httpx.TransportError):
                raise self._failure(exc, was_kept=not connected) from exc
            raise
        waits["read"] = self._limits.idle
        leave = partial(self._leave, transport)
        return Answer(response, node=self._node, idle=self._limits.idle, leave=leave)

    def _failure(self, exc: httpx.TransportError, *, was_kept: bool) -> NodeFailed:
        node, limits = self._node, self._limits
        match exc:
            case httpx.ConnectTimeout():
                text = f"{node}: no connection in {limits.connect:g} s"
                return NodeFailed(text, node=node, kind=FailureKind.UNREACHABLE)
            case httpx.ConnectError():
                text = f"{node}: connection refused"
                return NodeFailed(text, node=node, kind=FailureKind.UNREACHABLE)
            case httpx.WriteTimeout():
                text = f"{node}: took nothing of the request for {limits.idle:g} s"
                return NodeFailed(text, node=node, kind=FailureKind.TIMEOUT)
            case httpx.TimeoutException():
                text = f"{node}: no answer in {limits.first_byte:g} s"
                return NodeFailed(text, node=node, kind=FailureKind.TIMEOUT)
        failure = StaleConnection if was_kept else NodeFailed
        return failure(
            f"{node}: the connection broke before an answer", node=node, kind=FailureKind.RESET
        )


class Answer:
    """The head of a node's answer, and its body chunk by chunk, undecoded."""

    def __init__(
        self, response: httpx.Response, *, node: str, idle: float, leave: "_Leave"
    ) -> None:
        assert isinstance(response.stream, httpx.AsyncByteStream)
        self.status = response.status_code
        self.headers: Headers = response.headers.raw
        self._node = node
        self._idle = idle
        self._stream = response.stream
        self._chunks = aiter(response.stream)
        self._leave = leave
        self._begun = self._is_whole = False

    @property
    def is_declined(self) -> bool:
        """Whether the node asks us to take another; any other answer stands."""
        return self.status == httpx.codes.SERVICE_UNAVAILABLE and any(
            name.lower() == DECLINED_HEADER for name, _ in self.headers
        )

    async def next_chunk(self) -> bytes | None:
        """Return the next bytes of the body, or None at its proper end.

        Raises:
            AnswerCut: the node broke off, or paused for too long.
        """
        self._begun = True
        try:
            chunk = await anext(self._chunks, None)
        except httpx.TimeoutException as exc:
            raise AnswerCut(f"{self._node}: its answer stopped for {self._idle:g} s") from exc
        except httpx.TransportError as exc:
            raise AnswerCut(f"{self._node}: its answer broke off") from exc
        self._is_whole = chunk is None
        return chunk

    async def aclose(self) -> None:
        """Release the connection; it is kept if the body was read to its end, else closed.

        Call it once.
        """
        with trio.move_on_after(_CLOSE_GRACE, shield=True):
            await self._stream.aclose()
            # The body is four generators deep and we hold only the outermost.
            # Dropped half way, the inner ones are left to the garbage collector,
            # of which trio warns. Reading on from the closed connection ends
            # them all, after at most what was received already.
            while self._begun and not self._is_whole:
                try:
                    await anext(self._chunks)
                except (StopAsyncIteration, httpx.TransportError):
                    break
        await self._leave(is_whole=self._is_whole)


async def _close(transport: httpx.AsyncHTTPTransport) -> None:
    with trio.move_on_after(_CLOSE_GRACE, shield=True):
        await transport.aclose()

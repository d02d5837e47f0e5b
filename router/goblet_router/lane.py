"""The way to one node: its connections, one attempt at a time, and what can go wrong on it.

The only module that meets httpcore's exceptions. It uses single connections of httpcore,
on which httpx stands: what httpx adds (a cookie jar for all users, headers of its own,
a log line for every URL) has no place in a proxy, and each of its layers costs once a
chunk.
"""

import ssl
from collections.abc import AsyncIterable, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpcore
import trio

from goblet_router.body import ReplayableBody
from goblet_router.errors import AnswerCut, FailureKind, NodeFailed, StaleConnection
from goblet_router.headers import Headers
from goblet_router.wide import WideReads
from goblet_shared.contract import DECLINED_HEADER, ROUTER_KEEPALIVE_EXPIRY
from goblet_shared.members import Member


class _Leave(Protocol):
    def __call__(self, *, is_whole: bool) -> Awaitable[None]: ...


# Everything that a connection may meet once it was asked for something.
_BROKEN = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException)
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
    connections. They are kept here: httpcore's pool looks at every connection for
    every idle one at each request, which with 500 idle connections is a quarter of a
    million looks.
    """

    def __init__(
        self, member: Member, *, limits: Limits, tls: ssl.SSLContext, on_stale: Callable[[], None]
    ) -> None:
        self._node = member.name
        parts = urlsplit(member.url)
        assert parts.hostname is not None  # config.py holds members to it
        port = parts.port or (443 if parts.scheme == "https" else 80)
        self._authority = parts.netloc.encode("idna")
        self._origin = httpcore.Origin(
            parts.scheme.encode("ascii"), parts.hostname.encode("idna"), port
        )
        self._backend = WideReads(httpcore.TrioBackend())
        self._limits = limits
        self._tls = tls
        self._on_stale = on_stale
        self._room = trio.Semaphore(limits.connections)
        # All mutable state: idle connections, and since when, the latest on top.
        # The top is taken first, so those that a rush left behind grow old.
        self._idle: list[tuple[httpcore.AsyncHTTPConnection, float]] = []

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
            if not ask.may_outgrow and (kept := await self._kept()) is not None:
                try:
                    return await self._attempt(kept, ask)
                except StaleConnection:
                    self._on_stale()
            return await self._attempt(self._connection(), ask)
        except BaseException:
            self._room.release()
            raise

    async def probe(self) -> bool:
        """Tell whether the node says that it is ready, on a connection of its own."""
        connection = self._connection()
        request = self._request(b"GET", b"/readyz", headers=[], body=None, extensions={})
        try:
            response = await connection.handle_async_request(request)
        except _BROKEN:
            return False
        finally:
            await _close(connection)
        return response.status == HTTPStatus.OK

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

    async def _kept(self) -> httpcore.AsyncHTTPConnection | None:
        """Return an idle connection that the node has not closed, if there is one."""
        while self._idle:
            connection = self._idle.pop()[0]
            if not connection.has_expired():
                return connection
            await _close(connection)
        return None

    async def _leave(self, connection: httpcore.AsyncHTTPConnection, *, is_whole: bool) -> None:
        """Keep the connection of an answer that was read to its end; close any other."""
        self._room.release()
        now = trio.current_time()
        old = [] if is_whole else [connection]
        if is_whole:
            self._idle.append((connection, now))
        while self._idle and self._idle[0][1] < now - ROUTER_KEEPALIVE_EXPIRY:
            old.append(self._idle.pop(0)[0])
        for one in old:
            await _close(one)

    def _connection(self) -> httpcore.AsyncHTTPConnection:
        return httpcore.AsyncHTTPConnection(
            self._origin,
            ssl_context=self._tls,
            keepalive_expiry=ROUTER_KEEPALIVE_EXPIRY,
            network_backend=self._backend,
        )

    def _request(
        self,
        method: bytes,
        target: bytes,
        *,
        headers: Headers,
        body: ReplayableBody | None,
        extensions: dict[str, Any],
    ) -> httpcore.Request:
        origin = self._origin
        return httpcore.Request(
            method,
            httpcore.URL(scheme=origin.scheme, host=origin.host, port=origin.port, target=target),
            headers=[(b"host", self._authority), *headers],
            content=body,
            extensions=extensions,
        )

    async def _attempt(self, connection: httpcore.AsyncHTTPConnection, ask: Ask) -> "Answer":
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
        request = self._request(
            ask.method.encode("ascii"),
            ask.target,
            headers=ask.headers,
            body=ask.body,
            extensions={"timeout": waits, "trace": trace},
        )
        try:
            response = await connection.handle_async_request(request)
        except BaseException as exc:
            await _close(connection)
            if isinstance(exc, _BROKEN):
                raise self._failure(exc, was_kept=not connected) from exc
            raise
        waits["read"] = self._limits.idle
        leave = partial(self._leave, connection)
        return Answer(response, node=self._node, idle=self._limits.idle, leave=leave)

    def _failure(self, exc: Exception, *, was_kept: bool) -> NodeFailed:
        node, limits = self._node, self._limits
        match exc:
            case httpcore.ConnectTimeout():
                text = f"{node}: no connection in {limits.connect:g} s"
                return NodeFailed(text, node=node, kind=FailureKind.UNREACHABLE)
            case httpcore.ConnectError():
                text = f"{node}: connection refused"
                return NodeFailed(text, node=node, kind=FailureKind.UNREACHABLE)
            case httpcore.WriteTimeout():
                text = f"{node}: took nothing of the request for {limits.idle:g} s"
                return NodeFailed(text, node=node, kind=FailureKind.TIMEOUT)
            case httpcore.TimeoutException():
                text = f"{node}: no answer in {limits.first_byte:g} s"
                return NodeFailed(text, node=node, kind=FailureKind.TIMEOUT)
        failure = StaleConnection if was_kept else NodeFailed
        return failure(
            f"{node}: the connection broke before an answer", node=node, kind=FailureKind.RESET
        )


class Answer:
    """The head of a node's answer, and its body chunk by chunk, undecoded."""

    def __init__(
        self, response: httpcore.Response, *, node: str, idle: float, leave: "_Leave"
    ) -> None:
        assert isinstance(response.stream, AsyncIterable)
        self.status = response.status
        self.headers: Headers = response.headers
        self._node = node
        self._idle = idle
        self._response = response
        self._chunks = aiter(response.stream)
        self._leave = leave
        self._begun = self._is_whole = False

    @property
    def is_declined(self) -> bool:
        """Whether the node asks us to take another; any other answer stands."""
        return self.status == HTTPStatus.SERVICE_UNAVAILABLE and any(
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
        except httpcore.TimeoutException as exc:
            raise AnswerCut(f"{self._node}: its answer stopped for {self._idle:g} s") from exc
        except _BROKEN as exc:
            raise AnswerCut(f"{self._node}: its answer broke off") from exc
        self._is_whole = chunk is None
        return chunk

    async def aclose(self) -> None:
        """Release the connection; it is kept if the body was read to its end, else closed.

        Call it once.
        """
        with trio.move_on_after(_CLOSE_GRACE, shield=True):
            await self._response.aclose()
            # The body is two generators deep and we hold only the outer one.
            # Dropped half way, the inner one is left to the garbage collector,
            # of which trio warns. Reading on from the closed connection ends
            # both, after at most what was received already.
            while self._begun and not self._is_whole:
                try:
                    await anext(self._chunks)
                except (StopAsyncIteration, *_BROKEN):
                    break
        await self._leave(is_whole=self._is_whole)


async def _close(connection: httpcore.AsyncHTTPConnection) -> None:
    with trio.move_on_after(_CLOSE_GRACE, shield=True):
        await connection.aclose()

"""The way to one node: its connections, one attempt at a time, and what can go wrong on it.

Only this module and answer.py meet httpcore's exceptions. Both use single connections
of httpcore, on which httpx stands: what httpx adds (a cookie jar for all users, headers
of its own, a log line for every URL) has no place in a proxy, and each of its layers
costs once a chunk.
"""

import ssl
from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httpcore
import trio

from goblet_router.answer import BROKEN, CLOSE_GRACE, Answer, run_out
from goblet_router.body import ReplayableBody
from goblet_router.errors import FailureKind, NodeFailed, StaleConnection
from goblet_router.headers import Headers
from goblet_router.wide import WideReads
from goblet_shared.contract import ROUTER_KEEPALIVE_EXPIRY
from goblet_shared.members import Member, MemberState, state_said

# What is read of a node's own words: it says its state first.
_MOST_SAID = 1024


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
        self,
        member: Member,
        *,
        limits: Limits,
        tls: Callable[[], ssl.SSLContext],
        on_stale: Callable[[], None],
        may_end_by_close: bool = False,
    ) -> None:
        """Take a member, what its lane may use, and who is told of stale connections.

        With `may_end_by_close` an answer without a length is whole when its connection
        is closed, as HTTP/1.0 has it. No node answers so.
        """
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
        self._tls = tls() if parts.scheme == "https" else None
        self._on_stale = on_stale
        self._may_end_by_close = may_end_by_close
        self._room = trio.Semaphore(limits.connections)
        # All mutable state: idle connections, and since when, the latest on top.
        # The top is taken first, so those that a rush left behind grow old. Once the
        # lane is closed none is kept any more.
        self._idle: list[tuple[httpcore.AsyncHTTPConnection, float]] = []
        self._is_closed = False

    async def begin(self, ask: Ask) -> Answer:
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

    async def probe(self) -> MemberState | None:
        """Return what the node says of itself, on a connection of its own; None if nothing.

        The caller bounds the time.
        """
        connection = self._connection()
        request = self._request(b"GET", b"/readyz", headers=[], body=None, extensions={})
        try:
            response = await connection.handle_async_request(request)
            return state_said(response.status, await _beginning(response))
        except BROKEN:
            return None
        finally:
            await _close(connection)

    async def aclose(self) -> None:
        """Close what is idle, and whatever becomes idle later; what is in use goes on."""
        self._is_closed = True
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
        is_kept = is_whole and not self._is_closed
        old = [] if is_kept else [connection]
        if is_kept:
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

    async def _attempt(self, connection: httpcore.AsyncHTTPConnection, ask: Ask) -> Answer:
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
            if isinstance(exc, BROKEN):
                raise self._failure(exc, was_kept=not connected) from exc
            raise
        waits["read"] = self._limits.idle
        leave = partial(self._leave, connection)
        return Answer(
            response,
            node=self._node,
            idle=self._limits.idle,
            leave=leave,
            may_end_by_close=self._may_end_by_close,
        )

    def _failure(self, exc: Exception, *, was_kept: bool) -> NodeFailed:
        node, limits = self._node, self._limits
        match exc:
            case httpcore.ConnectTimeout():
                text = f"{node}: no connection in {limits.connect:g} s"
                return NodeFailed(text, node=node, kind=FailureKind.UNREACHABLE)
            case httpcore.ConnectError():
                text = f"{node}: {_why_unconnected(exc)}"
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


async def _close(connection: httpcore.AsyncHTTPConnection) -> None:
    with trio.move_on_after(CLOSE_GRACE, shield=True):
        await connection.aclose()


def _why_unconnected(failure: BaseException) -> str:
    cause: BaseException | None = failure
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not valid ({cause.verify_message})"
        if isinstance(cause, ssl.SSLError):
            return "it does not speak TLS as it should"
        cause = cause.__cause__ or cause.__context__
    return "connection refused"


async def _beginning(response: httpcore.Response) -> bytes:
    """Return the first bytes of a body, and end it: its connection must be closed then."""
    assert isinstance(response.stream, AsyncIterable)
    said = b""
    chunks = aiter(response.stream)
    while len(said) < _MOST_SAID and (chunk := await anext(chunks, None)) is not None:
        said += chunk
    await response.aclose()
    await run_out(chunks)
    return said

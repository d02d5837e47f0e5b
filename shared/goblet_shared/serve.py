"""An ASGI application behind hypercorn, with the limits that router and node share."""

from __future__ import annotations

import logging
import math
import re
import signal
import socket
import traceback
from collections.abc import Callable
from typing import cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState

from goblet_shared.asgi import ASGIApp, Receive, Scope, Send
from goblet_shared.errors import GobletError
from goblet_shared.linger import lingering
from goblet_shared.resident import Pages
from goblet_shared.zerocopy import ZeroCopyServer

_log = logging.getLogger(__name__)

# How long bytes that we sent may stay unacknowledged, or the client's window shut,
# until the kernel drops the connection. hypercorn shields its sends without a
# deadline, so nothing above the kernel would. Two minutes outlast an index-pack
# that waits for a slow disk; a client that reads nothing for longer is gone.
STALLED_AFTER = 120.0

# Connections the kernel keeps for us between two turns of the accept loop. A CI
# fan-out opens hundreds within a millisecond; a refused one costs a second's retry.
_BACKLOG = 1024

# The head of a request: git sends well under 2 KiB, a long bearer token may take 8.
_MAX_HEAD = 32 * 1024

# hypercorn counts requests on a connection and then says `Connection: close`. A
# router talks to its nodes over the same connections for days.
_REQUESTS_PER_CONNECTION = 1_000_000

# Threads that may wait for a disk at once, so that files can be sent that are not in
# memory. Enough to keep a disk busy; a disk that hangs takes no more with it.
_DISK_READERS = 16


def listening_socket(address: str, *, stalled_after: float = STALLED_AFTER) -> socket.socket:
    """Return a socket that listens at `HOST:PORT`, `[IPv6]:PORT`, or the inherited `fd://N`.

    Port 0 takes a free one. Connections accepted from it are dropped by the kernel
    when the peer has taken nothing for about `stalled_after` seconds. The caller
    closes the socket; `serve` does that too.

    Raises:
        GobletError: when the address is malformed, in use, or not a listening socket.
    """
    scheme, _, number = address.partition("://")
    listener = _inherited(number) if scheme == "fd" else _bound(*_host_and_port(address))
    # On the listener: accepted sockets inherit it. TCP_NODELAY is set by trio.
    listener.setsockopt(
        socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, math.ceil(stalled_after * 1000))
    )
    return listener


async def serve(
    app: ASGIApp,
    *,
    listener: socket.socket,
    keep_alive: float,
    grace: float,
    stop: trio.Event,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve HTTP requests to `app` until `stop` is set, then let those in flight end.

    Idle connections are closed after `keep_alive` seconds, and at once when `stop`
    is set. What still runs `grace` seconds later is cut off. An exception of the
    app after its answer began cuts the connection, so that no client takes a torn
    answer for a whole one; before that, hypercorn answers 500. `listener` is closed
    at the end. The app sees `http` scopes only: no lifespan, no websockets. It may
    send files (parts.py) where the scope offers it.
    """
    connections = _Connections(app, keep_alive)
    async with trio.open_nursery() as watching:
        async with trio.open_nursery() as serving:
            watching.start_soon(connections.cut_all_after, stop, grace, serving.cancel_scope)
            async with trio.open_nursery() as accepting:
                accepting.start_soon(connections.accept_all, listener, serving)
                task_status.started()
                await stop.wait()
                accepting.cancel_scope.cancel()
            await connections.close_idle()
        watching.cancel_scope.cancel()


async def stop_on_signals(
    stop: trio.Event,
    *,
    leave: Callable[[], None] | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Set `stop` at the first SIGINT or SIGTERM; at the second, cancel the nursery this runs in.

    With `leave` a first SIGTERM calls that instead: whoever is to go in good order sets
    `stop` when that is done. What comes after it hastens as if it were the first.

    Runs until it is cancelled. Start it in the nursery that the whole service
    lives in, and cancel that nursery when `serve` has returned.
    """
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
        task_status.started()
        async for number in received:
            if stop.is_set():
                nursery = trio.lowlevel.current_task().parent_nursery
                if nursery is not None:
                    nursery.cancel_scope.cancel()
            elif leave is not None and number == signal.SIGTERM:
                leave()
                leave = None
            else:
                stop.set()


class _Connections:
    """The open connections of one server.

    hypercorn's own `serve` would do for a start, but it ends the whole process when
    one connection's task fails, and it cannot let go of a stalled client: so the
    accept loop is ours, and only what speaks HTTP is hypercorn's.
    """

    def __init__(self, app: ASGIApp, keep_alive: float) -> None:
        self._app = ASGIWrapper(cast(ASGIFramework, _http_only(lingering(app))))
        self._config = _config(keep_alive)
        self._context = WorkerContext(max_requests=None)
        self._pages = Pages(readers=_DISK_READERS)
        # All mutable state: the connections that are open. Changed without an await.
        self._open: set[trio.SocketStream] = set()

    async def accept_all(self, listener: socket.socket, handlers: trio.Nursery) -> None:
        listener.setblocking(False)
        accepting = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        await trio.serve_listeners(self._serve_one, [accepting], handler_nursery=handlers)

    async def close_idle(self) -> None:
        """Close what waits for a next request, and let every other end with its answer."""
        await self._context.terminated.set()

    async def cut_all_after(
        self, stop: trio.Event, grace: float, handlers: trio.CancelScope
    ) -> None:
        """Cut every connection `grace` seconds after `stop`, and at once when cancelled."""
        try:
            await stop.wait()
            await trio.sleep(grace)
        finally:
            # Closed, not only cancelled: hypercorn's shielded send to a stalled
            # client would hold us until the kernel gives that client up.
            for stream in self._open:
                stream.socket.close()
            handlers.cancel()

    async def _serve_one(self, stream: trio.SocketStream) -> None:
        self._open.add(stream)
        try:
            # hypercorn looks at a stream's attributes to tell plain TCP from TLS.
            tls_or_plain = cast("trio.SSLStream[trio.SocketStream]", stream)
            state = ConnectionState({})
            await _Connection(
                self._app, self._config, self._context, state, tls_or_plain, pages=self._pages
            )
        except* Exception as failures:
            # One connection's failure must not end the others: a malformed upgrade
            # to HTTP/2 fails in hypercorn. Without messages and traceback, which
            # hold the request's headers, so credentials.
            _log.warning("a connection was dropped: %s", ", ".join(_places(failures)))
        finally:
            self._open.discard(stream)


class _Connection(ZeroCopyServer):
    """One connection, which is closed as soon as its client has left.

    hypercorn's own waits for its idle timer too, so it would keep the descriptor of
    each client that left for as long as `keep_alive`.
    """

    _client_has_left = False

    async def _read_data(self) -> None:
        await super()._read_data()
        self._client_has_left = True
        await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        try:
            await super().protocol_send(event)
        except trio.BusyResourceError:
            # hypercorn says goodbye without its send lock: an answer of the app can
            # meet it, where a request breaks off. This connection is being closed.
            await self.protocol.handle(Closed())

    async def _idle_timeout(self) -> None:
        # An app that goes on after its client left starts the timer when it ends.
        if not self._client_has_left:
            await super()._idle_timeout()


def _places(failure: BaseException) -> list[str]:
    """Return the type of each exception in a group, and where it was raised."""
    if isinstance(failure, BaseExceptionGroup):
        return [place for inner in failure.exceptions for place in _places(inner)]
    frame = traceback.extract_tb(failure.__traceback__)[-1]
    return [f"{type(failure).__name__} at {frame.filename}:{frame.lineno}"]


def _config(keep_alive: float) -> Config:
    config = Config()
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    config.include_server_header = False
    config.keep_alive_timeout = cast(int, keep_alive)
    config.keep_alive_max_requests = _REQUESTS_PER_CONNECTION
    config.h11_max_incomplete_size = _MAX_HEAD
    return config


def _http_only(app: ASGIApp) -> ASGIApp:
    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await app(scope, receive, send)
        else:
            # Before it was accepted, this refuses a websocket with a 403.
            await send({"type": "websocket.close"})

    return outer


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise GobletError(f"{address!r}: put an IPv6 address in brackets, as in [::1]:8080")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise GobletError(f"{address!r} is not an address to listen at: want HOST:PORT or fd://N")
    return host, int(port)


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            # A restart must not wait for the last connections' TIME_WAIT.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise GobletError(f"cannot listen at {host}:{port}: {error.strerror or error}") from error
    return listener


def _inherited(number: str) -> socket.socket:
    if not re.fullmatch(r"[0-9]{1,9}", number):
        raise GobletError(f"fd://{number} is not an inherited socket: want fd://N")
    try:
        listener = socket.socket(fileno=int(number))
        if listener.family not in {socket.AF_INET, socket.AF_INET6} or not listener.getsockopt(
            socket.SOL_SOCKET, socket.SO_ACCEPTCONN
        ):
            listener.detach()  # not ours to close
            raise GobletError(f"fd://{number} is not a listening TCP socket")
        # Ours alone from here: a worker process that inherits it would keep the port.
        listener.set_inheritable(False)
    except OSError as error:
        raise GobletError(f"fd://{number} is not an open socket of this process") from error
    return listener

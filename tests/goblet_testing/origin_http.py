"""The origin's HTTP side: one thread a connection, answers streamed as git makes them."""

import base64
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import socket
from typing import IO, Any, BinaryIO, Protocol

from goblet_testing.backend import Backend, ClientLeft, has_left
from goblet_testing.faults_on_cue import Cues, Deed, Fault, PackWatch, with_deeds
from goblet_testing.origin_reply import Reply, shut
from goblet_testing.seen import Asked, Seen, read_request

_BLOCK = 1 << 16
_LOGIN_PAGE = (
    b"<!DOCTYPE html><html><body><form>Please sign in to the network.</form></body></html>\n"
)
_GONE_POLL = 0.02


class Host(Protocol):
    """What the server needs to know of the origin it stands before."""

    cues: Cues

    def judge(self, repo: str, user: str | None, password: str) -> int:
        """Return 200, 401, 403 or 404 for who asks for `repo`."""

    def begin(self, asked: Asked, headers: dict[str, str], user: str | None) -> dict[str, str]:
        """Return the CGI variables for the request."""

    def note(self, seen: Seen) -> None:
        """Add a line to the log."""


class OriginServer(ThreadingHTTPServer):
    """Serves one origin; `end` leaves no thread, connection or process behind.

    What a handler raised, other than for a client that left, is in `broken`.
    """

    daemon_threads = False  # so that server_close joins them
    request_queue_size = 256

    def __init__(self, listener: socket, host: Host, program: Any, stderr: IO[bytes]) -> None:
        super().__init__(listener.getsockname()[:2], OriginHandler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.host = host
        self.program = program
        self.stderr = stderr
        self.broken: list[BaseException] = []
        self._lock = threading.Lock()
        self._connections: set[socket] = set()
        self._ending = False
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.05}, name="origin"
        )

    def start(self) -> None:
        """Accept connections from now on."""
        self.server_activate()
        self._thread.start()

    def end(self) -> None:
        """Close every connection, whatever it is doing, and wait for all threads."""
        self.shutdown()
        self._thread.join()
        with self._lock:
            self._ending = True
            for connection in self._connections:
                shut(connection)
        self.host.cues.stop()
        self.server_close()

    def admit(self, connection: socket) -> None:
        """Remember a connection, so that `end` can close it."""
        with self._lock:
            self._connections.add(connection)
            if self._ending:
                shut(connection)

    def forget(self, connection: socket) -> None:
        """A connection ended by itself."""
        with self._lock:
            self._connections.discard(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep what a handler raised for the test that owns the origin."""
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError):
            self.broken.append(error)


class OriginHandler(BaseHTTPRequestHandler):
    """One connection: reads requests, lets git answer, and does what the cues say."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: OriginServer

    def setup(self) -> None:
        super().setup()
        self.server.admit(self.connection)

    def finish(self) -> None:
        self.server.forget(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: the origin has its own log."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        # Spooled first: http-backend reads all of it before it answers, and what
        # is asked decides whether something is to go wrong.
        with tempfile.TemporaryFile() as body:
            size = 0
            for block in self._body(headers):
                size += body.write(block)
            body.seek(0)
            asked = read_request(
                method=self.command, target=self.path, headers=headers, body=body, size=size
            )
            user, password = _credential(headers.get("authorization"))
            reply = Reply(self, asked, user, note=self.server.host.note)
            try:
                self._act(reply, headers, body, password)
            except (ClientLeft, ConnectionError):
                reply.abort()

    def _act(self, reply: Reply, headers: dict[str, str], body: BinaryIO, password: str) -> None:
        asked, host = reply.asked, self.server.host
        fault = host.cues.take(asked)
        if host.cues.pause(fault.delay):
            raise ClientLeft
        if _replaces(fault):
            self._act_replaced(reply, fault)
            return
        verdict = host.judge(asked.repo, reply.user, password)
        if verdict != 200:
            extra = [("WWW-Authenticate", 'Basic realm="origin"')] if verdict == 401 else []
            reply.whole(verdict, extra, b"refused\n")
            return
        if fault.hold:
            self._wait_released()
        backend = Backend(
            self.server.program,
            env=host.begin(asked, headers, reply.user),
            body=body,
            client=self.connection,
            stderr=self.server.stderr,
        )
        try:
            status, fields = backend.head()
            reply.head(status, fields)
            watch = PackWatch(fault.corrupt_pack_at)
            pieces = backend.pieces()
            if asked.kind in ("fetch", "v0") and status == 200:
                pieces = watch.passes(pieces)
            self._send(reply, pieces, fault, watch)
        finally:
            backend.close()

    def _send(self, reply: Reply, pieces: Iterator[bytes], fault: Fault, watch: PackWatch) -> None:
        begun = time.perf_counter()
        for piece in with_deeds(pieces, fault):
            if piece is Deed.STALL:
                self._wait_released()
            elif piece is Deed.CUT:
                reply.packed = watch.packed
                raise ClientLeft
            elif isinstance(piece, bytes):
                reply.packed = watch.packed
                reply.piece(piece)
                if fault.rate is not None:
                    due = begun + reply.response_bytes / fault.rate
                    if self.server.host.cues.pause(max(0.0, due - time.perf_counter())):
                        raise ClientLeft
        reply.end()

    def _act_replaced(self, reply: Reply, fault: Fault) -> None:
        if fault.redirect_to is not None:
            query = self.path.partition("?")[2]
            target = fault.redirect_to.rstrip("/") + reply.asked.endpoint
            target += f"?{query}" if query else ""
            reply.whole(fault.redirect_status, [("Location", target)], b"moved\n")
        elif fault.status is not None:
            extra = [] if fault.retry_after is None else [("Retry-After", str(fault.retry_after))]
            reply.whole(fault.status, extra, b"failing on cue\n")
        else:
            reply.whole(200, [("Content-Type", "text/html")], _LOGIN_PAGE)

    def _wait_released(self) -> None:
        cues = self.server.host.cues
        epoch = cues.arrive()
        try:
            while not cues.wait_open(epoch, seconds=_GONE_POLL):
                if has_left(self.connection):
                    raise ClientLeft
        finally:
            cues.leave()

    def _body(self, headers: dict[str, str]) -> Iterator[bytes]:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int(self._line().split(b";")[0], 16):
                yield from self._exactly(size)
                self._line()
            while self._line().strip():
                pass  # trailers
        else:
            yield from self._exactly(int(headers.get("content-length", "0")))

    def _line(self) -> bytes:
        line = self.rfile.readline()
        if not line:
            raise ConnectionResetError("the client left in the middle of its request")
        return line

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            block = self.rfile.read(min(size, _BLOCK))
            if not block:
                raise ConnectionResetError("the client left in the middle of its request")
            size -= len(block)
            yield block


def _replaces(fault: Fault) -> bool:
    return fault.html or fault.status is not None or fault.redirect_to is not None


def _credential(authorization: str | None) -> tuple[str | None, str]:
    if authorization is None or not authorization.startswith("Basic "):
        return None, ""
    user, _, password = base64.b64decode(authorization[6:]).decode().partition(":")
    return user, password

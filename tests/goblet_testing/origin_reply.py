"""One answer of the origin on its way to the client, and its line in the log."""

import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from socket import SHUT_RDWR, socket

from goblet_testing.seen import Asked, Seen


class Reply:
    """One answer on its way, and its line in the log.

    The line is in the log before the client can have seen the end of the answer,
    so a test may look at once.
    """

    def __init__(
        self,
        handler: BaseHTTPRequestHandler,
        asked: Asked,
        user: str | None,
        *,
        note: Callable[[Seen], None],
    ) -> None:
        self.asked = asked
        self.user = user
        self.response_bytes = 0
        self.packed = False
        self._handler = handler
        self._note_seen = note
        self._begun = time.perf_counter()
        self._status = 0
        self._chunked = False

    def whole(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """Send a short answer at once."""
        self._status = status
        self.response_bytes = len(body)
        self._note(aborted=False)
        self._send_head([*headers, ("Content-Length", str(len(body)))])
        if self.asked.method != "HEAD":
            self._handler.wfile.write(body)

    def head(self, status: int, headers: list[tuple[str, str]]) -> None:
        """Send the head of an answer whose length is not known yet."""
        self._status = status
        self._chunked = self._handler.request_version != "HTTP/1.0"
        framing = ("Transfer-Encoding", "chunked") if self._chunked else ("Connection", "close")
        self._send_head([*headers, framing])

    def piece(self, data: bytes) -> None:
        """Send a part of the body."""
        if self.asked.method == "HEAD":
            return
        wire = b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data
        self._handler.wfile.write(wire)
        self.response_bytes += len(data)

    def end(self) -> None:
        """End the body as it should end."""
        self._note(aborted=False)
        if self._chunked and self.asked.method != "HEAD":
            self._handler.wfile.write(b"0\r\n\r\n")

    def abort(self) -> None:
        """Close the connection where it stands."""
        self._note(aborted=True)
        self._handler.close_connection = True
        shut(self._handler.connection)

    def _send_head(self, headers: list[tuple[str, str]]) -> None:
        self._handler.send_response(self._status)
        for name, value in headers:
            self._handler.send_header(name, value)
        self._handler.end_headers()

    def _note(self, *, aborted: bool) -> None:
        self._note_seen(
            Seen.of(
                self.asked,
                user=self.user,
                status=self._status,
                response_bytes=self.response_bytes,
                seconds=time.perf_counter() - self._begun,
                aborted=aborted,
                packed=self.packed,
            )
        )


def shut(connection: socket) -> None:
    """Close both ways of a connection that another thread may be using."""
    with suppress(OSError):  # it is closed already
        connection.shutdown(SHUT_RDWR)

"""A git server on loopback of which a subclass says what it answers."""

import gzip
import threading
from abc import ABC, abstractmethod
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


class LoopbackServer(ABC):
    """Serves one repository at `url` while it is entered; each request in a thread of its own.

    `said` is the client's Git-Protocol header, empty if it has none.
    """

    def __init__(self) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(server.advertise(self.headers["Git-Protocol"] or ""))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                self._answer(server.answer(self.headers["Git-Protocol"] or "", body))

            def _answer(self, content: bytes) -> None:
                self.send_response(200)
                suffix = "advertisement" if self.command == "GET" else "result"
                self.send_header("Content-Type", f"application/x-git-upload-pack-{suffix}")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                """Keep the test's output quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/repo.git"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @abstractmethod
    def advertise(self, said: str) -> bytes:
        """Return the answer to `GET info/refs`."""

    @abstractmethod
    def answer(self, said: str, body: bytes) -> bytes:
        """Return the answer to a POST with this body, decoded."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

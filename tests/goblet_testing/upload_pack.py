"""Real `git upload-pack` as the judge of wire code, asked directly or through our own front."""

import gzip
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self

from goblet_node.wire.refs import Ref
from goblet_node.wire.requests import Fetch, LsRefs
from goblet_node.wire.v2 import Advertised, encode_advertisement, encode_ls_refs, parse_request
from goblet_node.wire.v2_client import encode_ls_refs_request, parse_ls_refs
from goblet_testing.gitcli import hermetic_env


def advertise(repo: Path, *, version: int) -> bytes:
    """Return what git says in answer to `GET info/refs`, without http-backend's service line."""
    return _run(repo, "--http-backend-info-refs", b"", version=version)


def answer(repo: Path, body: bytes) -> bytes:
    """Return git's answer to a POST with this body.

    Raises:
        CalledProcessError: git refused; its `stderr` says why.
    """
    return _run(repo, "--stateless-rpc", body, version=2)


def refs_of_git(repo: Path) -> tuple[Ref, ...]:
    """Return all refs that git advertises, as our reader takes them."""
    return parse_ls_refs(
        answer(repo, encode_ls_refs_request(prefixes=None, unborn=True, agent="goblet/test"))
    )


def _run(repo: Path, mode: str, body: bytes, *, version: int) -> bytes:
    return subprocess.run(
        ["git", "upload-pack", "--strict", mode, str(repo)],
        env=hermetic_env({"GIT_PROTOCOL": f"version={version}"}),
        input=body,
        capture_output=True,
        check=True,
        timeout=60,
    ).stdout


class Front:
    """A git host on loopback: the refs and the reading are ours, the packs are upload-pack's.

    `asked` holds every request that a client made, as parse_request read it.
    """

    def __init__(self, repo: Path, *, features: Advertised) -> None:
        self.asked: list[LsRefs | Fetch] = []
        front = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(encode_advertisement(agent="goblet/test", features=features))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                request = parse_request(body)
                front.asked.append(request)
                if isinstance(request, LsRefs):
                    self._answer(b"".join(encode_ls_refs(refs_of_git(repo), request)))
                else:
                    self._answer(answer(repo, body))

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

    def fetches(self) -> list[Fetch]:
        """Return the fetches so far and forget everything asked."""
        fetches = [request for request in self.asked if isinstance(request, Fetch)]
        self.asked.clear()
        return fetches

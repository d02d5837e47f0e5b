"""`git http-backend` as a CGI process whose answer is read while it comes."""

import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, BinaryIO

from goblet_testing.gitcli import git, hermetic_env
from goblet_testing.seen import Asked

_BLOCK = 1 << 16
UPLOAD_PACK = {
    "GIT_CONFIG_COUNT": "4",
    "GIT_CONFIG_KEY_0": "uploadpack.allowFilter",
    "GIT_CONFIG_VALUE_0": "true",
    "GIT_CONFIG_KEY_1": "uploadpack.allowAnySHA1InWant",
    "GIT_CONFIG_VALUE_1": "true",
    "GIT_CONFIG_KEY_2": "http.maxRequestBuffer",
    "GIT_CONFIG_VALUE_2": "100m",
    "GIT_CONFIG_KEY_3": "safe.directory",
    "GIT_CONFIG_VALUE_3": "*",
}


class ClientLeft(Exception):
    """The client closed its connection while git was working for it."""


def backend_program() -> Path:
    """Return where this machine's git keeps http-backend."""
    return Path(git("--exec-path").stdout.strip()) / "git-http-backend"


def cgi_env(root: Path, asked: Asked, headers: dict[str, str], user: str | None) -> dict[str, str]:
    """Return the variables by which http-backend learns what is asked of it."""
    repo = asked.repo + ".git" if (root / f"{asked.repo}.git").is_dir() else asked.repo
    env = {
        **UPLOAD_PACK,
        "GATEWAY_INTERFACE": "CGI/1.1",
        "GIT_PROJECT_ROOT": str(root),
        "GIT_HTTP_EXPORT_ALL": "1",
        "REQUEST_METHOD": asked.method,
        "PATH_INFO": f"/{repo}{asked.endpoint}",
        "QUERY_STRING": "" if asked.method == "POST" else f"service={asked.service or ''}",
        "CONTENT_TYPE": headers.get("content-type", ""),
        "REMOTE_ADDR": "127.0.0.1",
    }
    if asked.method == "POST":
        env["CONTENT_LENGTH"] = str(asked.request_bytes)
    if "content-encoding" in headers:
        env["HTTP_CONTENT_ENCODING"] = headers["content-encoding"]
    if asked.git_protocol is not None:
        env["GIT_PROTOCOL"] = asked.git_protocol
    if user is not None:
        env["REMOTE_USER"] = user
    return hermetic_env(env)


class Backend:
    """One run of http-backend. `head` comes first, then `pieces`; `close` ends it at any time.

    `client` is watched meanwhile, so that its leaving is known at once and not
    only at the next byte.
    """

    def __init__(
        self,
        program: Path,
        *,
        env: dict[str, str],
        body: BinaryIO,
        client: socket.socket,
        stderr: IO[bytes],
    ) -> None:
        self._client = client
        self._process = subprocess.Popen(
            [program],
            env=env,
            stdin=body,
            stdout=subprocess.PIPE,
            stderr=stderr,
            bufsize=0,
            # upload-pack and pack-objects are its children: they end together.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._out = self._process.stdout
        self._finished = False
        self._early = b""
        self._poll = select.poll()
        self._poll.register(self._out, select.POLLIN)
        self._poll.register(client, select.POLLIN)

    def head(self) -> tuple[int, list[tuple[str, str]]]:
        """Return the status and the headers, as soon as http-backend has said them.

        Raises:
            ClientLeft: the client closed its connection first.
        """
        buffer = b""
        while b"\r\n\r\n" not in buffer:
            block = self._read()
            if not block:
                return 500, []
            buffer += block
        text, _, self._early = buffer.partition(b"\r\n\r\n")
        pairs = [line.split(": ", 1) for line in text.decode("latin-1").split("\r\n")]
        status = next((int(value[:3]) for name, value in pairs if name == "Status"), 200)
        return status, [(name, value) for name, value in pairs if name != "Status"]

    def pieces(self) -> Iterator[bytes]:
        """Yield the body as it comes, never more than 64 KiB of it in memory.

        Raises:
            ClientLeft: the client closed its connection first.
        """
        if self._early:
            yield self._early
        while block := self._read():
            yield block

    def close(self) -> None:
        """Kill what still runs, wait for it, and let go of its pipe."""
        if not self._finished:
            # Its id cannot have passed to another process: nobody has waited for it yet.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._out.close()

    def _read(self) -> bytes:
        while True:
            ready = dict(self._poll.poll())
            if self._out.fileno() in ready:
                block = os.read(self._out.fileno(), _BLOCK)
                self._finished = not block
                return block
            if has_left(self._client):
                raise ClientLeft
            # The next request is here already: it can wait, and would wake us for ever.
            self._poll.unregister(self._client)


def has_left(client: socket.socket) -> bool:
    """Return whether the client has closed its end; never waits."""
    try:
        return client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True

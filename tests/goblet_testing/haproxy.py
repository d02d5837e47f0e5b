"""Real HAProxy on loopback, and tiny servers behind it that answer with their name.

From Debian's package `haproxy`. Runs as the current user, in a directory of its own,
and without its service.
"""

import asyncio
import os
import re
import shutil
import socket
import ssl
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from goblet_testing.fleet import Seat, until
from goblet_testing.processes import Running

_PLACES = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
_LIMIT = 20.0
# Answers of so many requests fit into the sockets' buffers: nobody waits for the other.
_PIPELINED = 64
_LANES = 4

_NAMED = re.compile(rb"goblet-node: ([^\r\n]*)\r\n", re.I)


def missing_haproxy() -> str | None:
    """Return a sentence that says that HAProxy is not installed, or None if it is there."""
    if shutil.which("haproxy", path=_PLACES) is None:
        return "haproxy not found: apt-get install haproxy"
    return None


class NamedServers:
    """A tiny HTTP server for each name, which answers with its name. A context manager.

    /readyz says what `state` holds: a status and a text. All run in one thread.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.state: dict[str, tuple[int, str]] = dict.fromkeys(names, (200, "ready\n"))
        """What each says at /readyz; another name may be added before `start` of it."""
        self.served: list[tuple[str, bytes]] = []
        """The name and the head of each request but those for /readyz, while `must_record`."""
        self.must_record = False
        self.held: dict[str, list[asyncio.Transport]] = {}
        """Whoever is named here answers no request but for /readyz, until `let_go`."""
        self.cuts_left = 0
        """So many kept connections are cut when the next request comes on them."""
        self._ports: dict[str, int] = {}
        self._listening: dict[str, asyncio.Server] = {}
        self._open: dict[str, set[asyncio.Transport]] = {}
        self._all_closed = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        for name in [*self.state]:
            self.start(name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for name in [*self._listening]:
            self.stop(name)
        asyncio.run_coroutine_threadsafe(self._settled(), self._loop).result(_LIMIT)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_LIMIT)
        self._loop.close()

    def url(self, name: str) -> str:
        """Return the URL of a server; it stays when the server is stopped and started."""
        return f"http://127.0.0.1:{self._ports[name]}"

    @property
    def urls(self) -> dict[str, str]:
        """The URL of each server that was ever started."""
        return {name: self.url(name) for name in self._ports}

    def start(self, name: str, *, tls: ssl.SSLContext | None = None) -> None:
        """Listen, at the same port as before if there was one."""
        self.state.setdefault(name, (200, "ready\n"))
        asyncio.run_coroutine_threadsafe(self._start(name, tls), self._loop).result(_LIMIT)

    def stop(self, name: str) -> None:
        """Refuse connections from now on, and reset those that are open."""
        asyncio.run_coroutine_threadsafe(self._stop(name), self._loop).result(_LIMIT)

    def let_go(self, name: str) -> None:
        """Answer what was held."""
        for transport in self.held.pop(name):
            self._loop.call_soon_threadsafe(transport.write, answer_of(name))

    async def _start(self, name: str, tls: ssl.SSLContext | None) -> None:
        server = await self._loop.create_server(
            lambda: _Named(name, self, self._open.setdefault(name, set())),
            "127.0.0.1",
            self._ports.get(name, 0),
            backlog=1024,
            ssl=tls,
        )
        self._listening[name] = server
        self._ports[name] = server.sockets[0].getsockname()[1]

    async def _stop(self, name: str) -> None:
        server = self._listening.pop(name)
        for listener in server.sockets:
            self._loop.remove_reader(listener.fileno())
        # asyncio leaves open whom it has accepted for a server that is closed by then.
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
        server.close()
        for transport in [*self._open.get(name, ())]:
            transport.abort()

    async def _settled(self) -> None:
        """Return when nothing is open or about to be: the garbage collector would warn of it."""
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
        if any(self._open.values()):
            await self._all_closed.wait()

    def note_opened(self) -> None:
        """Take note that a connection was opened."""
        self._all_closed.clear()

    def note_closed(self) -> None:
        """Take note that a connection was closed."""
        if not any(self._open.values()):
            self._all_closed.set()

    def is_stopped(self, name: str) -> bool:
        """Tell whether a connection to it that is being accepted comes too late."""
        return name not in self._listening


class _Named(asyncio.Protocol):
    """One connection to a named server; bodies have a Content-Length."""

    def __init__(self, name: str, servers: NamedServers, siblings: set[asyncio.Transport]) -> None:
        self._name = name
        self._servers = servers
        self._siblings = siblings
        self._buffer = b""
        self._is_kept = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._siblings.add(transport)
        self._servers.note_opened()
        if self._servers.is_stopped(self._name):
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        assert self._transport is not None
        self._siblings.discard(self._transport)
        self._servers.note_closed()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[: end + 4]
            length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.I)
            whole = len(head) + (int(length[1]) if length else 0)
            if len(self._buffer) < whole:
                return
            self._buffer = self._buffer[whole:]
            self._answer(head)

    def _answer(self, head: bytes) -> None:
        assert self._transport is not None
        if head.startswith(b"GET /readyz "):
            self._transport.write(answer_of(self._name, *self._servers.state[self._name]))
            return
        if self._is_kept and self._servers.cuts_left:
            self._servers.cuts_left -= 1
            self._transport.abort()
            return
        self._is_kept = True
        if self._servers.must_record:
            self._servers.served.append((self._name, head))
        held = self._servers.held.get(self._name)
        if held is None:
            self._transport.write(answer_of(self._name))
        else:
            held.append(self._transport)


def answer_of(name: str, status: int = 200, text: str = "") -> bytes:
    """Return an answer as a named server gives it."""
    body = text.encode()
    return b"HTTP/1.1 %d So\r\nGoblet-Node: %s\r\nContent-Length: %d\r\n\r\n%s" % (
        status,
        name.encode(),
        len(body),
        body,
    )


class HAProxy:
    """A HAProxy that runs `haproxy.cfg` in `directory`. A context manager.

    The test writes the file, with `listen`, `stats_listen` and `socket` in it, and then
    calls `start`.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._seats = [Seat(), Seat()]
        # A socket's path has at most 107 bytes, and HAProxy binds it under a longer name.
        self._short = TemporaryDirectory(prefix="haproxy-")
        self.socket = Path(self._short.name) / "api"
        self.port, stats_port = (seat.port for seat in self._seats)
        self.listen = f"127.0.0.1:{self.port}"
        self.stats_listen = f"127.0.0.1:{stats_port}"
        self.base = f"http://{self.listen}"
        self._running: Running | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        for seat in self._seats:
            seat.give_up()
        self._short.cleanup()

    def start(self) -> None:
        """Run it, and return when it listens."""
        program = shutil.which("haproxy", path=_PLACES)
        if program is None:
            raise FileNotFoundError(missing_haproxy())
        # -db: in the foreground, one process.
        command = [program, "-db", "-f", str(self.directory / "haproxy.cfg")]
        running = Running(command, log_file=self.directory / "haproxy.log")
        self._running = running
        until(lambda: self._is_listening() or running.process.poll() is not None)
        if running.process.poll() is not None:
            raise running.failed("did not start")

    def stop(self) -> None:
        """End it, if it runs."""
        if self._running is not None:
            self._running.stop()

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._running is not None
        return self._running.pid

    @property
    def log(self) -> str:
        """What it wrote to stderr."""
        assert self._running is not None
        return self._running.log

    def requests_told(self) -> str:
        """Return the lines about requests that it has written since the last call, to stdout.

        Beyond the 64 KiB of a pipe it drops them.
        """
        assert self._running is not None
        assert self._running.process.stdout is not None
        number = self._running.process.stdout.fileno()
        os.set_blocking(number, False)
        told = b""
        with suppress(BlockingIOError):
            while part := os.read(number, 65536):
                told += part
        return told.decode()

    def ask(self, command: str) -> str:
        """Return what the runtime API answers."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_LIMIT)
            connection.connect(str(self.socket))
            connection.sendall(command.encode() + b"\n")
            with connection.makefile("rb") as answer:
                return answer.read().decode()

    def states(self) -> dict[str, str]:
        """Return what the statistics say of each server: `backend/name` -> `UP`, `DOWN`, ..."""
        found = {}
        for line in self.ask("show stat -1 4 -1").splitlines()[1:]:
            words = line.split(",")
            if len(words) > 17:
                found[f"{words[0]}/{words[1]}"] = words[17]
        return found

    def wait_for(self, wanted: Mapping[str, str]) -> None:
        """Return when each of these servers is in its state (the first word counts)."""
        until(
            lambda: self._have(wanted),
            within=_LIMIT,
            what=f"HAProxy's servers being {dict(wanted)}",
        )

    def _have(self, wanted: Mapping[str, str]) -> bool:
        states = self.states()
        return all(
            states.get(name, "").partition(" ")[0] == state for name, state in wanted.items()
        )

    def _is_listening(self) -> bool:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port)).close()
            return True
        return False


def ask_all(port: int, requests: Sequence[bytes]) -> list[str]:
    """Return the name in Goblet-Node of each request's answer, in order.

    Requests are HTTP/1.1 with their bodies; answers have no body. They go over a few
    connections, many before the first answer.
    """
    share = -(-len(requests) // _LANES) or 1
    shares = [requests[at : at + share] for at in range(0, len(requests), share)]
    with ThreadPoolExecutor(_LANES) as lanes:
        return [
            name for names in lanes.map(lambda part: _ask_over_one(port, part), shares)
            for name in names
        ]  # fmt: skip


def _ask_over_one(port: int, requests: Sequence[bytes]) -> list[str]:
    names: list[str] = []
    with socket.create_connection(("127.0.0.1", port), timeout=_LIMIT) as connection:
        for at in range(0, len(requests), _PIPELINED):
            part = requests[at : at + _PIPELINED]
            connection.sendall(b"".join(part))
            answers = b""
            while answers.count(b"\r\n\r\n") < len(part):
                data = connection.recv(65536)
                if not data:
                    raise ConnectionError(f"cut after {len(names)} answers, and {answers!r}")
                answers += data
            heads = answers.split(b"\r\n\r\n")[: len(part)]
            names += [_name_in(head + b"\r\n") for head in heads]
    return names


def _name_in(head: bytes) -> str:
    named = _NAMED.search(head)
    if named is None:
        raise ValueError(f"no node answered: {head!r}")
    return named[1].decode()

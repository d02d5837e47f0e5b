"""A cache node that misbehaves on cue: a real listening socket, HTTP written by hand."""

import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from socket import SO_LINGER, SOL_SOCKET

import trio


@dataclass
class Seen:
    """One request as it reached the node; `body` grows while it arrives."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    connection: int
    nth_on_connection: int
    body: bytearray = field(default_factory=bytearray)
    chunk_sizes: list[int] = field(default_factory=list)
    is_complete: bool = False

    def header(self, name: str) -> str | None:
        """Return the value of the first header called `name`."""
        return next((value for found, value in self.headers if found.lower() == name), None)


class HungUp(Exception):
    """The peer closed the connection."""


class Line:
    """One connection, seen from the node."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._unread = b""

    async def send(self, data: bytes) -> None:
        """Send raw bytes."""
        await self.stream.send_all(data)

    async def reset(self) -> None:
        """Close with a TCP reset."""
        self.stream.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        await self.stream.aclose()

    async def read_until(self, mark: bytes) -> bytes:
        """Read up to and including `mark`."""
        while mark not in self._unread:
            await self._more()
        found, _, self._unread = self._unread.partition(mark)
        return found + mark

    async def read_some(self, most: int) -> bytes:
        """Read between 1 and `most` bytes."""
        if not self._unread:
            await self._more()
        data, self._unread = self._unread[:most], self._unread[most:]
        return data

    async def hung_up(self) -> None:
        """Wait until the peer has closed."""
        try:
            while True:
                await self._more()
        except HungUp:
            return

    async def _more(self) -> None:
        try:
            data = await self.stream.receive_some(64 * 1024)
        except trio.BrokenResourceError:
            raise HungUp from None
        if not data:
            raise HungUp
        self._unread += data


Conduct = Callable[[Seen, Line], Awaitable[None]]
"""What a node does with a request whose body has been read."""


def answer(
    body: bytes = b"hello", *, status: str = "200 OK", headers: dict[str, str] | None = None
) -> Conduct:
    """Answer in full, with a Content-Length, and keep the connection."""

    async def conduct(_: Seen, line: Line) -> None:
        await line.send(head(status, {"Content-Length": str(len(body)), **(headers or {})}) + body)

    return conduct


def head(status: str, headers: dict[str, str]) -> bytes:
    """Return the bytes of an answer's head."""
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


async def reset(_: Seen, line: Line) -> None:
    """Reset the connection before any answer."""
    await line.reset()


async def hang_up(_: Seen, line: Line) -> None:
    """Close the connection before any answer."""
    await line.stream.aclose()


async def stall(_: Seen, line: Line) -> None:
    """Say nothing until the peer gives up."""
    await line.hung_up()


def hang_until_left(left: trio.Event) -> Conduct:
    """Say nothing, and set `left` when the peer has given up."""

    async def conduct(_: Seen, line: Line) -> None:
        await line.hung_up()
        left.set()

    return conduct


def cut_after(body: bytes, *, announced: int | None = None) -> Conduct:
    """Send a head and the beginning of a body, then close; chunked unless a length is announced."""

    async def conduct(_: Seen, line: Line) -> None:
        if announced is None:
            sent = head("200 OK", {"Transfer-Encoding": "chunked"})
            sent += b"%x\r\n%b\r\n" % (len(body), body)
        else:
            sent = head("200 OK", {"Content-Length": str(announced)}) + body
        await line.send(sent)
        await line.stream.aclose()

    return conduct


declined = answer(b"", status="503 Service Unavailable", headers={"Goblet-Declined": "draining"})


READY = ("200 OK", b"ready\n")
JOINING = ("503 Service Unavailable", b"joining: nothing was copied yet\n")
DRAINING = ("404 Not Found", b"draining: until others have what is here\n")


class UnrulyNode:
    """A node that listens on loopback and does what `conduct` says; its probes are answered."""

    def __init__(self, listener: trio.SocketListener) -> None:
        self._listener = listener
        self.conduct: Conduct = answer()
        self.state = READY
        self.reads_bodies = True
        self.seen: list[Seen] = []
        self.connections = 0
        self.hang_ups = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self._listener.socket.getsockname()
        return f"http://{host}:{port}"

    async def serve_one(self, stream: trio.SocketStream) -> None:
        """Serve one connection to its end."""
        self.connections += 1
        number, count, line = self.connections, 0, Line(stream)
        try:
            async with stream:
                while True:
                    seen = await _read_head(line, number, count)
                    if seen.target == "/readyz":
                        await answer(self.state[1], status=self.state[0])(seen, line)
                        continue
                    count += 1
                    self.seen.append(seen)
                    if self.reads_bodies:
                        await _read_body(line, seen)
                    await self.conduct(seen, line)
        except (HungUp, trio.BrokenResourceError, trio.ClosedResourceError):
            self.hang_ups += 1


@asynccontextmanager
async def unruly_node() -> AsyncIterator[UnrulyNode]:
    """Run a node until the block ends."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        node = UnrulyNode(listeners[0])
        await nursery.start(partial(trio.serve_listeners, node.serve_one, listeners))
        yield node
        nursery.cancel_scope.cancel()


async def _read_head(line: Line, connection: int, count: int) -> Seen:
    first, *rest = (await line.read_until(b"\r\n\r\n")).decode().split("\r\n")[:-2]
    method, target, _ = first.split(" ")
    fields = [(name, value.strip()) for name, _, value in (one.partition(":") for one in rest)]
    return Seen(
        method=method,
        target=target,
        headers=fields,
        connection=connection,
        nth_on_connection=count + 1,
    )


async def _read_body(line: Line, seen: Seen) -> None:
    if seen.header("transfer-encoding") == "chunked":
        while size := int(await line.read_until(b"\r\n"), 16):
            seen.chunk_sizes.append(size)
            await _read_exactly(line, seen, size)
            await line.read_until(b"\r\n")
        await line.read_until(b"\r\n")
    else:
        await _read_exactly(line, seen, int(seen.header("content-length") or 0))
    seen.is_complete = True


async def _read_exactly(line: Line, seen: Seen, count: int) -> None:
    while count:
        data = await line.read_some(count)
        seen.body += data
        count -= len(data)

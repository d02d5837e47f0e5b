"""An ASGI application behind our server, on loopback, and the raw clients that ask it."""

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import trio

from goblet_shared.asgi import ASGIApp
from goblet_shared.serve import listening_socket, serve


class Server:
    """Where `serving` serves, with clients that are closed when it ends."""

    def __init__(self, address: tuple[str, int], clients: AsyncExitStack) -> None:
        self.address = address
        self.stop = trio.Event()
        self._clients = clients

    async def connect(self) -> trio.SocketStream:
        return await self._clients.enter_async_context(await trio.open_tcp_stream(*self.address))

    async def ask(self, request: bytes) -> trio.SocketStream:
        """Send a request over a new connection."""
        stream = await self.connect()
        await stream.send_all(request)
        return stream


@asynccontextmanager
async def serving(
    app: ASGIApp, *, keep_alive: float = 60, grace: float = 5, stalled_after: float = 60
) -> AsyncIterator[Server]:
    listener = listening_socket("127.0.0.1:0", stalled_after=stalled_after)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery, AsyncExitStack() as clients:
            server = Server(listener.getsockname(), clients)
            serve_app = partial(
                serve,
                app,
                listener=listener,
                keep_alive=keep_alive,
                grace=grace,
                stop=server.stop,
            )
            await nursery.start(serve_app)
            yield server
            server.stop.set()


async def read_all(stream: trio.SocketStream) -> bytes:
    return b"".join([chunk async for chunk in stream])


async def read_answer(stream: trio.SocketStream) -> bytes:
    """Read one answer that has a Content-Length."""
    got = b""
    while not (head := re.match(rb"(?s).*?content-length: (\d+)\r\n.*?\r\n\r\n", got)):
        got += await stream.receive_some()
    while len(got) < head.end() + int(head[1]):
        got += await stream.receive_some()
    return got

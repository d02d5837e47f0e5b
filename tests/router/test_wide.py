"""Connections that read much at once."""

import socket
import ssl
from typing import Any

import httpcore
import trio

from goblet_router.wide import READ_BYTES, WideReads

HTTPCORE_READS = 64 * 1024


class Noting(httpcore.AsyncNetworkStream):
    """A stream that notes how much was to be read of it, also after TLS began."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        self.sizes.append(max_bytes)
        return b"x"

    async def start_tls(self, *_: Any) -> httpcore.AsyncNetworkStream:
        return self


class NotingBackend(httpcore.AsyncNetworkBackend):
    """Connects to one noting stream."""

    def __init__(self) -> None:
        self.stream = Noting()

    async def connect_tcp(self, *_: Any) -> httpcore.AsyncNetworkStream:
        return self.stream


async def test_one_read_takes_what_has_arrived() -> None:
    """More than httpcore asks for, from a real socket."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        backend = WideReads(httpcore.TrioBackend())
        host, port = listener.getsockname()
        stream = await backend.connect_tcp(host, port)
        # Else loopback's window holds no more than 64 KB at first.
        stream.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        peer, _ = listener.accept()
        with peer:
            peer.setblocking(False)
            sent = peer.send(bytes(2 * HTTPCORE_READS))
            assert sent > HTTPCORE_READS
            await until_arrived(stream, sent)
            assert len(await stream.read(HTTPCORE_READS, timeout=5)) == sent
        assert await stream.read(HTTPCORE_READS, timeout=5) == b""
        await stream.aclose()


async def test_a_connection_with_tls_reads_as_much() -> None:
    backend = NotingBackend()
    stream = await WideReads(backend).connect_tcp("localhost", 1)
    secure = await stream.start_tls(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    await secure.read(HTTPCORE_READS)
    assert backend.stream.sizes == [READ_BYTES]


async def until_arrived(stream: httpcore.AsyncNetworkStream, count: int) -> None:
    """Return when the kernel holds `count` bytes to be read."""
    ours = stream.get_extra_info("socket")
    with trio.fail_after(5):
        while len(await ours.recv(2 * count, socket.MSG_PEEK)) < count:
            await trio.lowlevel.checkpoint()

"""Files to sockets: what arrives, who waits for a disk, and what breaks off."""

import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from random import Random
from typing import cast

import pytest
import trio
import trio.testing

from goblet_shared.asgi import Message
from goblet_shared.parts import FileFailed, FileSpan, Part
from goblet_shared.resident import Pages
from goblet_shared.sendfile import send_copied, send_parts, take_files

# More than the kernel's buffers of both ends take, and no multiple of anything.
SIZE = (24 << 20) + 12_345
CONTENT = Random(7).randbytes(SIZE)


class File:
    """A file of CONTENT, and a descriptor of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(CONTENT)
        self.descriptor = os.open(path, os.O_RDONLY)

    def span(self, offset: int = 0, count: int = SIZE) -> FileSpan:
        return FileSpan(file=self.descriptor, offset=offset, count=count)

    def evict(self) -> None:
        """Leave it on the disk alone."""
        os.fsync(self.descriptor)
        os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            # Not the first byte, which the socket of a stalled client holds.
            os.preadv(self.descriptor, [bytearray(1)], SIZE - 1, os.RWF_NOWAIT)
        except BlockingIOError:
            return
        pytest.skip("this file system keeps everything in memory")


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    file = File(tmp_path / "file")
    yield file
    os.close(file.descriptor)


@contextmanager
def opened(path: Path | str, flags: int = os.O_RDONLY) -> Iterator[int]:
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@asynccontextmanager
async def connection() -> AsyncIterator[tuple[trio.SocketStream, trio.SocketStream]]:
    """Two ends of one TCP connection: the one that sends, and the one that reads."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        client = await trio.testing.open_stream_to_socket_listener(listener)
        async with client, await listener.accept() as server:
            with trio.fail_after(20):
                yield server, client


async def sent(parts: Sequence[Part], *, pages: Pages | None = None) -> bytes:
    """Return what a client reads of these parts."""
    got = bytearray()

    async def read(client: trio.SocketStream) -> None:
        async for chunk in client:
            got.extend(chunk)

    async with connection() as (server, client), trio.open_nursery() as nursery:
        nursery.start_soon(read, client)
        take_files(server.socket)
        await send_parts(server.socket, parts, pages=pages or Pages(readers=2))
        await server.send_eof()
    return bytes(got)


def framed(file: File) -> list[Part]:
    """A file with five bytes before each 65515 of it, and three after it."""
    parts: list[Part] = []
    for at in range(0, SIZE, 65515):
        parts += [b"head%d" % (at % 10), file.span(at, min(65515, SIZE - at))]
    return [*parts, b"end"]


def bytes_of(parts: Sequence[Part]) -> bytes:
    return b"".join(
        CONTENT[part.offset : part.offset + part.count] if isinstance(part, FileSpan) else part
        for part in parts
    )


async def test_a_whole_file_arrives(file: File) -> None:
    assert await sent([file.span()]) == CONTENT


async def test_a_framed_file_arrives(file: File) -> None:
    parts = framed(file)
    assert await sent(parts) == bytes_of(parts)


async def test_bytes_that_no_socket_takes_at_once_arrive() -> None:
    assert await sent([CONTENT, b"", b"end"]) == CONTENT + b"end"


async def test_parts_of_no_length_are_nothing(file: File) -> None:
    parts: list[Part] = [
        file.span(0, 0),
        b"",
        file.span(5, 10),
        file.span(SIZE, 0),
        b"x",
        file.span(0, 0),
    ]
    assert await sent(parts) == CONTENT[5:15] + b"x"
    assert await sent([]) == b""


async def test_a_file_that_sendfile_does_not_know_is_read_and_sent() -> None:
    """As parts of /proc, some file systems have no sendfile."""
    with opened("/proc/self/cmdline") as proc, opened(os.devnull, os.O_WRONLY) as null:
        content = os.pread(proc, 4096, 0)
        with pytest.raises(OSError, match="Invalid argument"):
            os.sendfile(null, proc, 0, 5)
        span = FileSpan(file=proc, offset=3, count=len(content) - 3)
        assert await sent([b"<", span, b">"]) == b"<" + content[3:] + b">"


class Watched:
    """os.sendfile, and how many bytes it was asked to send that were not in memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.waited_for = 0
        self._pages = Pages(readers=1)
        self._sendfile = os.sendfile
        monkeypatch.setattr(os, "sendfile", self._watched)

    def _watched(self, out: int, in_: int, offset: int, count: int) -> int:
        self.calls += 1
        for at in range(offset, offset + count, 65536):
            span = FileSpan(file=in_, offset=at, count=min(65536, offset + count - at))
            # Asked twice: while a page is handed on the kernel may say no once.
            if not (self._pages.are_here(span) or self._pages.are_here(span)):
                self.waited_for += span.count
        return self._sendfile(out, in_, offset, count)


async def test_of_a_file_sendfile_is_asked_only_for_what_is_in_memory(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would wait for the disk on the event loop is read in a thread before."""
    file.evict()
    watched = Watched(monkeypatch)
    assert await sent([file.span()]) == CONTENT
    assert watched.calls
    # A page or two may go at any moment.
    assert watched.waited_for < SIZE // 50


async def test_of_a_framed_file_sendfile_is_asked_only_for_what_is_in_memory(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.evict()
    watched = Watched(monkeypatch)
    parts = framed(file)
    assert await sent(parts) == bytes_of(parts)
    assert watched.calls > len(parts) // 2 - 1
    # A page or two may go at any moment.
    assert watched.waited_for < SIZE // 50


async def test_what_left_memory_while_a_client_stalled_is_brought_again(
    file: File, monkeypatch: pytest.MonkeyPatch, mock_clock: trio.testing.MockClock
) -> None:
    watched = Watched(monkeypatch)
    got = bytearray()
    async with connection() as (server, client):

        async def send() -> None:
            await send_parts(server.socket, [file.span()], pages=Pages(readers=1))
            await server.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.01)
            file.evict()
            mock_clock.jump(5)
            async for chunk in client:
                got += chunk
    assert got == CONTENT
    # A page or two may go at any moment.
    assert watched.waited_for < SIZE // 50


class HungDisk(Pages):
    """A disk that answers only when it is told to, in a thread as a real one."""

    def __init__(self) -> None:
        super().__init__(readers=2)
        self.asked, self.may_answer = trio.Event(), trio.Event()

    async def bring(self, spans: Sequence[FileSpan]) -> None:
        self.asked.set()
        await self.may_answer.wait()
        await super().bring(spans)


async def test_while_a_disk_hangs_other_clients_are_sent_to(file: File, tmp_path: Path) -> None:
    file.evict()
    disk = HungDisk()
    async with trio.open_nursery() as nursery, connection() as (server, client):
        nursery.start_soon(sent_is, [file.span()], CONTENT, disk)
        await disk.asked.wait()
        await send_parts(server.socket, [b"small"], pages=disk)
        assert await client.receive_some() == b"small"
        disk.may_answer.set()


async def sent_is(parts: Sequence[Part], expected: bytes, pages: Pages) -> None:
    assert await sent(parts, pages=pages) == expected


async def test_a_file_that_became_shorter_is_an_error_and_not_an_end(file: File) -> None:
    os.truncate(file.path, SIZE - 1000)
    async with connection() as (server, client), trio.open_nursery() as nursery:
        nursery.start_soon(drain, client)
        with pytest.raises(FileFailed, match="shorter"):
            await send_parts(server.socket, [file.span(), b"end"], pages=Pages(readers=1))
        nursery.cancel_scope.cancel()


async def drain(client: trio.SocketStream) -> None:
    async for _ in client:
        pass


async def test_a_descriptor_that_cannot_be_read_is_the_files_fault_not_the_clients(
    tmp_path: Path,
) -> None:
    with opened(tmp_path / "f", os.O_WRONLY | os.O_CREAT) as unreadable:
        os.write(unreadable, b"abc")
        async with connection() as (server, _):
            span = FileSpan(file=unreadable, offset=0, count=3)
            with pytest.raises(FileFailed, match="cannot be read"):
                await send_parts(server.socket, [span], pages=Pages(readers=1))


async def test_a_client_that_left_ends_it(file: File) -> None:
    async with connection() as (server, client):
        await client.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await send_parts(server.socket, [file.span()] * 9, pages=Pages(readers=1))


async def test_closing_the_socket_ends_it(file: File) -> None:
    """Whoever cuts a stalled connection off must not wait for it."""
    async with connection() as (server, _), trio.open_nursery() as nursery:
        nursery.start_soon(close_when_stalled, server)
        with pytest.raises(trio.ClosedResourceError):
            await send_parts(server.socket, [file.span()], pages=Pages(readers=1))


async def test_a_socket_that_was_closed_during_a_look_is_never_taken_for_another(
    file: File,
) -> None:
    """Its number may be a new connection's by then."""
    file.evict()
    disk = HungDisk()
    async with connection() as (server, _), trio.open_nursery() as nursery:
        nursery.start_soon(closed_error_of, server, [file.span()], disk)
        await disk.asked.wait()
        number = server.socket.fileno()
        server.socket.close()
        taken = os.open(file.path, os.O_RDONLY)
        assert taken == number
        disk.may_answer.set()
    os.close(taken)


async def closed_error_of(server: trio.SocketStream, parts: Sequence[Part], pages: Pages) -> None:
    with pytest.raises(trio.ClosedResourceError):
        await send_parts(server.socket, parts, pages=pages)


async def close_when_stalled(server: trio.SocketStream) -> None:
    await trio.testing.wait_all_tasks_blocked(0.01)
    server.socket.close()


async def test_cancelling_ends_a_stalled_sending(file: File) -> None:
    async with connection() as (server, _):
        with trio.move_on_after(0.05) as scope:
            await send_parts(server.socket, [file.span()], pages=Pages(readers=1))
    assert scope.cancelled_caught


class Sink:
    """A socket that never makes anybody wait, and goes nowhere."""

    def __init__(self, descriptor: int) -> None:
        self.fileno = lambda: descriptor


async def test_a_client_that_never_makes_us_wait_leaves_others_their_turns(file: File) -> None:
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    with opened(os.devnull, os.O_WRONLY) as null:
        sink = cast(trio.socket.SocketType, Sink(null))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_turns)
            await send_parts(sink, framed(file), pages=Pages(readers=1))
            nursery.cancel_scope.cancel()
    assert turns >= SIZE // (4 << 20) - 1


async def copied(parts: Sequence[Part]) -> list[Message]:
    """Return the messages in which `send_copied` sends these parts."""
    messages: list[Message] = []

    async def send(message: Message) -> None:
        await trio.lowlevel.checkpoint()
        messages.append(message)

    await send_copied(send, parts)
    return messages


async def test_where_files_are_not_taken_they_are_read_and_sent_as_bytes(file: File) -> None:
    parts = framed(file)
    messages = await copied(parts)
    assert b"".join(message["body"] for message in messages) == bytes_of(parts)
    assert {message["type"] for message in messages} == {"http.response.body"}
    assert all(message["more_body"] for message in messages)
    assert max(len(message["body"]) for message in messages) <= 1 << 20


async def test_a_file_that_became_shorter_is_an_error_where_it_is_read_too(file: File) -> None:
    os.truncate(file.path, SIZE - 1)
    with pytest.raises(FileFailed, match="shorter"):
        await copied([file.span()])


async def test_a_descriptor_that_cannot_be_read_is_an_error_where_it_is_read_too(
    tmp_path: Path,
) -> None:
    with (
        opened(tmp_path / "f", os.O_WRONLY | os.O_CREAT) as unreadable,
        pytest.raises(FileFailed, match="cannot be"),
    ):
        await copied([FileSpan(file=unreadable, offset=0, count=3)])

"""The hot loop: bytes that lie in files to a socket, without a copy on the way.

Nothing here knows HTTP. Neither MSG_MORE nor TCP_CORK is used to join the five bytes
before each packet with the packet: they save nothing that could be measured, and
together with trio's limit on unsent bytes (see `take_files`) each packet waits for 200
ms: what is held back counts as unsent, and the socket as full.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator, Sequence
from itertools import islice

import trio

from goblet_shared.asgi import Send
from goblet_shared.parts import FileFailed, FileSpan, Part, cut, extents, size_of
from goblet_shared.resident import Pages

# How far is looked ahead, and how much is sent without a look at anybody else:
# about a millisecond's worth.
_AHEAD = 4 << 20
# What is read at a time where that is needed. The client waits for all of it.
_READ = 2 << 20
# A client that takes its time: what was in memory so many seconds ago may be gone.
_FRESH = 1.0
_COPIED = 1 << 20
_TCP_NOTSENT_LOWAT = 25  # of which Python's socket module does not know

# What sendfile says of the file, not of the socket.
_FILE_FAULTS = {errno.EIO, errno.EBADF, errno.EISDIR, errno.ESPIPE, errno.ESTALE, errno.ENXIO}
_NOT_FOR_THIS_FILE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}

_TOO_SHORT = "a file of this node became shorter while it was sent; try again"


def take_files(socket_: trio.socket.SocketType) -> None:
    """Prepare a socket for `send_parts`.

    trio lets the kernel hold no more than 16 KB that cannot be sent yet, so that an
    application does not work ahead of its client. What lies in files is no work: with
    the kernel's own limit a file takes a quarter less CPU, a framed one a third less.
    """
    socket_.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, 0)


async def send_parts(
    socket_: trio.socket.SocketType, parts: Sequence[Part], *, pages: Pages
) -> None:
    """Hand all of `parts` to the kernel for a socket, files by sendfile(2).

    One task at a time may do so. After any exception, Cancelled too, it is unknown
    what was sent: the connection is good for nothing but being closed. Closing the
    socket meanwhile, from another task, ends this. A client that stops reading is the
    kernel's to drop: see TCP_USER_TIMEOUT.

    Raises:
        FileFailed: A file is shorter than its span, or the disk refuses to be read.
        trio.BrokenResourceError: The client is gone.
        trio.ClosedResourceError: The socket was closed on our side.
    """
    await trio.lowlevel.checkpoint_if_cancelled()
    feed = _Feed(parts)
    others_ran = True
    while not feed.is_over:
        if feed.needs_a_look:
            # A fast client on a fast network leaves no other moment for the others.
            if not others_ran:
                await trio.lowlevel.checkpoint()
            others_ran = False
            await _look_ahead(feed, pages)
        try:
            is_blocked = feed.push(_open(socket_))
        except _NoSendfile as exc:
            await _push_copied(socket_, exc.span)
            feed.skip(exc.span.count)
            continue
        if is_blocked:
            since = trio.current_time()
            await trio.lowlevel.wait_writable(socket_)
            others_ran = True
            if trio.current_time() > since + _FRESH:
                feed.in_memory = 0
    await trio.lowlevel.cancel_shielded_checkpoint()


async def send_copied(send: Send, parts: Sequence[Part]) -> None:
    """Send `parts` as ordinary ASGI messages, each of them followed by more body.

    For servers, and connections, that take no files.

    Raises:
        FileFailed: A file is shorter than its span, or the disk refuses to be read.
    """
    for batch in cut(parts, _COPIED):
        data = await trio.to_thread.run_sync(read_parts, batch)
        await send({"type": "http.response.body", "body": data, "more_body": True})


class _NoSendfile(Exception):
    """This span lies in a file system that has no sendfile."""

    def __init__(self, span: FileSpan) -> None:
        super().__init__(span)
        self.span = span


class _Feed:
    """Parts on their way to one socket.

    `in_memory` is how many bytes of files, from here on, need no disk.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        # All mutable state: how many parts are gone, and how much of the next one.
        self._number = 0
        self._done = 0
        self.in_memory = 0

    @property
    def is_over(self) -> bool:
        return self._number == len(self._parts)

    @property
    def needs_a_look(self) -> bool:
        """Whether the next bytes lie in a file, and nobody knows if in memory."""
        return not self.in_memory and isinstance(self._parts[self._number], FileSpan)

    def ahead(self, most: int) -> list[FileSpan]:
        """Return where the next `most` bytes of files lie."""
        return extents(self._rest(), most)

    def push(self, out: int) -> bool:
        """Hand over parts until the kernel takes no more, or until the next look is due.

        Returns whether the kernel takes no more. Two calls a part and little else:
        a framed pack has 32,000 parts a GB.
        """
        parts = self._parts
        try:
            while self._number < len(parts):
                part = parts[self._number]
                if isinstance(part, bytes):
                    self._write(out, part)
                elif not self._send_file(out, part):
                    return False
                self._number += 1
                self._done = 0
        except BlockingIOError:
            return True
        except OSError as exc:
            raise trio.BrokenResourceError(f"the client is gone: {exc}") from exc
        return False

    def skip(self, count: int) -> None:
        """Go on behind the next `count` bytes, of the file that is next."""
        self._done += count
        self.in_memory -= count

    def _write(self, out: int, text: bytes) -> None:
        while self._done < len(text):
            self._done += os.write(out, memoryview(text)[self._done :])

    def _send_file(self, out: int, span: FileSpan) -> bool:
        """Return whether all of it was sent; if not, the next look is due."""
        while (left := span.count - self._done) > 0:
            if not self.in_memory:
                return False
            most = min(left, self.in_memory)
            try:
                taken = os.sendfile(out, span.file, span.offset + self._done, most)
            except OSError as exc:
                if exc.errno in _FILE_FAULTS:
                    raise FileFailed(_refused(exc)) from exc
                if exc.errno in _NOT_FOR_THIS_FILE:
                    at = span.offset + self._done
                    raise _NoSendfile(
                        FileSpan(file=span.file, offset=at, count=min(most, _COPIED))
                    ) from exc
                raise
            if not taken:
                raise FileFailed(_TOO_SHORT)
            self.skip(taken)
        return True

    def _rest(self) -> Iterator[Part]:
        first = self._parts[self._number]
        if isinstance(first, FileSpan):
            done = self._done
            yield FileSpan(file=first.file, offset=first.offset + done, count=first.count - done)
        yield from islice(self._parts, self._number + 1, None)


async def _look_ahead(feed: _Feed, pages: Pages) -> None:
    """Have the next bytes of files in memory."""
    ahead = feed.ahead(_AHEAD)
    if not all(map(pages.are_here, ahead)):
        ahead = feed.ahead(_READ)
        try:
            await pages.bring(ahead)
        except OSError as exc:
            raise FileFailed(_refused(exc)) from exc
    feed.in_memory = size_of(ahead)


async def _push_copied(socket_: trio.socket.SocketType, span: FileSpan) -> None:
    data: Sequence[Part] = [await trio.to_thread.run_sync(_bytes_of, span)]
    feed = _Feed(data)
    while feed.push(_open(socket_)):
        await trio.lowlevel.wait_writable(socket_)


def _open(socket_: trio.socket.SocketType) -> int:
    # Asked anew after each wait: once another task has closed the socket, its old
    # number may be another connection's.
    number = socket_.fileno()
    if number < 0:
        raise trio.ClosedResourceError("this connection was closed")
    return number


def read_parts(parts: Sequence[Part]) -> bytes:
    """Return what parts are; reads the disk.

    Raises:
        FileFailed: A file is shorter than its span, or the disk refuses to be read.
    """
    return b"".join([part if isinstance(part, bytes) else _bytes_of(part) for part in parts])


def _bytes_of(span: FileSpan) -> bytes:
    try:
        data = os.pread(span.file, span.count, span.offset)
    except OSError as exc:
        raise FileFailed(_refused(exc)) from exc
    if len(data) != span.count:
        raise FileFailed(_TOO_SHORT)
    return data


def _refused(exc: OSError) -> str:
    return f"a file of this node cannot be read ({exc.strerror}); see to its cache disk"

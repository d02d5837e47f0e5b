"""One answer while it is made: a file that grows, and those who follow it.

After gitaly's streamcache: like a pipe, a reader waits for bytes that are not there
yet and learns of the end; unlike a pipe, every reader sees all of it from the first
byte, at its own pace, and a slow one holds nobody back: the bytes are in the file.

Where the disk has no room for more, the rest *passes*: each piece is kept in memory until
all who follow have taken it, so all of them go at the pace of the slowest. Nobody
can join then, and nothing is kept, but every answer that was begun is finished.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import trio

from goblet_node.errors import DiskFailed
from goblet_node.fill.room import Claim
from goblet_node.fill.spool import CLAIMED_AHEAD
from goblet_node.serve.pieces import SLICE
from goblet_node.serve.reply import NOT_TO_BE_KEPT, RESULT, Reply
from goblet_shared.errors import GobletError
from goblet_shared.parts import FileSpan, Part, cut
from goblet_shared.sendfile import read_parts

RECORDED = "recorded"
"""How a pack came about for those who did not have it made, as the Goblet-Cache header says it."""


class Follower:
    """One reader of a production, and how far it is."""

    def __init__(self) -> None:
        self.offset = 0  # written by its own task


class Production:
    """One writer, any number of followers. Its followers' number decides whether it goes on."""

    def __init__(self) -> None:
        """Nothing can be added before it is opened; whoever follows waits until then."""
        # All mutable state. Changed only between awaits, so no lock is needed.
        self._file: int | None = None
        self._claim: Claim | None = None
        self.scope = trio.CancelScope()  # of the making
        self.cache: str | None = None
        self.is_started = False
        self.ended = False
        self.error: Exception | None = None
        self.is_passing = False
        self.is_good = True  # worth being kept
        self._stored = 0  # how much the file holds
        self._passed: bytes = b""  # what stands behind that and not in the file
        self._size = 0  # how much there is and was, the file's and what passed
        self._length: int | None = None  # how much there will be, if that is known
        self._followers: set[Follower] = set()
        self._holders = 0
        self._changed = trio.Event()

    @property
    def has_followers(self) -> bool:
        """Whether anybody is following."""
        return bool(self._followers)

    @property
    def can_be_kept(self) -> bool:
        """Whether the file holds all of an answer that others may have, too."""
        return self.ended and self.error is None and self.is_good and not self.is_passing

    @property
    def can_be_joined(self) -> bool:
        """Whether somebody who asks now may follow.

        What has ended and is not to be kept is made anew for the next, who may hear better.
        """
        return not self.is_passing and (self.can_be_kept or not self.ended)

    async def open(self, path: Path, claim: Claim) -> None:
        """Write to a new file from now on, for which `claim` grows.

        If the disk will not have it, everything passes.
        """
        self._claim = claim
        try:
            self._file = await trio.to_thread.run_sync(_created, path)
        except OSError:
            self.is_passing = True

    async def start(self, *, cache: str | None, length: int | None = None) -> None:
        """Tell the followers that there will be an answer; `cache` says how its pack came about.

        `length` is how many bytes it will be, if that is known.
        """
        self.cache = cache
        self._length = length
        self.is_started = True
        self._wake()

    async def send(self, data: bytes) -> None:
        """Add whole packets to the answer; what has no place on the disk is passed on to all.

        Returns when the disk has them, or every follower has.
        """
        if not data:
            return
        if not self.is_passing:
            self.is_passing = not await self._write(data)
        if not self.is_passing:
            self._stored += len(data)
            self._size += len(data)
            self._wake()
            return
        self._passed = data
        self._size += len(data)
        self._wake()
        while any(follower.offset < self._size for follower in self._followers):
            await self._changed.wait()

    async def send_parts(self, parts: Sequence[Part]) -> None:
        """Add what lies in files, as `send` does. Raises FileFailed."""
        for batch in cut(parts, SLICE):
            await self.send(await trio.to_thread.run_sync(read_parts, batch))

    def finish(self) -> None:
        """Tell the followers that what is there is all."""
        self.ended = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """Tell the followers that no more will come, and why."""
        self.ended = True
        self.error = error
        self._wake()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the descriptor open meanwhile; the last who holds it closes it."""
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            if not self._holders and self._file is not None:
                os.close(self._file)
                self._file = None

    @contextmanager
    def followed(self) -> Iterator[Follower]:
        """Count one more who follows, from the first byte: not to be entered once it passes."""
        follower = Follower()
        self._followers.add(follower)
        try:
            with self.held():
                yield follower
        finally:
            self._followers.discard(follower)
            self._wake()

    async def follow(self, follower: Follower, reply: Reply, *, joined: bool) -> None:
        """Send all of the answer as it comes; `joined` whoever did not have it made.

        Raises what the making failed of: nothing was sent then, or whole packets were.
        """
        while not (self.is_started or self.ended):
            await self._changed.wait()
        if not self.is_started:
            raise self.error or GobletError("the answer was not made: ask again")
        cache = RECORDED if joined and self.cache is not None else self.cache
        is_whole = self.ended and self.error is None
        length = self._size if is_whole else self._length
        await reply.start(200, [RESULT, *NOT_TO_BE_KEPT], cache=cache, length=length)
        while True:
            if follower.offset < self._size:
                await self._send_next(follower, reply)
            elif self.ended:
                break
            else:
                await self._changed.wait()
        if self.error is not None:
            raise self.error

    async def _send_next(self, follower: Follower, reply: Reply) -> None:
        offset, stored = follower.offset, self._stored
        if offset < stored:
            assert self._file is not None  # held by this follower
            span = FileSpan(file=self._file, offset=offset, count=stored - offset)
            await reply.send_parts([span])
            follower.offset = stored
        else:
            # The writer waits for us: what passes is all that we lack.
            data = self._passed
            await reply.send(data)
            follower.offset += len(data)
        if self.is_passing:
            self._wake()

    async def _write(self, data: bytes) -> bool:
        """Write behind what is there; return whether the disk took it."""
        assert self._claim is not None  # it was opened
        size = self._stored + len(data)
        try:
            if size > self._claim.bytes:
                await self._claim.grow_to(size, gladly=min(size, CLAIMED_AHEAD))
            # Not abandoned on cancel: the thread still owns the descriptor.
            await trio.to_thread.run_sync(_write_at, self._file, data, self._stored)
        except DiskFailed:
            return False
        return True

    def _wake(self) -> None:
        # A trio.Event cannot be cleared and waiting readers hold the old one: swap it.
        self._changed.set()
        self._changed = trio.Event()


def _created(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _write_at(file: int | None, data: bytes, offset: int) -> None:
    assert file is not None  # not passing, so it was opened
    view = memoryview(data)
    try:
        while view:
            written = os.pwrite(file, view, offset)
            view, offset = view[written:], offset + written
    except OSError as exc:
        raise DiskFailed(f"the disk refused to keep an answer ({exc.strerror})") from exc

"""A file that grows while many read it.

Like a pipe, a reader waits for bytes that are not there yet and learns of the
end. Unlike a pipe, every reader sees all of it from the first byte, at its own
pace, and a slow one holds nobody back: the bytes are in the file.

Where there is no room for all of it, it becomes a pipe after all: it *passes*. What was
written stays until everybody has read it; what comes after that is held in memory, a
little of it, until everybody has taken it. It needs no block that it does not have, so it
goes on where the disk is full to the last.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from goblet_node.errors import DiskFailed
from goblet_node.fill.room import Claim, NoRoom, TooLarge
from goblet_node.fill.spool_file import SpoolFile
from goblet_shared.parts import Part

# What upstream says while it works ("Counting objects ..."), kept for those who join late.
MAX_SAID = 256 * 1024
# Room is claimed ahead of what is written: this much, and more if it is free anyway.
CLAIMED_AHEAD = 1024 * 1024
CLAIMED_GLADLY = 16 * 1024 * 1024
# What one that passes holds in memory, with a piece more: so far may its readers be apart.
# Each fetch that passes may take it, so it is little.
HELD_BYTES = 2 * 1024 * 1024
# How long the writer of one that passes waits for a reader who takes nothing, in
# seconds: the other readers wait with it, and upstream, which may lose patience.
STALLED_AFTER = 60.0


class Follower:
    """One reader of a spool, and how far it is."""

    def __init__(self, spool: "Spool") -> None:
        self._spool = spool
        # All mutable state. Changed between awaits by the reader's own task, and by
        # the spool when that gives it up.
        self.offset = 0
        self.dropped: TooLarge | None = None

    @property
    def is_behind(self) -> bool:
        """Whether `part` has something to return or to raise.

        What failed is not read to its end: half a pack is of no use, and the file
        would lie there, deleted, for as long as its slowest reader takes.
        """
        if self.dropped is not None:
            return True
        return self._spool.error is None and self.offset < self._spool.size

    def part(self, most: int) -> Part:
        """Return the next bytes, at most `most`, or where they lie: they do not change any more.

        A descriptor is open while it follows. The file has them until they are `taken`,
        or this reader is given up.

        Raises:
            TooLarge: the spool passes, and waited for this reader for too long.
        """
        if self.dropped is not None:
            raise self.dropped
        return self._spool.part(self.offset, most)

    def taken(self, count: int) -> None:
        """Go on behind the next `count` bytes, which are sent: the file need not have them.

        Raises:
            TooLarge: it was given up in the meantime.
        """
        if self.dropped is not None:
            raise self.dropped
        self.offset += count
        self._spool.note_taken()


class Spool:
    """One writer, any number of readers, each with its own offset."""

    def __init__(
        self,
        path: Path,
        *,
        claim: Claim,
        most: int | None = None,
        stalled_after: float = STALLED_AFTER,
    ) -> None:
        """Create the file; `claim` grows with it.

        At most `most` bytes are kept: what is larger passes. A reader of a spool that
        passes has `stalled_after` seconds to take something. Raises DiskFailed if the
        disk will not have the file.
        """
        self._file = SpoolFile(path)
        self.path = path
        self._claim = claim
        self._most = most
        self._stalled_after = stalled_after
        # All mutable state. Changed only between awaits, so no lock is needed.
        self.size = 0  # of what was appended
        self.ended = False
        self.error: Exception | None = None
        self.said: list[bytes] = []  # progress messages for people, in order
        self.not_kept: DiskFailed | None = None  # why it passes
        self._stored = 0  # how much of it went to the file
        self._is_emptied = False
        self._held: deque[tuple[int, bytes]] = deque()  # what went not, and its offsets
        self._said_bytes = 0
        self._holders = 0
        self._followers: set[Follower] = set()
        self._grew = trio.Event()
        self._taken = trio.Event()

    async def append(self, data: bytes) -> None:
        """Put `data` behind what is there and wake the readers.

        Where there is no room, or the disk refuses, it passes from then on: `not_kept`
        says why, nobody new can follow, and this waits while the slowest reader is too
        far behind.

        Raises:
            DiskFailed: it passes, or should, and there is nobody who reads.
        """
        if self.not_kept is None:
            try:
                await self._keep(data)
                return
            except DiskFailed as exc:
                if not self._followers:
                    raise
                self.not_kept = exc
        await self._pass(data)

    def say(self, text: bytes) -> None:
        """Pass a progress message to the readers; past a bound it is dropped."""
        if self._said_bytes < MAX_SAID:
            self._said_bytes += len(text)
            self.said.append(text)
            self._wake()

    def finish(self) -> None:
        """Tell readers that what is there is all."""
        self.ended = True
        self._wake()

    def fail(self, error: Exception) -> None:
        """Tell readers that no more will come, and why."""
        self.ended = True
        self.error = error
        self._wake()

    async def drained(self) -> None:
        """Return when every reader has read what there is, has left, or took nothing for too long.

        A file that passed is given up after that: it is not to be had again.
        """
        while any(follower.is_behind for follower in self._followers):
            await self._wait_for(self._slowest())

    async def changed(self) -> None:
        """Return when something was appended, said or ended since the caller last looked."""
        await self._grew.wait()

    @contextmanager
    def following(self) -> Iterator[Follower]:
        """Read from the first byte on; meanwhile the descriptor stays open.

        Raises:
            DiskFailed: it passes, so that the first bytes may be gone.
        """
        if self.not_kept is not None:
            raise self.not_kept
        follower = Follower(self)
        self._followers.add(follower)
        try:
            with self.held():
                yield follower
        finally:
            self._followers.discard(follower)
            self.note_taken()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the descriptor open meanwhile; the last holder, reader or writer, closes it."""
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            if self._holders == 0:
                self._file.close()

    def part(self, offset: int, most: int) -> Part:
        """Return up to `most` bytes from `offset` on, or where they lie in the file."""
        if offset < self._stored:
            return self._file.span(offset, min(most, self._stored - offset))
        for start, piece in self._held:
            if offset < start + len(piece):
                return piece[offset - start : offset - start + most]
        raise AssertionError("it is behind, so what it lacks is held")

    def note_taken(self) -> None:
        """Wake the writer, who may wait for a reader: one has read on, or left."""
        self._taken.set()
        self._taken = trio.Event()

    async def _keep(self, data: bytes) -> None:
        end = self.size + len(data)
        if self._most is not None and end > self._most:
            raise TooLarge(
                f"its pack is larger than the {self._most} bytes that are left to its mirror"
            )
        if end > self._claim.bytes:
            try:
                ahead = end + min(end, CLAIMED_AHEAD)
                await self._claim.grow_to(ahead, gladly=min(end, CLAIMED_GLADLY))
            except NoRoom:
                await self._claim.grow_to(end)  # the last that fits
        # Not abandoned on cancel: the thread still owns the descriptor.
        await trio.to_thread.run_sync(self._file.write, data, self._stored)
        self._stored += len(data)
        self.size = self._stored
        self._wake()

    async def _pass(self, data: bytes) -> None:
        """Hold `data` in memory, once there is place for it there."""
        while self._followers:
            slowest = self._slowest()
            while self._held and self._held[0][0] + len(self._held[0][1]) <= slowest:
                self._held.popleft()
            if slowest >= self._stored and not self._is_emptied:
                await self._empty()
            elif not self._held or self.size - self._held[0][0] + len(data) <= HELD_BYTES:
                self._held.append((self.size, data))
                self.size += len(data)
                self._wake()
                return
            else:
                await self._wait_for(slowest)
        assert self.not_kept is not None
        raise self.not_kept

    async def _wait_for(self, slowest: int) -> None:
        """Wait until no reader is at `slowest` any more; give up those who stay there too long."""
        with trio.move_on_after(self._stalled_after):
            while self._followers and self._slowest() == slowest:
                await self._taken.wait()
            return
        for follower in list(self._followers):
            if follower.offset == slowest:
                follower.dropped = TooLarge(
                    "this repository is too large for the cache of this node, which could not "
                    "wait longer for this client: clone it again, over a faster connection"
                )
                self._followers.discard(follower)
        self._wake()

    def _slowest(self) -> int:
        return min(follower.offset for follower in self._followers)

    async def _empty(self) -> None:
        """Give back what the file takes, which everybody has read."""
        await trio.to_thread.run_sync(self._file.empty)
        self._claim.shrink_to(0)
        self._is_emptied = True

    def _wake(self) -> None:
        # A trio.Event cannot be cleared and waiting readers hold the old one: swap it.
        self._grew.set()
        self._grew = trio.Event()

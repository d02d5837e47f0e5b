"""A file that grows while many read it.

Like a pipe, a reader waits for bytes that are not there yet and learns of the
end. Unlike a pipe, every reader sees all of it from the first byte, at its own
pace, and a slow one holds nobody back: the bytes are in the file.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from goblet_node.errors import DiskFailed

# What upstream says while it works ("Counting objects ..."), kept for those who join late.
MAX_SAID = 256 * 1024


class Spool:
    """One writer, any number of readers, each with its own offset."""

    def __init__(self, path: Path) -> None:
        """Create the file; raises DiskFailed if the disk will not have it."""
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise DiskFailed(f"the disk refused a new file ({exc.strerror})") from exc
        self.path = path
        # All mutable state. Changed only between awaits, so no lock is needed.
        self.size = 0
        self.ended = False
        self.error: Exception | None = None
        self.said: list[bytes] = []  # progress messages for people, in order
        self._said_bytes = 0
        self._holders = 0
        self._grew = trio.Event()

    async def append(self, data: bytes) -> None:
        """Write `data` behind what is there and wake the readers. Raises DiskFailed."""
        # Not abandoned on cancel: the thread still owns the descriptor.
        await trio.to_thread.run_sync(self._write, data)
        self.size += len(data)
        self._wake()

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

    async def changed(self) -> None:
        """Return when something was appended, said or ended since the caller last looked."""
        await self._grew.wait()

    def read(self, offset: int, count: int) -> bytes:
        """Return up to `count` bytes that are there, for a worker thread to call."""
        return os.pread(self._fd, min(count, self.size - offset), offset)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the descriptor open meanwhile; the last holder, reader or writer, closes it."""
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            if self._holders == 0:
                os.close(self._fd)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as exc:
            raise DiskFailed(f"the disk refused to keep a pack ({exc.strerror})") from exc

    def _wake(self) -> None:
        # A trio.Event cannot be cleared and waiting readers hold the old one: swap it.
        self._grew.set()
        self._grew = trio.Event()

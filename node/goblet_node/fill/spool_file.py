"""The file below a spool. Every method may block; what the disk refuses is a DiskFailed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from goblet_node.errors import DiskFailed
from goblet_shared.parts import FileSpan


class SpoolFile:
    """A new file, open until it is closed, also when its name is gone."""

    def __init__(self, path: Path) -> None:
        """Create it, where nothing is yet."""
        with _translated("begin"):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes | memoryview, position: int) -> None:
        """Write all of `data` at `position`. If it raises, some of it may be there."""
        left = memoryview(data)
        with _translated("keep"):
            while left:
                written = os.pwrite(self._fd, left, position)
                left, position = left[written:], position + written

    def span(self, position: int, count: int) -> FileSpan:
        """Return the name of `count` bytes from `position` on, good until it is closed."""
        return FileSpan(file=self._fd, offset=position, count=count)

    def empty(self) -> None:
        """Give back all that it takes.

        What was sent of it and is still in the kernel stays as it was: whole pages are
        let go of, where writing over them, or cutting one, would change it.
        """
        with _translated("empty"):
            os.ftruncate(self._fd, 0)

    def close(self) -> None:
        """Close it; nothing else may be called after that."""
        os.close(self._fd)


@contextmanager
def _translated(verb: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise DiskFailed(
            f"the disk refused to {verb} a pack ({exc.strerror}); "
            "see to the cache disk of this node and try again"
        ) from exc

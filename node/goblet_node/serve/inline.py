"""The bytes that an answer has of its own, beside those of the log."""

from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self


class Inline:
    """Takes bytes, one after another: in memory while they are few, then in a file.

    A context manager, which closes the file; whoever gave the path removes it.
    """

    def __init__(self, path: Path, *, memory: int) -> None:
        """Make a file at `path`, and its folder if need be, for more than `memory` bytes."""
        self._path = path
        self._memory = memory
        self._held = bytearray()
        self._file: IO[bytes] | None = None
        self._size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def tell(self) -> int:
        """Return how many bytes there are."""
        return self._size

    def write(self, data: bytes) -> int:
        """Add bytes; return how many. Raises OSError."""
        self._size += len(data)
        if self._file is None and self._size > self._memory:
            with suppress(FileExistsError):
                self._path.parent.mkdir()
            self._file = self._path.open("xb")
            self._file.write(self._held)
            self._held.clear()
        if self._file is None:
            self._held += data
        else:
            self._file.write(data)
        return len(data)

    @property
    def kept(self) -> Path | bytes:
        """The file that holds the bytes, once it is closed, or the bytes themselves."""
        return bytes(self._held) if self._file is None else self._path

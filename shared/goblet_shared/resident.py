"""Are these pages of a file in memory? And if not, bring them there in a thread.

`sendfile` has no way to say that it would wait for a disk: it waits, and with it
everything that shares its thread.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
from collections.abc import Sequence

import trio

from goblet_shared.parts import FileSpan

# cachestat(2), Linux 6.5 and later: one number on all architectures that Python
# is built for but alpha. It takes 4 us for 28 MB, mincore 480 (measured).
_CACHESTAT = 451
_SLICE = 1 << 20
# Who reads a file from the disk has the kernel read ahead of him. Those pages count
# as cached before they have arrived, megabytes of them: cachestat(2) is not asked
# before they have.
_SETTLED_AFTER = 2.0


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("count", ctypes.c_uint64))


class _CacheStat(ctypes.Structure):
    _fields_ = (
        ("cached", ctypes.c_uint64),
        ("dirty", ctypes.c_uint64),
        ("written_back", ctypes.c_uint64),
        ("evicted", ctypes.c_uint64),
        ("recently_evicted", ctypes.c_uint64),
    )


class Pages:
    """Knows what the kernel holds of a file, and makes it hold more.

    The answer may be outdated when it arrives: a page can go at any moment, though
    not one that was just read on a machine with any memory to spare. For files that
    neither belong to this user nor may be written by it the kernel tells nothing,
    and they count as being in memory.
    """

    def __init__(self, *, readers: int) -> None:
        """Let so many threads at once wait for the disk."""
        self._limit = trio.CapacityLimiter(readers)
        self._libc = _libc()
        # All mutable state: how many threads read now, and when the last one ended.
        self._reading = 0
        self._read_until = -math.inf

    async def bring(self, spans: Sequence[FileSpan]) -> None:
        """Return when all of these were in memory a moment ago.

        Spans that reach beyond the end of their file are no error here.

        Raises:
            OSError: The disk refuses to be read.
        """
        absent = [span for span in spans if not self.are_here(span)]
        if absent:
            self._reading += 1
            try:
                # Not abandoned when cancelled: the descriptors are in use until it is over.
                await trio.to_thread.run_sync(_read_all, absent, limiter=self._limit)
            finally:
                self._reading -= 1
                self._read_until = trio.current_time()

    def are_here(self, span: FileSpan) -> bool:
        """Return whether all of a span is in memory; never waits for a disk."""
        if self._reading or trio.current_time() < self._read_until + _SETTLED_AFTER:
            return self._are_mapped(span)
        cached = self._cached(span)
        if cached is None:
            return self._are_mapped(span)
        if cached < _pages_of(span):
            return False
        # Another process may be reading it. Files are read from front to back.
        return _is_readable_at_once(span.file, span.offset + span.count - 1)

    def _cached(self, span: FileSpan) -> int | None:
        """Return how many pages of it are in memory, None from a kernel that cannot tell."""
        asked, found = _Range(span.offset, span.count), _CacheStat()
        failed = self._libc.syscall(
            _CACHESTAT, span.file, ctypes.byref(asked), ctypes.byref(found), 0
        )
        return None if failed else int(found.cached)

    def _are_mapped(self, span: FileSpan) -> bool:
        """As `are_here`, of mincore(2), which every Linux has."""
        start = span.offset - span.offset % mmap.PAGESIZE
        size = span.offset + span.count - start
        # Not the mmap module's, which copies the descriptor and hides the address.
        address = self._libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, span.file, start)
        if address == ctypes.c_void_p(-1).value:
            return False
        seen = ctypes.create_string_buffer(_pages_of(span))
        failed = self._libc.mincore(address, size, seen)
        self._libc.munmap(address, size)
        return not failed and b"\0" not in seen.raw


def _read_all(spans: Sequence[FileSpan]) -> None:
    """Read spans and drop what was read, so that it is in the kernel's memory."""
    slice_ = bytearray(_SLICE)
    with memoryview(slice_) as room:
        for span in spans:
            at, stop = span.offset, span.offset + span.count
            while at < stop and (got := os.preadv(span.file, [room[: stop - at]], at)):
                at += got


def _is_readable_at_once(file: int, offset: int) -> bool:
    try:
        return os.preadv(file, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system that does not know the question


def _pages_of(span: FileSpan) -> int:
    first = span.offset // mmap.PAGESIZE
    return -(-(span.offset + span.count) // mmap.PAGESIZE) - first


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None)
    size, number, address = ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p
    libc.mmap.argtypes = [address, size, number, number, number, ctypes.c_int64]
    libc.mmap.restype = address
    libc.munmap.argtypes = [address, size]
    libc.mincore.argtypes = [address, size, address]
    libc.syscall.argtypes = [ctypes.c_long, ctypes.c_uint, address, address, ctypes.c_uint]
    libc.syscall.restype = ctypes.c_long
    return libc

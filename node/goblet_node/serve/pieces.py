"""A pack as runs of bytes that lie in files, and those bytes as they are sent.

A large answer is a few long runs, a small one from a log's many corners is
thousands of short ones. Both leave here in slices of one size. A slice costs a
few reads whatever it is made of: runs with little between them are read in one
stretch and cut out of it.
"""

import hashlib
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from goblet_node.errors import DiskFailed, MirrorDamaged
from goblet_node.mirror.concat import log_header
from goblet_node.mirror.disk import reading

RUN = np.dtype([("source", "<i4"), ("offset", "<u8"), ("length", "<u8")])
"""Bytes of one file: of the segment with that number, or of the inline file."""

Runs = NDArray[np.void]
"""An array of `RUN`, in the order in which the bytes are sent. Runs of no bytes are allowed."""

INLINE = -1

# One thread hop a slice: 16 side-band packets, about 1 MB.
SLICE = 16 * 65515

# A read costs as much as copying some 10 KB more (measured: 1.4 us, and 0.13 us a
# KB), and the page cache is filled by pages anyway.
_HOLE = 4096
# Many short runs with holes between them must not make a long stretch in memory.
_STRETCH = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """A pack without its header and trailer.

    `objects` counts its entries, `bytes` what the runs hold together. `inline` is a
    file of the answer's own, or what it would hold if that is little.
    """

    runs: Runs
    inline: Path | bytes
    objects: int
    bytes: int


def pack_of(packs: Sequence[Path], pieces: Pieces) -> Generator[bytes]:
    """Yield a pack: its header, slices of SLICE bytes and a last shorter one, its trailer alone.

    Each next slice reads the disk: for a worker thread. At most one segment and the
    inline file are open at a time, and closed when the generator is.

    Args:
        packs: The segments of the log that the runs speak of, segment 0 first.
        pieces: What to read.

    Raises:
        MirrorDamaged: A segment is gone or shorter than it was.
        DiskFailed: The disk refuses to be read for another reason, or the inline
            file is not what it was.
    """
    return _sealed(pieces.objects, slices_of(packs, pieces.runs, pieces.inline))


def _sealed(objects: int, slices: Generator[bytes]) -> Generator[bytes]:
    """Yield the header of a pack of so many entries, the entries, and the trailer, alone."""
    header = log_header(objects)
    running = hashlib.sha1(header)
    with closing(slices):
        yield header
        for data in slices:
            running.update(data)
            yield data
    yield running.digest()


def slices_of(
    packs: Sequence[Path], runs: Runs, inline: Path | bytes | None = None, *, size: int = SLICE
) -> Generator[bytes]:
    """Yield what the runs hold, one after another, in slices of `size` bytes; the last is shorter.

    Files and errors are as `pack_of` says.
    """
    ends = np.cumsum(runs["length"].astype(np.int64))
    total = int(ends[-1]) if len(ends) else 0
    with _Files(packs, inline) as files:
        for start in range(0, total, size):
            yield _gathered(_cut(runs, ends, start, min(start + size, total)), files.read)


def _cut(runs: Runs, ends: NDArray[np.int64], start: int, stop: int) -> Runs:
    """Return the runs of the bytes from `start` to `stop` of all that the runs hold."""
    first = int(np.searchsorted(ends, start, side="right"))
    last = int(np.searchsorted(ends, stop, side="left"))
    part = runs[first : last + 1].copy()
    skipped = start - (int(ends[first]) - int(runs["length"][first]))
    part["offset"][0] += skipped
    part["length"][0] -= skipped
    part["length"][-1] -= int(ends[last]) - stop
    return part


def _gathered(part: Runs, read: Callable[[int, int, int], bytes]) -> bytes:
    """Return what these runs hold; `read` is asked for source, offset and length."""
    if len(part) == 1:
        return read(*part[0].tolist())
    sources, offsets = part["source"], part["offset"].astype(np.int64)
    order = np.lexsort((offsets, sources))
    sources, starts = sources[order], offsets[order]
    stops = starts + part["length"].astype(np.int64)[order]
    is_apart = (
        (sources[1:] != sources[:-1])
        | (starts[1:] > stops[:-1] + _HOLE)
        | (starts[1:] // _STRETCH != starts[:-1] // _STRETCH)
    )
    firsts = np.flatnonzero(np.concatenate(([True], is_apart)))
    ranges = zip(firsts.tolist(), [*firsts[1:].tolist(), len(part)], strict=True)
    found = [b""] * len(part)
    for (first, last), end in zip(ranges, np.maximum.reduceat(stops, firsts).tolist(), strict=True):
        begin = int(starts[first])
        stretch = read(int(sources[first]), begin, end - begin)
        places = order[first:last].tolist()
        froms, tos = (starts[first:last] - begin).tolist(), (stops[first:last] - begin).tolist()
        for place, from_, to in zip(places, froms, tos, strict=True):
            found[place] = stretch[from_:to]
    return b"".join(found)


class _Files:
    """Reads segments and the inline file by number. A context manager, which closes them.

    A slow client takes minutes, so what its answer has passed is closed: thousands
    of clients times dozens of segments would be too many descriptors.
    """

    def __init__(self, packs: Sequence[Path], inline: Path | bytes | None) -> None:
        self._packs = packs
        self._inline = inline
        self._opened: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as closing_all:
            while self._opened:
                closing_all.callback(os.close, self._opened.popitem()[1])

    def read(self, source: int, offset: int, length: int) -> bytes:
        if source == INLINE:
            return self._read_inline(offset, length)
        pack = self._packs[source]
        with reading(pack):
            data = os.pread(self._descriptor(source, pack), length, offset)
        if len(data) != length:
            raise MirrorDamaged(f"segment {pack.name} is shorter than it was")
        return data

    def _read_inline(self, offset: int, length: int) -> bytes:
        # Never MirrorDamaged, for which the mirror would be dropped: this file is not of it.
        if self._inline is None:
            raise ValueError("runs of an inline file need one")
        if isinstance(self._inline, bytes):
            return self._inline[offset : offset + length]
        try:
            data = os.pread(self._descriptor(INLINE, self._inline), length, offset)
        except OSError as exc:
            raise DiskFailed(
                f"what was made for this answer cannot be read ({exc.strerror}); "
                "see to the cache disk of this node and try again"
            ) from exc
        if len(data) != length:
            raise DiskFailed("what was made for this answer was cut short; try again")
        return data

    def _descriptor(self, source: int, path: Path) -> int:
        descriptor = self._opened.get(source)
        if descriptor is None:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            for passed in [n for n in self._opened if INLINE not in (n, source)]:
                os.close(self._opened.pop(passed))
            self._opened[source] = descriptor
        return descriptor


def touching(runs: Runs) -> Runs:
    """Return the same bytes in as few runs as they can be: none empty, neighbours as one."""
    runs = runs[runs["length"] > 0]
    if not len(runs):
        return runs
    is_apart = (runs["source"][1:] != runs["source"][:-1]) | (
        runs["offset"][1:] != runs["offset"][:-1] + runs["length"][:-1]
    )
    firsts = np.flatnonzero(np.concatenate(([True], is_apart)))
    joined = runs[firsts]
    joined["length"] = np.add.reduceat(runs["length"], firsts)
    return joined

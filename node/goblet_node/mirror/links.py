"""Which objects the objects of a log refer to, by number, so that no walk has to inflate one.

Beside every segment `*.pack` and its `*.table` lies its `*.links`: for each entry, in
the table's order, the *places* of what it refers to, and of what it is a delta on. A
place is the position of an entry in the log: the entries of segment 0's table in that
table's order, then those of segment 1, and so on. A log only grows at its end, so
places stay what they are.

Of large trees, what many of them have in common is stored once, as a *bundle*: see
`linking`, which writes these files.
"""

import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goblet_node.errors import MirrorDamaged
from goblet_node.mirror.disk import read_file, reading

BUNDLE = 1 << 31
"""A target of at least this is not a place but this plus a bundle's number.

Bundles are numbered within a file, and of loaded links within the log: a file that was
lost and is made anew may have others than it had, and no file must depend on another's.
"""

NO_BASE = (1 << 32) - 1
"""What stands for the base of an object that is stored whole."""

Numbers = NDArray[np.int64]

_START = np.dtype("<i8")
_COUNT = np.dtype("<u4")
_COMMITTED = np.dtype("<i8")
_BASE = np.dtype("<u4")
_TARGET = np.dtype("<u4")

_MAGIC = b"GBLTLINK"
_VERSION = 1
# Magic, version, number of entries, of bundles and of targets, CRC-32 of all that
# follows, and the trailer of the pack it belongs to: links beside the wrong pack are
# found out. Padded, and the columns ordered, so that all numbers lie aligned.
_HEADER = struct.Struct("<8sIIIQI20s12x")
_READ_SIZE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Lists:
    """Lists of targets. The i-th is `counts[i]` targets, from the `starts[i]`-th on.

    They lie in any order, so that they can be written as they come, and what lies
    together in the pack lies together here.
    """

    starts: Numbers
    counts: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """What every object of a log refers to.

    Attributes:
        entries: Of each place, its targets: of a commit its tree, then its parents in
            order; of a tree its entries, gitlinks left out; of a tag its target.
        committed: The committer's seconds of commits, 0 for all else, by place.
        bases: The places of what deltas are made on, `NO_BASE` for all else, by place.
        bundles: Of each bundle its targets, which are bundles or places.
        targets: Places, and bundles as `BUNDLE` plus their number.
        paths: The files that this was read from, segment 0 first.
        checksums: The trailer that each segment's pack must have.
    """

    entries: Lists
    committed: Numbers
    bases: NDArray[np.uint32]
    bundles: Lists
    targets: NDArray[np.uint32]
    paths: tuple[Path, ...]
    checksums: tuple[bytes, ...]

    @classmethod
    def load(cls, paths: Sequence[Path], *, grown_from: "Links | None" = None) -> "Links":
        """Read the links files of a log, segment 0 first.

        Every byte of every file is checked, except of those at the beginning that
        `grown_from` was read from: what it holds in memory is not read again.

        Raises:
            MirrorDamaged: A file is missing or not what was written.
            DiskFailed: The disk refuses to be read for another reason.
        """
        earlier: list[Links] = []
        if grown_from is not None and tuple(paths[: len(grown_from.paths)]) == grown_from.paths:
            earlier = [grown_from]
        read = len(earlier[0].paths) if earlier else 0
        return _joined([*earlier, *map(_read, paths[read:])])


def checksum_of(path: Path) -> bytes:
    """Return the trailer of the pack that a links file is of, if every byte of it is sound.

    Unlike `Links.load` it holds no more than a piece of it. Raises what that raises.
    """
    crc, size = 0, 0
    with reading(path), path.open("rb") as file:
        head = file.read(_HEADER.size)
        while piece := file.read(_READ_SIZE):
            crc = zlib.crc32(piece, crc)
            size += len(piece)
    _, checksum = _checked(path, head, size, crc)
    return checksum


def _read(path: Path) -> Links:
    """Read one links file, and check every byte of it."""
    content = read_file(path)
    head, rest = content[: _HEADER.size], memoryview(content)[_HEADER.size :]
    columns, checksum = _checked(path, head, len(rest), zlib.crc32(rest))
    arrays: list[NDArray[Any]] = []
    offset = _HEADER.size
    for count, dtype in columns:
        column = np.frombuffer(content, dtype=dtype, count=count, offset=offset)
        arrays.append(np.require(column, requirements="A"))
        offset += count * dtype.itemsize
    starts, committed, bundle_starts, counts, bases, bundle_counts, found = arrays
    return Links(
        entries=Lists(starts=starts, counts=counts),
        committed=committed,
        bases=bases,
        bundles=Lists(starts=bundle_starts, counts=bundle_counts),
        targets=found,
        paths=(path,),
        checksums=(checksum,),
    )


def _joined(parts: Sequence[Links]) -> Links:
    """Return the links of a log from those of its stretches."""
    if len(parts) == 1:
        return parts[0]
    shifts = np.cumsum([0, *(len(part.targets) for part in parts)]).tolist()
    bundles = np.cumsum([0, *(len(part.bundles) for part in parts)]).tolist()
    targets = [
        _renumbered(part.targets, before) for part, before in zip(parts, bundles, strict=False)
    ]
    return Links(
        entries=_listed([part.entries for part in parts], shifts),
        committed=_end_to_end([part.committed for part in parts], _COMMITTED),
        bases=_end_to_end([part.bases for part in parts], _BASE),
        bundles=_listed([part.bundles for part in parts], shifts),
        targets=_end_to_end(targets, _TARGET),
        paths=tuple(path for part in parts for path in part.paths),
        checksums=tuple(checksum for part in parts for checksum in part.checksums),
    )


def _listed(parts: Sequence[Lists], shifts: Sequence[int]) -> Lists:
    starts = [part.starts + shift for part, shift in zip(parts, shifts, strict=False)]
    return Lists(
        starts=_end_to_end(starts, _START),
        counts=_end_to_end([part.counts for part in parts], _COUNT),
    )


def _renumbered(targets: NDArray[np.uint32], before: int) -> NDArray[np.uint32]:
    """Return targets with `before` bundles before theirs."""
    if not before:
        return targets
    return targets + np.where(targets >= BUNDLE, np.uint32(before), np.uint32(0))


def _end_to_end(parts: Sequence[NDArray[Any]], dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype=dtype), *parts])


def write_part(
    path: Path,
    *,
    entries: Lists,
    committed: Numbers,
    bases: NDArray[np.uint32],
    bundles: Lists,
    targets: Iterable[NDArray[np.uint32]],
    checksum: bytes,
) -> None:
    """Write the links file of one segment; the caller syncs it.

    Args:
        path: Where to.
        entries: The lists of the entries, in the order of the segment's table.
        committed: Parallel to `entries`.
        bases: Parallel to `entries`.
        bundles: The lists of the bundles that the segment adds to the log.
        targets: What the lists name, end to end, in pieces of any size.
        checksum: The 20 bytes at the end of the segment.
    """
    count, crc = 0, 0
    with path.open("wb") as file:
        file.write(bytes(_HEADER.size))
        for piece in (
            entries.starts.astype(_START, copy=False),
            committed.astype(_COMMITTED, copy=False),
            bundles.starts.astype(_START, copy=False),
            entries.counts.astype(_COUNT, copy=False),
            bases.astype(_BASE, copy=False),
            bundles.counts.astype(_COUNT, copy=False),
        ):
            crc = zlib.crc32(piece.tobytes(), crc)
            file.write(piece.tobytes())
        for found in targets:
            content = found.astype(_TARGET, copy=False).tobytes()
            crc = zlib.crc32(content, crc)
            file.write(content)
            count += len(found)
        file.seek(0)
        file.write(_HEADER.pack(_MAGIC, _VERSION, len(entries), len(bundles), count, crc, checksum))


def join_parts(paths: Sequence[Path], dest: Path, checksum: bytes) -> tuple[bytes, ...]:
    """Write the links file of a segment that neighbours in a log were joined to.

    Args:
        paths: The links files of the neighbours, in the order of the log.
        dest: Where to; the caller syncs it.
        checksum: The 20 bytes at the end of the joined segment.

    Returns:
        The trailers of the packs that the neighbours are the links of.

    Raises:
        MirrorDamaged: A file is missing or not what was written.
    """
    joined = Links.load(paths)
    write_part(
        dest,
        entries=joined.entries,
        committed=joined.committed,
        bases=joined.bases,
        bundles=joined.bundles,
        targets=[joined.targets],
        checksum=checksum,
    )
    return joined.checksums


def _checked(
    path: Path, head: bytes, size: int, crc: int
) -> tuple[Sequence[tuple[int, np.dtype[Any]]], bytes]:
    """Return the length and type of each column of a file, and the trailer of its pack.

    `size` and `crc` are those of all that follows the head.
    """
    if len(head) < _HEADER.size:
        raise MirrorDamaged(f"links {path.name} end within their header")
    magic, version, entries, bundles, targets, stored, checksum = _HEADER.unpack(head)
    if magic != _MAGIC or version != _VERSION:
        raise MirrorDamaged(f"links {path.name} are not of version {_VERSION}")
    columns = (
        (entries, _START),
        (entries, _COMMITTED),
        (bundles, _START),
        (entries, _COUNT),
        (entries, _BASE),
        (bundles, _COUNT),
        (targets, _TARGET),
    )
    if size != sum(count * dtype.itemsize for count, dtype in columns) or crc != stored:
        raise MirrorDamaged(f"links {path.name} are not what was written")
    return columns, checksum

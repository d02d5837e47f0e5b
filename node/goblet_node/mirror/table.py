"""The table of a pack log: which objects it holds, and where each one lies.

Beside every segment `*.pack` lies its `*.table`: one record an entry, sorted by
object id, stored column by column. A `Table` is the tables of a whole log read
as one. Object ids are kept as numpy's fixed 20-byte strings: they compare like
the bytes they are, but numpy drops trailing NULs when it hands one out as
`bytes`, so ids leave this module through `tobytes` only.
"""

import binascii
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from goblet_node.errors import MirrorDamaged
from goblet_node.mirror.disk import reading
from goblet_node.objects import hex_id, raw_id
from goblet_node.wire.refs import ObjectId

OID = np.dtype("S20")

ENTRY = np.dtype(
    [
        ("oid", OID),
        ("base", OID),  # what a delta is made on; zeros for whole objects
        ("offset", "<u8"),  # of the entry's first byte, from the start of the pack file
        ("length", "<u8"),  # of the whole entry, header included
        ("size", "<u8"),  # of the object itself, inflated and resolved
        ("header", "u1"),  # bytes before the zlib stream, a delta's base reference included
        ("type", "u1"),  # resolved: commit, tree, blob or tag
        ("kind", "u1"),  # as stored: a type, OFS_DELTA or REF_DELTA
    ]
)
"""One entry of a segment. 67 bytes, so a million objects are 67 MB on disk."""

Entries = NDArray[np.void]
"""An array of `ENTRY`."""

_COLUMNS = tuple(ENTRY.names or ())
_MAGIC = b"GBLTTABL"
_VERSION = 1
# Magic, version, number of entries, CRC-32 of all that follows, and the trailer
# of the pack it belongs to: a table beside the wrong pack is found out.
_HEADER = struct.Struct("<8sIQI20s")
_CHECKSUM_SIZE = 20
_READ_SIZE = 1 << 20


def oid_array(raw: bytes) -> NDArray[np.bytes_]:
    """Return concatenated raw ids as an array of `OID`."""
    return np.frombuffer(raw, dtype=OID)


def write_table(path: Path, entries: Entries, checksum: bytes) -> None:
    """Write the table file of one segment; the caller syncs it.

    Args:
        path: Where to.
        entries: Of `ENTRY`, in any order, no object twice.
        checksum: The 20 bytes at the end of the segment.
    """
    ordered = entries[np.argsort(entries["oid"], kind="stable")]
    columns = [ordered[name].tobytes() for name in _COLUMNS]
    crc = zlib.crc32(checksum)
    for column in columns:
        crc = zlib.crc32(column, crc)
    with path.open("wb") as file:
        file.write(_HEADER.pack(_MAGIC, _VERSION, len(entries), crc, checksum))
        file.writelines(columns)


def _check(path: Path) -> tuple[int, bytes]:
    """Return the number of entries and the pack's checksum of a table file that is sound."""
    with reading(path), path.open("rb") as file:
        head = file.read(_HEADER.size)
        crc, length = zlib.crc32(head[-_CHECKSUM_SIZE:]), 0
        while chunk := file.read(_READ_SIZE):
            crc = zlib.crc32(chunk, crc)
            length += len(chunk)
    if len(head) < _HEADER.size:
        raise MirrorDamaged(f"table {path.name} ends within its header")
    magic, version, count, stored, checksum = _HEADER.unpack(head)
    if magic != _MAGIC or version != _VERSION:
        raise MirrorDamaged(f"table {path.name} is not of version {_VERSION}")
    if length != count * ENTRY.itemsize or crc != stored:
        raise MirrorDamaged(f"table {path.name} is not what was written")
    return count, checksum


def _read_column(path: Path, name: str, count: int) -> NDArray[Any]:
    before = _COLUMNS[: _COLUMNS.index(name)]
    offset = _HEADER.size + count * sum(ENTRY[column].itemsize for column in before)
    with reading(path):
        column = np.fromfile(path, dtype=ENTRY[name], count=count, offset=offset)
    if len(column) != count:
        raise MirrorDamaged(f"table {path.name} became shorter while it was in use")
    return column


@dataclass(frozen=True, slots=True)
class _Part:
    """One segment's table file."""

    path: Path
    count: int
    checksum: bytes


class Table:
    """Every object of a log, sorted by id; a *row* is a position in that order.

    Holds the ids alone (20 bytes an object) until another column is asked for.
    Keeps no file open. Immutable: a log that grew has a new table.
    """

    def __init__(
        self, *, oids: NDArray[np.bytes_], order: NDArray[np.int64], parts: Sequence[_Part]
    ) -> None:
        self._oids = oids
        # Row -> place in the tables' columns laid end to end.
        self._order = order
        self._parts = tuple(parts)
        self._columns: dict[str, NDArray[Any]] = {"oid": oids}

    @classmethod
    def load(cls, paths: Sequence[Path]) -> Self:
        """Read the table files of a log, segment 0 first.

        Every byte of every file is checked.

        Raises:
            MirrorDamaged: A file is missing, not what was written, or two
                segments hold the same object.
            DiskFailed: The disk refuses to be read for another reason.
        """
        parts = [_Part(path, *_check(path)) for path in paths]
        if not parts:
            return cls(oids=oid_array(b""), order=np.zeros(0, dtype=np.int64), parts=())
        oids = np.concatenate([_read_column(part.path, "oid", part.count) for part in parts])
        order = np.arange(len(oids), dtype=np.int64)
        if len(parts) > 1:
            # Stable is a merge sort, which finds the sorted runs that the tables are.
            order = np.argsort(oids, kind="stable")
            oids = oids[order]
        if bool(np.any(oids[1:] == oids[:-1])):
            raise MirrorDamaged(f"the log around {paths[0].name} holds an object twice")
        return cls(oids=oids, order=order, parts=parts)

    def __len__(self) -> int:
        return len(self._oids)

    def __contains__(self, oid: ObjectId) -> bool:
        return self.row(oid) >= 0

    @property
    def checksums(self) -> tuple[bytes, ...]:
        """The trailer that each segment's pack file must have, segment 0 first."""
        return tuple(part.checksum for part in self._parts)

    def row(self, oid: ObjectId) -> int:
        """Return the row of one object, -1 if the log does not have it."""
        return int(self.find_raw(oid_array(raw_id(oid)))[0])

    def find(self, oids: Iterable[ObjectId]) -> NDArray[np.int64]:
        """Return the row of each object, -1 for those that the log does not have."""
        return self.find_raw(oid_array(binascii.unhexlify(b"".join(oids))))

    def find_raw(self, oids: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """Do what `find` does for ids that are an array of `OID` already."""
        if not len(self._oids):
            return np.full(len(oids), -1, dtype=np.int64)
        rows = np.searchsorted(self._oids, oids).astype(np.int64, copy=False)
        rows[rows == len(self._oids)] = 0
        rows[self._oids[rows] != oids] = -1
        return rows

    def missing(self, oids: Iterable[ObjectId]) -> list[ObjectId]:
        """Return those objects that the log does not have, in the order given."""
        asked = list(oids)
        return [asked[index] for index in np.flatnonzero(self.find(asked) < 0)]

    def oid(self, row: int) -> ObjectId:
        """Return the id of the object in a row."""
        return hex_id(self._oids[row : row + 1].tobytes())

    def raw_oid(self, row: int) -> bytes:
        """Return the 20 bytes of the id of the object in a row."""
        return self._oids[row : row + 1].tobytes()

    def raw_base(self, row: int) -> bytes:
        """Return the 20 bytes of the id of a delta's base; zeros for a whole object."""
        return self.column("base")[row : row + 1].tobytes()

    def column(self, name: str) -> NDArray[Any]:
        """Return one field of `ENTRY` (or `segment`, the entry's segment number) for every row.

        Read from the table files when first asked for.

        Raises:
            MirrorDamaged: The files were removed meanwhile.
        """
        if name not in self._columns:
            self._columns[name] = self._gather(name)
        return self._columns[name]

    def _gather(self, name: str) -> NDArray[Any]:
        if name == "segment":
            counts = [part.count for part in self._parts]
            return np.repeat(np.arange(len(counts), dtype=np.uint32), counts)[self._order]
        if not self._parts:
            return np.zeros(0, dtype=ENTRY[name])
        columns = [_read_column(part.path, name, part.count) for part in self._parts]
        return np.concatenate(columns)[self._order]

    def rows_of_segment(self, number: int) -> NDArray[np.int64]:
        """Return the rows of one segment's entries in the order in which they lie in it."""
        rows = np.flatnonzero(self.column("segment") == number)
        return rows[np.argsort(self.column("offset")[rows], kind="stable")]

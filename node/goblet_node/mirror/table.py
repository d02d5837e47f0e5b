"""The table of a pack log: which objects it holds, and where each one lies.

Beside every segment `*.pack` lies its `*.table`: one record an entry, in the order
of the pack, stored column by column. A `Table` is the tables of a whole log read as
one, laid end to end. So an object's *place* in the log is how many entries lie before
its own: it stays when the log grows, when segments are merged, and when a table is
made anew from its pack.

Object ids are kept as numpy's fixed 20-byte strings: they compare like the bytes
they are, but numpy drops trailing NULs when it hands one out as `bytes`, so ids
leave this module through `tobytes` only.
"""

import binascii
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goblet_node.errors import MirrorDamaged
from goblet_node.mirror.disk import reading
from goblet_node.mirror.id_index import OID, IdIndex, IdTwice
from goblet_node.objects import hex_id, raw_id
from goblet_node.wire.refs import ObjectId

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
_VERSION = 2
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
        entries: Of `ENTRY`, in the order of the pack, no object twice.
        checksum: The 20 bytes at the end of the segment.
    """
    _write(path, len(entries), checksum, (entries[name] for name in _COLUMNS))


def _write(path: Path, count: int, checksum: bytes, columns: Iterable[NDArray[Any]]) -> None:
    """Write a table file from its columns, each of which may come in pieces."""
    crc = zlib.crc32(checksum)
    with path.open("wb") as file:
        file.write(bytes(_HEADER.size))
        for column in columns:
            content = column.tobytes()
            crc = zlib.crc32(content, crc)
            file.write(content)
        file.seek(0)
        file.write(_HEADER.pack(_MAGIC, _VERSION, count, crc, checksum))


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


@dataclass(frozen=True, slots=True)
class _Part:
    """One segment's table file."""

    path: Path
    count: int
    checksum: bytes


def _read_column(part: _Part, name: str) -> NDArray[Any]:
    before = _COLUMNS[: _COLUMNS.index(name)]
    offset = _HEADER.size + part.count * sum(ENTRY[column].itemsize for column in before)
    with reading(part.path):
        column = np.fromfile(part.path, dtype=ENTRY[name], count=part.count, offset=offset)
    if len(column) != part.count:
        raise MirrorDamaged(f"table {part.path.name} became shorter while it was in use")
    return column


def join_tables(paths: Sequence[Path], dest: Path, checksum: bytes) -> tuple[bytes, ...]:
    """Write the table file of a segment that neighbours in a log were joined to.

    Args:
        paths: The table files of the neighbours, in the order of the log.
        dest: Where to; the caller syncs it.
        checksum: The 20 bytes at the end of the joined segment.

    Returns:
        The trailers of the packs that the neighbours are the tables of.

    Raises:
        MirrorDamaged: A file is missing or not what was written.
    """
    parts = [_Part(path, *_check(path)) for path in paths]
    sizes = [int(_read_column(part, "length").sum()) for part in parts]
    shifts = [np.uint64(shift) for shift in accumulate(sizes, initial=0)]

    def columns() -> Iterator[NDArray[Any]]:
        for name in _COLUMNS:
            for part, shift in zip(parts, shifts, strict=False):
                column = _read_column(part, name)
                yield column + shift if name == "offset" else column

    _write(dest, sum(part.count for part in parts), checksum, columns())
    return tuple(part.checksum for part in parts)


class Table:
    """Every object of a log, by place; a *row* of the table is an object's place.

    Holds the ids and their index alone (36 bytes an object) until another column is
    asked for. Keeps no file open. Immutable: a log that grew has a new table.
    """

    def __init__(self, *, oids: NDArray[np.bytes_], index: IdIndex, parts: Sequence[_Part]) -> None:
        self._oids = oids
        self._index = index
        self._parts = tuple(parts)
        self._columns: dict[str, NDArray[Any]] = {"oid": oids}

    @classmethod
    def load(cls, paths: Sequence[Path], *, grown_from: "Table | None" = None) -> "Table":
        """Read the table files of a log, segment 0 first.

        Every byte of every file is checked, except of those at the beginning that
        `grown_from` was read from too: what it holds in memory is not read again.

        Raises:
            MirrorDamaged: A file is missing, not what was written, or two
                segments hold the same object.
            DiskFailed: The disk refuses to be read for another reason.
        """
        earlier = cls(oids=oid_array(b""), index=IdIndex.of(oid_array(b"")), parts=())
        if grown_from is not None:
            earlier = grown_from._until(_common(grown_from._parts, paths))
        parts = [_Part(path, *_check(path)) for path in paths[len(earlier._parts) :]]
        if not parts:
            return earlier
        oids = np.concatenate([earlier._oids, *(_read_column(part, "oid") for part in parts)])
        try:
            index = earlier._index.with_more(oids)
        except IdTwice as exc:
            raise MirrorDamaged(f"the log around {paths[0].name} holds an object twice") from exc
        table = cls(oids=oids, index=index, parts=(*earlier._parts, *parts))
        for name in earlier._columns.keys() - {"oid"}:
            more = table._read(name, since=len(earlier._parts))
            table._columns[name] = np.concatenate([earlier._columns[name], *more])
        return table

    def _until(self, number: int) -> "Table":
        """Return the table of the first segments alone."""
        if number == len(self._parts):
            return self
        count = sum(self.counts[:number])
        table = Table(
            oids=self._oids[:count], index=self._index.until(count), parts=self._parts[:number]
        )
        # A copy: another thread may just be asking for one more.
        for name, column in self._columns.copy().items():
            table._columns[name] = column[:count]
        return table

    def __len__(self) -> int:
        return len(self._oids)

    def __contains__(self, oid: ObjectId) -> bool:
        return self.row(oid) >= 0

    @property
    def checksums(self) -> tuple[bytes, ...]:
        """The trailer that each segment's pack file must have, segment 0 first."""
        return tuple(part.checksum for part in self._parts)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many objects each segment has, segment 0 first."""
        return tuple(part.count for part in self._parts)

    def row(self, oid: ObjectId) -> int:
        """Return the row of one object, -1 if the log does not have it."""
        return int(self.find_raw(oid_array(raw_id(oid)))[0])

    def find(self, oids: Iterable[ObjectId]) -> NDArray[np.int64]:
        """Return the row of each object, -1 for those that the log does not have."""
        return self.find_raw(oid_array(binascii.unhexlify(b"".join(oids))))

    def find_raw(self, oids: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """Do what `find` does for ids that are an array of `OID` already."""
        return self._index.find(oids, self._oids)

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
            none = np.zeros(0, dtype=np.uint32 if name == "segment" else ENTRY[name])
            self._columns[name] = np.concatenate([none, *self._read(name)])
        return self._columns[name]

    def _read(self, name: str, *, since: int = 0) -> Iterator[NDArray[Any]]:
        for number, part in enumerate(self._parts[since:], since):
            if name == "segment":
                yield np.full(part.count, number, dtype=np.uint32)
            else:
                yield _read_column(part, name)

    def rows_of_segment(self, number: int) -> NDArray[np.int64]:
        """Return the rows of one segment's entries in the order in which they lie in it."""
        first = sum(self.counts[:number])
        return np.arange(first, first + self.counts[number])


def _common(parts: Sequence[_Part], paths: Sequence[Path]) -> int:
    """Return how many of the first paths were read into these parts."""
    is_same = (part.path == path for part, path in zip(parts, paths, strict=False))
    return sum(1 for _ in takewhile(bool, is_same))

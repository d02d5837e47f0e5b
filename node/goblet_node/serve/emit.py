"""The entries of an answer, each as it lies in the log wherever that is still right.

Entries go out in the order in which they lie, so that neighbours are one copy and
the base of an OFS_DELTA precedes it. Their zlib streams are never touched, with one
exception: a delta whose base neither goes along nor is with the client is sent as a
whole object. Its base is never added: that would need its own base, and so on.

No delta can come to stand on itself. In a log every delta was resolved when it was
taken in and each object is there once; an answer's deltas stand on the same objects
as in the log, and sending one whole only takes a link away. Whether the base of a
REF_DELTA comes before or after it does not matter: index-pack takes both.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from goblet_node.errors import DiskFailed, MirrorDamaged
from goblet_node.mirror.reader import LogReader
from goblet_node.mirror.table import Table
from goblet_node.objects import OFS_DELTA, RAW_ID_SIZE, REF_DELTA
from goblet_node.serve.heads import (
    Bytes,
    Numbers,
    distance_spans,
    named_heads,
    near_heads,
    settle,
    whole_head,
)
from goblet_node.serve.need import Needed
from goblet_node.serve.pieces import INLINE, RUN, Pieces, Runs, slices_of, touching

# Of zlib, on 17 MB of source text: 87 MB/s and 27.5 % of the size, where git's own 6
# makes 50 MB/s and 26.5 %, and 1 makes 122 MB/s and 30.8 %.
_LEVEL = 4


def emit(
    reader: LogReader,
    packs: Sequence[Path],
    needed: Needed,
    *,
    thin: bool,
    ofs_delta: bool,
    inline: Path,
) -> Pieces:
    """Return what to send for these rows; the same question gives the same bytes.

    Args:
        reader: Of the log, entered.
        packs: The segments of the log, segment 0 first.
        needed: What to send, and what the client has.
        thin: Whether a delta's base may be left to the client.
        ofs_delta: Whether a base may be named by its distance.
        inline: Where those bytes go that are not in the log; must not exist. The
            caller removes it, also when this raises.

    Raises:
        MirrorDamaged: The log is not what its tables say.
        DiskFailed: The disk refuses to be read or written.
    """
    entries = _look_up(reader.table, needed.rows)
    with_client = needed.with_client if thin else needed.with_client[:0]
    goes_along = entries.base_place >= 0
    has_base = goes_along | np.isin(entries.base, with_client)
    is_ofs = entries.kind == OFS_DELTA
    is_near = is_ofs & goes_along & ofs_delta
    try:
        with inline.open("xb") as file:
            written = _Written(file, entries)
            written.write_whole(reader, np.flatnonzero((entries.base >= 0) & ~has_base))
            written.write_heads(
                reader.table,
                packs,
                named=np.flatnonzero(is_ofs & has_base & ~is_near),
                near=np.flatnonzero(is_near),
            )
    except OSError as exc:
        # The cause is left behind: it would not survive the way out of a worker.
        raise DiskFailed(
            f"an answer could not be prepared ({exc.strerror or exc}); "
            "see to the cache disk of this node and try again"
        ) from None
    runs = written.runs()
    return Pieces(
        runs=runs, inline=inline, objects=len(entries.rows), bytes=int(runs["length"].sum())
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entries:
    """What to send as it lies in the log, in the order of sending; all arrays are parallel.

    `base` is the row of a delta's base, -1 for a whole object; `base_place` where in
    this order it is, -1 if it does not go along. Of a delta's head (`header` bytes)
    the last `reference` bytes name the base; of an OFS_DELTA they say `distance`.
    """

    rows: Numbers
    segment: Numbers
    offset: Numbers
    length: Numbers
    header: Numbers
    kind: Numbers
    base: Numbers
    base_place: Numbers
    distance: Numbers
    reference: Numbers


def _look_up(table: Table, rows: Numbers) -> _Entries:
    """Return the entries of these rows, which are ascending, in pack order."""
    segment, offset = _column(table, "segment", rows), _column(table, "offset", rows)
    order = np.lexsort((offset, segment))
    ordered = rows[order]
    kind = _column(table, "kind", ordered)
    deltas = np.flatnonzero((kind == OFS_DELTA) | (kind == REF_DELTA))
    bases = table.find_raw(table.column("base")[ordered[deltas]])
    if bool(np.any(bases < 0)):
        raise MirrorDamaged("an object of the mirror is a delta on one that is gone")
    base, base_place = np.full((2, len(rows)), -1, dtype=np.int64)
    base[deltas] = bases
    base_place[deltas] = _places(bases, rows, order)
    distance, reference = np.zeros((2, len(rows)), dtype=np.int64)
    near = np.flatnonzero(kind == OFS_DELTA)
    distance[near] = offset[order][near] - _column(table, "offset", base[near])
    reference[deltas] = RAW_ID_SIZE
    reference[near] = distance_spans(distance[near])
    return _Entries(
        rows=ordered,
        segment=segment[order],
        offset=offset[order],
        length=_column(table, "length", ordered),
        header=_column(table, "header", ordered),
        kind=kind,
        base=base,
        base_place=base_place,
        distance=distance,
        reference=reference,
    )


def _column(table: Table, name: str, rows: Numbers) -> Numbers:
    return table.column(name)[rows].astype(np.int64)


def _places(sought: Numbers, rows: Numbers, order: Numbers) -> Numbers:
    """Return where in the order of sending each of these rows is, -1 if it is not sent."""
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    found = np.searchsorted(rows, sought)
    found[found == len(rows)] = 0
    return np.where(rows[found] == sought, place[found], -1)


class _Written:
    """The inline file while it is written, and which entries have bytes there.

    Such an entry is sent as its bytes in the file, then what is stored of it, less as
    many bytes as the new ones replace.
    """

    def __init__(self, file: IO[bytes], entries: _Entries) -> None:
        self._file = file
        self._entries = entries
        self._offset, self._length, self._replaced = np.zeros(
            (3, len(entries.rows)), dtype=np.int64
        )

    def write_whole(self, reader: LogReader, places: Numbers) -> None:
        """Write the objects at these places, whole."""
        rows = self._entries.rows[places].tolist()
        for place, row in zip(places.tolist(), rows, strict=True):
            kind, content = reader.resolve(reader.table.raw_oid(row))
            self._offset[place] = self._file.tell()
            self._length[place] = self._file.write(
                whole_head(kind, len(content)) + zlib.compress(content, _LEVEL)
            )
        self._replaced[places] = self._entries.length[places]

    def write_heads(
        self, table: Table, packs: Sequence[Path], *, named: Numbers, near: Numbers
    ) -> None:
        """Write new heads for `named`, and for those of `near` whose distance changes.

        All that is written whole must be.
        """
        entries = self._entries
        lengths = entries.length - self._replaced + self._length
        lengths[named] += RAW_ID_SIZE - entries.reference[named]
        lengths[near] -= entries.reference[near]
        distances = settle(lengths, near, entries.base_place[near], entries.reference[near])
        named = np.union1d(named, near[len(distances) :])
        near = near[: len(distances)]
        moved = np.flatnonzero(distances != entries.distance[near])
        near, distances = near[moved], distances[moved]
        bases = table.column("base")[entries.rows[named]]
        self._write(named, *named_heads(*self._sizes(packs, named), bases))
        self._write(near, *near_heads(*self._sizes(packs, near), distances))

    def _sizes(self, packs: Sequence[Path], places: Numbers) -> tuple[Bytes, Numbers]:
        """Return the varints with which these deltas begin, end to end, and their lengths."""
        entries = self._entries
        spans = entries.header[places] - entries.reference[places]
        runs = np.zeros(len(places), dtype=RUN)
        runs["source"], runs["offset"] = entries.segment[places], entries.offset[places]
        runs["length"] = spans
        return np.frombuffer(b"".join(slices_of(packs, runs)), dtype=np.uint8), spans

    def _write(self, places: Numbers, heads: Bytes, lengths: Numbers) -> None:
        self._offset[places] = self._file.tell() + np.cumsum(lengths) - lengths
        self._length[places] = lengths
        self._replaced[places] = self._entries.header[places]
        self._file.write(heads.tobytes())

    def runs(self) -> Runs:
        """Return all entries, as they are sent."""
        entries = self._entries
        runs = np.zeros((len(entries.rows), 2), dtype=RUN)
        new, stored = runs[:, 0], runs[:, 1]
        new["source"], new["offset"], new["length"] = INLINE, self._offset, self._length
        stored["source"] = entries.segment
        stored["offset"] = entries.offset + self._replaced
        stored["length"] = entries.length - self._replaced
        return touching(runs.reshape(-1))

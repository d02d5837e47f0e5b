"""The entries of an answer, each as it lies in the log wherever that is still right.

Entries go out in the order in which they lie, so that neighbours are one copy and
the base of an OFS_DELTA precedes it. Their zlib streams are never touched, with two
exceptions. A delta whose base neither goes along nor is with the client is sent as a
whole object. Its base is never added: that would need its own base, and so on. And a
few long entries become deltas on earlier versions that the client has: upstreams store
the newest version whole, which is what a fetch brings.

No delta can come to stand on itself. In a log every delta was resolved when it was
taken in and each object is there once; an answer's deltas stand on the same objects
as in the log, or on one that the client has, and sending one whole only takes a link away.
Whether the base of a REF_DELTA comes before or after it does not matter: index-pack
takes both.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from goblet_node.errors import DiskFailed
from goblet_node.mirror.graph import Graph, Mask
from goblet_node.mirror.reader import LogReader
from goblet_node.mirror.table import Table
from goblet_node.objects import OFS_DELTA, RAW_ID_SIZE, REF_DELTA
from goblet_node.serve.delta import make_delta
from goblet_node.serve.heads import (
    Bytes,
    Numbers,
    distance_spans,
    named_heads,
    near_heads,
    settle,
    whole_head,
)
from goblet_node.serve.inline import Inline
from goblet_node.serve.need import Needed
from goblet_node.serve.pieces import INLINE, RUN, Pieces, Runs, slices_of, touching

# Of zlib, on 17 MB of source text: 87 MB/s and 27.5 % of the size, where git's own 6
# makes 50 MB/s and 26.5 %, and 1 makes 122 MB/s and 30.8 %.
_LEVEL = 4

# For one answer this many deltas are made that the log does not have, those of the
# longest entries, on objects of so many bytes together: a tenth of a millisecond each.
_MOST_DELTAS = 256
_MOST_COMPARED = 2 << 20
# So many bytes that are not in the log are kept in memory. A fetch of a few commits has
# some kilobytes: a file would cost more than all of them.
IN_MEMORY = 1 << 20
# Deltas of up to so many bytes are taken for good ones.
_SHORT = 100


def emit(
    reader: LogReader,
    packs: Sequence[Path],
    needed: Needed,
    *,
    graph: Graph,
    thin: bool,
    ofs_delta: bool,
    inline: Path,
    whole: Mask | None = None,
) -> Pieces:
    """Return what to send for these rows; the same question gives the same bytes.

    Args:
        reader: Of the log, entered.
        packs: The segments of the log, segment 0 first.
        needed: What to send, and what the client has.
        graph: Of the log.
        thin: Whether a delta's base may be left to the client.
        ofs_delta: Whether a base may be named by its distance.
        inline: Where those bytes go that are not in the log, if they are many; must not
            exist. The caller removes it, also when this raises.
        whole: What is not to be sent as a delta, though its base goes along.

    Raises:
        MirrorDamaged: The log is not what its tables say.
        DiskFailed: The disk refuses to be read or written.
    """
    entries = _look_up(graph, needed.rows)
    with_client = needed.with_client if thin else needed.with_client[:0]
    goes_along = entries.base_place >= 0
    if whole is not None:
        goes_along &= ~whole[entries.rows]
    has_base = goes_along
    if len(with_client):
        has_base = goes_along | _is_among(entries.base, with_client)
    is_ofs = entries.kind == OFS_DELTA
    is_near = is_ofs & goes_along & ofs_delta
    try:
        with Inline(inline, memory=IN_MEMORY) as file:
            written = _Written(file, entries)
            if thin and needed.alike:
                written.write_deltas(reader, needed.alike, has_base)
            left = ~written.is_done
            written.write_whole(reader, np.flatnonzero(left & (entries.base >= 0) & ~has_base))
            written.write_heads(
                graph,
                packs,
                named=np.flatnonzero(left & is_ofs & has_base & ~is_near),
                near=np.flatnonzero(left & is_near),
            )
    except OSError as exc:
        # The cause is left behind: it would not survive the way out of a worker.
        raise DiskFailed(
            f"an answer could not be prepared ({exc.strerror or exc}); "
            "see to the cache disk of this node and try again"
        ) from None
    runs = written.runs()
    return Pieces(
        runs=runs, inline=file.kept, objects=len(entries.rows), bytes=int(runs["length"].sum())
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


def _look_up(graph: Graph, rows: Numbers) -> _Entries:
    """Return the entries of these rows, which are ascending, in pack order."""
    table = graph.table
    segment, offset = _column(table, "segment", rows), _column(table, "offset", rows)
    order = np.lexsort((offset, segment))
    ordered = rows[order]
    kind = _column(table, "kind", ordered)
    base = graph.bases(ordered)
    deltas = np.flatnonzero(base >= 0)
    base_place = np.full(len(rows), -1, dtype=np.int64)
    base_place[deltas] = _places(base[deltas], rows, order, of=len(graph))
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


def _places(sought: Numbers, rows: Numbers, order: Numbers, *, of: int) -> Numbers:
    """Return where in the order of sending each of these rows is, -1 if it is not sent.

    The log has `of` rows.
    """
    if len(rows) > of // 64:
        # To look for many of few takes longer than to note it for all.
        places = np.full(of, -1, dtype=np.int64)
        places[rows[order]] = np.arange(len(order))
        return places[sought]
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    found = np.searchsorted(rows, sought)
    found[found == len(rows)] = 0
    return np.where(rows[found] == sought, place[found], -1)


def _is_among(sought: Numbers, rows: Numbers) -> Mask:
    """Say which of these rows are among `rows`, which are ascending and at least one.

    Few are sought among many: numpy's `isin` would look at all of the many.
    """
    at = np.minimum(np.searchsorted(rows, sought), len(rows) - 1)
    return np.equal(rows[at], sought)


def _as_delta(reader: LogReader, row: int, earlier: int) -> bytes:
    """Return the entry of an object as a delta on an earlier version of it."""
    table = reader.table
    kind, content = reader.at(row)
    _, base = reader.at(earlier)
    delta = make_delta(kind, base, content)
    head = whole_head(REF_DELTA, len(delta)) + table.raw_oid(earlier)
    return head + zlib.compress(delta, _LEVEL)


class _Written:
    """The inline bytes while they are written, and which entries have bytes there.

    Such an entry is sent as its bytes in the file, then what is stored of it, less as
    many bytes as the new ones replace.
    """

    def __init__(self, file: Inline, entries: _Entries) -> None:
        self._file = file
        self._entries = entries
        self._offset, self._length, self._replaced = np.zeros(
            (3, len(entries.rows)), dtype=np.int64
        )

    @property
    def is_done(self) -> NDArray[np.bool_]:
        """Which entries have bytes here."""
        return self._length > 0

    def write_deltas(
        self,
        reader: LogReader,
        alike: Sequence[tuple[int, int]],
        has_base: NDArray[np.bool_],
    ) -> None:
        """Write some entries as deltas on earlier versions of their objects, if that is shorter.

        Args:
            reader: Of the log.
            alike: Rows with earlier versions that the client has.
            has_base: Which entries are deltas that could go as they are.
        """
        earlier = dict(alike)
        entries, left = self._entries, _MOST_COMPARED
        is_worth_it = ~has_base | (entries.length > _SHORT)
        places = np.flatnonzero(is_worth_it & np.isin(entries.rows, list(earlier)))
        rows = entries.rows[places]
        olds = np.array([earlier[row] for row in rows.tolist()], dtype=np.int64)
        sizes = _column(reader.table, "size", rows)
        compared = sizes + _column(reader.table, "size", olds)
        by_length = np.argsort(-entries.length[places], kind="stable")
        # What is too large in any case must not stand in the way of what is not.
        by_length = by_length[compared[by_length] <= left]
        for at in by_length[:_MOST_DELTAS].tolist():
            if compared[at] > left:
                continue
            left -= int(compared[at])
            place = int(places[at])
            written = _as_delta(reader, int(rows[at]), int(olds[at]))
            stays = has_base[place] or entries.base[place] < 0
            # What would have to be compressed whole is not, to find out how long it were.
            if len(written) < (entries.length[place] if stays else sizes[at] // 2):
                self._offset[place] = self._file.tell()
                self._length[place] = self._file.write(written)
                self._replaced[place] = entries.length[place]

    def write_whole(self, reader: LogReader, places: Numbers) -> None:
        """Write the objects at these places, whole."""
        rows = self._entries.rows[places].tolist()
        for place, row in zip(places.tolist(), rows, strict=True):
            kind, content = reader.at(row)
            self._offset[place] = self._file.tell()
            self._length[place] = self._file.write(
                whole_head(kind, len(content)) + zlib.compress(content, _LEVEL)
            )
        self._replaced[places] = self._entries.length[places]

    def write_heads(
        self, graph: Graph, packs: Sequence[Path], *, named: Numbers, near: Numbers
    ) -> None:
        """Write new heads for `named`, and for those of `near` whose distance changes.

        All that is written otherwise must be.
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
        bases = graph.table.column("oid")[entries.base[named]]
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

"""What a fetch is told and sent, found in a worker process.

negotiate decides what is said, shallow where history is cut off, need which
objects go, emit which bytes of the log those are. The parent sends them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from goblet_node.mirror.reader import LogReader
from goblet_node.mirror.table import Table
from goblet_node.serve.emit import emit
from goblet_node.serve.need import Question, need
from goblet_node.serve.negotiate import negotiate
from goblet_node.serve.pieces import Pieces
from goblet_node.serve.ready import ready
from goblet_node.serve.shallow import Boundary, boundary
from goblet_node.wire.answers import Dialect, Turn
from goblet_node.wire.filters import parse_filter
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.requests import Fetch

# Tables that a worker keeps: those of the repositories that it was asked about last.
_KEPT_TABLES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectJob:
    """What a worker needs to know.

    Attributes:
        segments: Pack and table of every segment of the log.
        fetch: The request; the log holds all that it wants.
        dialect: How its client speaks.
        deepen_not: The commits that its `deepen-not` names stand for.
        tags: Annotated tags of the refs and what each peels to, if it may get them unasked.
        inline: Where to write what does not lie in the log as it is sent.
    """

    segments: tuple[tuple[Path, Path], ...]
    fetch: Fetch
    dialect: Dialect
    deepen_not: tuple[ObjectId, ...]
    tags: tuple[tuple[ObjectId, ObjectId], ...]
    inline: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What to say, and what to send if the turn has a pack."""

    turn: Turn
    shallow: tuple[ObjectId, ...] = ()
    unshallow: tuple[ObjectId, ...] = ()
    pieces: Pieces | None = None


def select(job: SelectJob) -> Selection:
    """Find the answer to a fetch.

    Raises:
        ProtocolError: Its filter is not known, or its depth leaves nothing.
        MirrorDamaged: The log is not what was written.
        DiskFailed: The disk refused a read or a write.
    """
    fetch = job.fetch
    packs = [pack for pack, _ in job.segments]
    wanted_filter = None if fetch.filter_spec is None else parse_filter(fetch.filter_spec)
    with LogReader(packs, _table(tuple(table for _, table in job.segments))) as reader:
        common = _held(reader.table, fetch.haves)
        shallow = _held(reader.table, fetch.shallow)
        turn = negotiate(
            fetch,
            job.dialect,
            common=common,
            shallow=shallow,
            ready=lambda haves: ready(reader, wants=fetch.wants, common=haves, shallow=shallow),
        )
        edge = _boundary(reader, job, shallow) if fetch.has_depth else None
        told = edge if edge is not None and turn.tells_boundary else None
        pieces = None
        if turn.has_pack:
            question = Question(
                wants=fetch.wants,
                haves=common,
                shallow=shallow,
                boundary=edge,
                filter=wanted_filter,
                tags=_held_pairs(reader.table, job.tags),
            )
            pieces = emit(
                reader,
                packs,
                need(reader, question),
                thin=fetch.thin_pack,
                ofs_delta=fetch.ofs_delta,
                inline=job.inline,
            )
    return Selection(
        turn=turn,
        shallow=told.shallow if told else (),
        unshallow=told.unshallow if told else (),
        pieces=pieces,
    )


def _boundary(reader: LogReader, job: SelectJob, shallow: tuple[ObjectId, ...]) -> Boundary:
    return boundary(
        reader,
        wants=job.fetch.wants,
        shallow=shallow,
        deepen=job.fetch.deepen,
        deepen_relative=job.fetch.deepen_relative,
        deepen_since=job.fetch.deepen_since,
        deepen_not=_held(reader.table, job.deepen_not),
    )


def _held(table: Table, oids: Sequence[ObjectId]) -> tuple[ObjectId, ...]:
    return tuple(oid for oid, row in zip(oids, table.find(oids), strict=True) if row >= 0)


def _held_pairs(
    table: Table, tags: Sequence[tuple[ObjectId, ObjectId]]
) -> tuple[tuple[ObjectId, ObjectId], ...]:
    """Return the tags that are here with what upstream says they peel to: it may say anything."""
    ends = table.find([end for _, end in tags])
    starts = table.find([start for start, _ in tags])
    return tuple(
        tag for tag, start, end in zip(tags, starts, ends, strict=True) if start >= 0 and end >= 0
    )


@lru_cache(maxsize=_KEPT_TABLES)
def _table(paths: tuple[Path, ...]) -> Table:
    # A table's name holds its segment's checksum: the same names are the same content.
    return Table.load(paths)

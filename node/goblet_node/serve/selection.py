"""What a fetch is told and sent, found in a worker process.

negotiate decides what is said, shallow where history is cut off, need which
objects go, emit which bytes of the log those are. The parent sends them.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from goblet_node.mirror.graph import Graph
from goblet_node.mirror.layout import SegmentFiles
from goblet_node.mirror.reader import LogReader
from goblet_node.mirror.table import Table
from goblet_node.serve.emit import emit
from goblet_node.serve.kept import KeptGraphs
from goblet_node.serve.need import Needed, Question, need
from goblet_node.serve.negotiate import negotiate
from goblet_node.serve.pieces import Pieces, pack_of
from goblet_node.serve.ready import ready
from goblet_node.serve.shallow import Boundary, boundary
from goblet_node.wire.answers import Dialect, Turn
from goblet_node.wire.filters import parse_filter
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.requests import Fetch

# Of how many objects a worker keeps tables and links, about 150 bytes each.
_KEPT_OBJECTS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectJob:
    """What a worker needs to know.

    Attributes:
        segments: The files of every segment of the log.
        fetch: The request; the log holds all that it wants.
        dialect: How its client speaks.
        deepen_not: The commits that its `deepen-not` names stand for.
        tags: Annotated tags of the refs and what each peels to, if it may get them unasked.
        inline: Where to write what does not lie in the log as it is sent, if that is much.
        small: Packs of up to so many bytes are read here, and come back as they are.
        whole: The wants reach all of the log's first so many objects and name nothing
            beyond those; None if that is not known.
    """

    segments: tuple[SegmentFiles, ...]
    fetch: Fetch
    dialect: Dialect
    deepen_not: tuple[ObjectId, ...]
    tags: tuple[tuple[ObjectId, ObjectId], ...]
    inline: Path
    small: int = 0
    whole: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A whole pack, and how many objects it holds."""

    data: bytes
    objects: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What to say, and what to send if the turn has a pack."""

    turn: Turn
    shallow: tuple[ObjectId, ...] = ()
    unshallow: tuple[ObjectId, ...] = ()
    pieces: Pieces | Packed | None = None


def select(job: SelectJob) -> Selection:
    """Find the answer to a fetch.

    Raises:
        ProtocolError: Its filter is not known, or its depth leaves nothing.
        MirrorDamaged: The log is not what was written.
        DiskFailed: The disk refused a read or a write.
    """
    fetch = job.fetch
    wanted_filter = None if fetch.filter_spec is None else parse_filter(fetch.filter_spec)
    graph = _kept_graphs().of(job.segments)
    common = _held(graph.table, fetch.haves)
    shallow = _held(graph.table, fetch.shallow)
    turn = negotiate(
        fetch,
        job.dialect,
        common=common,
        shallow=shallow,
        ready=lambda haves: ready(graph, wants=fetch.wants, common=haves, shallow=shallow),
    )
    edge = _boundary(graph, job, shallow) if fetch.has_depth else None
    told = edge if edge is not None and turn.tells_boundary else None
    pieces = None
    if turn.has_pack:
        question = Question(
            wants=fetch.wants,
            haves=common,
            shallow=shallow,
            boundary=edge,
            filter=wanted_filter,
            tags=_held_pairs(graph.table, job.tags),
            whole=job.whole,
        )
        pieces = _pieces(graph, job, need(graph, question))
    return Selection(
        turn=turn,
        shallow=told.shallow if told else (),
        unshallow=told.unshallow if told else (),
        pieces=pieces,
    )


def _pieces(graph: Graph, job: SelectJob, needed: Needed) -> Pieces | Packed:
    packs = [files.pack for files in job.segments]
    with LogReader(packs, graph.table, bases=graph.links.bases) as reader:
        pieces = emit(
            reader,
            packs,
            needed,
            graph=graph,
            thin=job.fetch.thin_pack,
            ofs_delta=job.fetch.ofs_delta,
            inline=job.inline,
        )
    if pieces.bytes > job.small:
        return pieces
    with closing(pack_of(packs, pieces)) as slices:
        return Packed(data=b"".join(slices), objects=pieces.objects)


def _boundary(graph: Graph, job: SelectJob, shallow: tuple[ObjectId, ...]) -> Boundary:
    return boundary(
        graph,
        wants=job.fetch.wants,
        shallow=shallow,
        deepen=job.fetch.deepen,
        deepen_relative=job.fetch.deepen_relative,
        deepen_since=job.fetch.deepen_since,
        deepen_not=_held(graph.table, job.deepen_not),
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


@lru_cache(maxsize=1)
def _kept_graphs() -> KeptGraphs:
    """Return the graphs that this process keeps between its jobs."""
    return KeptGraphs(most_objects=_KEPT_OBJECTS)

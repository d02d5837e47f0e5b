"""A received pack becomes a segment of the log. Runs in a worker process.

scan finds and checks what the pack holds, normalise drops what the log has
already, table lists what is left, links says what each of that refers to and
proves that all of it is there, reach says which tips were orphaned. Nothing
is written outside of the job's scratch directory; whoever gave the job puts the
result in its place.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from goblet_node.errors import DiskFailed, MirrorDamaged
from goblet_node.mirror.graph import Graph
from goblet_node.mirror.layout import SegmentFiles
from goblet_node.mirror.linking import LinksBuilder
from goblet_node.mirror.links import Links
from goblet_node.mirror.normalise import normalise
from goblet_node.mirror.reach import orphans
from goblet_node.mirror.reader import LogReader
from goblet_node.mirror.scan import MAX_OBJECT_BYTES, Scan, scan_pack
from goblet_node.mirror.table import Entries, Table, write_table
from goblet_node.objects import COMMIT, TREE, PackRejected
from goblet_node.wire.refs import JoinedIds, ObjectId


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeJob:
    """What a worker needs to know.

    Attributes:
        received: The pack that the upstream sent; None if only refs changed.
        scratch: A directory of this job alone, on the log's file system.
        segments: The files of every segment of the log so far.
        tips: What the refs name from now on.
        old_tips: What the refs of the last generation named.
        old_orphans: Its orphans. Named here and not among `old_tips`, they cost
            much less to look for.
        max_object_bytes: No object, inflated and resolved, may be larger.
    """

    received: Path | None
    scratch: Path
    segments: tuple[SegmentFiles, ...]
    tips: JoinedIds
    old_tips: JoinedIds = field(default_factory=JoinedIds)
    old_orphans: JoinedIds = field(default_factory=JoinedIds)
    max_object_bytes: int = MAX_OBJECT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """A segment that is ready to be put in its place.

    `files` lie in scratch, unsynced (the pack may be the received file itself). They
    are None, and `checksum` empty, if the log grows by no object. `checksum` is the
    pack's trailer in hex, `bytes` the size of the pack file, `beside` that of table
    and links together.
    """

    files: SegmentFiles | None = None
    objects: int = 0
    bytes: int = 0
    beside: int = 0
    checksum: str = ""
    orphans: tuple[ObjectId, ...] = ()


def take_in(job: IntakeJob) -> Intake:
    """Turn a received pack into a segment, or find that none is needed.

    Afterwards the log with the segment is closed, holds every tip, and holds no
    object twice; what its commits name as trees and parents is that. On failure there
    is only scratch to delete.

    Raises:
        PackRejected: The pack is damaged, too large, or lacks what it or a tip refers to,
            or a commit in it names as tree or parent what is none.
        MirrorDamaged: The log is not what was written.
        DiskFailed: The disk refused a read or a write.
    """
    with disk_failures():
        packs = [files.pack for files in job.segments]
        table = _table(job.segments)
        intake = Intake()
        if job.received is not None:
            with LogReader(packs, table) as reader:
                intake, table = _make_segment(job, job.received, reader)
        log = job.segments if intake.files is None else (*job.segments, intake.files)
        tips = job.tips.apart()
        _check_tips(table, tips)
        graph = Graph(table, Links.load([files.links for files in log]))
        _check_commits(graph, len(table) - intake.objects)
        lost = orphans(graph, tips, job.old_tips.apart(), job.old_orphans.apart())
        return replace(intake, orphans=lost)


def rebuild(earlier: Sequence[SegmentFiles], pack: Path, scratch: Path) -> SegmentFiles:
    """Make table and links of a segment anew, in scratch, from the segment itself.

    Args:
        earlier: Every segment before it: its deltas may be made on them.
        pack: The segment.
        scratch: A directory of this call alone.

    Raises:
        MirrorDamaged: The segment, or an earlier one, is damaged too.
        DiskFailed: The disk refused a read or a write.
    """
    files = SegmentFiles(pack, scratch / "segment.table", scratch / "segment.links")
    packs = [before.pack for before in earlier]
    with (
        disk_failures(),
        LogReader(packs, _table(earlier)) as reader,
        LinksBuilder(scratch) as links,
    ):
        try:
            # What the limit was when it came, it was within that.
            scan = scan_pack(
                pack,
                resolve_base=reader.resolve,
                mention=links.add,
                max_object_bytes=sys.maxsize,
            )
            write_table(files.table, scan.entries, scan.checksum)
            everything = np.arange(len(scan.entries))
            _write_links(links, (*earlier, files), reader.table, scan.entries, everything)
        except PackRejected as exc:
            raise MirrorDamaged(f"segment {pack.name} is damaged: {exc}") from exc
    return files


def entries_to_keep(scan: Scan, log: Table) -> NDArray[np.bool_]:
    """Decide which entries the segment holds: of each object that the log lacks, one.

    Of several entries of one object the one that was resolved first is kept. Any
    other choice could close a circle: an object as a delta on what is a delta on
    the object's other, dropped, entry.
    """
    by_turn = np.argsort(scan.turns, kind="stable")
    _, first = np.unique(scan.entries["oid"][by_turn], return_index=True)
    keep = np.zeros(len(scan.entries), dtype=np.bool_)
    keep[by_turn[first]] = True
    keep &= log.find_raw(scan.entries["oid"]) < 0
    return keep


def _table(log: Sequence[SegmentFiles]) -> Table:
    return Table.load([files.table for files in log])


def _make_segment(job: IntakeJob, received: Path, reader: LogReader) -> tuple[Intake, Table]:
    """Return the segment, and the table of the log with it."""
    with LinksBuilder(job.scratch) as links:
        scan = scan_pack(
            received,
            resolve_base=reader.resolve,
            mention=links.add,
            max_object_bytes=job.max_object_bytes,
        )
        keep = entries_to_keep(scan, reader.table)
        if not keep.any():
            # What the log has already refers to nothing that it lacks.
            return Intake(), reader.table
        entries, checksum, pack = scan.entries, scan.checksum, received
        if not keep.all():
            pack = job.scratch / "segment.pack"
            normalised = normalise(received, scan, keep, pack)
            entries, checksum = normalised.entries, normalised.checksum
        files = SegmentFiles(pack, job.scratch / "segment.table", job.scratch / "segment.links")
        write_table(files.table, entries, checksum)
        log = (*job.segments, files)
        table = _write_links(links, log, reader.table, entries, np.flatnonzero(keep))
    intake = Intake(
        files=files,
        objects=len(entries),
        bytes=pack.stat().st_size,
        beside=files.table.stat().st_size + files.links.stat().st_size,
        checksum=checksum.hex(),
    )
    return intake, table


def _write_links(
    links: LinksBuilder,
    log: Sequence[SegmentFiles],
    before: Table,
    entries: Entries,
    indexes: NDArray[np.int64],
) -> Table:
    """Write the links of the log's last segment, whose table is there; return the log's table.

    `before` is the table without that segment.
    """
    table = Table.load([segment.table for segment in log], grown_from=before)
    links.write(
        log[-1].links,
        table=table,
        entries=entries,
        indexes=indexes,
        checksum=table.checksums[-1],
    )
    return table


def _check_tips(log: Table, tips: Sequence[ObjectId]) -> None:
    missing = log.missing(tips)
    if missing:
        raise PackRejected(
            f"the upstream's pack lacks {len(missing)} of the objects that its refs name, "
            f"one of them {missing[0].decode()}"
        )


def _check_commits(graph: Graph, first: int) -> None:
    """Raise PackRejected if a commit from place `first` on names no tree, or no commit as parent.

    Of a tree's entries and a tag's target nothing depends on what they are said to be.
    """
    commits = first + np.flatnonzero(graph.kinds[first:] == COMMIT)
    counts = graph.links.entries.counts[commits].astype(np.int64)
    expected = np.full(int(counts.sum()), COMMIT)
    expected[np.cumsum(counts) - counts] = TREE
    named = [graph.kinds[places] for places in graph.targets(commits)]
    wrong = np.concatenate([graph.kinds[:0], *named]) != expected
    if wrong.any():
        commit = int(np.repeat(commits, counts)[wrong.argmax()])
        raise PackRejected(
            f"the upstream's pack has a commit, {graph.table.oid(commit).decode()}, "
            "of which the tree or a parent is none"
        )


@contextmanager
def disk_failures() -> Iterator[None]:
    """Raise DiskFailed for what the operating system says while a segment is made."""
    try:
        yield
    except OSError as exc:
        # The cause is left behind: it would not survive the way out of a worker.
        raise DiskFailed(
            f"a segment could not be made ({exc.strerror or exc}); "
            "see to the cache disk of this node and try again"
        ) from None

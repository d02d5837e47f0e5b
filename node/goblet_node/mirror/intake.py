"""A received pack becomes a segment of the log. Runs in a worker process.

scan finds and checks what the pack holds, normalise drops what the log has
already, table lists what is left, reach says which tips were orphaned. Nothing
is written outside of the job's scratch directory; whoever gave the job puts the
result in its place.
"""

import binascii
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from goblet_node.errors import DiskFailed, MirrorDamaged
from goblet_node.mirror.normalise import normalise
from goblet_node.mirror.reach import orphans
from goblet_node.mirror.reader import LogReader
from goblet_node.mirror.scan import MAX_OBJECT_BYTES, Scan, scan_pack
from goblet_node.mirror.table import Entries, Table, oid_array, write_table
from goblet_node.objects import PackRejected, hex_id
from goblet_node.wire.refs import ObjectId

# Distinct references are gathered as Python objects up to this many, then as
# 20 bytes each: a set of a million ids takes more than 100 MB.
_MENTIONS_AT_ONCE = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class IntakeJob:
    """What a worker needs to know.

    Attributes:
        received: The pack that the upstream sent; None if only refs changed.
        scratch: A directory of this job alone, on the log's file system.
        segments: Pack and table of every segment of the log so far.
        tips: What the refs name from now on.
        old_tips: What the refs of the last generation named.
        old_orphans: Its orphans. Named here and not among `old_tips`, they cost
            much less to look for.
        max_object_bytes: No object, inflated and resolved, may be larger.
    """

    received: Path | None
    scratch: Path
    segments: tuple[tuple[Path, Path], ...]
    tips: tuple[ObjectId, ...]
    old_tips: tuple[ObjectId, ...]
    old_orphans: tuple[ObjectId, ...] = ()
    max_object_bytes: int = MAX_OBJECT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """A segment that is ready to be put in its place.

    `pack` and `table` lie in scratch, unsynced (`pack` may be the received file
    itself). Both are None, and `checksum` empty, if the log grows by no object.
    `checksum` is the pack's trailer in hex, `bytes` the size of the pack file.
    """

    pack: Path | None = None
    table: Path | None = None
    objects: int = 0
    bytes: int = 0
    checksum: str = ""
    orphans: tuple[ObjectId, ...] = ()


def take_in(job: IntakeJob) -> Intake:
    """Turn a received pack into a segment, or find that none is needed.

    Afterwards the log with the segment is closed, holds every tip, and holds no
    object twice. On failure there is only scratch to delete.

    Raises:
        PackRejected: The pack is damaged, too large, or lacks what it or a tip refers to.
        MirrorDamaged: The log is not what was written.
        DiskFailed: The disk refused a read or a write.
    """
    with _disk_failures():
        packs = [pack for pack, _ in job.segments]
        tables = [table for _, table in job.segments]
        intake = Intake()
        if job.received is not None:
            with LogReader(packs, Table.load(tables)) as reader:
                intake = _make_segment(job, job.received, reader)
        if intake.pack is not None and intake.table is not None:
            packs.append(intake.pack)
            tables.append(intake.table)
        with LogReader(packs, Table.load(tables)) as reader:
            _check_tips(reader.table, job.tips)
            lost = orphans(reader, job.tips, job.old_tips, job.old_orphans)
        return replace(intake, orphans=lost)


def rebuild_table(earlier: Sequence[tuple[Path, Path]], pack: Path, table: Path) -> None:
    """Write the table of a segment again, from the segment itself.

    Args:
        earlier: Pack and table of every segment before it: its deltas may be made on them.
        pack: The segment.
        table: Where to; the caller syncs it.

    Raises:
        MirrorDamaged: The segment, or an earlier one, is damaged too.
        DiskFailed: The disk refused a read or a write.
    """
    known = Table.load([before for _, before in earlier])
    with _disk_failures(), LogReader([before for before, _ in earlier], known) as reader:
        try:
            scan = scan_pack(pack, resolve_base=reader.resolve, mention=lambda _: None)
        except PackRejected as exc:
            raise MirrorDamaged(f"segment {pack.name} is damaged: {exc}") from exc
        write_table(table, scan.entries, scan.checksum)


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


class Mentions:
    """The distinct objects that others refer to."""

    def __init__(self) -> None:
        self._recent: set[ObjectId] = set()
        self._packed: NDArray[np.bytes_] = oid_array(b"")

    def add(self, oids: Iterable[ObjectId]) -> None:
        """Note the references of one object."""
        self._recent.update(oids)
        if len(self._recent) >= _MENTIONS_AT_ONCE:
            self._pack()

    def packed(self) -> NDArray[np.bytes_]:
        """Return all of them, each once, as an array of `OID`."""
        self._pack()
        return self._packed

    def _pack(self) -> None:
        recent = oid_array(binascii.unhexlify(b"".join(self._recent)))
        self._packed = np.unique(np.concatenate([self._packed, recent]))
        self._recent.clear()


def _make_segment(job: IntakeJob, received: Path, reader: LogReader) -> Intake:
    mentions = Mentions()
    scan = scan_pack(
        received,
        resolve_base=reader.resolve,
        mention=mentions.add,
        max_object_bytes=job.max_object_bytes,
    )
    keep = entries_to_keep(scan, reader.table)
    entries, checksum, pack = scan.entries, scan.checksum, received
    _check_connected(mentions, reader.table, entries)
    if not keep.any():
        return Intake()
    if not keep.all():
        pack = job.scratch / "segment.pack"
        normalised = normalise(received, scan, keep, pack)
        entries, checksum = normalised.entries, normalised.checksum
    table = job.scratch / "segment.table"
    write_table(table, entries, checksum)
    return Intake(
        pack=pack,
        table=table,
        objects=len(entries),
        bytes=pack.stat().st_size,
        checksum=checksum.hex(),
    )


def _check_connected(mentions: Mentions, log: Table, entries: Entries) -> None:
    """Raise unless all that new objects refer to is there: with a closed log, closure."""
    named = mentions.packed()
    elsewhere = named[~np.isin(named, entries["oid"])]
    missing = elsewhere[log.find_raw(elsewhere) < 0]
    if len(missing):
        raise PackRejected(
            f"the upstream's pack lacks {len(missing)} objects that others in it refer to, "
            f"one of them {hex_id(missing[:1].tobytes()).decode()}"
        )


def _check_tips(log: Table, tips: Sequence[ObjectId]) -> None:
    missing = log.missing(tips)
    if missing:
        raise PackRejected(
            f"the upstream's pack lacks {len(missing)} of the objects that its refs name, "
            f"one of them {missing[0].decode()}"
        )


@contextmanager
def _disk_failures() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        # The cause is left behind: it would not survive the way out of a worker.
        raise DiskFailed(
            f"a segment could not be made ({exc.strerror or exc}); "
            "see to the cache disk of this node and try again"
        ) from None

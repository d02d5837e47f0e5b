"""Which segments of a log to join, and the join itself. The latter runs in a worker process.

Sizes decide, as in `git repack --geometric` (Documentation/git-repack.txt): a segment
must be larger than all that came after it by a factor. Small segments at the log's end
are joined until that holds again. Each join makes a byte's segment larger by half, so
none is written more than some 20 times in a log's life, and of terabytes there is a
dozen of segments (J. L. Bentley and J. B. Saxe, "Decomposable searching problems I",
Journal of Algorithms 1, 1980, have the method and the proof).
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from goblet_node.errors import MirrorDamaged
from goblet_node.mirror.concat import HEADER_SIZE, body, log_header
from goblet_node.mirror.disk import Disk, reading
from goblet_node.mirror.intake import Intake, disk_failures
from goblet_node.mirror.layout import SegmentFiles
from goblet_node.mirror.links import join_parts
from goblet_node.mirror.table import join_tables
from goblet_node.mirror.window import TRAILER_SIZE

# A log of so many segments is left alone: joining after every push would write the
# newest bytes again and again for nothing. With manifest and refs, 26 files.
LEFT_ALONE = 8
# How much larger than all that came after it a segment must be. git's own default for
# `maintenance.geometric-repack.splitFactor`.
_FACTOR = 2
# Segments below this count as this large: a file costs more than its bytes.
_SMALLEST = 4 << 20

_COPY_SIZE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinJob:
    """What a worker needs to know: neighbours in a log, and a directory of this job alone."""

    segments: tuple[SegmentFiles, ...]
    scratch: Path


def to_join(sizes: Sequence[int], *, at_most: int) -> range | None:
    """Return which segments to join, the last of all among them; None if none.

    Args:
        sizes: The bytes of every segment of a log, segment 0 first.
        at_most: What is joined may have so many bytes together. Where that leaves out a
            segment, those after it are joined all the same: there must not be ever more.
    """
    if len(sizes) <= LEFT_ALONE:
        return None
    counted = [max(size, _SMALLEST) for size in sizes]
    first, total, written = len(sizes) - 1, counted[-1], sizes[-1]
    while first and counted[first - 1] < _FACTOR * total and written + sizes[first - 1] <= at_most:
        first -= 1
        total += counted[first]
        written += sizes[first]
    return range(first, len(sizes)) if first < len(sizes) - 1 else None


def join_segments(job: JoinJob) -> Intake:
    """Return one segment that holds the entries of neighbours in a log, in their order.

    Nothing in them changes: OFS_DELTAs stay inside their stretch, and what REF_DELTAs
    are made on lies before them as it did. The new files lie in scratch, synced.

    Raises:
        MirrorDamaged: A file is not what was written.
        DiskFailed: The disk refused a read or a write.
    """
    names = ("joined.pack", "joined.table", "joined.links")
    files = SegmentFiles(*(job.scratch / name for name in names))
    with disk_failures():
        packs, tables, links = zip(*job.segments, strict=True)
        count, trailers = _join_packs(packs, files.pack)
        checksum = trailers.pop()
        tabled = join_tables(tables, files.table, checksum)
        linked = join_parts(links, files.links, checksum)
        if not list(tabled) == list(linked) == trailers:
            raise MirrorDamaged("what lies beside a segment of the mirror is of another one")
        disk = Disk()
        for path in files:
            # Here, where it may take its time, and not while the mirror is being changed.
            disk.sync_file(path)
        return Intake(
            files=files,
            objects=count,
            bytes=files.pack.stat().st_size,
            beside=files.table.stat().st_size + files.links.stat().st_size,
            checksum=checksum.hex(),
        )


def _join_packs(packs: Sequence[Path], dest: Path) -> tuple[int, list[bytes]]:
    """Write the entries of packs as one pack; return how many they are, and the trailers.

    First those of the packs, which are checked on the way, since damage must not travel
    on; last that of the new one.
    """
    count = 0
    for pack in packs:
        with reading(pack), pack.open("rb") as source:
            count += int.from_bytes(source.read(HEADER_SIZE)[8:], "big")
    digest = hashlib.sha1(log_header(count))
    with dest.open("xb") as target:
        target.write(log_header(count))
        trailers = [_copy_body(pack, target, digest) for pack in packs]
        target.write(digest.digest())
    return count, [*trailers, digest.digest()]


def _copy_body(pack: Path, target: BinaryIO, digest: "hashlib._Hash") -> bytes:
    """Copy the entries of a pack; return its trailer."""
    with reading(pack):
        source = pack.open("rb")
    with source:
        left = len(body(os.fstat(source.fileno()).st_size))
        own = hashlib.sha1(source.read(HEADER_SIZE))
        while left:
            with reading(pack):
                chunk = source.read(min(left, _COPY_SIZE))
            if not chunk:
                break
            own.update(chunk)
            digest.update(chunk)
            target.write(chunk)
            left -= len(chunk)
        if left or source.read(TRAILER_SIZE + 1) != own.digest():
            raise MirrorDamaged(f"segment {pack.name} is not what was written")
    return own.digest()

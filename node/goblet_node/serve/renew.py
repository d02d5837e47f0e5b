"""A worn log made anew from itself: what the refs reach becomes the first segment of a new log.

Runs in a worker process. It is a selected answer to somebody who has nothing and wants
everything, taken in like a pack that was received: nothing is asked of upstream, and
nothing is taken for granted of what the old log said.
"""

from contextlib import closing
from pathlib import Path

import numpy as np

from goblet_node.errors import MirrorDamaged
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.intake import Intake, IntakeJob, disk_failures, take_in
from goblet_node.mirror.reader import LogReader
from goblet_node.mirror.wear import RenewJob, cuts, load_graph, wear_of
from goblet_node.objects import PackRejected
from goblet_node.serve.emit import emit
from goblet_node.serve.need import Needed
from goblet_node.serve.pieces import pack_of


def renew(job: RenewJob) -> Intake:
    """Return the one segment of a new log: what the tips reach, and nothing else.

    Its files lie in scratch, synced; there are none if the tips reach nothing.

    Raises:
        MirrorDamaged: The old log is not what was written, or lacks a tip.
        DiskFailed: The disk refused a read or a write.
    """
    received = job.scratch / "renewed.pack"
    try:
        with disk_failures():
            # What the limit was when it came, it was within that.
            largest = _write_pack(received, job)
            intake = take_in(
                IntakeJob(
                    received=received,
                    scratch=job.scratch,
                    segments=(),
                    tips=job.tips,
                    max_object_bytes=largest,
                )
            )
            for path in intake.files or ():
                # Here, where it may take its time, and not while the mirror is being changed.
                Disk().sync_file(path)
            return intake
    except PackRejected as exc:
        raise MirrorDamaged(f"the log of the mirror cannot be made anew: {exc}") from exc


def _write_pack(dest: Path, job: RenewJob) -> int:
    """Write what the tips reach as a pack; return how large the largest object is.

    The graph of the old log goes with this call: the new one is about as large.
    """
    graph = load_graph(job.segments)
    wear = wear_of(graph, job.tips.apart())
    packs = [files.pack for files in job.segments]
    with LogReader(packs, graph.table, bases=graph.links.bases) as reader:
        pieces = emit(
            reader,
            packs,
            Needed(rows=np.flatnonzero(wear.kept), with_client=np.zeros(0, dtype=np.int64)),
            graph=graph,
            thin=False,
            ofs_delta=True,
            inline=job.scratch / "inline",
            whole=cuts(wear.depths, job.most_depth),
        )
        with dest.open("xb") as target, closing(pack_of(packs, pieces)) as slices:
            target.writelines(slices)
    if isinstance(pieces.inline, Path):
        pieces.inline.unlink()
    return int(graph.table.column("size")[wear.kept].max(initial=0))

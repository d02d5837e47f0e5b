"""How worn a log is: what of it no ref reaches any more, and how long its chains of deltas are.

Orphans cost every whole clone a selection, and the disk. A chain grows by one with
each generation of a hot file, and whoever checks out its newest version resolves all
of it. Past bounds the log is made anew from what the refs reach.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from goblet_node.errors import MirrorDamaged
from goblet_node.mirror.graph import Graph, Mask, reached
from goblet_node.mirror.layout import SegmentFiles
from goblet_node.mirror.links import NO_BASE, Links
from goblet_node.mirror.table import Table
from goblet_node.wire.refs import JoinedIds, ObjectId


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """When a log is worn out: past this share of its bytes, from 0 to 1, or deltas of a chain."""

    orphans: float
    depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WearJob:
    """What a worker needs to know to look whether a log is worn out.

    `segments` are the files of every segment, `tips` what the refs name.
    """

    segments: tuple[SegmentFiles, ...]
    tips: JoinedIds
    bounds: Bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewJob:
    """What a worker needs to know to make a log anew.

    Attributes:
        segments: The files of every segment of the log.
        tips: What the refs name; the log holds them.
        most_depth: How many deltas the chains of the new log may have.
        scratch: A directory of this job alone, on the log's file system.
    """

    segments: tuple[SegmentFiles, ...]
    tips: JoinedIds
    most_depth: int
    scratch: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Wear:
    """What was found of a log.

    Attributes:
        kept: What the refs reach.
        orphans: The share of the log's bytes that they do not.
        depths: How many deltas each object is made of, 0 if it is whole.
    """

    kept: Mask
    orphans: float
    depths: NDArray[np.int32]

    def is_past(self, bounds: Bounds) -> bool:
        """Say whether the log is to be made anew."""
        deepest = int(self.depths[self.kept].max(initial=0))
        return self.orphans > bounds.orphans or deepest > bounds.depth


def is_worn(job: WearJob) -> bool:
    """Say whether a log is to be made anew.

    Raises:
        MirrorDamaged: The log is not what was written, or lacks a tip.
        DiskFailed: The disk refused to be read.
    """
    return wear_of(load_graph(job.segments), job.tips.apart()).is_past(job.bounds)


def load_graph(segments: Sequence[SegmentFiles]) -> Graph:
    """Read the graph of a log. Raises what `Table.load` and `Links.load` raise."""
    table = Table.load([files.table for files in segments])
    return Graph(table, Links.load([files.links for files in segments]))


def wear_of(graph: Graph, tips: Sequence[ObjectId]) -> Wear:
    """Find how worn a log is whose refs name these objects.

    Raises:
        MirrorDamaged: It lacks one of them, or a delta is made on itself.
    """
    try:
        kept = reached(graph, graph.places(tips))
    except KeyError as exc:
        raise MirrorDamaged("the mirror lacks what one of its refs names") from exc
    lengths = graph.table.column("length")
    total = int(lengths.sum())
    return Wear(
        kept=kept,
        orphans=int(lengths[~kept].sum()) / total if total else 0.0,
        depths=chain_depths(graph.links.bases),
    )


def chain_depths(bases: NDArray[np.uint32]) -> NDArray[np.int32]:
    """Return of how many deltas each object is made, by place.

    In as many rounds as the longest chain has binary digits: each object knows how far
    it is from one of those below it, and learns how far that is from one further down
    (W. D. Hillis and G. L. Steele, "Data parallel algorithms", CACM 29, 1986).

    Raises:
        MirrorDamaged: A delta is made on itself.
    """
    is_delta = bases != NO_BASE
    depths: NDArray[np.int32] = is_delta.astype(np.int32)
    below = np.where(is_delta, bases, np.arange(len(bases), dtype=np.uint32))
    for _ in range(len(bases).bit_length() + 1):
        further = depths[below]
        if not further.any():
            return depths
        depths = depths + further
        below = below[below]
    raise MirrorDamaged("an object of the mirror is a delta on itself")


def cuts(depths: NDArray[np.int32], new_depth: int) -> Mask:
    """Return which deltas to write whole, so that no chain has more than `new_depth` deltas."""
    is_cut: Mask = (depths > 0) & (depths % (new_depth + 1) == 0)
    return is_cut

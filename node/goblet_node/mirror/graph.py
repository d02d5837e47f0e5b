"""The objects of a log as a graph: by place, without reading one of them.

Walks over commits go step by step, in Python, for they look at dates and stop early.
What is below trees is found level by level, as array operations, for that is nearly
all of the log.
"""

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
from numpy.typing import NDArray

from goblet_node.errors import MirrorDamaged
from goblet_node.mirror.links import BUNDLE, NO_BASE, Links, Lists, Numbers
from goblet_node.mirror.table import Table
from goblet_node.objects import COMMIT, TAG, TREE
from goblet_node.wire.refs import ObjectId

Mask = NDArray[np.bool_]
"""A set of objects: one truth value a place."""

# How many targets are looked at in one step: what they need in memory is 40 bytes each,
# and stays in the processor's cache.
_AT_ONCE = 1 << 17


class Graph:
    """What each object of a log is, and what it refers to. Immutable.

    A place that is asked about must be one of the log, and hold an object of the kind
    that the question is about.
    """

    def __init__(self, table: Table, links: Links) -> None:
        """Raise MirrorDamaged if the links are not those of the table's log."""
        if links.checksums != table.checksums or len(links.entries) != len(table):
            raise MirrorDamaged("the links of the mirror are not those of its tables")
        self.table = table
        self.kinds: NDArray[np.uint8] = table.column("type")
        self.links = links
        # Of these a single element is had at half the price of an array's.
        self._kinds = self.kinds.data
        self._committed = links.committed.data
        self._starts = links.entries.starts.data
        self._counts = links.entries.counts.data
        self._targets = links.targets.data

    def __len__(self) -> int:
        return len(self.table)

    def places(self, oids: Sequence[ObjectId]) -> Numbers:
        """Return the place of each object. Raises KeyError if the log lacks one."""
        places = self.table.find(oids)
        if bool((places < 0).any()):
            raise KeyError(oids[int(np.argmin(places))])
        return places

    def held(self, oids: Sequence[ObjectId]) -> Numbers:
        """Return the places of those objects that the log has, in the order given."""
        places = self.table.find(oids)
        return places[places >= 0]

    def oids(self, places: Iterable[int]) -> Iterator[ObjectId]:
        """Yield the id of each of these objects."""
        return map(self.table.oid, places)

    def kind(self, place: int) -> int:
        """Return the type of an object."""
        return self._kinds[place]

    def committed(self, commit: int) -> int:
        """Return when a commit was committed, in seconds since 1970, 0 if that is unreadable."""
        return self._committed[commit]

    def tree(self, commit: int) -> int:
        """Return the tree of a commit."""
        return self._targets[self._starts[commit]]

    def parents(self, commit: int) -> list[int]:
        """Return the parents of a commit, in order."""
        start = self._starts[commit]
        return self._targets[start + 1 : start + self._counts[commit]].tolist()

    def target(self, tag: int) -> int:
        """Return what an annotated tag points at."""
        return self._targets[self._starts[tag]]

    def chained(self, places: Iterable[int]) -> list[int]:
        """Return these objects, what tags among them point at, and so on to the end: each once.

        Of a chain of which every tag is named, each tag is looked at once.
        """
        found: dict[int, None] = {}
        for place in places:
            link = place
            while link not in found:
                found[link] = None
                if self._kinds[link] == TAG:
                    link = self.target(link)
        return list(found)

    def commits(self, places: Numbers) -> list[int]:
        """Return the commits among these, and those that tags among them point at in the end."""
        kinds = self.kinds[places]
        if bool((kinds == TAG).any()):
            places = np.array(self.chained(places.tolist()), dtype=np.int64)
            kinds = self.kinds[places]
        found: list[int] = places[kinds == COMMIT].tolist()
        return found

    def trees(self, commits: Numbers) -> Numbers:
        """Return the tree of each of these commits."""
        starts = self.links.entries.starts[commits]
        return self.links.targets[starts].astype(np.int64)

    def bases(self, places: Numbers) -> Numbers:
        """Return what these objects are stored as deltas on, -1 for those stored whole."""
        bases = self.links.bases[places]
        return np.where(bases == NO_BASE, -1, bases.astype(np.int64))

    def entries(self, tree: int) -> list[int]:
        """Return what a tree refers to, in order; bundles stand for what they hold."""
        start = self._starts[tree]
        return self._targets[start : start + self._counts[tree]].tolist()

    def opened(self, targets: Iterable[int]) -> list[int]:
        """Return these targets with what bundles among them hold in their stead."""
        found: list[int] = []
        for target in targets:
            if target < BUNDLE:
                found.append(target)
                continue
            start = int(self.links.bundles.starts[target - BUNDLE])
            count = int(self.links.bundles.counts[target - BUNDLE])
            found += self.opened(self._targets[start : start + count].tolist())
        return found

    def reached_commits(
        self, starts: Iterable[int], cut: AbstractSet[int] = frozenset()
    ) -> bytearray:
        """Return the commits that these reach, not through those in `cut`: one byte a place."""
        reached = bytearray(len(self))
        targets, begins, counts = self._targets, self._starts, self._counts
        unread = []
        for commit in starts:
            if not reached[commit]:
                reached[commit] = 1
                unread.append(commit)
        while unread:
            commit = unread.pop()
            if commit in cut:
                continue
            begin = begins[commit]
            for at in range(begin + 1, begin + counts[commit]):
                parent = targets[at]
                if not reached[parent]:
                    reached[parent] = 1
                    unread.append(parent)
        return reached

    def targets(self, places: Numbers) -> Iterator[NDArray[np.uint32]]:
        """Yield in pieces what these objects refer to; bundles stand for what they hold."""
        return _targets(self.links.entries, places, self.links.targets)

    def bundled(self, bundles: Numbers) -> Iterator[NDArray[np.uint32]]:
        """Yield in pieces what these bundles hold."""
        return _targets(self.links.bundles, bundles, self.links.targets)

    @property
    def bundles(self) -> int:
        """How many bundles there are."""
        return len(self.links.bundles)


class Below:
    """A set of trees, with all that is below each of them.

    Attributes:
        mask: What is in the set.
    """

    def __init__(self, graph: Graph) -> None:
        self.mask: Mask = np.zeros(len(graph), dtype=np.bool_)
        self._graph = graph
        self._bundles: Mask = np.zeros(graph.bundles, dtype=np.bool_)

    def copy(self) -> "Below":
        """Return a set that grows apart from this one."""
        other = Below(self._graph)
        other.mask = self.mask.copy()
        other._bundles = self._bundles.copy()
        return other

    def add(self, trees: Numbers) -> None:
        """Add these trees, with all that is below them."""
        while len(trees):
            trees = self.add_level(trees)

    def add_level(self, level: Numbers) -> Numbers:
        """Add these objects and return what trees among them refer to, if it is not here yet.

        The set is whole again when nothing is returned.
        """
        fresh = level[~self.mask[level]]
        self.mask[fresh] = True
        trees = np.unique(fresh[self._graph.kinds[fresh] == TREE])
        found: list[Numbers] = []
        for targets in self._graph.targets(trees):
            found += self._unseen(targets)
        return np.concatenate(found) if found else trees[:0]

    def _unseen(self, targets: NDArray[np.uint32]) -> Iterator[Numbers]:
        """Yield those objects among the targets that are not in the set, some twice."""
        is_bundle = targets >= BUNDLE
        if bool(is_bundle.any()):
            bundles = np.unique(targets[is_bundle] - BUNDLE).astype(np.int64)
            bundles = bundles[~self._bundles[bundles]]
            self._bundles[bundles] = True
            for held in self._graph.bundled(bundles):
                yield from self._unseen(held)
            targets = targets[~is_bundle]
        yield targets[~self.mask[targets]].astype(np.int64)


def reached(graph: Graph, places: Numbers) -> Mask:
    """Return all that these objects reach, themselves included."""
    named = np.array(sorted(graph.chained(places.tolist())), dtype=np.int64)
    kinds = graph.kinds[named]
    commits = graph.reached_commits(named[kinds == COMMIT].tolist())
    below = Below(graph)
    below.mask = np.frombuffer(commits, dtype=np.bool_)
    below.mask[named[kinds == TAG]] = True
    below.add(graph.trees(np.flatnonzero(below.mask & (graph.kinds == COMMIT))))
    below.add(named[kinds != TAG])
    return below.mask


def _targets(
    lists: Lists, rows: Numbers, targets: NDArray[np.uint32]
) -> Iterator[NDArray[np.uint32]]:
    """Yield the targets of some lists, end to end, in pieces."""
    counts = lists.counts[rows].astype(np.int64)
    ends = np.cumsum(counts)
    starts = lists.starts[rows] - (ends - counts)
    row = 0
    while row < len(rows):
        read = int(ends[row - 1]) if row else 0
        until = max(row + 1, int(np.searchsorted(ends, read + _AT_ONCE, side="right")))
        size = int(ends[until - 1]) - read
        yield targets[
            np.repeat(starts[row:until], counts[row:until]) + np.arange(read, read + size)
        ]
        row = until

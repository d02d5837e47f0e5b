"""Which objects does the answer to a fetch consist of?

Commits from the wants to what the haves reach; of their trees all that is not in the
trees of commits that the client has and that lie next to those: git's own rule
(mark_edges_uninteresting in list-objects.c). That sends an object again that the
client has from elsewhere in its history, and never leaves one out.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from goblet_node import objects
from goblet_node.mirror.graph import Below, Graph, Mask
from goblet_node.mirror.links import Numbers
from goblet_node.serve.alike import alike
from goblet_node.serve.shallow import Boundary
from goblet_node.serve.walk import walk
from goblet_node.wire.filters import Filter
from goblet_node.wire.refs import ObjectId

# Of how many of the client's haves, the newest, the trees count as known, be they next
# to what is new or not. Where history is cut (`--depth 1` in a workspace that CI keeps)
# no known commit is, and nearly all of the new tree is in these.
_LIKENESSES = 4

_TYPES = {"commit": objects.COMMIT, "tree": objects.TREE, "blob": objects.BLOB, "tag": objects.TAG}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One fetch, as far as it says which objects.

    Attributes:
        wants: What the client asks for; the log has all of them.
        haves: Those of the client's haves that the log has.
        shallow: Those of the client's shallow commits that the log has.
        boundary: Where the answer cuts history, None if the request says no depth.
        filter: What passes; None if the request has no filter.
        tags: If tags are to be included, the annotated tags that are advertised, each
            with what it points at in the end.
        whole: The wants reach all of the log's first so many objects and name nothing
            beyond those; None if that is not known. It saves the walk, nothing else.
    """

    wants: tuple[ObjectId, ...]
    haves: tuple[ObjectId, ...] = ()
    shallow: tuple[ObjectId, ...] = ()
    boundary: Boundary | None = None
    filter: Filter | None = None
    tags: tuple[tuple[ObjectId, ObjectId], ...] = ()
    whole: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """Rows of the log's table, ascending, none twice.

    Attributes:
        rows: What to send.
        with_client: Objects that the client has for certain, none of them in `rows`.
            Not all that it has: what is near to what it wants.
        alike: Rows to send, each once, with an earlier version of the object among those
            of `with_client`. Not for all that have one.
    """

    rows: NDArray[np.int64]
    with_client: NDArray[np.int64]
    alike: tuple[tuple[int, int], ...] = ()


def need(graph: Graph, question: Question) -> Needed:
    """Return which objects answer a question.

    With them the client has all that the wants reach, as far as boundary and filter
    let it, if it has all that its haves reach (down to its shallow commits).

    Raises:
        KeyError: The log lacks an object that the question names.
    """
    return _Answer(graph, question).needed()


class _Answer:
    def __init__(self, graph: Graph, question: Question) -> None:
        self._graph = graph
        self._question = question
        self._filter = question.filter or Filter()
        self._boundary = question.boundary or Boundary(shallow=(), unshallow=(), edge=frozenset())
        shallow = frozenset(graph.places(question.shallow).tolist())
        # What is below a shallow commit of the client is not with the client, and
        # nothing is sent through it: if it is unshallowed, its parents are wanted.
        self._shallow = shallow
        self._cut = shallow.union(graph.places(list(self._boundary.edge)).tolist())
        self._haves = graph.commits(graph.places(question.haves))
        # Wanted by their ids, or pointed at by tags that are: no filter is asked.
        self._named = self._none()

    def needed(self) -> Needed:
        starts, wanted_trees = self._wanted()
        new = near = np.zeros(0, dtype=np.int64)
        known: AbstractSet[int] = frozenset()
        known_below = Below(self._graph)
        if self._question.whole is not None and self._gets_everything:
            sent = np.arange(len(self._graph)) < self._question.whole
        else:
            new, known = self._commits(starts)
            sent = self._none()
            sent[new] = True
            if self._takes_trees and (len(new) or len(wanted_trees)):
                near = self._near(new, known)
                self._gather(known_below, self._graph.trees(near))
                sent |= self._below(self._graph.trees(new), wanted_trees, known_below)
        self._named[starts] = sent[starts]
        sent = self._passing(sent) | self._named
        sent[self._tags_of(sent | self._cut_off_again(known))] = True
        with_client = self._with_client(known, known_below) & ~sent
        return Needed(
            rows=np.flatnonzero(sent),
            with_client=np.flatnonzero(with_client),
            alike=self._alike(new, near, sent, with_client),
        )

    @property
    def _gets_everything(self) -> bool:
        """Whether no walk is needed if the wants reach all that is there."""
        question = self._question
        is_flat = self._filter.tree_depth is None or self._filter.tree_depth == 0
        return is_flat and not (question.haves or question.shallow or question.boundary)

    @property
    def _takes_trees(self) -> bool:
        """Whether anything below a commit could pass."""
        passes = self._filter.passes_blobs or self._filter.passes_trees
        return passes and self._filter.tree_depth != 0

    def _wanted(self) -> tuple[list[int], Numbers]:
        """Note wants that are no commits, and return the commits to begin at, and the trees."""
        places = self._graph.places(self._question.wants)
        # Thousands of blobs are the usual lazy fetch of a partial clone: only tags are
        # looked at one by one.
        tags = places[self._graph.kinds[places] == objects.TAG]
        tagged = np.array(self._graph.chained(tags.tolist()), dtype=np.int64)
        found = np.concatenate([places, tagged])
        kinds = self._graph.kinds[found]
        self._named[found[kinds != objects.COMMIT]] = True
        return found[kinds == objects.COMMIT].tolist(), found[kinds == objects.TREE]

    def _commits(self, starts: Sequence[int]) -> tuple[Numbers, AbstractSet[int]]:
        """Return the commits that are new, and those met that the client has."""
        unshallowed = self._graph.places(self._boundary.unshallow).tolist()
        below = [parent for commit in unshallowed for parent in self._graph.parents(commit)]
        wants, known = [*starts, *below], [*self._haves, *unshallowed]
        if not known:
            reached = self._graph.reached_commits(wants, self._cut)
            return np.flatnonzero(np.frombuffer(reached, dtype=np.bool_)), frozenset()
        walked = walk(self._graph, wants=wants, known=known, cut=self._cut, cut_known=self._shallow)
        return np.array(walked.new, dtype=np.int64), walked.known

    def _near(self, new: Numbers, known: AbstractSet[int]) -> Numbers:
        """Return those commits of the client of which the trees are much like the new ones."""
        if not known:
            return new[:0]
        is_known = self._none()
        is_known[list(known)] = True
        near = [piece[is_known[piece]].astype(np.int64) for piece in self._graph.targets(new)]
        by_age = sorted(set(self._haves), key=lambda have: (-self._graph.committed(have), have))
        likenesses = by_age[:_LIKENESSES] + self._graph.places(self._boundary.unshallow).tolist()
        return np.unique(np.concatenate([*near, np.array(likenesses, dtype=np.int64)]))

    def _below(self, roots: Numbers, wanted: Numbers, known: Below) -> Mask:
        """Return what is new below the trees of commits, and below trees that are wanted."""
        if self._question.filter is None:
            new = known.copy()
            new.add(np.concatenate([roots, wanted]))
            return new.mask & ~known.mask
        # The filter is not asked about a tree that is wanted by its id, and it does not
        # count as a level (list-objects-filter.c). Nor is anything below it left out: who
        # filters may lack what his haves reach.
        apart = Below(self._graph)
        self._gather(apart, apart.add_level(wanted))
        # Where the depth decides, a known tree may lack below it what is new.
        new = known.copy() if self._filter.tree_depth is None else Below(self._graph)
        self._gather(new, roots)
        return (new.mask & ~known.mask) | apart.mask

    def _gather(self, below: Below, level: Numbers) -> None:
        """Add trees with what is below them, as deep as the filter goes."""
        depth = self._filter.tree_depth
        while len(level) and (depth is None or depth > 1):
            level = below.add_level(level)
            depth = depth and depth - 1
        if depth:
            below.mask[level] = True

    def _passing(self, mask: Mask) -> Mask:
        """Return those that the filter lets pass by what they are; depth is seen to already."""
        if self._question.filter is None:
            return mask
        kinds = self._graph.kinds
        mask = mask & np.isin(kinds, [_TYPES[kind] for kind in self._filter.kinds])
        if self._filter.tree_depth == 0:
            mask &= (kinds != objects.TREE) & (kinds != objects.BLOB)
        if self._filter.blob_limit is not None:
            sizes = self._graph.table.column("size")
            mask &= (kinds != objects.BLOB) | (sizes < self._filter.blob_limit)
        return mask

    def _with_client(self, known: AbstractSet[int], known_below: Below) -> Mask:
        """Return what the client has for certain."""
        certain = self._none()
        certain[self._graph.places(self._question.haves)] = True
        # A client that filters may lack what its haves reach: trees and blobs, with
        # object:type even commits. git makes thin packs for it all the same, and has
        # the client fetch bases that it lacks; only git's own client does that.
        if self._question.filter is None:
            certain[list(known)] = True
            certain |= known_below.mask
        return certain

    def _alike(
        self, new: Numbers, near: Numbers, sent: Mask, with_client: Mask
    ) -> tuple[tuple[int, int], ...]:
        """Return pairs of what is sent and of its earlier versions at the client."""
        if self._question.filter is not None or not len(new) or not len(near):
            return ()
        is_near = self._none()
        is_near[near] = True
        # A parent of what is new is more like it than whatever has the latest date.
        parents = [piece[is_near[piece]].tolist() for piece in self._graph.targets(new)]
        compared = [place for piece in parents for place in piece] or near.tolist()
        earlier = self._graph.tree(max(compared, key=self._graph.committed))
        # Where the tree itself is a delta on what goes along, so is nearly all below it.
        roots = self._graph.trees(new)
        bases = self._graph.bases(roots)
        is_alone = (bases < 0) | ~(sent | with_client)[bases]
        is_alone[0] = True
        pairs = alike(self._graph, roots[is_alone].tolist(), earlier)
        return tuple((row, old) for row, old in pairs if sent[row] and with_client[old])

    def _tags_of(self, sent: Mask) -> Numbers:
        """Return the annotated tags, with those they point at, that end at what is sent."""
        tags = self._question.tags
        ends = self._graph.places([end for _, end in tags])
        found = self._graph.places([tags[at][0] for at in np.flatnonzero(sent[ends])])
        chained = np.array(sorted(self._graph.chained(found.tolist())), dtype=np.int64)
        also: Numbers = chained[self._graph.kinds[chained] == objects.TAG]
        return also

    def _cut_off_again(self, known: AbstractSet[int]) -> Mask:
        """Return commits that the client has and git would send it all the same.

        git cuts off what the client has, too, where history is to end: so it sends
        commits behind that end anew, and with them their tags, which may be new.
        """
        again = self._none()
        if self._question.boundary is not None:
            again[list(known)] = True
        return again

    def _none(self) -> Mask:
        return np.zeros(len(self._graph), dtype=np.bool_)

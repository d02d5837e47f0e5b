"""Which objects does the answer to a fetch consist of?

Commits from the wants to what the haves reach; of each new commit's tree what its
parents' trees have not at the same path, parents first. That sends an object again
that the client has at another path or in another commit, and never leaves one out:
whatever is in a commit's tree is then sent, or in a parent's tree, which was sent
in this way before or is with the client.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from goblet_node import objects
from goblet_node.mirror.reader import LogReader
from goblet_node.objects import raw_id
from goblet_node.serve.shallow import Boundary
from goblet_node.serve.trees import NewTrees, Reference, Rows
from goblet_node.serve.walk import Commits, Walked, walk
from goblet_node.wire.filters import Filter
from goblet_node.wire.refs import ObjectId

# With how many commits of the client a commit is compared that has no parents in the
# answer. Where history is cut (`--depth 1` in a workspace that CI keeps) nearly all
# of the new tree is in them; each costs as much as a parent does.
_STAND_INS = 4

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
    """

    wants: tuple[ObjectId, ...]
    haves: tuple[ObjectId, ...] = ()
    shallow: tuple[ObjectId, ...] = ()
    boundary: Boundary | None = None
    filter: Filter | None = None
    tags: tuple[tuple[ObjectId, ObjectId], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """Rows of the log's table, ascending, none twice.

    Attributes:
        rows: What to send.
        with_client: Objects that the client has for certain, none of them in `rows`.
            Not all that it has: those that were met.
    """

    rows: NDArray[np.int64]
    with_client: NDArray[np.int64]


def need(reader: LogReader, question: Question) -> Needed:
    """Return which objects answer a question.

    With them the client has all that the wants reach, as far as boundary and filter
    let it, if it has all that its haves reach (down to its shallow commits).

    Raises:
        KeyError: The log lacks an object that the question names.
        MirrorDamaged: The log lacks an object that another one names.
    """
    return _Answer(reader, question).needed()


class _Answer:
    def __init__(self, reader: LogReader, question: Question) -> None:
        self._reader = reader
        self._table = reader.table
        self._question = question
        self._filter = question.filter or Filter()
        self._commits = Commits(reader)
        self._boundary = question.boundary or Boundary(shallow=(), unshallow=(), edge=frozenset())
        # What is below a shallow commit of the client is not with the client, and
        # nothing is sent through it: if it is unshallowed, its parents are wanted.
        self._cut = self._boundary.edge.union(question.shallow)
        self._trees = NewTrees(
            reader, takes_blobs=self._filter.passes_blobs, depth=self._filter.tree_depth
        )
        # Wanted by their ids, or pointed at by tags that are: no filter is asked.
        self._named = Rows(self._table)
        self._new_commits = Rows(self._table)
        self._haves = tuple(self._commits.peeled(question.haves))

    def needed(self) -> Needed:
        starts = self._starts()
        walked = self._walk(starts)
        self._named.update(map(raw_id, set(walked.new).intersection(starts)))
        self._new_commits.update(map(raw_id, walked.new))
        if self._filter.passes_blobs or self._filter.passes_trees:
            self._compare_trees(walked)
        sent = self._passing(self._new_commits.mask() | self._trees.trees())
        sent |= self._passing(self._trees.blobs.mask())
        with_client = self._with_client(walked)
        if self._question.filter is None:
            sent &= ~self._trees.known.mask()
            with_client |= self._trees.met.mask()
        sent |= self._named.mask()
        sent[self._tags_of(sent | self._cut_off_again(walked))] = True
        return Needed(rows=np.flatnonzero(sent), with_client=np.flatnonzero(with_client & ~sent))

    def _starts(self) -> list[ObjectId]:
        """Note wants that are no commits, and return the commits to begin at."""
        wants = self._question.wants
        rows = self._rows(wants)
        types = self._table.column("type")[rows] if len(rows) else rows
        # Thousands of blobs are the usual lazy fetch of a partial clone.
        self._named.update(raw_id(wants[at]) for at in np.flatnonzero(types == objects.BLOB))
        starts: list[ObjectId] = []
        for at in np.flatnonzero(types != objects.BLOB):
            starts += self._followed(wants[at])
        return starts

    def _followed(self, oid: ObjectId) -> Iterator[ObjectId]:
        """Note one want with all that it points at, and yield the commit in the end."""
        kind = self._reader.type_of(oid)
        while kind == objects.TAG:
            self._named.update([raw_id(oid)])
            oid = objects.parse_tag(self._reader.get_raw(oid)[1]).target
            kind = self._reader.type_of(oid)
        if kind == objects.COMMIT:
            yield oid
            return
        self._named.update([raw_id(oid)])
        if kind == objects.TREE:
            self._trees.add_wanted(raw_id(oid))

    def _walk(self, starts: Iterable[ObjectId]) -> Walked:
        unshallowed = self._boundary.unshallow
        below = [parent for oid in unshallowed for parent in self._commits[oid].parents]
        return walk(
            self._commits,
            wants=[*starts, *below],
            known=[*self._haves, *unshallowed],
            cut=self._cut,
            cut_known=frozenset(self._question.shallow),
        )

    def _compare_trees(self, walked: Walked) -> None:
        others = self._likenesses() if walked.known else {}
        # A tree that was gathered is not looked at again, so what it was compared with
        # must be whole by then. From children to parents, a revert would be compared
        # with what it reverts, that with what came before it, which is the same tree
        # as the revert's: and what all of them share would never be sent.
        for oid in self._commits.parents_first(walked.new):
            compared: Sequence[ObjectId] = ()
            # Where the client has nothing, all trees are new.
            if walked.known:
                parents = () if oid in self._cut else self._commits[oid].parents
                compared = parents or others.get(oid) or others[None]
            self._trees.add(
                raw_id(self._commits[oid].tree),
                [
                    Reference(raw_id(self._commits[other].tree), other in walked.known)
                    for other in compared
                ],
            )

    def _likenesses(self) -> dict[ObjectId | None, list[ObjectId]]:
        """Return with which commits of the client those are compared that have no parents.

        Under None those for any such commit; where one is the parent of a commit that
        is unshallowed, that one comes first.
        """
        by_age = sorted(set(self._haves), key=lambda oid: (-self._commits[oid].committed, oid))
        likenesses: dict[ObjectId | None, list[ObjectId]] = {None: by_age[:_STAND_INS]}
        for child in self._boundary.unshallow:
            for parent in self._commits[child].parents:
                likenesses[parent] = [child, *likenesses[None]]
        return likenesses

    def _passing(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return those that the filter lets pass by what they are; depth is seen to already."""
        if self._question.filter is None:
            return mask
        types = self._table.column("type")
        mask = mask & np.isin(types, [_TYPES[kind] for kind in self._filter.kinds])
        if self._filter.blob_limit is not None:
            sizes = self._table.column("size")
            mask &= (types != objects.BLOB) | (sizes < self._filter.blob_limit)
        return mask

    def _with_client(self, walked: Walked) -> NDArray[np.bool_]:
        """Return what the client has for certain, trees and blobs aside."""
        certain = Rows(self._table)
        certain.update(map(raw_id, self._question.haves))
        # A client that filters may lack what its haves reach: trees and blobs, with
        # object:type even commits. git makes thin packs for it all the same, and has
        # the client fetch bases that it lacks; only git's own client does that.
        if self._question.filter is None:
            certain.update(map(raw_id, walked.known))
        return certain.mask()

    def _cut_off_again(self, walked: Walked) -> NDArray[np.bool_]:
        """Return commits that the client has and git would send it all the same.

        git cuts off what the client has, too, where history is to end: so it sends
        commits behind that end anew, and with them their tags, which may be new.
        """
        again = Rows(self._table)
        if self._question.boundary is not None:
            again.update(map(raw_id, walked.known))
        return again.mask()

    def _tags_of(self, sent: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the annotated tags, with those they point at, that end at what is sent."""
        if not self._question.tags:
            return np.zeros(0, dtype=np.int64)
        ends = self._rows([end for _, end in self._question.tags])
        chains: set[ObjectId] = set()
        for index in np.flatnonzero(sent[ends]):
            oid = self._question.tags[index][0]
            while oid not in chains and self._reader.type_of(oid) == objects.TAG:
                chains.add(oid)
                oid = objects.parse_tag(self._reader.get_raw(oid)[1]).target
        return self._rows(sorted(chains))

    def _rows(self, oids: Sequence[ObjectId]) -> NDArray[np.int64]:
        rows = self._table.find(oids)
        if bool((rows < 0).any()):
            raise KeyError(oids[int(np.argmin(rows))])
        return rows

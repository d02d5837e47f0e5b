"""Which commits does one set of commits reach that another one does not?"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from goblet_node import objects
from goblet_node.mirror.reader import LogReader
from goblet_node.objects import Commit
from goblet_node.wire.refs import ObjectId

# How many more commits git looks at when only known ones are left (SLOP in
# revision.c): where clocks disagree, the walk may get to a commit before its child.
_SLOP = 5


class Commits:
    """The headers of a log's commits, each read at most once."""

    def __init__(self, reader: LogReader) -> None:
        self.reader = reader
        self._read: dict[ObjectId, Commit] = {}

    def __getitem__(self, oid: ObjectId) -> Commit:
        commit = self._read.get(oid)
        if commit is None:
            commit = self._read[oid] = self.reader.commit(oid)
        return commit

    def peeled(self, oids: Iterable[ObjectId]) -> Iterator[ObjectId]:
        """Yield the commits among `oids`, and those that tags among them point at.

        Raises:
            KeyError: The log lacks one of them.
        """
        listed = list(oids)
        table = self.reader.table
        # At once: a client may name a hundred thousand, and nearly all are commits.
        for oid, row in zip(listed, table.find(listed).tolist(), strict=True):
            if row < 0:
                raise KeyError(oid)
            kind, end = int(table.column("type")[row]), oid
            if kind == objects.TAG:
                end = self.reader.peel(oid)
                kind = self.reader.type_of(end)
            if kind == objects.COMMIT:
                yield end

    def parents_first(self, oids: Sequence[ObjectId]) -> Iterator[ObjectId]:
        """Yield these commits, each after those of its parents that are among them.

        Whatever the clocks say; otherwise the last of `oids` comes first.
        """
        left = set(oids)
        for start in reversed(oids):
            path = [start]
            while path:
                waiting = [parent for parent in self[path[-1]].parents if parent in left]
                if waiting and path[-1] in left:
                    path += waiting
                    continue
                oid = path.pop()
                if oid in left:
                    left.remove(oid)
                    yield oid


@dataclass(frozen=True, slots=True, kw_only=True)
class Walked:
    """The commits that only the wants reach, newest first, and those met that are known."""

    new: tuple[ObjectId, ...]
    known: AbstractSet[ObjectId]


def walk(
    commits: Commits,
    *,
    wants: Iterable[ObjectId],
    known: Iterable[ObjectId],
    cut: AbstractSet[ObjectId] = frozenset(),
    cut_known: AbstractSet[ObjectId] = frozenset(),
    since: int | None = None,
) -> Walked:
    """Return what `wants` reach and `known` do not. Both are commits.

    This is git's limit_list (revision.c), its allowance for clocks included. Where
    clocks are further off than that, `new` may hold commits that are known; `known`
    never holds one that is not.

    Args:
        commits: Of the log that holds all of them.
        wants: Where to begin.
        known: What counts as known, with all that it reaches.
        cut: Commits whose parents the wants do not reach through them.
        cut_known: Commits whose parents are not known through them.
        since: Do not go to commits before this time, in seconds since the epoch; if
            anything is known, they count as known too.
    """
    return _Walk(commits, cut, cut_known).go(wants, known, since)


class _Walk:
    def __init__(
        self,
        commits: Commits,
        cut: AbstractSet[ObjectId],
        cut_known: AbstractSet[ObjectId],
    ) -> None:
        self._commits = commits
        self._cut = cut
        self._cut_known = cut_known
        self._known: set[ObjectId] = set()
        self._seen: set[ObjectId] = set()
        # Newest first, and of equal age the one that was met first.
        self._queue: list[tuple[int, int, ObjectId]] = []
        self._queued: set[ObjectId] = set()
        # How many of the queue are not known.
        self._open = 0

    def go(self, wants: Iterable[ObjectId], known: Iterable[ObjectId], since: int | None) -> Walked:
        starts = tuple(known)
        for oid in (*wants, *starts):
            self._push(oid)
        for oid in starts:
            self._mark(oid)
        new: list[ObjectId] = []
        slop, last_new = _SLOP, float("inf")
        while self._queue and slop:
            oid = self._pop()
            committed = self._commits[oid].committed
            if since is not None and committed < since:
                # git too marks them only where it limits a list first (get_revision_1
                # in revision.c); it matters where clocks are wrong.
                if not self._known:
                    continue
                self._mark(oid)
            if oid not in self._known:
                new.append(oid)
                last_new = committed
                for parent in self._parents(oid, self._cut):
                    self._push(parent)
                continue
            for parent in self._parents(oid, self._cut_known):
                self._push(parent)
                self._mark(parent)
            if self._open or (self._queue and last_new <= -self._queue[0][0]):
                slop = _SLOP
            else:
                slop -= 1
        still_new = tuple(oid for oid in new if oid not in self._known)
        return Walked(new=still_new, known=self._known)

    def _parents(self, oid: ObjectId, cut: AbstractSet[ObjectId]) -> tuple[ObjectId, ...]:
        return () if oid in cut else self._commits[oid].parents

    def _push(self, oid: ObjectId) -> None:
        if oid in self._seen:
            return
        self._seen.add(oid)
        self._queued.add(oid)
        self._open += oid not in self._known
        heapq.heappush(self._queue, (-self._commits[oid].committed, len(self._seen), oid))

    def _pop(self) -> ObjectId:
        _, _, oid = heapq.heappop(self._queue)
        self._queued.remove(oid)
        self._open -= oid not in self._known
        return oid

    def _mark(self, oid: ObjectId) -> None:
        """Note that a commit is known, and with it what was seen of its history."""
        if oid not in self._known:
            self._note(oid)
        unfinished = [oid]
        while unfinished:
            child = unfinished.pop()
            for parent in self._parents(child, self._cut_known):
                if parent in self._known:
                    continue
                self._note(parent)
                if parent in self._seen:
                    unfinished.append(parent)
                elif child in self._cut and child not in self._queued:
                    # It passed as new, and so its parents were not queued.
                    self._push(parent)

    def _note(self, oid: ObjectId) -> None:
        self._known.add(oid)
        self._open -= oid in self._queued

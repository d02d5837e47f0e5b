"""Which commits does one set of commits reach that another one does not?"""

import heapq
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from goblet_node.mirror.graph import Graph

# How many more commits git looks at when only known ones are left (SLOP in
# revision.c): where clocks disagree, the walk may get to a commit before its child.
_SLOP = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Walked:
    """The commits that only the wants reach, newest first, and those met that are known."""

    new: tuple[int, ...]
    known: AbstractSet[int]


def walk(
    graph: Graph,
    *,
    wants: Iterable[int],
    known: Iterable[int],
    cut: AbstractSet[int] = frozenset(),
    cut_known: AbstractSet[int] = frozenset(),
    since: int | None = None,
) -> Walked:
    """Return what `wants` reach and `known` do not. Both are places of commits.

    This is git's limit_list (revision.c), its allowance for clocks included. Where
    clocks are further off than that, `new` may hold commits that are known; `known`
    never holds one that is not.

    Args:
        graph: Of the log that holds all of them.
        wants: Where to begin.
        known: What counts as known, with all that it reaches.
        cut: Commits whose parents the wants do not reach through them.
        cut_known: Commits whose parents are not known through them.
        since: Do not go to commits before this time, in seconds since the epoch; if
            anything is known, they count as known too.
    """
    return _Walk(graph, cut, cut_known).go(wants, known, since)


class _Walk:
    def __init__(
        self,
        graph: Graph,
        cut: AbstractSet[int],
        cut_known: AbstractSet[int],
    ) -> None:
        self._graph = graph
        self._cut = cut
        self._cut_known = cut_known
        self._known: set[int] = set()
        self._seen: set[int] = set()
        # Newest first, and of equal age the one that was met first.
        self._queue: list[tuple[int, int, int]] = []
        self._queued: set[int] = set()
        # How many of the queue are not known.
        self._open = 0

    def go(self, wants: Iterable[int], known: Iterable[int], since: int | None) -> Walked:
        starts = tuple(known)
        for commit in (*wants, *starts):
            self._push(commit)
        for commit in starts:
            self._mark(commit)
        new: list[int] = []
        slop, last_new = _SLOP, float("inf")
        while self._queue and slop:
            commit = self._pop()
            committed = self._graph.committed(commit)
            if since is not None and committed < since:
                # git too marks them only where it limits a list first (get_revision_1
                # in revision.c); it matters where clocks are wrong.
                if not self._known:
                    continue
                self._mark(commit)
            if commit not in self._known:
                new.append(commit)
                last_new = committed
                for parent in self._parents(commit, self._cut):
                    self._push(parent)
                continue
            for parent in self._parents(commit, self._cut_known):
                self._push(parent)
                self._mark(parent)
            if self._open or (self._queue and last_new <= -self._queue[0][0]):
                slop = _SLOP
            else:
                slop -= 1
        still_new = tuple(commit for commit in new if commit not in self._known)
        return Walked(new=still_new, known=self._known)

    def _parents(self, commit: int, cut: AbstractSet[int]) -> Sequence[int]:
        return () if commit in cut else self._graph.parents(commit)

    def _push(self, commit: int) -> None:
        if commit in self._seen:
            return
        self._seen.add(commit)
        self._queued.add(commit)
        self._open += commit not in self._known
        heapq.heappush(self._queue, (-self._graph.committed(commit), len(self._seen), commit))

    def _pop(self) -> int:
        _, _, commit = heapq.heappop(self._queue)
        self._queued.remove(commit)
        self._open -= commit not in self._known
        return commit

    def _mark(self, commit: int) -> None:
        """Note that a commit is known, and with it what was seen of its history."""
        if commit not in self._known:
            self._note(commit)
        unfinished = [commit]
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

    def _note(self, commit: int) -> None:
        self._known.add(commit)
        self._open -= commit in self._queued

"""Which old tips does no ref reach any more?

A log is clean while everything in it is reachable from its refs; the first tip
that is not makes it dirty, and a verbatim answer would hand out what was deleted.
"""

import heapq
from collections.abc import Iterable

from goblet_node.mirror.graph import Graph
from goblet_node.objects import COMMIT, TAG
from goblet_node.wire.refs import ObjectId

# Committers' clocks disagree; a day is git's own allowance (CUTOFF_DATE_SLOP).
_CLOCK_SLOP = 24 * 60 * 60


def orphans(
    graph: Graph,
    tips: Iterable[ObjectId],
    old_tips: Iterable[ObjectId],
    old_orphans: Iterable[ObjectId] = (),
) -> tuple[ObjectId, ...]:
    """Return those old tips and old orphans that no current tip reaches, sorted.

    Exact for commits and annotated tags that were tips. Beyond that it may name
    too much, which costs speed and nothing else: a blob or tree that a ref named
    directly counts as an orphan once no tip or tag names it (it would have to be
    looked for in every tree), and an old orphan that comes back is not seen
    behind a commit whose clock was wrong by more than a day.

    Args:
        graph: Of the log. What it does not hold is not an orphan of it.
        tips: What the refs name now.
        old_tips: What they named before.
        old_orphans: What was orphaned before: a ref may have brought it back.
    """
    current, stale = _held(graph, tips), _held(graph, old_orphans)
    before = _held(graph, old_tips) - stale
    lost = (before | stale) - current
    if not lost:
        return ()
    commits = _commits(graph, lost)
    if others := lost - commits:
        lost -= others & _tagged(graph, current)
    unmet = _unmet_tips(graph, commits - stale, current, before)
    unmet |= _unmet_orphans(graph, commits & stale, current, before)
    return tuple(sorted(graph.oids((lost - commits) | unmet)))


def _unmet_tips(graph: Graph, sought: set[int], current: set[int], before: set[int]) -> set[int]:
    walk = _Walk(graph, sought)
    # Nearly always the old tips are behind the new ones, a few commits back.
    walk.add(current - before)
    walk.go(not_before=walk.oldest_sought() - _CLOCK_SLOP)
    # Only now is it worth reading the tips that did not move, and all history.
    walk.add(current & before)
    walk.go(not_before=None)
    return walk.sought


def _unmet_orphans(graph: Graph, sought: set[int], current: set[int], before: set[int]) -> set[int]:
    # Where branches live for a pull request there are always some orphans, so
    # this must not walk all history: no old tip reaches them, hence the walk
    # begins at the new tips and ends at old ones.
    walk = _Walk(graph, sought, end_at=_commits(graph, before) if sought else ())
    walk.add(current - before)
    walk.go(not_before=walk.oldest_sought() - _CLOCK_SLOP)
    return walk.sought


def _held(graph: Graph, oids: Iterable[ObjectId]) -> set[int]:
    return set(graph.held(list(oids)).tolist())


def _commits(graph: Graph, places: Iterable[int]) -> set[int]:
    return {place for place in places if graph.kind(place) == COMMIT}


def _tagged(graph: Graph, tips: Iterable[int]) -> set[int]:
    """Return all that the tips which are annotated tags point at, tags of tags followed."""
    return set(graph.chained(graph.target(tip) for tip in tips if graph.kind(tip) == TAG))


class _Walk:
    """A walk over commits, newest first, that looks for some of them."""

    def __init__(self, graph: Graph, sought: set[int], *, end_at: Iterable[int] = ()) -> None:
        self._graph = graph
        self.sought = set(sought)
        self._seen: set[int] = set(end_at)
        # The negated time first: heapq gives the smallest.
        self._next: list[tuple[int, int]] = []

    def oldest_sought(self) -> int:
        return min(map(self._graph.committed, self.sought), default=0)

    def add(self, places: Iterable[int]) -> None:
        if not self.sought:
            return
        for place in self._graph.chained(places):
            if self._graph.kind(place) == COMMIT:
                self._push(place)

    def go(self, *, not_before: int | None) -> None:
        """Walk until all are found, or only commits older than `not_before` are left."""
        while self.sought and self._next:
            if not_before is not None and -self._next[0][0] < not_before:
                return
            _, commit = heapq.heappop(self._next)
            for parent in self._graph.parents(commit):
                self._push(parent)

    def _push(self, commit: int) -> None:
        if commit in self._seen:
            return
        self._seen.add(commit)
        self.sought.discard(commit)
        heapq.heappush(self._next, (-self._graph.committed(commit), commit))

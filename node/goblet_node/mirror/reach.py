"""Which old tips does no ref reach any more?

A log is clean while everything in it is reachable from its refs; the first tip
that is not makes it dirty, and a verbatim answer would hand out what was deleted.
"""

import heapq
from collections.abc import Iterable

import numpy as np

from goblet_node import objects
from goblet_node.mirror.reader import LogReader
from goblet_node.wire.refs import ObjectId

# Committers' clocks disagree; a day is git's own allowance (CUTOFF_DATE_SLOP).
_CLOCK_SLOP = 24 * 60 * 60


def orphans(
    reader: LogReader,
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
        reader: Of the log. What it does not hold is not an orphan of it.
        tips: What the refs name now.
        old_tips: What they named before.
        old_orphans: What was orphaned before: a ref may have brought it back.
    """
    current, stale = set(tips), set(old_orphans)
    before = set(old_tips) - stale
    lost = _held(reader, (before | stale) - current)
    if not lost:
        return ()
    commits = _held(reader, lost, objects.COMMIT)
    if others := lost - commits:
        lost -= others & _tagged(reader, current)
    unmet = _unmet_tips(reader, commits - stale, current, before)
    unmet |= _unmet_orphans(reader, commits & stale, current, before)
    return tuple(sorted((lost - commits) | unmet))


def _unmet_tips(
    reader: LogReader, sought: set[ObjectId], current: set[ObjectId], before: set[ObjectId]
) -> set[ObjectId]:
    walk = _Walk(reader, sought)
    # Nearly always the old tips are behind the new ones, a few commits back.
    walk.add(current - before)
    walk.go(not_before=walk.oldest_sought() - _CLOCK_SLOP)
    # Only now is it worth reading the tips that did not move, and all history.
    walk.add(current & before)
    walk.go(not_before=None)
    return walk.sought


def _unmet_orphans(
    reader: LogReader, sought: set[ObjectId], current: set[ObjectId], before: set[ObjectId]
) -> set[ObjectId]:
    # Where branches live for a pull request there are always some orphans, so
    # this must not walk all history: no old tip reaches them, hence the walk
    # begins at the new tips and ends at old ones.
    walk = _Walk(reader, sought, end_at=_held(reader, before, objects.COMMIT) if sought else ())
    walk.add(current - before)
    walk.go(not_before=walk.oldest_sought() - _CLOCK_SLOP)
    return walk.sought


def _held(reader: LogReader, oids: Iterable[ObjectId], kind: int | None = None) -> set[ObjectId]:
    """Return those that the log has, of one type if `kind` says so."""
    listed = list(oids)
    rows = reader.table.find(listed)
    is_held = rows >= 0
    if kind is not None and len(reader.table):
        is_held &= reader.table.column("type")[rows] == kind
    return {listed[index] for index in np.flatnonzero(is_held)}


def _tagged(reader: LogReader, tips: Iterable[ObjectId]) -> set[ObjectId]:
    """Return all that the tips which are annotated tags point at, tags of tags followed."""
    found: set[ObjectId] = set()
    for tip in _held(reader, tips, objects.TAG):
        oid = tip
        while reader.type_of(oid) == objects.TAG:
            oid = objects.parse_tag(reader.get_raw(oid)[1]).target
            found.add(oid)
    return found


class _Walk:
    """A walk over commits, newest first, that looks for some of them."""

    def __init__(
        self, reader: LogReader, sought: set[ObjectId], *, end_at: Iterable[ObjectId] = ()
    ) -> None:
        self._reader = reader
        self.sought = set(sought)
        self._seen: set[ObjectId] = set(end_at)
        # The negated time first: heapq gives the smallest.
        self._next: list[tuple[int, ObjectId, tuple[ObjectId, ...]]] = []

    def oldest_sought(self) -> int:
        return min((self._reader.commit(oid).committed for oid in self.sought), default=0)

    def add(self, oids: Iterable[ObjectId]) -> None:
        if not self.sought:
            return
        for oid in oids:
            start = self._reader.peel(oid)
            if self._reader.type_of(start) == objects.COMMIT:
                self._push(start)

    def go(self, *, not_before: int | None) -> None:
        """Walk until all are found, or only commits older than `not_before` are left."""
        while self.sought and self._next:
            if not_before is not None and -self._next[0][0] < not_before:
                return
            _, _, parents = heapq.heappop(self._next)
            for parent in parents:
                self._push(parent)

    def _push(self, oid: ObjectId) -> None:
        if oid in self._seen:
            return
        self._seen.add(oid)
        self.sought.discard(oid)
        commit = self._reader.commit(oid)
        heapq.heappush(self._next, (-commit.committed, oid, commit.parents))

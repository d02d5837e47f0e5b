"""Is enough in common with the client to make a pack that is worth sending?"""

from collections.abc import Iterable

from goblet_node import objects
from goblet_node.mirror.reader import LogReader
from goblet_node.serve.walk import Commits
from goblet_node.wire.refs import ObjectId


def ready(
    reader: LogReader,
    *,
    wants: Iterable[ObjectId],
    common: Iterable[ObjectId],
    shallow: Iterable[ObjectId],
) -> bool:
    """Return whether every want reaches something that the client has.

    This is git's ok_to_give_up (upload-pack.c and can_all_from_reach_with_flag in
    commit-reach.c): wants that are no commits are not asked about, the parents of a
    common commit are common, and what is older than the oldest common commit is not
    looked at. A wrong "no" costs a round of negotiation, a wrong "yes" some bytes.

    Args:
        reader: Of a log that holds all of these objects.
        wants: What the client asks for.
        common: Those of the client's haves that the log holds.
        shallow: The client's shallow commits: it lacks their parents.
    """
    commits = Commits(reader)
    claimed = list(common)
    if not claimed:
        return False
    cut = frozenset(shallow)
    goals: set[ObjectId] = set()
    oldest: int | None = None
    for oid in claimed:
        if reader.type_of(oid) != objects.COMMIT:
            continue
        commit = commits[oid]
        goals.add(oid)
        if oid not in cut:
            goals.update(commit.parents)
        oldest = commit.committed if oldest is None else min(oldest, commit.committed)
    search = _Search(commits, goals, cut, oldest or 0)
    # Oldest first, so that those after them find them on their way.
    starts = sorted(commits.peeled(wants), key=lambda oid: commits[oid].committed)
    return all(map(search.finds_goal, starts))


class _Search:
    """A depth-first search for goals that never looks at a commit twice."""

    def __init__(
        self,
        commits: Commits,
        goals: set[ObjectId],
        cut: frozenset[ObjectId],
        not_before: int,
    ) -> None:
        self._commits = commits
        self._goals = goals
        self._cut = cut
        self._not_before = not_before
        # Those that were searched in vain, unless they became goals themselves.
        self._seen: set[ObjectId] = set()

    def finds_goal(self, start: ObjectId) -> bool:
        """Return whether `start` reaches a goal; afterwards all on the way there are goals."""
        path = [start]
        self._seen.add(start)
        while path:
            if path[-1] in self._goals or self._goals.intersection(self._parents(path[-1])):
                self._goals.update(path)
                return True
            if (parent := self._next_parent(path[-1])) is not None:
                path.append(parent)
            else:
                path.pop()
        return False

    def _parents(self, oid: ObjectId) -> tuple[ObjectId, ...]:
        return () if oid in self._cut else self._commits[oid].parents

    def _next_parent(self, oid: ObjectId) -> ObjectId | None:
        for parent in self._parents(oid):
            if parent not in self._seen:
                self._seen.add(parent)
                if self._commits[parent].committed >= self._not_before:
                    return parent
        return None

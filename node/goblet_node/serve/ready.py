"""Is enough in common with the client to make a pack that is worth sending?"""

from collections.abc import Iterator, Sequence

from goblet_node import objects
from goblet_node.mirror.graph import Graph
from goblet_node.wire.refs import ObjectId


def ready(
    graph: Graph,
    *,
    wants: Sequence[ObjectId],
    common: Sequence[ObjectId],
    shallow: Sequence[ObjectId],
) -> bool:
    """Return whether every want reaches something that the client has.

    This is git's ok_to_give_up (upload-pack.c and can_all_from_reach_with_flag in
    commit-reach.c): wants that are no commits are not asked about, the parents of a
    common commit are common, and what is older than the oldest common commit is not
    looked at. A wrong "no" costs a round of negotiation, a wrong "yes" some bytes.

    Args:
        graph: Of a log that holds all of these objects.
        wants: What the client asks for.
        common: Those of the client's haves that the log holds.
        shallow: The client's shallow commits: it lacks their parents.
    """
    if not common:
        return False
    claimed = graph.places(common)
    claimed = claimed[graph.kinds[claimed] == objects.COMMIT]
    cut = frozenset(graph.places(shallow).tolist())
    goals = set(claimed.tolist())
    for commit in claimed.tolist():
        if commit not in cut:
            goals.update(graph.parents(commit))
    oldest = min(map(graph.committed, claimed.tolist()), default=0)
    search = _Search(graph, goals, cut, oldest)
    # Oldest first, so that those after them find them on their way.
    starts = sorted(graph.commits(graph.places(wants)), key=graph.committed)
    return all(map(search.finds_goal, starts))


class _Search:
    """A depth-first search for goals that never looks at a commit twice."""

    def __init__(self, graph: Graph, goals: set[int], cut: frozenset[int], not_before: int) -> None:
        self._graph = graph
        self._goals = goals
        self._cut = cut
        self._not_before = not_before
        # Those that were searched in vain, unless they became goals themselves.
        self._seen: set[int] = set()

    def finds_goal(self, start: int) -> bool:
        """Return whether `start` reaches a goal; afterwards all on the way there are goals."""
        # Beside each commit of the path those of its parents that come next.
        path, unread = [start], [iter(self._parents(start))]
        self._seen.add(start)
        is_met = self._meets_goal(start)
        while path and not is_met:
            parent = self._next_parent(unread[-1])
            if parent is None:
                path.pop()
                unread.pop()
                continue
            path.append(parent)
            unread.append(iter(self._parents(parent)))
            is_met = self._meets_goal(parent)
        self._goals.update(path)
        return is_met

    def _meets_goal(self, commit: int) -> bool:
        return commit in self._goals or not self._goals.isdisjoint(self._parents(commit))

    def _parents(self, commit: int) -> Sequence[int]:
        return () if commit in self._cut else self._graph.parents(commit)

    def _next_parent(self, unread: Iterator[int]) -> int | None:
        for parent in unread:
            if parent not in self._seen:
                self._seen.add(parent)
                if self._graph.committed(parent) >= self._not_before:
                    return parent
        return None

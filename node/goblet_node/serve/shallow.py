"""Where does the client's history end after this fetch?"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from goblet_node import objects
from goblet_node.errors import ProtocolError
from goblet_node.mirror.graph import Graph
from goblet_node.serve.walk import walk
from goblet_node.wire.fetch_lines import MAX_DEPTH
from goblet_node.wire.refs import ObjectId


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """Where history is cut, as upload-pack has it.

    Attributes:
        shallow: Commits to announce as shallow: the client gets or has them, and from
            now on no parents of them.
        unshallow: Shallow commits of the client whose parents it gets now.
        edge: Every commit whose parents are not sent: those of `shallow`, and the
            client's shallow commits that stay so.
    """

    shallow: tuple[ObjectId, ...]
    unshallow: tuple[ObjectId, ...]
    edge: frozenset[ObjectId]


def boundary(
    graph: Graph,
    *,
    wants: Sequence[ObjectId],
    shallow: Sequence[ObjectId],
    deepen: int | None = None,
    deepen_relative: bool = False,
    deepen_since: int | None = None,
    deepen_not: Sequence[ObjectId] = (),
) -> Boundary:
    """Return where a fetch that says one of the deepen lines ends the client's history.

    `deepen_relative` counts from those shallow commits of the client that the wants
    reach. (upload-pack takes those that any of its refs reaches; a client that
    deepens wants all refs that it follows.)

    Args:
        graph: Of a log that holds all of these objects.
        wants: What the client asks for; of tags, what they point at.
        shallow: The client's shallow commits.
        deepen: How many commits deep, MAX_DEPTH for all.
        deepen_relative: Whether `deepen` is counted from where history ends now.
        deepen_since: Leave out commits before this time, in seconds since the epoch.
        deepen_not: Leave out commits that these reach.

    Raises:
        ProtocolError: `deepen_since` or `deepen_not` leave nothing of the wants, or what
            the client calls shallow is no commit.
    """
    held = graph.places(shallow)
    if len(wrong := np.flatnonzero(graph.kinds[held] != objects.COMMIT)):
        raise ProtocolError(f"invalid shallow object {shallow[wrong[0]].decode()}: want a commit")
    now = frozenset(held.tolist())
    starts = graph.commits(graph.places(wants))
    if deepen is None:
        excluded = graph.commits(graph.places(deepen_not))
        kept, ends = _selected(graph, starts, deepen_since, excluded)
    elif deepen == MAX_DEPTH:
        # What no want reaches is unshallowed too, as git does it.
        kept, ends = set(now), set()
    elif deepen_relative:
        # One more, because the shallow commits themselves are the first.
        kept, ends = _within(graph, _reached(graph, now, starts), deepen + 1)
    else:
        kept, ends = _within(graph, starts, deepen)
    unshallow = tuple(
        oid for oid, place in zip(shallow, held.tolist(), strict=True) if place in kept
    )
    return Boundary(
        shallow=tuple(sorted(graph.oids(ends - now))),
        unshallow=unshallow,
        edge=frozenset(graph.oids(ends | (now - kept))),
    )


def _within(graph: Graph, starts: Iterable[int], depth: int) -> tuple[set[int], set[int]]:
    """Return the commits less than `depth` deep, and those exactly so; starts are 1 deep.

    As get_shallow_commits in git's shallow.c: by the shortest way, and a commit
    without parents at that depth is an end like any other.
    """
    kept: set[int] = set()
    level = set(starts)
    for _ in range(depth - 1):
        if not level:
            break
        kept |= level
        level = {parent for commit in level for parent in graph.parents(commit)} - kept
    return kept, level


def _selected(
    graph: Graph, starts: Sequence[int], since: int | None, excluded: Iterable[int]
) -> tuple[set[int], set[int]]:
    """Return the commits that no rule leaves out, without and with a parent that one does.

    As get_shallow_commits_by_rev_list in git's shallow.c.
    """
    new = frozenset(walk(graph, wants=starts, known=excluded, since=since).new)
    if not new:
        raise ProtocolError("no commits selected for shallow requests")
    ends = {commit for commit in new if not new.issuperset(graph.parents(commit))}
    return set(new - ends), ends


def _reached(graph: Graph, shallow: Iterable[int], starts: Sequence[int]) -> list[int]:
    """Return those of the shallow commits that the starts reach."""
    unreached = frozenset(walk(graph, wants=shallow, known=starts).new)
    return [commit for commit in shallow if commit not in unreached]

"""Which objects of the client are earlier versions of those that it gets?

Links know no names, but the entries of a tree are in the order of their names. So what
two versions of a tree have in common at both ends is left away, and if as many entries
of a kind remain in one as in the other, they are taken for versions of each other. A
wrong guess makes a delta that is no gain, and is not sent.
"""

from collections.abc import Iterator, Sequence

from goblet_node.mirror.graph import Graph
from goblet_node.objects import BLOB, TREE

Pair = tuple[int, int]
"""The places of an object and of an earlier version of it."""

# How many pairs of trees are looked at for one answer, until they had so many entries:
# a pair costs some ten microseconds, and as much for every hundred entries.
_MOST_TREES = 256
_MOST_ENTRIES = 100_000


def alike(graph: Graph, roots: Sequence[int], earlier: int) -> list[Pair]:
    """Return pairs of trees and blobs, each object in one pair at most.

    Args:
        graph: Of the log.
        roots: Trees, those first of which the pairs matter most.
        earlier: A tree that is much like them.
    """
    found: dict[int, int] = {}
    unread = [(root, earlier) for root in reversed(roots)]
    trees = entries = 0
    while unread and trees < _MOST_TREES and entries < _MOST_ENTRIES:
        new, old = unread.pop()
        if new == old or new in found:
            continue
        found[new] = old
        if graph.kind(new) == TREE:
            left, right = _differing(graph, new, old)
            unread += _versions(graph, left, right)
            trees += 1
            entries += len(left) + len(right)
    return list(found.items())


def _differing(graph: Graph, new: int, old: int) -> tuple[list[int], list[int]]:
    """Return what lies between what two trees begin and end with in common."""
    # First as they are stored: of a large tree most bundles are the same.
    left, right = _trimmed(graph.entries(new), graph.entries(old))
    return _trimmed(graph.opened(left), graph.opened(right))


def _versions(graph: Graph, left: list[int], right: list[int]) -> Iterator[Pair]:
    """Yield those of both that seem to be versions of each other."""
    both = set(left).intersection(right)
    for kind in (BLOB, TREE):
        ours = [place for place in left if place not in both and graph.kind(place) == kind]
        theirs = [place for place in right if place not in both and graph.kind(place) == kind]
        if len(ours) == len(theirs):
            yield from zip(ours, theirs, strict=True)


def _trimmed(left: list[int], right: list[int]) -> tuple[list[int], list[int]]:
    """Return both without what they begin and end with in common."""
    shorter = min(len(left), len(right))
    start = 0
    while start < shorter and left[start] == right[start]:
        start += 1
    end = 0
    while end < shorter - start and left[-1 - end] == right[-1 - end]:
        end += 1
    return left[start : len(left) - end], right[start : len(right) - end]

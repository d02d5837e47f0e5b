"""Where does the client's history end after this fetch?"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from goblet_node import objects
from goblet_node.errors import ProtocolError
from goblet_node.mirror.reader import LogReader
from goblet_node.serve.walk import Commits, walk
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
    reader: LogReader,
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
        reader: Of a log that holds all of these objects.
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
    commits = Commits(reader)
    for oid in shallow:
        if reader.type_of(oid) != objects.COMMIT:
            raise ProtocolError(f"invalid shallow object {oid.decode()}: want a commit")
    starts = tuple(commits.peeled(wants))
    ends: set[ObjectId]
    if deepen is None:
        kept, ends = _selected(commits, starts, deepen_since, commits.peeled(deepen_not))
    elif deepen == MAX_DEPTH:
        # What no want reaches is unshallowed too, as git does it.
        kept, ends = set(shallow), set()
    elif deepen_relative:
        # One more, because the shallow commits themselves are the first.
        kept, ends = _within(commits, _reached(commits, shallow, starts), deepen + 1)
    else:
        kept, ends = _within(commits, starts, deepen)
    held = frozenset(shallow)
    unshallow = tuple(oid for oid in shallow if oid in kept)
    return Boundary(
        shallow=tuple(sorted(ends - held)),
        unshallow=unshallow,
        edge=frozenset(ends) | held.difference(unshallow),
    )


def _within(
    commits: Commits, starts: Iterable[ObjectId], depth: int
) -> tuple[set[ObjectId], set[ObjectId]]:
    """Return the commits less than `depth` deep, and those exactly so; starts are 1 deep.

    As get_shallow_commits in git's shallow.c: by the shortest way, and a commit
    without parents at that depth is an end like any other.
    """
    kept: set[ObjectId] = set()
    level = set(starts)
    for _ in range(depth - 1):
        if not level:
            break
        kept |= level
        level = {parent for oid in level for parent in commits[oid].parents} - kept
    return kept, level


def _selected(
    commits: Commits,
    starts: Sequence[ObjectId],
    since: int | None,
    excluded: Iterable[ObjectId],
) -> tuple[set[ObjectId], set[ObjectId]]:
    """Return the commits that no rule leaves out, without and with a parent that one does.

    As get_shallow_commits_by_rev_list in git's shallow.c.
    """
    new = frozenset(walk(commits, wants=starts, known=excluded, since=since).new)
    if not new:
        raise ProtocolError("no commits selected for shallow requests")
    ends = {oid for oid in new if not new.issuperset(commits[oid].parents)}
    return set(new - ends), ends


def _reached(
    commits: Commits, shallow: Sequence[ObjectId], starts: Sequence[ObjectId]
) -> list[ObjectId]:
    unreached = frozenset(walk(commits, wants=shallow, known=starts).new)
    return [oid for oid in shallow if oid not in unreached]

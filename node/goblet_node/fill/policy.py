"""Which repositories are mirrored, and from which request on. Pure, but for what it counts.

One shallow clone must not have gigabytes fetched; a job that comes again and again
should. What an operator excludes, or what proved too large, is passed on to upstream.
"""

import re
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum, auto
from fnmatch import translate

import trio

from goblet_node.wire.refs import ObjectId
from goblet_node.wire.requests import Fetch
from goblet_shared.errors import GobletError
from goblet_shared.repo_key import RepoKey

# Repositories that are remembered for having been asked for, or for being too large;
# those not asked for the longest go first.
MAX_REMEMBERED = 16_384
# The haves of a negotiation's first round (INITIAL_FLUSH in git's fetch-pack.c).
FIRST_ROUND = 16


class TooLargeToMirror(GobletError):
    """A repository passes a limit of what this node mirrors; upstream can answer for it."""

    status = 503


class Standing(Enum):
    """What may be done with a repository that is cold."""

    NEVER = auto()
    """The operator excludes it: every request is forwarded."""
    TOO_LARGE = auto()
    """It proved too large a while ago: forwarded, until that is forgotten."""
    SELDOM = auto()
    """A whole clone has it fetched; a shallow or partial one is forwarded."""
    OFTEN = auto()
    """It was asked for often enough: whatever is asked, it is fetched behind it."""


class MirrorPolicy:
    """Knows how each repository stands, from settings and from what it was told."""

    def __init__(
        self,
        *,
        never: Sequence[str] = (),
        after: int = 3,
        within: float = 3600.0,
        max_refs: int = 1_000_000,
        too_large_for: float = 3600.0,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        """Have a repository mirrored behind the `after`-th forwarded request in `within` seconds.

        With `after` = 0 only whole clones have one mirrored. `never` are globs on the
        repo key, whatever its case; a `*` matches slashes, too. Repositories with more
        than `max_refs` heads and tags are too large. What is too large is tried again
        after `too_large_for` seconds.
        """
        # One expression: fnmatch compiles anew, at each look, what is more than 256 globs.
        self._never = re.compile("|".join([translate(_as_key(glob)) for glob in never]) or "(?!)")
        self._after = after
        self._within = within
        self._max_refs = max_refs
        self._too_large_for = too_large_for
        self._clock = clock
        # All mutable state, newest last. Changed only between awaits.
        self._asked_at: OrderedDict[RepoKey, deque[float]] = OrderedDict()
        self._too_large_at: OrderedDict[RepoKey, float] = OrderedDict()

    def excludes(self, key: RepoKey) -> bool:
        """Say whether the operator wants no mirror of this repository."""
        return self._never.match(key.lower()) is not None

    def may_mirror(self, key: RepoKey) -> bool:
        """Say whether a mirror of this repository may be made, or grow."""
        return not (self.excludes(key) or self._is_too_large(key))

    def standing(self, key: RepoKey, *, counts: bool) -> Standing:
        """Say how a repository stands with this request, which `counts` or does not."""
        if self.excludes(key):
            return Standing.NEVER
        if self._is_too_large(key):
            return Standing.TOO_LARGE
        asked = self._asked_lately(key) + counts
        return Standing.OFTEN if counts and 0 < self._after <= asked else Standing.SELDOM

    def note_forwarded(self, key: RepoKey) -> None:
        """Count a request that was forwarded because its repository is cold."""
        if self._after > 0:
            times = self._asked_at.setdefault(key, deque(maxlen=self._after))
            times.append(self._clock())
            self._asked_at.move_to_end(key)
            if len(self._asked_at) > MAX_REMEMBERED:
                self._asked_at.popitem(last=False)

    def note_too_large(self, key: RepoKey) -> None:
        """Have a repository forwarded for a while, since no mirror of it can be kept."""
        self._too_large_at[key] = self._clock()
        self._too_large_at.move_to_end(key)
        if len(self._too_large_at) > MAX_REMEMBERED:
            self._too_large_at.popitem(last=False)

    def check_refs(self, key: RepoKey, count: int) -> None:
        """Raise TooLargeToMirror, and remember it, if a mirror may not have so many refs."""
        if count > self._max_refs:
            self.note_too_large(key)
            raise TooLargeToMirror(
                f"{key} has {count} heads and tags, more than the {self._max_refs} of a mirror"
            )

    def _asked_lately(self, key: RepoKey) -> int:
        since = self._clock() - self._within
        return sum(at > since for at in self._asked_at.get(key, ()))

    def _is_too_large(self, key: RepoKey) -> bool:
        noted_at = self._too_large_at.get(key)
        return noted_at is not None and self._clock() - noted_at < self._too_large_for


def _as_key(glob: str) -> str:
    """Return a glob as keys are written: who sets it may have copied a clone's URL."""
    return glob.lower().removeprefix("https://").rstrip("/").removesuffix(".git")


def begins_a_fetch(fetch: Fetch, tips: AbstractSet[ObjectId] | None) -> bool:
    """Say whether a request is the first of its `git fetch`, so that each job counts once.

    A partial clone goes on asking for single objects, without haves and with its
    filter, which are none of the repository's `tips` (None: those are not known); a
    negotiation repeats itself with more haves each round, or with `done`.
    """
    if fetch.haves:
        return len(fetch.haves) <= FIRST_ROUND and not fetch.done
    is_partial = fetch.filter_spec is not None and not fetch.has_depth
    return not (is_partial and tips is not None and tips.isdisjoint(fetch.wants))

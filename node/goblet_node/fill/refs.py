"""What an upstream's refs are: asked once per repository however many overlap, kept for a moment.

Everybody who asks here holds a grant, so all may see what one of them was told.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Protocol

import trio

from goblet_node.fill.failures import Refused
from goblet_node.fill.flights import Flights
from goblet_node.fill.upstream import Grant
from goblet_node.mirror.refs import tips
from goblet_node.wire.refs import ObjectId, Ref
from goblet_node.wire.v2_client import parse_ls_refs
from goblet_shared.errors import GobletError
from goblet_shared.repo_key import RepoKey

# What a mirror holds. Other refs (refs/pull/*, refs/merge-requests/*,
# refs/changes/*) can be a hundred times as many: listed when asked for, not held.
MIRRORED = (b"HEAD", b"refs/heads/", b"refs/tags/")
# Different questions about one repository that are remembered: clones, fetches and
# refreshes ask the same one, version 0 asks for all, and clients may invent more.
MAX_QUESTIONS = 4
# What a listing takes in memory for each byte of upstream's answer (measured: lines
# of 76 bytes become a Ref, its id, its name and its place in a set of 3.6 times as many).
_MEMORY_PER_BYTE = 4
# What a listing takes beside its refs, and each prefix of a question besides its bytes.
_OVERHEAD = 1000
_PREFIX_OVERHEAD = 50

Question = tuple[bytes, ...] | None
"""Prefixes to ask for; None asks for every ref."""

_NOTHING: "Mapping[Question, Listing]" = MappingProxyType({})


class Lister(Protocol):
    """Who knows the refs of a repository: the upstream."""

    async def ls_refs(
        self,
        grant: Grant,
        prefixes: Sequence[bytes] | None,
        *,
        read: "Callable[[bytes], Listing]",
    ) -> "Listing":
        """Return what `read` makes of the answer, or raise what says why there is none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Listing:
    """What an upstream said that its refs are.

    `begun` is when it was asked, in seconds of the node's clock: what it says was so
    at that time or later. `mirrored` are the refs that a mirror holds, by name, and
    `tips` what those point at. Two listings with one `digest` say the same of all refs,
    and share them if one came soon after the other. `bytes` is what it takes in
    memory, about.
    """

    refs: tuple[Ref, ...] = field(repr=False)
    mirrored: tuple[Ref, ...] = field(repr=False)
    tips: frozenset[ObjectId] = field(repr=False)
    digest: bytes
    begun: float
    bytes: int


def question_for(prefixes: Iterable[bytes]) -> Question:
    """Return the widest question that many callers share and that covers `prefixes`.

    Always asks for all that a mirror holds, so that clones, fetches of any branch
    and refreshes ask the same. Prefixes that no ref can have (git asks for `main`
    besides `refs/heads/main`) are left out.
    """
    wanted = tuple(prefixes)
    if not wanted:
        return None
    beyond = {
        prefix
        for prefix in wanted
        if not prefix.startswith(MIRRORED)
        and (prefix.startswith(b"refs/") or b"refs/".startswith(prefix))
    }
    return MIRRORED + tuple(sorted(beyond))


def is_mirrored(ref: Ref) -> bool:
    """Say whether a mirror holds this ref."""
    return ref.name == b"HEAD" or ref.name.startswith(MIRRORED[1:])


def mirrored(refs: Iterable[Ref]) -> tuple[Ref, ...]:
    """Return the refs that a mirror holds, by name: two equal listings make equal tuples."""
    return tuple(sorted((ref for ref in refs if is_mirrored(ref)), key=lambda ref: ref.name))


def read_listing(body: bytes, *, begun: float, known: Listing | None = None) -> Listing:
    """Return what upstream's answer to ls-refs says; quick if it says what `known` said.

    Raises what wire.v2_client does of a malformed answer.
    """
    digest = hashlib.sha256(body).digest()
    if known is not None and known.digest == digest:
        return replace(known, begun=begun)
    refs = parse_ls_refs(body)
    held = mirrored(refs)
    return Listing(
        refs=refs,
        mirrored=held,
        tips=tips(held),
        digest=digest,
        begun=begun,
        bytes=_MEMORY_PER_BYTE * len(body) + _OVERHEAD,
    )


def _newest(listings: Iterable[Listing]) -> Listing | None:
    return max(listings, key=lambda listing: listing.begun, default=None)


class RefsDesk:
    """Answers what the refs are, with one upstream question for all who overlap."""

    def __init__(
        self,
        *,
        upstream: Lister,
        nursery: trio.Nursery,
        freshness: float = 0.0,
        memory: int = 64 * 1024 * 1024,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        """Answer with what was said less than `freshness` seconds ago; 0 asks every time.

        At most `memory` bytes of listings are kept, about. They are kept with a
        freshness of 0 too: what has not changed is not read again.
        """
        self._upstream = upstream
        self._freshness = freshness
        self._memory = memory
        self._clock = clock
        self._flights: Flights[tuple[RepoKey, Question], Listing] = Flights(nursery)
        # All mutable state: the newest listings, those used last at the end, and what
        # they take together. Changed only between awaits, so no lock is needed.
        self._kept: OrderedDict[RepoKey, OrderedDict[Question, Listing]] = OrderedDict()
        self._kept_bytes = 0

    def fresh(self, key: RepoKey, question: Question) -> Listing | None:
        """Return a kept listing that covers `question` and is fresh, if there is one."""
        return self.kept(key, question, within=self._freshness) if self._freshness else None

    def kept(self, key: RepoKey, question: Question, *, within: float) -> Listing | None:
        """Return a kept listing that covers `question` and is less than `within` seconds old."""
        kept = self._kept.get(key, _NOTHING)
        newest = _newest(kept[asked] for asked in (question, None) if asked in kept)
        if newest is None or self.age_of(newest) >= within:
            return None
        self._kept.move_to_end(key)
        return newest

    def asked_for(self, key: RepoKey, question: Question) -> float:
        """Return for how many seconds upstream has been asked this, 0 if it is not."""
        return self._flights.age((key, question))

    def told(self, key: RepoKey, *, within: float) -> Listing | None:
        """Return what was said of a repository last, with all that a mirror holds.

        None if that is `within` seconds old, or could be answered with no more.
        """
        newest = _newest(self._kept.get(key, _NOTHING).values())
        is_recent = newest is not None and self.age_of(newest) < max(within, self._freshness)
        return newest if is_recent else None

    def forget(self, key: RepoKey) -> None:
        """Have upstream asked for this repository's refs whatever is kept of them."""
        for question, listing in self._kept.pop(key, _NOTHING).items():
            self._kept_bytes -= _cost(question, listing)

    def age_of(self, listing: Listing) -> float:
        """Return how many seconds ago upstream was asked."""
        return self._clock() - listing.begun

    async def ask(self, grant: Grant, question: Question) -> Listing:
        """Return at least the refs that `question` covers, as upstream has them now.

        A question that is under way is shared. If upstream refuses the credential
        that it went out with, those who joined ask again with their own.
        """
        key = (grant.key, question)
        while True:
            leads = key not in self._flights
            try:
                return await self._flights.join(key, lambda: self._ask(grant, question))
            except Refused:
                if leads:
                    raise

    async def ask_anew(self, grant: Grant, question: Question) -> Listing:
        """Return what `ask` does, of a question that was begun after this call.

        One that is under way is waited for, so that upstream is not asked twice at once:
        what it brings, or how it fails, says nothing of what was pushed since it began.
        """
        called = self._clock()
        key = (grant.key, question)
        while key in self._flights:
            with suppress(GobletError):
                listing = await self.ask(grant, question)
                if listing.begun > called:
                    return listing
        return await self.ask(grant, question)

    async def _ask(self, grant: Grant, question: Question) -> Listing:
        begun = self._clock()
        known = self._kept.get(grant.key, _NOTHING).get(question)
        listing = await self._upstream.ls_refs(
            grant, question, read=lambda body: read_listing(body, begun=begun, known=known)
        )
        self._keep(grant.key, question, listing)
        return listing

    def _keep(self, key: RepoKey, question: Question, listing: Listing) -> None:
        # What was said before is not the newest any more, whatever becomes of this.
        kept = self._kept.pop(key, None) or OrderedDict()
        before = kept.pop(question, None)
        if before is not None:
            self._kept_bytes -= _cost(question, before)
        # One that has no place beside the others would take that of all of them.
        if _cost(question, listing) <= self._memory:
            kept[question] = listing
            self._kept_bytes += _cost(question, listing)
        if kept:
            self._kept[key] = kept
        if len(kept) > MAX_QUESTIONS:
            self._kept_bytes -= _cost(*kept.popitem(last=False))
        while self._kept_bytes > self._memory:
            self.forget(next(iter(self._kept)))


def _cost(question: Question, listing: Listing) -> int:
    """Return what is kept of an answer in bytes, about: a client may invent long questions."""
    return listing.bytes + sum(len(prefix) + _PREFIX_OVERHEAD for prefix in question or ())

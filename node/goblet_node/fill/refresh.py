"""Bring a mirror up to date with its upstream: once per repository, however many wait.

A refresh lists the upstream's heads and tags, fetches a thin pack of what the
mirror lacks, has a worker process turn it into a segment, and commits. The first
of all, for a repository that is cold, receives a plain clone's pack into a spool,
which clients follow while it grows.
"""

import logging
import math
from collections.abc import Callable, Collection
from typing import Protocol
from weakref import WeakKeyDictionary

import trio

from goblet_node.errors import DiskFailed, MirrorDamaged, NodeStopping
from goblet_node.fill.failures import Refused
from goblet_node.fill.flights import Flights
from goblet_node.fill.policy import MirrorPolicy, Standing, TooLargeToMirror, begins_a_fetch
from goblet_node.fill.receive import Receiver
from goblet_node.fill.refs import MIRRORED, Listing, RefsDesk
from goblet_node.fill.spool import Spool
from goblet_node.fill.upstream import Grant
from goblet_node.metrics import NodeMetrics
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.store import MirrorStore
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.requests import Fetch
from goblet_shared.errors import GobletError
from goblet_shared.repo_key import RepoKey

log = logging.getLogger(__name__)

# A client fetches right after it was told the refs; later, somebody may have pushed.
LISTING_LIFETIME = 5.0
# Of how many mirrors it is remembered which listing they follow.
MAX_FOLLOWED = 65_536


class Copies(Protocol):
    """Who brings mirrors from other members of the cluster: the Copier."""

    def is_under_way(self, key: RepoKey) -> bool:
        """Say whether a mirror is being asked for or copied."""

    async def bring(self, key: RepoKey) -> Mirror | None:
        """Copy a mirror from whoever has it; None if nobody could give it."""

    def begin(self, key: RepoKey) -> None:
        """Do the same, without being waited for."""


class Refresh:
    """One refresh: what is known of it so far, and when it ends."""

    def __init__(self, grant: Grant, listing: Listing | None) -> None:
        self.key = grant.key
        self.grant = grant
        # All mutable state. Written by the refresh's own task between awaits; while it
        # waits for the one before it, by the Refresher.
        self.listing = listing  # that it brings the mirror to, None until it is known
        self.tips: frozenset[ObjectId] | None = None
        self.spool: Spool | None = None
        self.error: Exception | None = None
        self.announced = trio.Event()  # tips and, for a cold repository, the spool are known
        self.ended = trio.Event()


class Refresher:
    """Starts refreshes and knows those under way."""

    def __init__(
        self,
        *,
        store: MirrorStore,
        receiver: Receiver,
        desk: RefsDesk,
        nursery: trio.Nursery,
        retry_after_failure: float,
        policy: MirrorPolicy,
        metrics: NodeMetrics,
        discard: Callable[[RepoKey], None] = lambda _: None,
        copies: Copies | None = None,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        """Run refreshes in `nursery`, of the repositories that `policy` allows.

        A repository whose refresh failed, for all that is known not of its credential, is
        not tried again for `retry_after_failure` seconds: meanwhile its clients are forwarded.
        `discard` is called, in a thread, with the repository of a mirror that was
        dropped: what was made of it is not to be trusted. `copies` brings mirrors from
        other members, None if there are none. `clock` is the desk's, too.
        """
        self._store = store
        self._receiver = receiver
        self._desk = desk
        self._nursery = nursery
        self._retry_after_failure = retry_after_failure
        self._policy = policy
        self._metrics = metrics
        self._discard = discard
        self._copies = copies
        self._clock = clock
        # All mutable state. Changed only between awaits, so no lock is needed.
        self._flying: dict[RepoKey, Refresh] = {}
        self._next: dict[RepoKey, Refresh] = {}  # begin when the one that flies has ended
        self._failed_at: dict[RepoKey, float] = {}
        self._follows: dict[RepoKey, float] = {}  # when the listing was begun that is the newest
        # What the refs were of a mirror, and when the listing was begun that said them last.
        self._confirmed: dict[RepoKey, tuple[str, float]] = {}
        self._agrees: WeakKeyDictionary[Mirror, bytes] = WeakKeyDictionary()  # with which digest
        self._brought: Flights[tuple[RepoKey, frozenset[ObjectId]], None] = Flights(nursery)

    def flying(self, key: RepoKey) -> Refresh | None:
        """Return the refresh of a repository that is under way, if one is."""
        return self._flying.get(key)

    def standing(self, key: RepoKey, fetch: Fetch) -> Standing:
        """Say what may be done with a repository, were it cold, for this fetch."""
        return self._policy.standing(key, counts=self._begins(key, fetch))

    def note_forwarded(self, key: RepoKey, fetch: Fetch) -> None:
        """Count a fetch that is forwarded because its repository is cold."""
        if self._begins(key, fetch):
            self._policy.note_forwarded(key)

    def confirmed(self, mirror: Mirror) -> float | None:
        """Return when upstream was last asked that said the refs which a mirror has.

        In seconds of the node's clock; None if it was not since the node started.
        """
        refs, begun = self._confirmed.get(mirror.key, (None, None))
        return begun if refs == _content_of(mirror) else None

    def start(
        self, grant: Grant, listing: Listing | None = None, *, insist: bool = False
    ) -> Refresh | None:
        """Return a refresh that brings a mirror to what its upstream has, starting one if needed.

        None if there may be none: soon after a failure, unless the caller does `insist`,
        where the policy says so, or while a mirror is copied from another member, since
        all of it would come twice.
        `listing` is what upstream just said, if that is known: when the refresh under
        way is of an older one, the next one after it is returned. A refresh belongs to
        the node: it goes on when the caller leaves, and its failure is nobody's
        but that of those who wait for it.
        """
        key = grant.key
        flying, following = self._flying.get(key), self._next.get(key)
        if flying is None:
            may = self._may_start(key, insist=insist)
            return self._launch(Refresh(grant, listing)) if may else None
        if listing is None or not _is_older(flying, listing):
            return following or flying
        if following is None:
            following = self._next[key] = Refresh(grant, listing)
        elif _is_older(following, listing):
            following.grant, following.listing = grant, listing
        return following

    async def copied(self, key: RepoKey) -> None:
        """Return when another member has given its mirror of a cold repository, or none can.

        At once if its first fetch is under way: a member would give no more. Cancelling
        the caller stops its waiting, not the copy.
        """
        if self._copies is not None and key not in self._flying:
            await self._copies.bring(key)

    async def bring(self, grant: Grant, oids: Collection[ObjectId]) -> None:
        """Fetch objects into a mirror that is there, though no ref that it holds reaches them.

        A pull request's commit, or one that was just pushed. They count as orphans until
        a ref reaches them. Raises what upstream said if it does not have all of them,
        TooLargeToMirror if the mirror may not grow.
        """
        if not self._policy.may_mirror(grant.key):
            raise TooLargeToMirror(f"the mirror of {grant.key} may not grow")
        wanted = frozenset(oids)
        await self._brought.join((grant.key, wanted), lambda: self._receiver.objects(grant, wanted))

    async def heard(self, grant: Grant, listing: Listing) -> None:
        """Compare what upstream just listed with the mirror, and start a refresh if they differ.

        So what a client is about to fetch is on its way before it asks. A repository
        that is cold stays cold, since being listed is not being cloned. Of two
        listings that overlapped, the one that was begun first says nothing if it
        comes last: it would set the refs back.
        """
        key = grant.key
        mirror = self._store.get(key)
        if mirror is None:
            if self._copies is not None and key not in self._flying:
                self._copies.begin(key)
            return
        if self._is_outdated(key, listing):
            return
        if self._agrees.get(mirror) != listing.digest:
            # In a thread: the first look at a mirror reads the disk, and to compare
            # 100,000 refs takes 25 ms.
            if not await trio.to_thread.run_sync(_agree, mirror, listing):
                is_there = self._store.get(key) is not None  # not evicted meanwhile
                if is_there and not self._is_outdated(key, listing):
                    self.start(grant, listing)
                return
            self._agrees[mirror] = listing.digest
        self._note_followed(key, listing)
        self._note_confirmed(mirror, listing)

    async def drop(self, mirror: Mirror, damage: MirrorDamaged) -> None:
        """Have a damaged mirror deleted, so that the next clone fills it anew; log it.

        If it was replaced meanwhile, nothing is deleted: its successor may be sound.
        """
        log.error("the mirror of %s is dropped: %s", mirror.key, damage)

        def drop() -> None:
            try:
                self._store.drop(mirror.key, only=mirror)
            finally:
                self._discard(mirror.key)

        try:
            await trio.to_thread.run_sync(drop)
            self._follows.pop(mirror.key, None)
            self._desk.forget(mirror.key)
        except GobletError as exc:
            log.warning("the mirror of %s could not be dropped: %s", mirror.key, exc)

    def _begins(self, key: RepoKey, fetch: Fetch) -> bool:
        told = self._desk.told(key, within=math.inf)
        return begins_a_fetch(fetch, told.tips if told is not None else None)

    def _may_start(self, key: RepoKey, *, insist: bool) -> bool:
        is_cold = self._store.get(key) is None
        if is_cold and self._copies is not None and self._copies.is_under_way(key):
            return False
        failed_at = self._failed_at.get(key)
        has_just_failed = (
            failed_at is not None and self._clock() - failed_at < self._retry_after_failure
        )
        return (insist or not has_just_failed) and self._policy.may_mirror(key)

    def _launch(self, refresh: Refresh) -> Refresh:
        self._flying[refresh.key] = refresh
        self._nursery.start_soon(self._fly, refresh)
        return refresh

    async def _fly(self, refresh: Refresh) -> None:
        outcome = "failed"
        before = self._store.get(refresh.key)
        try:
            await self._bring_up_to_date(refresh)
            outcome = "done"
            self._failed_at.pop(refresh.key, None)
        except Exception as exc:
            refresh.error = exc
            if not _is_the_callers(exc):
                self._note_failure(refresh.key)
            if isinstance(exc, GobletError):
                log.warning("refresh of %s failed: %s", refresh.key, exc)
            else:
                log.error("refresh of %s failed", refresh.key, exc_info=exc)
            if isinstance(exc, MirrorDamaged) and before is not None:
                await self.drop(before, exc)
        except BaseException:
            refresh.error = NodeStopping("this node is stopping: ask again")
            raise
        finally:
            if refresh.spool is not None and not refresh.spool.ended:
                refresh.spool.fail(refresh.error or NodeStopping("this node is stopping"))
            self._land(refresh)
            self._metrics.refreshes.labels(outcome).inc()

    def _land(self, refresh: Refresh) -> None:
        """End a refresh for all who wait for it; the next one begins, unless this one failed.

        If only its credential was refused, the next one has another.
        """
        del self._flying[refresh.key]
        refresh.announced.set()
        refresh.ended.set()
        following = self._next.pop(refresh.key, None)
        if following is None:
            return
        if refresh.error is None or _is_the_callers(refresh.error):
            self._launch(following)
            return
        following.error = refresh.error
        following.announced.set()
        following.ended.set()

    def _note_failure(self, key: RepoKey) -> None:
        now = self._clock()
        # Forget old failures here, so that the dict is bounded by what fails at once.
        self._failed_at = {
            other: at
            for other, at in self._failed_at.items()
            if now - at < self._retry_after_failure
        }
        self._failed_at[key] = now

    def _is_outdated(self, key: RepoKey, listing: Listing) -> bool:
        return listing.begun < self._follows.get(key, listing.begun)

    def _note_followed(self, key: RepoKey, listing: Listing) -> None:
        self._follows[key] = max(listing.begun, self._follows.pop(key, listing.begun))
        if len(self._follows) > MAX_FOLLOWED:
            del self._follows[next(iter(self._follows))]

    def _note_confirmed(self, mirror: Mirror, listing: Listing) -> None:
        before = self._confirmed.pop(mirror.key, None)
        refs, begun = _content_of(mirror), listing.begun
        if before is not None and before[0] == refs:
            begun = max(begun, before[1])
        self._confirmed[mirror.key] = (refs, begun)
        if len(self._confirmed) > MAX_FOLLOWED:
            del self._confirmed[next(iter(self._confirmed))]

    async def _bring_up_to_date(self, refresh: Refresh) -> None:
        listing = refresh.listing = await self._listing(refresh)
        wanted = listing.mirrored
        self._policy.check_refs(refresh.key, len(wanted))
        self._note_followed(refresh.key, listing)

        def follow(spool: Spool) -> None:
            refresh.tips, refresh.spool = listing.tips, spool
            refresh.announced.set()

        await self._receiver.refs(refresh.grant, wanted, follow=follow)
        mirror = self._store.get(refresh.key)
        if mirror is not None:
            self._note_confirmed(mirror, listing)

    async def _listing(self, refresh: Refresh) -> Listing:
        """Return what a refresh brings its mirror to: what a client was just told, if one was.

        A clone of a cold repository wants what it was told a moment ago, so that is
        not asked for twice. Else what is wanted may be newer than what was told.
        """
        known = refresh.listing
        if known is None and self._store.get(refresh.key) is None:
            known = self._desk.told(refresh.key, within=LISTING_LIFETIME)
        # One that waited for another refresh may have waited long.
        elif known is not None and self._desk.age_of(known) >= LISTING_LIFETIME:
            known = None
        # An empty repository is asked again: its first push is worth a question.
        if known is not None and known.refs:
            return known
        return await self._desk.ask(refresh.grant, MIRRORED)


def _content_of(mirror: Mirror) -> str:
    """Return what tells a mirror's refs from others: the checksum in the name of their file."""
    return mirror.current.refs_file.rpartition("-")[2]


def _is_the_callers(error: Exception) -> bool:
    """Say whether a refresh failed of its credential: that says nothing of the repository."""
    return isinstance(error, Refused) and error.status in (401, 403, 404)


def _is_older(refresh: Refresh, listing: Listing) -> bool:
    """Say whether a refresh is of a listing that was begun before this one and says otherwise.

    While it does not know its own yet, it may be.
    """
    own = refresh.listing
    return own is None or (own.begun < listing.begun and own.digest != listing.digest)


def _agree(mirror: Mirror, listing: Listing) -> bool:
    """Say whether a mirror holds the refs that were listed; reads the disk."""
    try:
        return mirror.refs == listing.mirrored
    except (MirrorDamaged, DiskFailed):
        return False  # the refresh will meet it, and drop the mirror if it is damaged

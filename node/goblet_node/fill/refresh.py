"""Bring a mirror up to date with its upstream: once per repository, however many wait.

A refresh lists the upstream's heads and tags, fetches a thin pack of what the
mirror lacks, has a worker process turn it into a segment, and commits. The first
of all, for a repository that is cold, receives a plain clone's pack into a spool,
which clients follow while it grows.
"""

import logging
from collections.abc import Callable, Collection, Sequence

import trio

from goblet_node.errors import MirrorDamaged, NodeStopping
from goblet_node.fill.flights import Flights
from goblet_node.fill.receive import Receiver
from goblet_node.fill.refs import MIRRORED, RefsDesk, mirrored
from goblet_node.fill.spool import Spool
from goblet_node.fill.upstream import Grant
from goblet_node.metrics import NodeMetrics
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.refs import tips
from goblet_node.mirror.store import MirrorStore
from goblet_node.wire.refs import ObjectId, Ref
from goblet_shared.errors import GobletError
from goblet_shared.repo_key import RepoKey

log = logging.getLogger(__name__)

# A client fetches right after it was told the refs; later, somebody may have pushed.
LISTING_LIFETIME = 5.0
MAX_LISTINGS = 64


class Refresh:
    """One refresh under way: what is known of it so far, and when it ends."""

    def __init__(self, key: RepoKey) -> None:
        self.key = key
        # All mutable state. Written by the refresh's own task between awaits.
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
        metrics: NodeMetrics,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        """Run refreshes in `nursery`.

        A repository whose refresh failed is not tried again for
        `retry_after_failure` seconds: meanwhile its clients are forwarded.
        """
        self._store = store
        self._receiver = receiver
        self._desk = desk
        self._nursery = nursery
        self._retry_after_failure = retry_after_failure
        self._metrics = metrics
        self._clock = clock
        # All mutable state. Changed only between awaits, so no lock is needed.
        self._flying: dict[RepoKey, Refresh] = {}
        self._failed_at: dict[RepoKey, float] = {}
        self._listings: dict[RepoKey, tuple[float, Sequence[Ref]]] = {}
        self._brought: Flights[tuple[RepoKey, frozenset[ObjectId]], None] = Flights(nursery)

    def flying(self, key: RepoKey) -> Refresh | None:
        """Return the refresh of a repository that is under way, if one is."""
        return self._flying.get(key)

    def start(self, grant: Grant, refs: Sequence[Ref] | None = None) -> Refresh | None:
        """Return the refresh that is under way, or start one; None soon after a failure.

        `refs` is what upstream just listed, if that is known. The refresh belongs to
        the node: it goes on when the caller leaves, and its failure is nobody's
        but that of those who wait for it.
        """
        key = grant.key
        if (flying := self._flying.get(key)) is not None:
            return flying
        failed_at = self._failed_at.get(key)
        if failed_at is not None and self._clock() - failed_at < self._retry_after_failure:
            return None
        refresh = self._flying[key] = Refresh(key)
        self._nursery.start_soon(self._fly, refresh, grant, refs)
        return refresh

    async def bring(self, grant: Grant, oids: Collection[ObjectId]) -> None:
        """Fetch objects into a mirror that is there, though no ref that it holds reaches them.

        A pull request's commit, or one that was just pushed. They count as orphans until
        a ref reaches them. Raises what upstream said if it does not have all of them.
        """
        wanted = frozenset(oids)
        await self._brought.join((grant.key, wanted), lambda: self._receiver.objects(grant, wanted))

    async def heard(self, grant: Grant, refs: Sequence[Ref]) -> None:
        """Compare what upstream just listed with the mirror, and start a refresh if they differ.

        So what a client is about to fetch is on its way before it asks. A repository
        that is cold stays cold, since being listed is not being cloned; but a clone
        that comes next wants what it was told here, so that is not asked for twice.
        """
        mirror = self._store.get(grant.key)
        if mirror is None:
            self._note_listing(grant.key, refs)
            return
        try:
            # In a thread: the first look at a mirror reads the disk.
            held = await trio.to_thread.run_sync(lambda: mirror.refs)
        except MirrorDamaged:
            held = ()  # the refresh will meet the damage, and drop the mirror
        if held != mirrored(refs):
            self.start(grant, refs)

    async def drop(self, mirror: Mirror, damage: MirrorDamaged) -> None:
        """Have a damaged mirror deleted, so that the next clone fills it anew; log it.

        If it was replaced meanwhile, nothing is deleted: its successor may be sound.
        """
        log.error("the mirror of %s is dropped: %s", mirror.key, damage)
        try:
            await trio.to_thread.run_sync(lambda: self._store.drop(mirror.key, only=mirror))
        except GobletError as exc:
            log.warning("the mirror of %s could not be dropped: %s", mirror.key, exc)

    async def _fly(self, refresh: Refresh, grant: Grant, refs: Sequence[Ref] | None) -> None:
        outcome = "failed"
        before = self._store.get(refresh.key)
        try:
            await self._bring_up_to_date(refresh, grant, refs)
            outcome = "done"
            self._failed_at.pop(refresh.key, None)
        except Exception as exc:
            refresh.error = exc
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
            del self._flying[refresh.key]
            refresh.announced.set()
            refresh.ended.set()
            self._metrics.refreshes.labels(outcome).inc()

    def _note_listing(self, key: RepoKey, refs: Sequence[Ref]) -> None:
        now = self._clock()
        fresh = {
            other: (at, listed)
            for other, (at, listed) in self._listings.items()
            if now - at < LISTING_LIFETIME and other != key
        }
        self._listings = dict(list(fresh.items())[1 - MAX_LISTINGS :])
        self._listings[key] = (now, mirrored(refs))

    def _listing(self, key: RepoKey) -> Sequence[Ref] | None:
        """Return what a client of a cold repository was told a moment ago, if one was."""
        noted_at, refs = self._listings.pop(key, (-LISTING_LIFETIME, ()))
        return refs if self._clock() - noted_at < LISTING_LIFETIME else None

    def _note_failure(self, key: RepoKey) -> None:
        now = self._clock()
        # Forget old failures here, so that the dict is bounded by what fails at once.
        self._failed_at = {
            other: at
            for other, at in self._failed_at.items()
            if now - at < self._retry_after_failure
        }
        self._failed_at[key] = now

    async def _bring_up_to_date(
        self, refresh: Refresh, grant: Grant, refs: Sequence[Ref] | None
    ) -> None:
        listed = refs or self._listing(refresh.key) or await self._desk.ask(grant, MIRRORED)
        wanted = mirrored(listed)

        def follow(spool: Spool) -> None:
            refresh.tips, refresh.spool = tips(wanted), spool
            refresh.announced.set()

        await self._receiver.refs(grant, wanted, follow=follow)

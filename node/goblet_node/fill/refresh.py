"""Bring a mirror up to date with its upstream: once per repository, however many wait.

A refresh lists the upstream's heads and tags, fetches a thin pack of what the
mirror lacks, has a worker process turn it into a segment, and commits. The first
of all, for a repository that is cold, receives a plain clone's pack into a spool,
which clients follow while it grows.
"""

import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, aclosing

import anyio
import anyio.to_process
import trio

from goblet_node.errors import MirrorDamaged, NodeStopping
from goblet_node.fill.refs import MIRRORED, RefsDesk, mirrored, tips_of
from goblet_node.fill.scratch import scratch_of
from goblet_node.fill.spool import Spool
from goblet_node.fill.upstream import Grant, Upstream
from goblet_node.metrics import NodeMetrics
from goblet_node.mirror.intake import IntakeJob, take_in
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.store import MirrorMoved, MirrorStore
from goblet_node.wire.fetch_reader import PackData
from goblet_node.wire.refs import ObjectId, Ref
from goblet_shared.errors import GobletError
from goblet_shared.repo_key import RepoKey

log = logging.getLogger(__name__)

# Enough for upstream to find a good boundary; a repository with 100,000 tags
# need not send them all. What is left out costs repeats, which intake drops.
MAX_HAVES = 4096
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
        upstream: Upstream,
        desk: RefsDesk,
        nursery: trio.Nursery,
        workers: anyio.CapacityLimiter,
        retry_after_failure: float,
        max_object_bytes: int,
        metrics: NodeMetrics,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        """Run refreshes in `nursery`, indexing in at most `workers` processes at once.

        A repository whose refresh failed is not tried again for
        `retry_after_failure` seconds: meanwhile its clients are forwarded.
        """
        self._store = store
        self._upstream = upstream
        self._desk = desk
        self._nursery = nursery
        self._workers = workers
        self._retry_after_failure = retry_after_failure
        self._max_object_bytes = max_object_bytes
        self._metrics = metrics
        self._clock = clock
        # All mutable state. Changed only between awaits, so no lock is needed.
        self._flying: dict[RepoKey, Refresh] = {}
        self._failed_at: dict[RepoKey, float] = {}
        self._listings: dict[RepoKey, tuple[float, Sequence[Ref]]] = {}

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
        while (flying := self._flying.get(grant.key)) is not None:
            await flying.ended.wait()
        refresh = self._flying[grant.key] = Refresh(grant.key)
        self._nursery.start_soon(self._fly, refresh, grant, None, frozenset(oids))
        await refresh.ended.wait()
        if refresh.error is not None:
            raise refresh.error

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

    async def drop(self, key: RepoKey, damage: MirrorDamaged) -> None:
        """Have a damaged mirror deleted, so that the next clone fills it anew; log it."""
        log.error("the mirror of %s is dropped: %s", key, damage)
        try:
            await trio.to_thread.run_sync(self._store.drop, key)
        except GobletError as exc:
            log.warning("the mirror of %s could not be dropped: %s", key, exc)

    async def _fly(
        self,
        refresh: Refresh,
        grant: Grant,
        refs: Sequence[Ref] | None,
        extra: frozenset[ObjectId] = frozenset(),
    ) -> None:
        outcome = "failed"
        try:
            if extra:
                await self._bring(refresh, grant, extra)
            else:
                await self._bring_up_to_date(refresh, grant, refs)
            outcome = "done"
            self._failed_at.pop(refresh.key, None)
        except Exception as exc:
            refresh.error = exc
            if not extra:  # what one client asked for by name says nothing of the next refresh
                self._note_failure(refresh.key)
            log.warning("refresh of %s failed: %s", refresh.key, exc or type(exc).__name__)
            if isinstance(exc, MirrorDamaged):
                await self.drop(refresh.key, exc)
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
        self._listings.pop(key, None)
        self._listings[key] = (self._clock(), refs)
        while len(self._listings) > MAX_LISTINGS:
            self._listings.pop(next(iter(self._listings)))

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
        tips = tips_of(wanted)
        mirror = self._store.get(refresh.key)
        if mirror is None:
            missing = sorted(tips)
        else:
            # In a thread: the first look at a mirror reads the disk.
            if await trio.to_thread.run_sync(lambda: mirror.refs) == wanted:
                return
            missing = await trio.to_thread.run_sync(mirror.missing, sorted(tips))
        await self._take_in(refresh, grant, mirror, wanted, missing)

    async def _bring(self, refresh: Refresh, grant: Grant, extra: frozenset[ObjectId]) -> None:
        mirror = self._store.get(refresh.key)
        if mirror is None:
            raise MirrorMoved("the mirror was dropped meanwhile")
        refs = await trio.to_thread.run_sync(lambda: mirror.refs)
        missing = await trio.to_thread.run_sync(mirror.missing, sorted(extra))
        if missing:
            await self._take_in(refresh, grant, mirror, refs, missing, extra=extra)

    async def _take_in(
        self,
        refresh: Refresh,
        grant: Grant,
        mirror: Mirror | None,
        refs: Sequence[Ref],
        missing: Sequence[ObjectId],
        *,
        extra: frozenset[ObjectId] = frozenset(),
    ) -> None:
        """Fetch what is missing, have it indexed, and commit it under these refs."""
        tips = tips_of(refs)
        async with scratch_of(self._store) as scratch:
            with ExitStack() as held:
                received = None
                if missing:
                    received = scratch / "received.pack"
                    spool = Spool(received)
                    # Held to the end: until the segment is committed, clients join the spool.
                    held.enter_context(spool.held())
                    if mirror is None:
                        refresh.tips, refresh.spool = tips, spool
                        refresh.announced.set()
                    await self._receive(spool, grant, missing, _haves(mirror))
                job = IntakeJob(
                    received=received,
                    scratch=scratch,
                    segments=tuple((s.pack, s.table) for s in mirror.segments) if mirror else (),
                    tips=tuple(sorted(tips)),
                    old_tips=tuple(sorted(mirror.tips)) if mirror else (),
                    old_orphans=tuple(extra.union(mirror.current.orphans)) if mirror else (),
                    max_object_bytes=self._max_object_bytes,
                )
                intake = await anyio.to_process.run_sync(
                    take_in, job, cancellable=True, limiter=self._workers
                )
                await trio.to_thread.run_sync(
                    lambda: self._store.commit(refresh.key, base=mirror, refs=refs, intake=intake)
                )

    async def _receive(
        self,
        spool: Spool,
        grant: Grant,
        wants: Sequence[ObjectId],
        haves: Sequence[ObjectId],
    ) -> None:
        """Fetch a pack into `spool`, which has ended, well or ill, when this returns or raises."""
        try:
            events = self._upstream.fetch(grant, wants=wants, haves=haves)
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, PackData):
                        await spool.append(event.data)
                        self._metrics.received_bytes.inc(len(event.data))
                    else:
                        spool.say(event.data)
        except Exception as exc:
            spool.fail(exc)
            raise
        spool.finish()


def _haves(mirror: Mirror | None) -> tuple[ObjectId, ...]:
    """Return what to tell upstream that the log holds: branches first, then tags, then orphans.

    Objects that only orphans reach are held too; named, upstream does not repeat them.
    """
    if mirror is None:
        return ()
    refs = sorted(mirror.refs, key=lambda ref: ref.name.startswith(b"refs/tags"))
    held = [ref.oid for ref in refs if ref.oid is not None]
    return tuple(dict.fromkeys([*held, *mirror.current.orphans]))[:MAX_HAVES]

"""Receive a pack from upstream into a mirror: fetched, indexed in a worker, committed."""

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, aclosing
from weakref import WeakValueDictionary

import anyio
import anyio.to_process
import trio

from goblet_node.fill.scratch import scratch_of
from goblet_node.fill.spool import Spool
from goblet_node.fill.upstream import Grant, Upstream
from goblet_node.metrics import NodeMetrics
from goblet_node.mirror.intake import IntakeJob, take_in
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.refs import tips
from goblet_node.mirror.store import MirrorMoved, MirrorStore
from goblet_node.wire.fetch_reader import PackData
from goblet_node.wire.refs import ObjectId, Ref
from goblet_shared.repo_key import RepoKey

# Enough for upstream to find a good boundary; a repository with 100,000 tags
# need not send them all. What is left out costs repeats, which intake drops.
MAX_HAVES = 4096


class Receiver:
    """Brings objects from upstream into mirrors, any number of mirrors at once."""

    def __init__(
        self,
        *,
        store: MirrorStore,
        upstream: Upstream,
        workers: anyio.CapacityLimiter,
        max_object_bytes: int,
        metrics: NodeMetrics,
    ) -> None:
        """Index in at most `workers` processes at once."""
        self._store = store
        self._upstream = upstream
        self._workers = workers
        self._max_object_bytes = max_object_bytes
        self._metrics = metrics
        # One lock a mirror that is being changed: two packs may arrive at once, but
        # each is taken in on top of the other.
        self._locks: WeakValueDictionary[RepoKey, trio.Lock] = WeakValueDictionary()

    async def refs(
        self, grant: Grant, refs: Sequence[Ref], *, follow: Callable[[Spool], None]
    ) -> None:
        """Bring a mirror to these refs, or make it, with a pack of what it lacks.

        `follow` is given what arrives for a repository that is cold. Raises
        UpstreamError, DiskFailed, MirrorDamaged, MirrorMoved; then nothing changed.
        """
        mirror = self._store.get(grant.key)
        if mirror is None:
            missing: Collection[ObjectId] = tips(refs)
        else:
            # In a thread: the first look at a mirror reads the disk.
            if await trio.to_thread.run_sync(lambda: mirror.refs) == tuple(refs):
                return
            missing = await trio.to_thread.run_sync(mirror.missing, tips(refs))
        await self._take(grant, mirror, missing, refs=refs, follow=follow)

    async def objects(self, grant: Grant, oids: Collection[ObjectId]) -> None:
        """Bring objects into a mirror that is there, though no ref of it reaches them.

        They count as orphans until one does. Raises what `refs` raises, UpstreamError
        if upstream does not have all of them.
        """
        mirror = self._store.get(grant.key)
        if mirror is None:
            raise MirrorMoved("the mirror was dropped meanwhile: ask again")
        missing = await trio.to_thread.run_sync(mirror.missing, oids)
        if missing:
            await self._take(grant, mirror, missing, orphans=oids)

    async def _take(
        self,
        grant: Grant,
        mirror: Mirror | None,
        missing: Collection[ObjectId],
        *,
        refs: Sequence[Ref] | None = None,
        orphans: Collection[ObjectId] = (),
        follow: Callable[[Spool], None] | None = None,
    ) -> None:
        async with scratch_of(self._store) as scratch:
            with ExitStack() as held:
                received = None
                if missing:
                    received = scratch / "received.pack"
                    spool = Spool(received)
                    # Held to the end: until the segment is committed, clients join the spool.
                    held.enter_context(spool.held())
                    if mirror is None and follow is not None:
                        follow(spool)
                    await self._receive(spool, grant, sorted(missing), _haves(mirror))
                async with self._locks.setdefault(grant.key, trio.Lock()):
                    # Another pack may have been taken in meanwhile: this one goes on top.
                    base = self._store.get(grant.key)
                    now = refs if refs is not None else base.refs if base is not None else ()
                    job = IntakeJob(
                        received=received,
                        scratch=scratch,
                        segments=tuple((s.pack, s.table) for s in base.segments) if base else (),
                        tips=tuple(sorted(tips(now))),
                        old_tips=tuple(sorted(base.tips)) if base else (),
                        old_orphans=tuple({*orphans, *base.current.orphans}) if base else (),
                        max_object_bytes=self._max_object_bytes,
                    )
                    intake = await anyio.to_process.run_sync(
                        take_in, job, cancellable=True, limiter=self._workers
                    )
                    await trio.to_thread.run_sync(
                        lambda: self._store.commit(grant.key, base=base, refs=now, intake=intake)
                    )

    async def _receive(
        self, spool: Spool, grant: Grant, wants: Sequence[ObjectId], haves: Sequence[ObjectId]
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

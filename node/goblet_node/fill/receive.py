"""Receive a pack from upstream into a mirror: fetched, indexed in a worker, committed."""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import aclosing, contextmanager, nullcontext
from pathlib import Path
from weakref import WeakValueDictionary

import anyio
import anyio.to_process
import trio

from goblet_node.fill.niced import BEHIND_OTHERS, niced
from goblet_node.fill.room import Claim, NoRoom, Room, TooLarge
from goblet_node.fill.scratch import claim_files, scratch_of
from goblet_node.fill.spool import Spool
from goblet_node.fill.upstream import Grant, Upstream
from goblet_node.metrics import NodeMetrics
from goblet_node.mirror.budget import intake_needs
from goblet_node.mirror.intake import Intake, IntakeJob, take_in
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.refs import tips
from goblet_node.mirror.store import MirrorMoved, MirrorStore
from goblet_node.wire.fetch_reader import PackData
from goblet_node.wire.refs import JoinedIds, ObjectId, Ref
from goblet_shared.repo_key import RepoKey

# Enough for upstream to find a good boundary; a repository with 100,000 tags
# need not send them all. What is left out costs repeats, which intake drops.
MAX_HAVES = 4096
# How long the first pack of a repository rests before it is taken in, as times what it
# took to receive, and in seconds: about as long as git unpacks one on two cores. A cold
# clone on the node's own machine took 1.2 times a direct one without this, 1.1 with it.
_PAUSES = 3.0
_LONGEST_PAUSE = 5.0
# What ends for want of room after so many bytes is not fetched again soon: it would
# take as long, have as much evicted, and most likely end in the same way.
DEAR = 64 * 1024 * 1024
_PACK_HEADER = 12


class Receiver:
    """Brings objects from upstream into mirrors, any number of mirrors at once."""

    def __init__(
        self,
        *,
        store: MirrorStore,
        upstream: Upstream,
        room: Room,
        workers: anyio.CapacityLimiter,
        max_object_bytes: int,
        max_mirror_bytes: int | None = None,
        note_too_large: Callable[[RepoKey], None],
        metrics: NodeMetrics,
    ) -> None:
        """Index in at most `workers` processes at once.

        `note_too_large` is told of a repository whose mirror would have more than
        `max_mirror_bytes` (None: any number may be had), or that found no room for a
        pack which was dear to fetch.
        """
        self._store = store
        self._upstream = upstream
        self._room = room
        self._workers = workers
        self._max_object_bytes = max_object_bytes
        self._max_mirror_bytes = max_mirror_bytes
        self._note_too_large = note_too_large
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
        with self._room.claim(grant.key) as claim, self._kept(grant.key) as mirror:
            # In a thread, here and below: the first look at a mirror reads the disk, and
            # to sort 100,000 tips takes 70 ms.
            missing = await trio.to_thread.run_sync(_lacking, mirror, refs)
            if missing is None:
                return
            await self._take(grant, mirror, missing, claim, refs=refs, follow=follow)

    async def objects(self, grant: Grant, oids: Collection[ObjectId]) -> None:
        """Bring objects into a mirror that is there, though no ref of it reaches them.

        They count as orphans until one does. Raises what `refs` raises, UpstreamError
        if upstream does not have all of them.
        """
        with self._room.claim(grant.key) as claim, self._kept(grant.key) as mirror:
            if mirror is None:
                raise MirrorMoved("the mirror was dropped meanwhile: ask again")
            missing = await trio.to_thread.run_sync(mirror.missing, oids)
            if missing:
                await self._take(grant, mirror, missing, claim, orphans=oids)

    @contextmanager
    def _kept(self, key: RepoKey) -> Iterator[Mirror | None]:
        """Give the mirror that a pack is asked for on top of, which is not evicted meanwhile.

        A claim is not enough for that: an eviction may have begun before it.
        """
        mirror = self._store.get(key)
        with nullcontext() if mirror is None else self._store.reading(mirror):
            yield mirror

    async def _take(
        self,
        grant: Grant,
        mirror: Mirror | None,
        missing: Collection[ObjectId],
        claim: Claim,
        *,
        refs: Sequence[Ref] | None = None,
        orphans: Collection[ObjectId] = (),
        follow: Callable[[Spool], None] | None = None,
    ) -> None:
        async with scratch_of(self._store) as scratch:
            if not missing:
                await self._commit(grant.key, None, scratch, claim, refs, orphans)
                return
            received = scratch / "received.pack"
            spool = Spool(received, claim=claim, most=self._most_beside(mirror))
            # Held to the end: until the segment is committed, clients join the spool.
            with spool.held():
                if mirror is None and follow is not None:
                    follow(spool)
                try:
                    wants = await trio.to_thread.run_sync(sorted, missing)
                    haves = await trio.to_thread.run_sync(_haves, mirror)
                    began = trio.current_time()
                    await self._receive(spool, grant, wants, haves)
                    if mirror is None and follow is not None:
                        # Whoever has just received it unpacks it now, perhaps on this machine,
                        # and who asks meanwhile is sent the pack itself: nobody waits for us.
                        took = trio.current_time() - began
                        await trio.sleep(min(_PAUSES * took, _LONGEST_PAUSE))
                    await self._commit(grant.key, received, scratch, claim, refs, orphans)
                except NoRoom as exc:
                    if isinstance(exc, TooLarge) or spool.size >= DEAR:
                        self._note_too_large(grant.key)
                    raise

    async def _commit(
        self,
        key: RepoKey,
        received: Path | None,
        scratch: Path,
        claim: Claim,
        refs: Sequence[Ref] | None,
        orphans: Collection[ObjectId],
    ) -> None:
        """Make what was received, and the refs, the mirror's next generation."""
        async with self._locks.setdefault(key, trio.Lock()):
            # Another pack may have been taken in meanwhile: this one goes on top.
            base = self._store.get(key)
            now = refs if refs is not None else base.refs if base is not None else ()
            with nullcontext() if base is None else self._store.reading(base):
                job = await trio.to_thread.run_sync(
                    self._job, received, scratch, base, now, orphans
                )
                intake = await self._take_in(job, claim)
            await trio.to_thread.run_sync(
                lambda: self._store.commit(key, base=base, refs=now, intake=intake)
            )
            # At once: it is the mirror's now, and would be counted twice.
            claim.shrink_to(0)

    def _job(
        self,
        received: Path | None,
        scratch: Path,
        base: Mirror | None,
        refs: Sequence[Ref],
        orphans: Collection[ObjectId],
    ) -> IntakeJob:
        return IntakeJob(
            received=received,
            scratch=scratch,
            segments=base.files if base else (),
            tips=JoinedIds.of(sorted(tips(refs))),
            old_tips=JoinedIds.of(sorted(base.tips) if base else ()),
            old_orphans=JoinedIds.of({*orphans, *base.current.orphans} if base else ()),
            max_object_bytes=self._max_object_bytes,
        )

    async def _take_in(self, job: IntakeJob, claim: Claim) -> Intake:
        if job.received is not None:
            size, objects = await trio.to_thread.run_sync(_head_of, job.received)
            claim.shrink_to(size)
            more = intake_needs(size, objects=objects, grows=bool(job.segments))
            await claim.grow_to(size + more)
        niceness = 0 if job.segments else BEHIND_OTHERS
        intake = await anyio.to_process.run_sync(
            niced, take_in, job, niceness, cancellable=True, limiter=self._workers
        )
        # What was claimed was an estimate; this is what it came to.
        await claim_files(claim, job.scratch)
        return intake

    async def _receive(
        self, spool: Spool, grant: Grant, wants: Sequence[ObjectId], haves: Sequence[ObjectId]
    ) -> None:
        """Fetch a pack into `spool`, which has ended, well or ill, when this returns or raises.

        What came well but was not kept is raised, too, once those who follow have it.
        """
        try:
            events = self._upstream.fetch(grant, wants=wants, haves=haves)
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, PackData):
                        await spool.append(event.data)
                        self._metrics.received_bytes.inc(len(event.data))
                    else:
                        spool.say(event.data)
            spool.finish()
        except Exception as exc:
            spool.fail(exc)
            raise
        if spool.not_kept is not None:
            # What they have not read takes room still.
            await spool.drained()
            raise spool.not_kept

    def _most_beside(self, mirror: Mirror | None) -> int | None:
        """Return how large a pack may be that comes to a mirror."""
        if self._max_mirror_bytes is None:
            return None
        return max(0, self._max_mirror_bytes - (0 if mirror is None else mirror.bytes))


def _lacking(mirror: Mirror | None, refs: Sequence[Ref]) -> Collection[ObjectId] | None:
    """Return which tips of `refs` a mirror lacks, None if it holds just these refs."""
    if mirror is None:
        return tips(refs)
    return None if mirror.refs == tuple(refs) else mirror.missing(tips(refs))


def _haves(mirror: Mirror | None) -> tuple[ObjectId, ...]:
    """Return what to tell upstream that the log holds: branches first, then tags, then orphans.

    Objects that only orphans reach are held too; named, upstream does not repeat them.
    """
    if mirror is None:
        return ()
    refs = sorted(mirror.refs, key=lambda ref: ref.name.startswith(b"refs/tags"))
    held = [ref.oid for ref in refs if ref.oid is not None]
    return tuple(dict.fromkeys([*held, *mirror.current.orphans]))[:MAX_HAVES]


def _head_of(pack: Path) -> tuple[int, int]:
    """Return how large a pack is, and how many objects it says that it has."""
    with pack.open("rb") as file:
        head = file.read(_PACK_HEADER)
        return os.fstat(file.fileno()).st_size, int.from_bytes(head[8:])

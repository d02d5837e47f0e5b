"""Keep the logs of mirrors in shape: join small segments, renew worn logs, when it is quiet.

One at a time, in a worker process that gives way to all others. What is due waits until
nobody has asked for that mirror for a while and few ask for anything; but not for ever,
for on a node that is always busy it would never come.
"""

import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_process
import trio

from goblet_node.errors import MirrorDamaged
from goblet_node.fill.niced import niced
from goblet_node.fill.room import Claim, NoRoom, Room
from goblet_node.fill.scratch import scratch_of
from goblet_node.metrics import NodeMetrics
from goblet_node.mirror.intake import Intake
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.merge import JoinJob, join_segments, to_join
from goblet_node.mirror.store import MirrorMoved, MirrorStore
from goblet_node.mirror.wear import Bounds, RenewJob, WearJob, is_worn
from goblet_node.wire.refs import JoinedIds, ObjectId
from goblet_shared.errors import GobletError
from goblet_shared.repo_key import RepoKey

T = TypeVar("T")
J = TypeVar("J")

log = logging.getLogger(__name__)

# How often the mirrors are looked through: 10,000 of them take some milliseconds.
_PAUSE = 2.0
# How often the disk is told what was used, a file time for each.
_NOTE_EVERY = 60.0
# A chain grows by one with each generation at most: when a log that lost nothing is
# worth a look again.
_CHAINS_GROW_BY = 32
# As long as git makes chains itself (pack.depth).
_NEW_DEPTH = 50
# Beside a renewed log there is, for a while, what was made for it alone.
_RENEWED_TAKES = 2
# So many segments are joined without waiting for quiet, or for room that is free anyway:
# each costs whoever reads the log a descriptor.
_TOO_MANY = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class TidyRules:
    """When a mirror is tidied.

    Attributes:
        quiet: For so many seconds nobody must have asked for it.
        patience: After so many seconds it is no longer waited for quiet.
        bounds: When its log is worn out.
        busy_at: With so many requests in flight the node is not quiet.
        again_after: Seconds before it is tried again after a failure, or looked at again.
    """

    quiet: float
    patience: float
    bounds: Bounds
    busy_at: int = 2
    again_after: float = 600.0


@dataclass(slots=True, kw_only=True)
class _Seen:
    """What is remembered of one mirror; times are of the node's clock."""

    due_since: float | None = None
    not_before: float = -math.inf
    # When its wear was looked at last, at which generation, and with which orphans.
    looked_at: float = -math.inf
    generation: int = 0
    orphans: tuple[ObjectId, ...] = ()


class Tidier:
    """Looks through all mirrors again and again, and tidies one after another."""

    def __init__(
        self,
        *,
        store: MirrorStore,
        room: Room,
        is_refreshing: Callable[[RepoKey], bool],
        drop: Callable[[Mirror, MirrorDamaged], Awaitable[None]],
        renew: Callable[[RenewJob], Intake],
        discard: Callable[[RepoKey], None],
        rules: TidyRules,
        metrics: NodeMetrics,
        clock: Callable[[], float] = trio.current_time,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Renew with `renew`, in a worker process, and `drop` what proves to be damaged.

        `discard` is called, in a thread, with the repository of a log that was renewed:
        what was deleted upstream must not outlive the log that held it. `wall_clock` is
        the one that uses of mirrors are noted by.
        """
        self._store = store
        self._room = room
        self._is_refreshing = is_refreshing
        self._drop = drop
        self._renew = renew
        self._discard = discard
        self._rules = rules
        self._metrics = metrics
        self._clock = clock
        self._wall_clock = wall_clock
        self._worker = anyio.CapacityLimiter(1)
        # All mutable state. Changed only by the task that runs.
        self._seen: dict[RepoKey, _Seen] = {}

    async def run(self) -> None:
        """Tidy for ever; cancelled, the work under way is lost and nothing else."""
        noted_at = self._clock()
        while True:
            await trio.sleep(_PAUSE)
            await trio.to_thread.run_sync(self._store.sweep)
            if self._clock() - noted_at >= _NOTE_EVERY:
                noted_at = self._clock()
                await trio.to_thread.run_sync(self._store.note_uses)
            await self.tidy_next()

    async def tidy_next(self) -> bool:
        """Tidy, of the mirrors that may be now, the one that waited longest; False if none may."""
        self._seen = {key: self._seen.get(key) or _Seen() for key in self._store.keys()}  # noqa: SIM118
        due = sorted(self._due(), key=lambda mirror: self._seen[mirror.key].due_since or 0.0)
        for mirror in due:
            if self._may_begin(mirror):
                await self._tidy(mirror)
                return True
        return False

    def _due(self) -> Iterator[Mirror]:
        now = self._clock()
        for key, seen in self._seen.items():
            mirror = self._store.get(key)
            if mirror is None or not (self._joint(mirror) or self._may_be_worn(mirror)):
                seen.due_since = None
            elif now >= seen.not_before:
                if seen.due_since is None:
                    seen.due_since = now
                yield mirror

    def _may_be_worn(self, mirror: Mirror) -> bool:
        """Say whether it is time to look how worn the log is."""
        seen = self._seen[mirror.key]
        grown = mirror.current.number - seen.generation
        is_changed = mirror.current.orphans != seen.orphans or grown >= _CHAINS_GROW_BY
        return is_changed and self._clock() - seen.looked_at >= self._rules.again_after

    def _may_begin(self, mirror: Mirror) -> bool:
        if self._is_refreshing(mirror.key):
            return False
        due_since = self._seen[mirror.key].due_since
        has_waited = due_since is not None and self._clock() - due_since >= self._rules.patience
        return has_waited or _has_too_many(mirror) or self._is_quiet(mirror.key)

    def _is_quiet(self, key: RepoKey) -> bool:
        return (
            self._metrics.requests_in_flight() < self._rules.busy_at
            and self._wall_clock() - self._store.used_at(key) >= self._rules.quiet
            and not self._store.is_in_use(key)
        )

    async def _tidy(self, mirror: Mirror) -> None:
        joint = self._joint(mirror)
        try:
            if joint is not None:
                await self._join(mirror, joint)
                outcome = "joined"
            else:
                outcome = "renewed" if await self._renew_if_worn(mirror) else "left"
        except Exception as exc:
            outcome = "failed"
            self._seen[mirror.key].not_before = self._clock() + self._rules.again_after
            await self._note_failure(mirror, exc)
        self._metrics.tidied.labels(outcome).inc()
        await trio.to_thread.run_sync(self._store.sweep)

    async def _note_failure(self, mirror: Mirror, error: Exception) -> None:
        if isinstance(error, MirrorDamaged):
            await self._drop(mirror, error)
        elif isinstance(error, GobletError | anyio.BrokenWorkerProcess):
            log.warning("the mirror of %s is not tidied now: %s", mirror.key, error)
        else:
            log.error("tidying the mirror of %s failed", mirror.key, exc_info=error)

    async def _join(self, mirror: Mirror, joint: range) -> None:
        size = sum(_sizes(mirror)[joint.start : joint.stop])
        async with self._place_for(mirror, size, evict=_has_too_many(mirror)) as (scratch, claim):
            with self._store.reading(mirror):
                files = mirror.files[joint.start : joint.stop]
                joined = await self._work(join_segments, JoinJob(segments=files, scratch=scratch))
            await trio.to_thread.run_sync(
                self._store.replace, mirror, joint.start, joint.stop, joined
            )
            # At once: it is the mirror's now, and would be counted twice.
            claim.shrink_to(0)
        log.info("%d segments of the mirror of %s are joined", len(joint), mirror.key)

    async def _renew_if_worn(self, mirror: Mirror) -> bool:
        """Renew a log if it is worn out; say whether it was."""
        with self._store.reading(mirror):
            tips = await trio.to_thread.run_sync(lambda: JoinedIds.of(mirror.tips))
            job = WearJob(segments=mirror.files, tips=tips, bounds=self._rules.bounds)
            must_renew = await self._work(is_worn, job)
        if must_renew:
            await self._renew_now(mirror, tips)
        seen = self._seen[mirror.key]
        seen.looked_at, seen.generation = self._clock(), mirror.current.number
        seen.orphans = () if must_renew else mirror.current.orphans
        return must_renew

    async def _renew_now(self, mirror: Mirror, tips: JoinedIds) -> None:
        size = _RENEWED_TAKES * mirror.bytes
        async with self._place_for(mirror, size, evict=False) as (scratch, claim):
            with self._store.reading(mirror):
                job = RenewJob(
                    segments=mirror.files, tips=tips, most_depth=_NEW_DEPTH, scratch=scratch
                )
                renewed = await self._work(self._renew, job)
            if self._is_refreshing(mirror.key):
                # What it takes in was made for the log that is there now.
                raise MirrorMoved("it is being refreshed")
            now = await trio.to_thread.run_sync(self._put_renewed, mirror, renewed)
            claim.shrink_to(0)
        log.info(
            "the log of %s is renewed: of %d bytes, now %d", mirror.key, mirror.bytes, now.bytes
        )

    def _put_renewed(self, mirror: Mirror, renewed: Intake) -> Mirror:
        # In one thread, which nothing cancels: the answers must not outlive the log.
        now = self._store.renew(mirror, renewed)
        self._discard(mirror.key)
        return now

    @asynccontextmanager
    async def _place_for(
        self, mirror: Mirror, bytes: int, *, evict: bool
    ) -> AsyncIterator[tuple[Path, Claim]]:
        """Give a folder, and room for so many bytes in it. Raises NoRoom.

        Unless `evict`, no other mirror and no recording has to go for this.
        """
        if not evict and self._room.used + bytes > self._room.cap:
            raise NoRoom(f"there is no room for {bytes} bytes")
        with self._room.claim(mirror.key) as claim:
            await claim.grow_to(bytes)
            async with scratch_of(self._store) as scratch:
                yield scratch, claim

    def _joint(self, mirror: Mirror) -> range | None:
        """Return which segments are to be joined: no more than there can be room for."""
        return to_join(_sizes(mirror), at_most=self._room.cap - mirror.bytes)

    async def _work(self, function: Callable[[J], T], job: J) -> T:
        return await anyio.to_process.run_sync(
            niced, function, job, cancellable=True, limiter=self._worker
        )


def _sizes(mirror: Mirror) -> list[int]:
    return [segment.bytes + segment.beside for segment in mirror.segments]


def _has_too_many(mirror: Mirror) -> bool:
    return len(mirror.segments) >= _TOO_MANY

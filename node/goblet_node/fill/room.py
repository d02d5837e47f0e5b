"""Room on the disk: whoever is about to write claims it, and what is needed least makes way.

Use is a running number: what the mirrors and the recordings say that they take, and
what is claimed. Nothing walks the disk. After a crash all three are right again: the
mirrors and recordings that are found count themselves, and nothing is claimed, for
the scratch is empty.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import trio

from goblet_node.errors import DiskFailed
from goblet_node.metrics import NodeMetrics
from goblet_node.mirror.budget import Cap, Eviction, Kept, Use, what_to_evict
from goblet_node.mirror.log import Mirror
from goblet_shared.errors import GobletError
from goblet_shared.repo_key import RepoKey

log = logging.getLogger(__name__)


class NoRoom(DiskFailed):
    """What is to be written finds no room, whatever is deleted that is not in use."""


class TooLarge(NoRoom):
    """What is to be written is more than may be kept, or than was to be had in a long attempt."""


class Mirrors(Protocol):
    """The mirrors, as far as room is made of them: what MirrorStore says of each."""

    @property
    def total_bytes(self) -> int:
        """How many bytes all of them take on disk, known without looking there."""

    def sizes(self) -> Mapping[RepoKey, int]:
        """Return how many bytes each takes."""

    def used_at(self, key: RepoKey) -> float:
        """Return when it was last used: the later, the greater."""

    def is_in_use(self, key: RepoKey) -> bool:
        """Say whether somebody reads it, or changes it."""

    def get(self, key: RepoKey) -> Mirror | None:
        """Return it as it is now."""

    def evict(self, key: RepoKey, *, only: Mirror) -> int:
        """Delete it if nobody uses it and it is `only` still; return how many bytes that frees.

        Called in a thread.
        """


class Recorded(Protocol):
    """The recordings, as far as room is made of them: what Recordings says of all."""

    @property
    def total(self) -> int:
        """How many bytes they take on disk."""

    def free(self, bytes: int) -> int:
        """Delete the least recently used until so many bytes are free; return how many are.

        Called in a thread.
        """

    def discard(self, key: RepoKey) -> None:
        """Delete all of one repository. Called in a thread."""


class Claim:
    """Bytes on the disk that one task may fill, on behalf of one repository."""

    def __init__(self, room: "Room", key: RepoKey) -> None:
        self._room = room
        self.key = key
        self.bytes = 0

    async def grow_to(self, bytes: int, *, gladly: int = 0) -> None:
        """Have at least so many bytes, once what is needed less was deleted. Raises NoRoom.

        Up to `gladly` more are had if they are free anyway. If this raises, or is
        cancelled, the claim is what it was.
        """
        if bytes > self.bytes:
            more = bytes - self.bytes
            more += max(0, min(gladly, self._room.cap - self._room.used - more))
            await self._room.reserve(more)
            self.bytes += more

    def shrink_to(self, bytes: int) -> None:
        """Keep at most so many bytes, and give the others back."""
        if bytes < self.bytes:
            self._room.release(self.bytes - bytes)
            self.bytes = bytes


class Room:
    """The cap on what mirrors, recordings and writes under way take together."""

    def __init__(
        self, *, cap: int, mirrors: Mirrors, recordings: Recorded, metrics: NodeMetrics
    ) -> None:
        """Keep below `cap` bytes; what takes them now may be more, until `settle`."""
        self.cap = cap
        self._mirrors = mirrors
        self._recordings = recordings
        self._metrics = metrics
        # All mutable state. Changed only between awaits; `_making` is held by the one
        # task that evicts, so that two do not evict for the same want.
        self._reserved = 0
        self._claimants: Counter[RepoKey] = Counter()
        self._making = trio.Lock()

    @property
    def used(self) -> int:
        """Bytes that mirrors and recordings take, and what is claimed."""
        return self._mirrors.total_bytes + self._recordings.total + self._reserved

    def kinds(self) -> Mapping[str, Callable[[], int]]:
        """Return what `used` is the sum of, by name."""
        return {
            "mirrors": lambda: self._mirrors.total_bytes,
            "recordings": lambda: self._recordings.total,
            "claimed": lambda: self._reserved,
        }

    @contextmanager
    def claim(self, key: RepoKey) -> Iterator[Claim]:
        """Give a claim of no bytes yet; whatever it grew to is given back at the end.

        Meanwhile the repository's mirror is not deleted to make room: what is being
        written may be made for it.
        """
        claim = Claim(self, key)
        self._claimants[key] += 1
        try:
            yield claim
        finally:
            claim.shrink_to(0)
            self._claimants[key] -= 1
            if not self._claimants[key]:
                del self._claimants[key]

    async def reserve(self, bytes: int) -> None:
        """Promise so many bytes to a write, once there are. Raises NoRoom; then nothing changed."""
        if self.used + bytes <= self.cap:
            self._reserved += bytes
            return
        async with self._making:
            # Promised before anything is deleted: else whoever asks meanwhile
            # would take what becomes free.
            self._reserved += bytes
            try:
                await self._keep_cap()
            except BaseException:
                self._reserved -= bytes
                raise

    def release(self, bytes: int) -> None:
        """Take so many promised bytes back."""
        self._reserved -= bytes

    async def settle(self) -> None:
        """Delete what is above the cap, for a node that starts with a smaller one than before."""
        async with self._making:
            try:
                await self._keep_cap()
            except NoRoom as exc:
                log.warning("the cache stays above its cap: %s", exc)
        log.info("the cache takes %d bytes of the %d that it may", self.used, self.cap)

    async def _keep_cap(self) -> None:
        """Evict until the cap is kept. Raises NoRoom, before anything is lost if that is known."""
        stuck: set[RepoKey] = set()
        are_recordings_stuck = False
        while self.used > self.cap:
            eviction = what_to_evict(self._use(stuck, are_recordings_stuck))
            if eviction is None:
                self._metrics.no_room.inc()
                raise NoRoom(
                    f"the cache of this node has no room left: its {self.cap} bytes are in use"
                )
            freed = await self._free_recordings(eviction)
            are_recordings_stuck |= freed < eviction.recordings
            for key in eviction.mirrors:
                if self.used <= self.cap:
                    break  # somebody gave a claim back meanwhile
                if not await self._evict(key):
                    # It is being read or changed by now, or the disk refused.
                    stuck.add(key)

    def _use(self, stuck: set[RepoKey], are_recordings_stuck: bool) -> Use:
        recordings = 0 if are_recordings_stuck else self._recordings.total
        # Left out where recordings are enough: that is asked for with each megabyte that
        # comes while the cache is full, and 10,000 mirrors take 45 ms.
        is_enough = self.used - recordings <= self.cap
        sizes = {} if is_enough else self._mirrors.sizes()
        return Use(
            cap=self.cap,
            mirrors=[
                Kept(
                    key=key,
                    bytes=bytes,
                    used_at=self._mirrors.used_at(key),
                    is_in_use=key in stuck or self._is_in_use(key),
                )
                for key, bytes in sizes.items()
            ],
            recordings=recordings,
            # With claims all that cannot be deleted: segments that were replaced and
            # are read still, for one.
            reserved=self.used - sum(sizes.values()) - recordings,
        )

    def _is_in_use(self, key: RepoKey) -> bool:
        return key in self._claimants or self._mirrors.is_in_use(key)

    async def _free_recordings(self, eviction: Eviction) -> int:
        if not eviction.recordings:
            return 0
        freed = await trio.to_thread.run_sync(self._recordings.free, eviction.recordings)
        log.info("evicted recordings of %d bytes", freed)
        self._note("recordings", freed)
        return freed

    async def _evict(self, key: RepoKey) -> int:
        """Delete a mirror that is idle still; return how many bytes that freed."""
        mirror = self._mirrors.get(key)
        if mirror is None or self._is_in_use(key):
            return 0

        def delete() -> int:
            freed = self._mirrors.evict(key, only=mirror)
            if freed:
                # What was recorded of it may not be asked for when it is cold.
                self._recordings.discard(key)
            return freed

        try:
            # Not abandoned on cancel: half a deletion would free nothing that is counted.
            freed = await trio.to_thread.run_sync(delete)
        except GobletError as exc:
            log.warning("the mirror of %s could not be evicted: %s", key, exc)
            return 0
        if freed:
            log.info("evicted the mirror of %s, %d bytes", key, freed)
            self._note("mirror", freed)
        return freed

    def _note(self, kind: str, freed: int) -> None:
        self._metrics.evictions.labels(kind).inc()
        self._metrics.evicted_bytes.labels(kind).inc(freed)


def cap_in(root: Path, cap: Cap) -> int:
    """Return a cap in bytes for the file system of `root`, by its size as it is now.

    Raises:
        BadCap: that file system cannot have it.
        DiskFailed: it cannot be asked.
    """
    try:
        about = os.statvfs(root)
    except OSError as exc:
        raise DiskFailed(f"the cache root {str(root)!r} cannot be read ({exc.strerror})") from exc
    return cap.of(about.f_frsize * about.f_blocks)

"""What each mirror takes on disk, and when it was used last.

Both are kept in memory and found again at a start: sizes from the manifests, uses from
the times of the manifest files, which are set now and then. Every method may be
called by any thread, and none waits for the disk.
"""

import threading
import time
from collections.abc import Callable, Mapping

from goblet_shared.repo_key import RepoKey

# How old the use that the disk knows may become while a mirror is used all the time.
NOTED_WITHIN = 300.0


class Usage:
    """Sizes and uses of all mirrors of a cache root."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        # All mutable state, guarded by `_lock`.
        self._lock = threading.Lock()
        self._sizes: dict[RepoKey, int] = {}
        self._total = 0
        self._used_at: dict[RepoKey, float] = {}
        self._noted_at: dict[RepoKey, float] = {}

    def found(self, key: RepoKey, *, bytes: int, used_at: float) -> None:
        """Note what a mirror takes from now on, and the use of it that is on the disk."""
        with self._lock:
            self._total += bytes - self._sizes.get(key, 0)
            self._sizes[key] = bytes
            self._used_at[key] = max(used_at, self._used_at.get(key, 0.0))
            self._noted_at[key] = used_at

    def touch(self, key: RepoKey) -> None:
        """Note that a mirror is used now, if it is there."""
        with self._lock:
            if key in self._sizes:
                self._used_at[key] = self._clock()

    def forget(self, key: RepoKey) -> int:
        """Forget a mirror; return what it took."""
        with self._lock:
            size = self._sizes.pop(key, 0)
            self._total -= size
            self._used_at.pop(key, None)
            self._noted_at.pop(key, None)
            return size

    def sizes(self) -> Mapping[RepoKey, int]:
        """Return what each mirror takes."""
        with self._lock:
            return dict(self._sizes)

    @property
    def total(self) -> int:
        """What all mirrors take together."""
        with self._lock:
            return self._total

    def used_at(self, key: RepoKey) -> float:
        """Return when a mirror was used last, in seconds since 1970; 0 if that is not known."""
        with self._lock:
            return self._used_at.get(key, 0.0)

    def take_due(self) -> Mapping[RepoKey, float]:
        """Return the uses that the disk should be told of, and count them as told."""
        with self._lock:
            due = {
                key: at
                for key, at in self._used_at.items()
                if at - self._noted_at[key] > NOTED_WITHIN
            }
            self._noted_at.update(due)
            return due

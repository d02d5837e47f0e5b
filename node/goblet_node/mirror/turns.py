"""One thread at a time changes a mirror; the others wait for their turn."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakValueDictionary

from goblet_shared.repo_key import RepoKey


class Turns:
    """A lock for each repository that threads are changing, or wait to change."""

    def __init__(self) -> None:
        # All mutable state, guarded by `_guard`. A lock is there while a thread has it.
        self._guard = threading.Lock()
        self._locks: WeakValueDictionary[RepoKey, threading.Lock] = WeakValueDictionary()

    @contextmanager
    def alone(self, key: RepoKey) -> Iterator[None]:
        """Wait until no other thread has its turn, and keep others waiting."""
        with self._lock_of(key):
            yield

    @contextmanager
    def alone_now(self, key: RepoKey) -> Iterator[bool]:
        """Do what `alone` does if nobody else has a turn; give False, without waiting, if so."""
        lock = self._lock_of(key)
        is_mine = lock.acquire(blocking=False)
        try:
            yield is_mine
        finally:
            if is_mine:
                lock.release()

    def is_taken(self, key: RepoKey) -> bool:
        """Say whether somebody has a turn."""
        with self._guard:
            lock = self._locks.get(key)
        return lock is not None and lock.locked()

    def _lock_of(self, key: RepoKey) -> threading.Lock:
        with self._guard:
            lock = self._locks.get(key)
            if lock is None:
                lock = self._locks[key] = threading.Lock()
            return lock

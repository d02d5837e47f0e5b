"""Who reads which mirrors, and which segments wait to be deleted until nobody does.

Memory only. Every method may be called by any thread, and none waits for the disk.
"""

import threading
from collections import Counter
from collections.abc import Collection, Iterable

from goblet_node.mirror.log import Mirror, Segment
from goblet_shared.repo_key import RepoKey


class Leases:
    """Counts the readers of each mirror, old ones too, and knows what they keep alive."""

    def __init__(self) -> None:
        # All mutable state, guarded by `_lock`. A mirror is there while it is read.
        self._lock = threading.Lock()
        self._readers: dict[RepoKey, Counter[Mirror]] = {}
        self._retired: dict[RepoKey, frozenset[Segment]] = {}
        self._closed: set[RepoKey] = set()

    def take(self, mirror: Mirror) -> bool:
        """Count one more reader; False, and none counted, while the repository is closed."""
        with self._lock:
            if mirror.key in self._closed:
                return False
            self._readers.setdefault(mirror.key, Counter())[mirror] += 1
            return True

    def give_back(self, mirror: Mirror) -> None:
        """Count one reader less."""
        with self._lock:
            readers = self._readers[mirror.key]
            readers[mirror] -= 1
            if not readers[mirror]:
                del readers[mirror]
            if not readers:
                del self._readers[mirror.key]

    def is_held(self, key: RepoKey) -> bool:
        """Say whether anybody reads a mirror of this repository."""
        with self._lock:
            return key in self._readers

    def close(self, key: RepoKey) -> bool:
        """Let nobody read from now on; False, and nothing is changed, if somebody does."""
        with self._lock:
            if key in self._readers or key in self._closed:
                return False
            self._closed.add(key)
            return True

    def reopen(self, key: RepoKey) -> None:
        """Let mirrors of this repository be read again."""
        with self._lock:
            self._closed.discard(key)

    def retire(self, key: RepoKey, segments: Iterable[Segment]) -> None:
        """Note segments that the current mirror does not name any more."""
        with self._lock:
            retired = self._retired.get(key, frozenset()).union(segments)
            if retired:
                self._retired[key] = retired

    def retired(self, key: RepoKey) -> frozenset[Segment]:
        """Return the segments that were retired and not yet released."""
        with self._lock:
            return self._retired.get(key, frozenset())

    def release(self, key: RepoKey) -> frozenset[Segment]:
        """Return, and forget, the retired segments that no reader's mirror names."""
        with self._lock:
            readers: Collection[Mirror] = self._readers.get(key, ())
            named = frozenset[Segment]().union(*(mirror.segments for mirror in readers))
            retired = self._retired.pop(key, frozenset())
            if kept := retired & named:
                self._retired[key] = kept
            return retired - named

    def forget(self, key: RepoKey) -> None:
        """Forget what was retired: the whole mirror was deleted."""
        with self._lock:
            self._retired.pop(key, None)

    def waiting(self) -> tuple[RepoKey, ...]:
        """Return the repositories with retired segments."""
        with self._lock:
            return tuple(self._retired)

    @property
    def bytes(self) -> int:
        """What the retired segments take on disk."""
        with self._lock:
            retired = [segment for segments in self._retired.values() for segment in segments]
        return sum(segment.bytes + segment.beside for segment in retired)

"""Room to write in, for tests: mirrors and recordings that are nothing but their sizes."""

from collections.abc import Callable, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry

from goblet_node.fill.room import Claim, Mirrors, Recorded, Room
from goblet_node.metrics import NodeMetrics
from goblet_node.mirror.log import Lazy, Mirror
from goblet_node.mirror.table import Table
from goblet_shared.repo_key import RepoKey

PLENTY = 1 << 50
"""A cap that nothing reaches."""


class SizedMirrors:
    """Mirrors in memory, by their sizes; the order in which they were added is that of their use.

    `evicted` lists those that went, in order. `before_eviction` is called in the
    thread that evicts, with the key.
    """

    def __init__(self, sizes: Mapping[str, int] | None = None) -> None:
        self._mirrors = {RepoKey(name): mirror_of(name) for name in sizes or {}}
        self._sizes = {RepoKey(name): size for name, size in (sizes or {}).items()}
        self.in_use: set[str] = set()
        self.evicted: list[str] = []
        self.before_eviction: Callable[[str], None] = lambda _: None

    @property
    def total_bytes(self) -> int:
        return sum(self._sizes.values())

    def add(self, name: str, size: int) -> None:
        """Have one more mirror, used last."""
        self._mirrors[RepoKey(name)] = mirror_of(name)
        self._sizes[RepoKey(name)] = size

    def sizes(self) -> Mapping[RepoKey, int]:
        return dict(self._sizes)

    def used_at(self, key: RepoKey) -> float:
        return list(self._sizes).index(key)

    def is_in_use(self, key: RepoKey) -> bool:
        return key in self.in_use

    def get(self, key: RepoKey) -> Mirror | None:
        return self._mirrors.get(key)

    def evict(self, key: RepoKey, *, only: Mirror) -> int:
        self.before_eviction(key)
        if key in self.in_use or self._mirrors.get(key) is not only:
            return 0
        self.evicted.append(key)
        del self._mirrors[key]
        return self._sizes.pop(key)


class SizedRecordings:
    """Recordings of one byte each, all of them as good as another."""

    def __init__(self, total: int = 0) -> None:
        self.total = total
        self.discarded: list[str] = []

    def free(self, bytes: int) -> int:
        freed = min(bytes, self.total)
        self.total -= freed
        return freed

    def discard(self, key: RepoKey) -> None:
        self.discarded.append(key)


def room_of(
    cap: int = PLENTY, *, mirrors: Mirrors | None = None, recordings: Recorded | None = None
) -> Room:
    """Return room below `cap` bytes, beside these mirrors and recordings."""
    return Room(
        cap=cap,
        mirrors=mirrors or SizedMirrors(),
        recordings=recordings or SizedRecordings(),
        metrics=NodeMetrics(CollectorRegistry()),
    )


def claim_of(cap: int = PLENTY) -> Claim:
    """Return a claim that may grow to `cap`, for who has nothing else to do with room."""
    return Claim(room_of(cap), RepoKey("origin.test/org/repo"))


def mirror_of(name: str) -> Mirror:
    """Return a mirror that is nothing but its name."""
    return Mirror(
        key=RepoKey(name),
        directory=Path(name),
        segments=(),
        generations=(),
        lineage=name,
        lazy_refs=Lazy.of(()),
        lazy_table=Lazy(_no_table),
    )


def _no_table() -> Table:
    raise AssertionError("a mirror that is but a name has no table")

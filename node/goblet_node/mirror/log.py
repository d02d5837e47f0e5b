"""One mirror: the segments of its pack log, and the generations that stand on them.

All of these are values. A commit makes a new Mirror; whoever reads the old one
goes on reading it, its segments lie where they lay.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from goblet_node.errors import MirrorDamaged
from goblet_node.mirror.disk import read_file
from goblet_node.mirror.refs import decode_refs, tips
from goblet_node.mirror.table import Table
from goblet_node.wire.refs import ObjectId, Ref
from goblet_shared.repo_key import RepoKey

T = TypeVar("T")

# How far back a client may be and still be recognised by the tips it names. Far
# above what lies between an ls-refs and its fetch, or between two runs of a CI.
KEPT_GENERATIONS = 256

# Of how many generations the refs files stay. Only the current one's is needed;
# the others serve whoever still holds an older Mirror and had not read its refs.
# Not KEPT_GENERATIONS: with 100,000 refs a file has 7 MB.
KEPT_REFS_FILES = 8

# A generation knows its tips as the difference to the one before it, because
# 256 whole sets of 100,000 tips would need gigabytes. This bounds the differences
# (about 100 bytes each, in memory and in the manifest) where all refs change often.
KEPT_TIP_CHANGES = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One immutable pack of the log, possibly thin, and the table of its entries.

    `bytes` is the size of the pack file, `checksum` its trailer in hexadecimal.
    """

    number: int
    pack: Path
    table: Path
    objects: int
    bytes: int
    checksum: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """How far the log reached, with the refs as they were then.

    `segments` counts the segments from the log's start. `gained` and `lost` are
    the tips that this generation has and the one before it had not, and the
    reverse; both empty for the oldest that is kept. `orphans` are old tips whose
    objects the log holds and no ref of this generation reaches.
    """

    number: int
    segments: int
    refs_file: str
    orphans: tuple[ObjectId, ...] = ()
    gained: tuple[ObjectId, ...] = ()
    lost: tuple[ObjectId, ...] = ()

    @property
    def is_clean(self) -> bool:
        """Whether every object of the log up to here is reached by a ref."""
        return not self.orphans


class Lazy(Generic[T]):
    """A value that is read when it is first asked for, and kept.

    Two threads that ask at the same time may both read; they get equal values.
    """

    def __init__(self, read: Callable[[], T]) -> None:
        self._read = read
        self._value: T | None = None

    @classmethod
    def of(cls, value: T) -> "Lazy[T]":
        """Return one that has its value already."""
        lazy = cls(lambda: value)
        lazy._value = value
        return lazy

    @property
    def is_loaded(self) -> bool:
        """Whether `get` returns without touching the disk."""
        return self._value is not None

    def get(self) -> T:
        """Return the value; what reading raises propagates, and the next call reads again."""
        value = self._value
        if value is None:
            value = self._value = self._read()
        return value


@dataclass(frozen=True, kw_only=True, eq=False)
class Mirror:
    """What a node holds for one repository, as of one commit.

    `generations` run from the oldest kept to the current one and are never empty.
    The refs and the table are read from disk when first asked for: a caller for
    whom that matters (`is_loaded`) asks the first time in a thread.
    """

    key: RepoKey
    directory: Path
    segments: tuple[Segment, ...]
    generations: tuple[Generation, ...]
    lazy_refs: Lazy[tuple[Ref, ...]] = field(repr=False)
    lazy_table: Lazy[Table] = field(repr=False)

    @property
    def current(self) -> Generation:
        """The newest generation."""
        return self.generations[-1]

    @property
    def is_loaded(self) -> bool:
        """Whether `refs` and `table` are in memory."""
        return self.lazy_refs.is_loaded and self.lazy_table.is_loaded

    @property
    def refs(self) -> tuple[Ref, ...]:
        """The refs of the current generation, in upstream's order."""
        return self.lazy_refs.get()

    @cached_property
    def tips(self) -> frozenset[ObjectId]:
        """The tips of the current generation."""
        return tips(self.refs)

    @property
    def table(self) -> Table:
        """The table over the whole log.

        Raises:
            MirrorDamaged: a table file is damaged and cannot be made again.
        """
        return self.lazy_table.get()

    @property
    def bytes(self) -> int:
        """What the log's packs take on disk."""
        return sum(segment.bytes for segment in self.segments)

    def grew_from(self, earlier: "Mirror") -> bool:
        """Say whether this log begins with all segments of an earlier one."""
        return self.segments[: len(earlier.segments)] == earlier.segments

    def holds(self, oid: ObjectId) -> bool:
        """Say whether the log has this object."""
        return oid in self.table

    def missing(self, oids: Iterable[ObjectId]) -> list[ObjectId]:
        """Return those objects that the log has not."""
        return self.table.missing(oids)

    def refs_of(self, generation: Generation) -> tuple[Ref, ...]:
        """Return the refs of one of the newest KEPT_REFS_FILES generations.

        Raises:
            MirrorDamaged: the file is damaged, or gone because the generation is older.
        """
        if generation == self.current:
            return self.refs
        return decode_refs(read_file(self.directory / generation.refs_file))

    def tips_of(self, generation: Generation) -> frozenset[ObjectId]:
        """Return the tips of any kept generation."""
        found = set(self.tips)
        for newer in reversed(self.generations):
            if newer == generation:
                return frozenset(found)
            found.difference_update(newer.gained)
            found.update(newer.lost)
        raise ValueError(f"generation {generation.number} is not of this mirror")

    def generations_within(self, oids: AbstractSet[ObjectId]) -> Iterator[Generation]:
        """Yield, newest first, the generations whose every tip is among `oids`.

        One pass: the tips of a generation differ from its neighbour's by little.
        A generation without tips (an empty repository) is within anything.
        """
        missing = set(self.tips - oids)
        for generation in reversed(self.generations):
            if not missing:
                yield generation
            missing.difference_update(generation.gained)
            missing.update(oid for oid in generation.lost if oid not in oids)


def kept(generations: Sequence[Generation]) -> tuple[Generation, ...]:
    """Return the newest generations that the bounds allow, at least the last."""
    newest: list[Generation] = []
    changes = 0
    for generation in reversed(generations[-KEPT_GENERATIONS:]):
        newest.append(generation)
        changes += len(generation.gained) + len(generation.lost)
        if changes > KEPT_TIP_CHANGES:
            break
    newest[-1] = replace(newest[-1], gained=(), lost=())
    return tuple(reversed(newest))


def load_table(segments: Sequence[Segment], mend: Callable[[int], None]) -> Table:
    """Load the table of a log, after `mend(i)` has made anew each one that is lost or damaged.

    Raises:
        MirrorDamaged: a table is damaged still.
    """
    try:
        return _load(segments)
    except MirrorDamaged:
        # In log order: a thin segment is read with the tables before it.
        for position, segment in enumerate(segments):
            if not _is_whole(segment):
                mend(position)
        return _load(segments)


def _load(segments: Sequence[Segment]) -> Table:
    table = Table.load([segment.table for segment in segments])
    if table.checksums != tuple(bytes.fromhex(segment.checksum) for segment in segments):
        raise MirrorDamaged(
            f"a table beside {segments[0].pack.name!r} or after it is that of another pack; "
            "the mirror must be filled again"
        )
    return table


def _is_whole(segment: Segment) -> bool:
    try:
        _load([segment])
    except MirrorDamaged:
        return False
    return True

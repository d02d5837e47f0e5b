"""One mirror: the segments of its pack log, and the generations that stand on them.

All of these are values. A commit makes a new Mirror; whoever reads the old one
goes on reading it, its segments lie where they lay.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from goblet_node.errors import MirrorDamaged
from goblet_node.mirror.concat import HEADER_SIZE
from goblet_node.mirror.layout import SegmentFiles
from goblet_node.mirror.links import checksum_of
from goblet_node.mirror.refs import tips
from goblet_node.mirror.table import Table
from goblet_node.mirror.window import TRAILER_SIZE
from goblet_node.wire.refs import ObjectId, Ref
from goblet_shared.repo_key import RepoKey

T = TypeVar("T")

# How far back a client may be and still be recognised by the tips it names. Far
# above what lies between an ls-refs and its fetch, or between two runs of a CI.
KEPT_GENERATIONS = 256

# A generation knows its tips as the difference to the one before it, because
# 256 whole sets of 100,000 tips would need gigabytes. This bounds the differences
# (about 100 bytes each, in memory and in the manifest) where all refs change often.
KEPT_TIP_CHANGES = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One immutable pack of the log, possibly thin, with the table and links of its entries.

    `bytes` is the size of the pack file, `beside` that of table and links together,
    `checksum` the pack's trailer in hexadecimal.
    """

    number: int
    pack: Path
    table: Path
    links: Path
    objects: int
    bytes: int
    beside: int
    checksum: str

    @property
    def files(self) -> SegmentFiles:
        """All of its files."""
        return SegmentFiles(self.pack, self.table, self.links)

    @property
    def body(self) -> int:
        """How many bytes its entries are."""
        return self.bytes - HEADER_SIZE - TRAILER_SIZE


class Stretch(NamedTuple):
    """Bytes of a pack file that are entries of the log."""

    pack: Path
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """How far the log reached, with the refs as they were then.

    `objects` counts the objects that the log had, `bytes` those of its entries: of
    the bodies of its segments, laid end to end. Neither changes when segments are
    merged. `gained` and `lost` are the tips that this generation has and the one
    before it had not, and the reverse; both empty for the oldest that is kept.
    `orphans` are old tips whose objects the log holds and no ref of this generation
    reaches.
    """

    number: int
    objects: int
    bytes: int
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

    def peek(self) -> T | None:
        """Return the value if it was read."""
        return self._value

    def get(self) -> T:
        """Return the value; what reading raises propagates, and the next call reads again."""
        read, value = self._read, self._value
        if value is None:
            value = self._value = read()
            # What it was read from may be large: the table of the log as it was before.
            self._read = lambda: value
        return value


@dataclass(frozen=True, kw_only=True, eq=False)
class Mirror:
    """What a node holds for one repository, as of one commit.

    `generations` run from the oldest kept to the current one and are never empty.
    Mirrors of one log, which only grew and whose segments were only joined, have one
    `lineage`: what is known of a place in one of them holds in the later ones.
    The refs and the table are read from disk when first asked for: a caller for
    whom that matters asks the first time in a thread.
    """

    key: RepoKey
    directory: Path
    segments: tuple[Segment, ...]
    generations: tuple[Generation, ...]
    lineage: object = field(repr=False)
    lazy_refs: Lazy[tuple[Ref, ...]] = field(repr=False)
    lazy_table: Lazy[Table] = field(repr=False)

    @property
    def current(self) -> Generation:
        """The newest generation."""
        return self.generations[-1]

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
    def files(self) -> tuple[SegmentFiles, ...]:
        """The files of the log, segment 0 first: what a job in another process is given."""
        return tuple(segment.files for segment in self.segments)

    @cached_property
    def bytes(self) -> int:
        """What the log takes on disk."""
        return sum(segment.bytes + segment.beside for segment in self.segments)

    def stretches(self, begin: int, end: int) -> tuple[Stretch, ...]:
        """Return where the log's entries lie, from their byte `begin` up to their byte `end`.

        Both are a generation's `bytes`, or 0. The entries between are a part of a pack.
        """
        found = []
        first = 0
        for segment in self.segments:
            start, stop = max(begin - first, 0), min(end - first, segment.body)
            if start < stop:
                found.append(Stretch(segment.pack, HEADER_SIZE + start, stop - start))
            first += segment.body
        return tuple(found)

    def grew_from(self, earlier: "Mirror") -> bool:
        """Say whether this log begins with all of an earlier one, in whatever segments."""
        return self.lineage is earlier.lineage and self.current.objects >= earlier.current.objects

    def missing(self, oids: Iterable[ObjectId]) -> list[ObjectId]:
        """Return those objects that the log has not."""
        return self.table.missing(oids)

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


def log_size(segments: Iterable[Segment]) -> tuple[int, int]:
    """Return how many objects a log has, and how many bytes its entries are."""
    listed = tuple(segments)
    return sum(segment.objects for segment in listed), sum(segment.body for segment in listed)


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


def load_table(
    segments: Sequence[Segment], mend: Callable[[int], None], *, grown_from: Table | None = None
) -> Table:
    """Load the table of a log, and see that the links beside it are whole.

    First `mend(i)` makes anew the table and links of each segment where one of them is
    lost or damaged. What `grown_from` was loaded from is neither read nor checked again.

    Raises:
        MirrorDamaged: one is damaged still.
    """
    try:
        return _load(segments, grown_from)
    except MirrorDamaged:
        # In log order: a thin segment is read with the tables before it.
        for position, segment in enumerate(segments):
            if not _is_whole(segment):
                mend(position)
        return _load(segments, None)


def _load(segments: Sequence[Segment], grown_from: Table | None) -> Table:
    table = Table.load([segment.table for segment in segments], grown_from=grown_from)
    known = _common(() if grown_from is None else grown_from.checksums, table.checksums)
    checksums = [bytes.fromhex(segment.checksum) for segment in segments]
    linked = [checksum_of(segment.links) for segment in segments[known:]]
    if list(table.checksums) != checksums or linked != checksums[known:]:
        raise MirrorDamaged(
            f"what lies beside {segments[0].pack.name!r} or a pack after it is of another pack; "
            "the mirror must be filled again"
        )
    return table


def _common(one: Sequence[bytes], other: Sequence[bytes]) -> int:
    """Return with how many equal items both begin."""
    is_same = (a == b for a, b in zip(one, other, strict=False))
    return sum(1 for _ in takewhile(bool, is_same))


def _is_whole(segment: Segment) -> bool:
    try:
        _load([segment], None)
    except MirrorDamaged:
        return False
    return True

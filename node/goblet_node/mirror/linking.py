"""The links of a new segment: gathered while it is scanned, then written as places.

A large tree differs from its last version in one entry, and a repository may have a
hundred thousand versions of a tree of ten thousand entries. So the references of a
large tree are cut where the ids themselves say so (content-defined chunking, as in
A. Muthitacharoen et al., "A low-bandwidth network file system", SOSP 2001), and what
lies between two cuts is a bundle, stored once for all trees that hold it; a long list
of bundles is cut in the same way. Without this the links of such a repository would be
many times the size of its packs, and every walk would go through all of them.
"""

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Self

import numpy as np
from numpy.typing import NDArray

from goblet_node.mirror.links import BUNDLE, NO_BASE, Lists, Numbers, write_part
from goblet_node.mirror.table import Entries, Table, oid_array
from goblet_node.objects import DELTA_KINDS, RAW_ID_SIZE, TREE, PackRejected, hex_id

# Shorter lists are not cut: there is nothing to gain. A cut comes after every 32nd
# item on average, so that a change of one entry costs a bundle of about that many.
_CUT_FROM = 128
_CUT_MASK = 31
# As many bundles are remembered, 150 bytes each, to be found again. What is forgotten
# is stored twice, and costs nothing else.
_BUNDLES_AT_ONCE = 200_000
# Ids that wait to become places are held in memory up to this many bytes, then on disk.
_IDS_IN_MEMORY = 16 << 20
# How many ids become places at once: 20 MB of them, and twice that to look them up.
_IDS_AT_ONCE = 1 << 20


class _Rows:
    """Lists of references in the order in which they came.

    Those of ids lie on a tape. Those of bundles, which are few, stay in memory.
    """

    def __init__(self, scratch: Path) -> None:
        # Closed by the builder, which is the context manager.
        self.tape: IO[bytes] = SpooledTemporaryFile(  # noqa: SIM115
            max_size=_IDS_IN_MEMORY, dir=str(scratch)
        )
        self._owners, self._counts = array("I"), array("I")
        self._bundled_owners, self._bundled_counts = array("I"), array("I")
        self._bundles = array("I")

    def add(self, owner: int, ids: bytes) -> None:
        self._owners.append(owner)
        self._counts.append(len(ids) // RAW_ID_SIZE)
        self.tape.write(ids)

    def add_bundled(self, owner: int, bundles: Sequence[int]) -> None:
        self._bundled_owners.append(owner)
        self._bundled_counts.append(len(bundles))
        self._bundles.extend(bundles)

    def laid_out(self, rows: Numbers, count: int, begin: int) -> Lists:
        """Return where the lists of `count` rows lie if targets are written from `begin` on.

        `rows` are those of the owners, negative for an owner that is left out.
        """
        starts, counts = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.uint32)
        for owners, lengths in (
            (self._owners, self._counts),
            (self._bundled_owners, self._bundled_counts),
        ):
            owner = rows[np.array(owners, dtype=np.int64)]
            length = np.array(lengths, dtype=np.int64)[owner >= 0]
            owner = owner[owner >= 0]
            counts[owner] = length
            starts[owner] = begin + np.cumsum(length) - length
            begin += int(length.sum())
        return Lists(starts=starts, counts=counts)

    def targets(self, rows: Numbers, table: Table) -> Iterator[NDArray[np.uint32]]:
        """Yield the targets of all lists whose owners are not left out, as they are laid out."""
        is_kept = rows[np.array(self._owners, dtype=np.int64)] >= 0
        counts = np.array(self._counts, dtype=np.int64)
        self.tape.seek(0)
        for part in _parts(counts):
            ids = oid_array(self.tape.read(int(counts[part].sum()) * RAW_ID_SIZE))
            yield _places(ids[np.repeat(is_kept[part], counts[part])], table)
        is_kept = rows[np.array(self._bundled_owners, dtype=np.int64)] >= 0
        numbers = np.array(self._bundles, dtype=np.int64)
        numbers = numbers[np.repeat(is_kept, np.array(self._bundled_counts, dtype=np.int64))]
        yield (numbers + BUNDLE).astype(np.uint32)


class LinksBuilder:
    """Gathers the references of a pack's entries, and writes them beside its table.

    A context manager: what it spools is gone when it is left. It holds about 16 bytes
    an entry in memory, whatever the entries refer to.
    """

    def __init__(self, scratch: Path) -> None:
        """Spool to files without a name in `scratch`."""
        self._entries, self._bundles = _Rows(scratch), _Rows(scratch)
        self._dated, self._seconds = array("I"), array("q")
        self._known: dict[bytes, int] = {}
        self._bundle_count = 0
        self._entry_count = 0
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        self._closing.enter_context(self._entries.tape)
        self._closing.enter_context(self._bundles.tape)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def add(self, index: int, kind: int, references: bytes, committed: int) -> None:
        """Note what one entry refers to. What `scan_pack` calls for all but blobs.

        Entries may come in any order, each at most once; one that never comes refers
        to nothing.

        Args:
            index: The entry's number in the pack as it was received, in pack order.
            kind: The object's, a delta resolved.
            references: What it refers to, as `objects.raw_references` has it.
            committed: When it was committed, as `objects.raw_references` has it.
        """
        self._entry_count = max(self._entry_count, index + 1)
        if committed:
            self._dated.append(index)
            self._seconds.append(committed)
        if kind == TREE and len(references) >= _CUT_FROM * RAW_ID_SIZE:
            self._entries.add_bundled(index, self._bundled(references))
        elif references:
            self._entries.add(index, references)

    def write(
        self,
        path: Path,
        *,
        table: Table,
        entries: Entries,
        indexes: Numbers,
        checksum: bytes,
    ) -> None:
        """Write the links file of a segment; the caller syncs it.

        Afterwards it is proved that whatever the segment's entries refer to is in the
        segment or in the log: with a closed log, closure. To be called once.

        Args:
            path: Where to.
            table: The table of the log that ends with this segment.
            entries: The segment's entries, in any order.
            indexes: Parallel to `entries`: the `index` that each was added under. What
                was added under another (an entry that the segment lacks) is left out.
            checksum: The 20 bytes at the end of the segment.

        Raises:
            PackRejected: An entry refers to what is nowhere.
        """
        if max(len(table), self._bundle_count) >= BUNDLE:
            raise PackRejected(f"the upstream's packs hold more than {BUNDLE} objects")
        size = max(self._entry_count, int(indexes.max(initial=-1)) + 1)
        rows = np.full(size, -1, dtype=np.int64)
        rows[indexes] = table.find_raw(entries["oid"]) - (len(table) - len(entries))
        every = np.arange(self._bundle_count, dtype=np.int64)
        committed = np.zeros(len(entries), dtype=np.int64)
        dated = rows[np.array(self._dated, dtype=np.int64)]
        committed[dated[dated >= 0]] = np.array(self._seconds, dtype=np.int64)[dated >= 0]
        bases = np.full(len(entries), NO_BASE, dtype=np.uint32)
        is_delta = np.isin(entries["kind"], list(DELTA_KINDS))
        bases[rows[indexes[is_delta]]] = _places(entries["base"][is_delta], table)
        of_entries = self._entries.laid_out(rows, len(entries), 0)
        of_bundles = self._bundles.laid_out(every, len(every), int(of_entries.counts.sum()))
        write_part(
            path,
            entries=of_entries,
            committed=committed,
            bases=bases,
            bundles=of_bundles,
            targets=chain(
                self._entries.targets(rows, table),
                self._bundles.targets(every, table),
            ),
            checksum=checksum,
        )

    def _bundled(self, ids: bytes) -> Sequence[int]:
        """Return the bundles that these ids were cut into."""
        names: list[bytes] = []
        numbers: list[int] = []
        for start, end in _cuts(ids[::RAW_ID_SIZE]):
            piece = ids[start * RAW_ID_SIZE : end * RAW_ID_SIZE]
            number, is_new = self._bundle(name := _name_of(b"ids", piece))
            if is_new:
                self._bundles.add(number, piece)
            names.append(name)
            numbers.append(number)
        while len(numbers) >= _CUT_FROM:
            above_names: list[bytes] = []
            above: list[int] = []
            for start, end in _cuts(bytes(name[0] for name in names)):
                name = _name_of(b"bundles", b"".join(names[start:end]))
                number, is_new = self._bundle(name)
                if is_new:
                    self._bundles.add_bundled(number, numbers[start:end])
                above_names.append(name)
                above.append(number)
            # By chance each round leaves a thirty-second. Who wrote the tree can have
            # chosen otherwise, but not that this goes on for ever.
            if len(above) > len(numbers) // 2:
                break
            names, numbers = above_names, above
        return numbers

    def _bundle(self, name: bytes) -> tuple[int, bool]:
        """Return the number of the bundle of this name, and whether it is new."""
        number = self._known.get(name)
        if number is not None:
            return number, False
        if len(self._known) >= _BUNDLES_AT_ONCE:
            self._known.clear()
        number = self._known[name] = self._bundle_count
        self._bundle_count += 1
        return number, True


def _name_of(kind: bytes, content: bytes) -> bytes:
    # Not SHA-1: two lists that somebody made collide would become one.
    return hashlib.blake2b(content, digest_size=16, person=kind).digest()


def _cuts(first_bytes: bytes) -> Iterator[tuple[int, int]]:
    """Yield start and end of the pieces: one ends with each byte whose low bits are zero."""
    ends = np.flatnonzero(np.frombuffer(first_bytes, dtype=np.uint8) & _CUT_MASK == 0) + 1
    start = 0
    for end in ends.tolist():
        yield start, end
        start = end
    if start < len(first_bytes):
        yield start, len(first_bytes)


def _parts(counts: Numbers) -> Iterator[slice]:
    """Yield slices of lists that have about `_IDS_AT_ONCE` ids together."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        read = int(ends[start - 1]) if start else 0
        end = max(start + 1, int(np.searchsorted(ends, read + _IDS_AT_ONCE, side="right")))
        yield slice(start, end)
        start = end


def _places(ids: NDArray[np.bytes_], table: Table) -> NDArray[np.uint32]:
    """Return the place of each id. Raises PackRejected if one is nowhere."""
    places = table.find_raw(ids)
    if bool((places < 0).any()):
        missing = np.unique(ids[places < 0])
        raise PackRejected(
            "the upstream's pack lacks objects that others in it refer to, "
            f"one of them {hex_id(missing[:1].tobytes()).decode()}"
        )
    return places.astype(np.uint32)

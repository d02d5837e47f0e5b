"""What is new in trees, compared with other trees."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from goblet_node.errors import MirrorDamaged
from goblet_node.mirror.reader import LogReader
from goblet_node.mirror.table import Table, oid_array

# One entry of a tree: a mark if it is a directory, a mark if it is a submodule, its
# name, its raw id. A log holds only trees that were parsed when they were taken in,
# so nothing here looks for broken ones. Raw ids, because all that is done with them
# is to compare them and to look them up.
_ENTRY = re.compile(rb"(?:0*(?:(4)|(16))[0-7]{4}|[0-7]+) ([^\0]+)\0(.{20})", re.DOTALL)
_Entry = tuple[bytes, bytes, bytes, bytes]

# Trees parsed for a comparison are kept up to this many entries, each about 250
# bytes: successive commits look at the same ones.
_KEPT_ENTRIES = 200_000

# Distinct ids are gathered as Python objects up to this many; an id that became a
# bit of a mask takes a byte and no longer 100.
_IDS_AT_ONCE = 200_000

_NEVER = 1 << 62


class Rows:
    """A set of rows of a table, given by the raw ids of their objects."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._mask = np.zeros(len(table), dtype=np.bool_)
        self._recent: set[bytes] = set()

    def update(self, raw_ids: Iterable[bytes]) -> None:
        """Add objects, each of which the table has."""
        self._recent.update(raw_ids)
        if len(self._recent) > _IDS_AT_ONCE:
            self._settle()

    def mask(self) -> NDArray[np.bool_]:
        """Return one truth value a row.

        Raises:
            MirrorDamaged: an object was added that the table has not.
        """
        self._settle()
        return self._mask

    def _settle(self) -> None:
        rows = self._table.find_raw(oid_array(b"".join(self._recent)))
        if bool((rows < 0).any()):
            raise MirrorDamaged("the mirror lacks objects that its trees name; fill it again")
        self._mask[rows] = True
        self._recent.clear()


class Reference(NamedTuple):
    """A tree to compare with: all in it was gathered before, or is with the client.

    `is_known` says that it is certainly with the client itself.
    """

    raw: bytes
    is_known: bool


class _Tree(NamedTuple):
    """Entries that are no submodules, and the ids of directories by their names."""

    entries: frozenset[_Entry]
    directories: dict[bytes, bytes]


class NewTrees:
    """Gathers trees and blobs that are in some trees and not in those they are compared with.

    Whatever was added: each object below it is then gathered, or below one of the
    references at the same path, or beyond the greatest depth.

    Attributes:
        blobs: The blobs gathered, none if `takes_blobs` is False.
        met: All objects in references that were looked at: gathered, or with the client.
        known: Those of `met` that are with the client for certain.
    """

    def __init__(self, reader: LogReader, *, takes_blobs: bool, depth: int | None) -> None:
        self.blobs = Rows(reader.table)
        self.met = Rows(reader.table)
        self.known = Rows(reader.table)
        self._reader = reader
        self._takes_blobs = takes_blobs
        self._limit = _NEVER if depth is None else depth
        # Without a limit all depths are the same, and a tree is never looked at again.
        self._step = 0 if depth is None else 1
        # The least depth at which each tree was gathered.
        self._depths: dict[bytes, int] = {}
        self._parsed: dict[bytes, _Tree] = {}
        self._parsed_entries = 0

    def trees(self) -> NDArray[np.bool_]:
        """Return the trees gathered, as one truth value a row."""
        rows = Rows(self._reader.table)
        rows.update(self._depths)
        return rows.mask()

    def add(self, root: bytes, references: Sequence[Reference] = ()) -> None:
        """Gather what is new in the tree of a commit."""
        for reference in references:
            self._note_met([reference.raw], reference)
        if self._limit > 0 and all(reference.raw != root for reference in references):
            self._gather(root, references, depth=0)

    def add_wanted(self, root: bytes) -> None:
        """Gather a tree that is wanted by its id, and all below it.

        It passes every filter and does not count as a level (list-objects-filter.c:
        the filter is not asked about it).
        """
        self._gather(root, (), depth=-1)

    def _gather(self, root: bytes, references: Sequence[Reference], *, depth: int) -> None:
        unread: list[tuple[bytes, Sequence[Reference], int]] = [(root, references, depth)]
        while unread:
            raw, compared, depth = unread.pop()
            if self._depths.get(raw, _NEVER) <= depth:
                continue
            self._depths[raw] = depth
            below = depth + self._step if depth >= 0 else 0
            if below >= self._limit:
                continue
            if not compared:
                found = _ENTRY.findall(self._reader.resolve(raw)[1])
                unread += [(entry[3], (), below) for entry in found if entry[0]]
                if self._takes_blobs:
                    self.blobs.update([e[3] for e in found if not (e[0] or e[1])])
                continue
            bases = [(self._tree(reference.raw), reference) for reference in compared]
            for base, reference in bases:
                self._note_met([entry[3] for entry in base.entries], reference)
            # Sorted: with a limit, the order of trees may decide which references count,
            # and equal questions are to give equal answers.
            new = sorted(self._tree(raw).entries.difference(*(base.entries for base, _ in bases)))
            for entry in new:
                if entry[0]:
                    unread.append((entry[3], _at(entry[2], bases), below))
            if self._takes_blobs:
                self.blobs.update([entry[3] for entry in new if not entry[0]])

    def _note_met(self, raw_ids: Sequence[bytes], reference: Reference) -> None:
        self.met.update(raw_ids)
        if reference.is_known:
            self.known.update(raw_ids)

    def _tree(self, raw: bytes) -> _Tree:
        tree = self._parsed.get(raw)
        if tree is None:
            found: list[_Entry] = _ENTRY.findall(self._reader.resolve(raw)[1])
            tree = _Tree(
                entries=frozenset(entry for entry in found if not entry[1]),
                directories={entry[2]: entry[3] for entry in found if entry[0]},
            )
            if self._parsed_entries > _KEPT_ENTRIES:
                self._parsed.clear()
                self._parsed_entries = 0
            self._parsed[raw] = tree
            self._parsed_entries += len(found)
        return tree


def _at(name: bytes, bases: Iterable[tuple[_Tree, Reference]]) -> list[Reference]:
    """Return the directories of this name in the bases, each once."""
    # A dict and not a set: the order, and with it what is read, stays the same.
    found: dict[bytes, bool] = {}
    for base, reference in bases:
        raw = base.directories.get(name)
        if raw is not None:
            found[raw] = found.get(raw, False) or reference.is_known
    return [Reference(raw, is_known) for raw, is_known in found.items()]

"""What a pack holds: every entry found, checked, resolved and named, in two passes.

The first pass reads the file once, in order, and settles all whole objects; big
blobs pass in pieces. The second resolves the deltas, from their roots outwards
(as git's index-pack does), so a base is usually at hand when its deltas come.
dulwich's PackIndexer does the same in fewer lines of ours, but inflates whole
objects twice, keeps every base on the way of a wide chain, and looks at no size
before it inflates: with packs that others send, that is theirs to decide.
"""

import hashlib
import os
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from goblet_node import objects
from goblet_node.mirror.bases import BaseCache
from goblet_node.mirror.table import ENTRY, Entries, oid_array
from goblet_node.mirror.window import TRAILER_SIZE, PackWindow
from goblet_node.objects import ObjectBroken, PackRejected

ResolveBase = Callable[[bytes], tuple[int, bytes]]
"""The type and content of an object that lies before this pack, by raw id; KeyError if none."""

Mention = Callable[[int, int, bytes, int], object]
"""Gets an entry's number in the pack, its type, and `raw_references` of its object."""

MAX_OBJECT_BYTES = 2 << 30
# Commits, trees and tags are parsed, which takes ten times their size in memory.
# The largest trees that anyone has are a few megabytes.
MAX_PARSED_BYTES = 128 << 20

_HEADER_SIZE = 12
# A head of one byte and the shortest zlib stream.
_SMALLEST_ENTRY = 9
_NO_ID = bytes(objects.RAW_ID_SIZE)
_NOT_IN_PACK = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """A pack that is sound in itself. The arrays are parallel, in pack order.

    `base_offsets` holds where an OFS_DELTA's base lies, 0 for other entries.
    `turns` numbers the entries in an order in which every base precedes its
    deltas, which the order in the pack need not be where there are REF_DELTAs.
    """

    entries: Entries
    base_offsets: NDArray[np.uint64]
    turns: NDArray[np.uint32]
    checksum: bytes


def scan_pack(
    path: Path,
    *,
    resolve_base: ResolveBase,
    mention: Mention,
    max_object_bytes: int = MAX_OBJECT_BYTES,
) -> Scan:
    """Read and check a whole pack, thin or not.

    Args:
        path: The pack file.
        resolve_base: Asked for the bases of a thin pack.
        mention: Told of every entry but blobs what it refers to, once, in any order.
        max_object_bytes: No object, inflated and resolved, may be larger.

    Raises:
        PackRejected: The pack is damaged, or a base is nowhere, or an object too large.
    """
    with path.open("rb") as file:
        scanner = _Scanner(file, resolve_base, mention, max_object_bytes)
        checksum = scanner.find_entries()
        scanner.resolve_deltas()
        return scanner.result(checksum)


class _Scanner:
    def __init__(
        self,
        file: BinaryIO,
        resolve_base: ResolveBase,
        mention: Mention,
        max_object_bytes: int,
    ) -> None:
        self._file = file
        self._resolve_base = resolve_base
        self._mention = mention
        self._max_object_bytes = max_object_bytes
        # One element an entry, in pack order: `array` because a million Python
        # objects a column would be most of the memory.
        self._offsets = array("Q")
        self._ends = array("Q")
        self._sizes = array("Q")
        self._headers = array("B")
        self._kinds = array("B")
        self._types = array("B")
        self._oids = bytearray()
        # For deltas: the size of the delta itself, and the entry it is made on,
        # `_NOT_IN_PACK` while (or because) it is not one of this pack.
        self._delta_sizes = array("Q")
        self._base_of = array("q")
        # A linked list of the deltas on each entry.
        self._first_delta = array("q")
        self._next_delta = array("q")
        # REF_DELTAs by the raw id of their base, until that is found.
        self._waiting: dict[bytes, list[int]] = {}
        self._named_bases: dict[int, bytes] = {}
        self._bases = BaseCache()
        self._turns = array("I")
        self._turn = 0

    # First pass ------------------------------------------------------------

    def find_entries(self) -> bytes:
        window = PackWindow(self._file)
        count = _entry_count(window)
        for _ in range(count):
            self._find_entry(window)
        return window.finish()

    def _find_entry(self, window: PackWindow) -> None:
        index = len(self._offsets)
        offset = window.offset
        kind, size, header = window.take_varint_head()
        self._accept_size(size, offset)
        base = _NOT_IN_PACK
        if kind == objects.OFS_DELTA:
            distance, length = window.take_distance()
            header += length
            base = self._entry_at(offset - distance, before=offset)
        elif kind == objects.REF_DELTA:
            named = window.take(objects.RAW_ID_SIZE)
            header += objects.RAW_ID_SIZE
            self._named_bases[index] = named
            self._waiting.setdefault(named, []).append(index)
        elif kind not in objects.WHOLE_KINDS:
            raise PackRejected(f"the upstream's pack has an entry of unknown kind {kind}")
        self._offsets.append(offset)
        self._headers.append(header)
        self._kinds.append(kind)
        self._base_of.append(base)
        self._first_delta.append(_NOT_IN_PACK)
        self._next_delta.append(_NOT_IN_PACK)
        self._turns.append(0)
        if kind in objects.WHOLE_KINDS:
            self._take_whole(window, index, kind, size)
        else:
            self._take_delta(window, index, base, size)
        self._ends.append(window.offset)

    def _take_whole(self, window: PackWindow, index: int, kind: int, size: int) -> None:
        name = hashlib.sha1(objects.object_header(kind, size))
        if kind == objects.BLOB:
            window.inflate(size, name.update)
        else:
            pieces: list[bytes] = []
            window.inflate(size, pieces.append)
            content = b"".join(pieces)
            name.update(content)
            self._mention(index, kind, *_references(kind, content))
        self._oids += name.digest()
        self._sizes.append(size)
        self._delta_sizes.append(0)
        self._types.append(kind)
        self._take_turn(index)

    def _take_delta(self, window: PackWindow, index: int, base: int, size: int) -> None:
        # Only looked at here; kept, the deltas of a big pack would fill the memory.
        start = bytearray()

        def keep_start(piece: bytes) -> None:
            if len(start) < objects.DELTA_SIZES_SPAN:
                start.extend(piece[: objects.DELTA_SIZES_SPAN])

        window.inflate(size, keep_start)
        try:
            _, result_size = objects.delta_sizes(bytes(start))
        except ObjectBroken as exc:
            raise PackRejected(f"the upstream's pack has a broken delta: {exc}") from exc
        self._accept_size(result_size, self._offsets[index])
        if base != _NOT_IN_PACK:
            self._add_delta(base, index)
        self._oids += _NO_ID
        self._sizes.append(result_size)
        self._delta_sizes.append(size)
        self._types.append(0)

    def _accept_size(self, size: int, offset: int) -> None:
        if size > self._max_object_bytes:
            raise PackRejected(
                f"the upstream's pack has an object of {size} bytes at {offset}, "
                f"and the limit is {self._max_object_bytes}"
            )

    def _entry_at(self, offset: int, *, before: int) -> int:
        index = bisect_left(self._offsets, offset) if 0 < offset < before else len(self._offsets)
        if index == len(self._offsets) or self._offsets[index] != offset:
            raise PackRejected(f"the upstream's pack has a delta on no entry, at {before}")
        return index

    def _add_delta(self, base: int, index: int) -> None:
        self._base_of[index] = base
        self._next_delta[index] = self._first_delta[base]
        self._first_delta[base] = index

    def _take_turn(self, index: int) -> None:
        self._turns[index] = self._turn
        self._turn += 1

    # Second pass -----------------------------------------------------------

    def resolve_deltas(self) -> None:
        for index, kind in enumerate(self._kinds):
            if kind in objects.WHOLE_KINDS:
                self._find_waiting(index)
                self._resolve_from(index)
        # What still waits is made on objects that lie before this pack, or on
        # results of such deltas, which get their base on the way.
        for named in sorted(self._waiting):
            if named not in self._waiting:
                continue
            try:
                kind, base = self._resolve_base(named)
            except KeyError:
                continue
            for index in self._waiting.pop(named):
                self._resolve(index, kind, base)
                self._resolve_from(index)
        if self._waiting:
            named = min(self._waiting)
            raise PackRejected(
                f"the upstream's pack has deltas on {objects.hex_id(named).decode()}, "
                "which is neither in it nor in the mirror"
            )

    def _resolve_from(self, root: int) -> None:
        """Resolve all that is made on `root`, and all that is made on that."""
        # Bases are not on the stack but in a bounded cache: on a chain where
        # every link has two deltas, the stack would hold every link's content.
        todo = self._deltas_on(root)
        while todo:
            index = todo.pop()
            base = self._base_of[index]
            self._resolve(index, self._types[base], self._content(base))
            todo += self._deltas_on(index)

    def _deltas_on(self, index: int) -> list[int]:
        found = []
        delta = self._first_delta[index]
        while delta != _NOT_IN_PACK:
            found.append(delta)
            delta = self._next_delta[delta]
        return found

    def _find_waiting(self, index: int) -> None:
        if self._waiting:
            for delta in self._waiting.pop(bytes(self._oids[_id_place(index)]), ()):
                self._add_delta(index, delta)

    def _resolve(self, index: int, kind: int, base: bytes) -> None:
        content = self._applied(index, base)
        if not content and kind != objects.BLOB:
            raise PackRejected("the upstream's pack has a delta that makes an empty object")
        self._oids[_id_place(index)] = objects.object_id(kind, content)
        self._types[index] = kind
        self._take_turn(index)
        if kind != objects.BLOB:
            self._mention(index, kind, *_references(kind, content))
        self._find_waiting(index)
        if self._first_delta[index] != _NOT_IN_PACK:
            self._bases.keep(index, content)

    def _content(self, index: int) -> bytes:
        """Return an object's content: kept, or made again from the nearest base that is."""
        chain = []
        while (content := self._bases.get(index)) is None:
            if self._kinds[index] in objects.WHOLE_KINDS:
                content = self._inflated(index, self._sizes[index])
                break
            chain.append(index)
            if self._base_of[index] == _NOT_IN_PACK:
                _, content = self._resolve_base(self._named_bases[index])
                break
            index = self._base_of[index]
        wanted = index if not chain else chain[0]
        for delta in reversed(chain):
            content = self._applied(delta, content)
        self._bases.keep(wanted, content)
        return content

    def _applied(self, index: int, base: bytes) -> bytes:
        try:
            return objects.apply_delta(base, self._inflated(index, self._delta_sizes[index]))
        except ObjectBroken as exc:
            raise PackRejected(
                f"the upstream's pack is damaged at {self._offsets[index]}: {exc}"
            ) from exc

    def _inflated(self, index: int, size: int) -> bytes:
        start = self._offsets[index] + self._headers[index]
        packed = os.pread(self._file.fileno(), self._ends[index] - start, start)
        # The first pass inflated the same bytes without a complaint.
        return zlib.decompress(packed, bufsize=size + 1)

    def result(self, checksum: bytes) -> Scan:
        entries = np.zeros(len(self._offsets), dtype=ENTRY)
        offsets = np.array(self._offsets, dtype=np.uint64)
        entries["oid"] = oids = oid_array(bytes(self._oids))
        entries["offset"] = offsets
        entries["length"] = np.array(self._ends, dtype=np.uint64) - offsets
        entries["size"] = self._sizes
        entries["header"] = self._headers
        entries["type"] = self._types
        entries["kind"] = self._kinds
        based = np.array(self._base_of, dtype=np.int64)
        inside = np.flatnonzero(based != _NOT_IN_PACK)
        entries["base"][inside] = oids[based[inside]]
        for index, named in self._named_bases.items():
            entries["base"][index] = named
        by_distance = np.flatnonzero(entries["kind"] == objects.OFS_DELTA)
        base_offsets = np.zeros(len(entries), dtype=np.uint64)
        base_offsets[by_distance] = offsets[based[by_distance]]
        turns = np.array(self._turns, dtype=np.uint32)
        return Scan(entries=entries, base_offsets=base_offsets, turns=turns, checksum=checksum)


def _id_place(index: int) -> slice:
    return slice(index * objects.RAW_ID_SIZE, (index + 1) * objects.RAW_ID_SIZE)


def _entry_count(window: PackWindow) -> int:
    if window.left < _HEADER_SIZE:
        raise PackRejected(
            f"the upstream's pack is shorter than a header and a trailer of {TRAILER_SIZE} bytes"
        )
    header = window.take(_HEADER_SIZE)
    if header[:8] != b"PACK\0\0\0\2":
        raise PackRejected(f"the upstream's pack begins {header[:8]!r}: want PACK, version 2")
    count = int.from_bytes(header[8:], "big")
    if count * _SMALLEST_ENTRY > window.left:
        raise PackRejected(f"the upstream's pack cannot hold the {count} objects that it states")
    return count


def _references(kind: int, content: bytes) -> tuple[bytes, int]:
    """Return what a commit, tree or tag refers to, and when a commit was committed."""
    if len(content) > MAX_PARSED_BYTES:
        raise PackRejected(
            f"the upstream's pack has a commit, tree or tag of {len(content)} bytes, "
            f"and the limit is {MAX_PARSED_BYTES}"
        )
    try:
        return objects.raw_references(kind, content)
    except ObjectBroken as exc:
        raise PackRejected(f"the upstream's pack has an object that is none: {exc}") from exc

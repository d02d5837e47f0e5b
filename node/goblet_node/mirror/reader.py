"""Objects out of a pack log, by id."""

import os
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from goblet_node import objects
from goblet_node.errors import MirrorDamaged
from goblet_node.mirror.bases import BaseCache
from goblet_node.mirror.disk import reading
from goblet_node.mirror.table import Table, oid_array
from goblet_node.mirror.window import TRAILER_SIZE
from goblet_node.objects import ObjectBroken
from goblet_node.wire.refs import ObjectId


class LogReader:
    """Reads any object of a log, following deltas from segment to segment.

    A context manager: the segments are open, one descriptor each, while it is
    entered. For one thread at a time.

    Raises:
        KeyError: From every look-up, if the log does not have the object.
        MirrorDamaged: If a segment is gone or is not what its table describes.
        DiskFailed: If the disk refuses to be read for another reason.
    """

    def __init__(
        self, packs: Sequence[Path], table: Table, *, bases: NDArray[np.uint32] | None = None
    ) -> None:
        """Read segments of which `table` is the table; with `bases`, as Links has them, quicker."""
        self.table = table
        self._bases = None if bases is None else bases.data
        self._packs = tuple(packs)
        self._descriptors: list[int] = []
        self._closing = ExitStack()
        self._cache = BaseCache()

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            for pack, checksum in zip(self._packs, self.table.checksums, strict=True):
                with reading(pack):
                    descriptor = os.open(pack, os.O_RDONLY | os.O_CLOEXEC)
                opened.callback(os.close, descriptor)
                if _trailer(descriptor) != checksum:
                    raise MirrorDamaged(f"segment {pack.name} is not the one its table describes")
                self._descriptors.append(descriptor)
            self._closing = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._descriptors.clear()
        self._closing.close()

    def get_raw(self, oid: ObjectId) -> tuple[int, bytes]:
        """Return an object's type and content."""
        return self.resolve(objects.raw_id(oid))

    def resolve(self, raw: bytes) -> tuple[int, bytes]:
        """Do what `get_raw` does for the 20 bytes of an id."""
        row = int(self.table.find_raw(oid_array(raw))[0])
        if row < 0:
            raise KeyError(raw)
        return self.at(row)

    def at(self, row: int) -> tuple[int, bytes]:
        """Return type and content of the object in a row of the table, which must be one."""
        return int(self.table.column("type")[row]), self._content(row)

    def type_of(self, oid: ObjectId) -> int:
        """Return an object's type without reading it."""
        row = self.table.row(oid)
        if row < 0:
            raise KeyError(oid)
        return int(self.table.column("type")[row])

    def peel(self, oid: ObjectId) -> ObjectId:
        """Return what an annotated tag points at in the end; any other object is itself."""
        while self.type_of(oid) == objects.TAG:
            oid = objects.parse_tag(self.get_raw(oid)[1]).target
        return oid

    def _content(self, row: int) -> bytes:
        # Iterative: a chain grows by one with each generation of a hot file,
        # and would one day be deeper than Python recurses.
        deltas: list[bytes] = []
        chain = [row]
        while (content := self._cache.get(chain[-1])) is None:
            stored = self._inflated(chain[-1])
            if int(self.table.column("kind")[chain[-1]]) in objects.WHOLE_KINDS:
                content = stored
                break
            deltas.append(stored)
            chain.append(self._base_row(chain[-1]))
            if len(chain) > len(self.table):
                raise MirrorDamaged(f"{self._named(row)} is a delta on itself")
        for delta in reversed(deltas):
            # Every link is kept, not the end alone: a walk through a file's versions
            # would otherwise resolve the chain from its root for each of them.
            self._cache.keep(chain.pop(), content)
            content = self._applied(row, content, delta)
        if len(content) != int(self.table.column("size")[row]):
            raise MirrorDamaged(f"{self._named(row)} is not of the size that its table states")
        self._cache.keep(row, content)
        return content

    def _inflated(self, row: int) -> bytes:
        column = self.table.column
        header = int(column("header")[row])
        start = int(column("offset")[row]) + header
        segment = int(column("segment")[row])
        with reading(self._packs[segment]):
            packed = os.pread(
                self._descriptors[segment], int(column("length")[row]) - header, start
            )
        try:
            return zlib.decompress(packed)
        except zlib.error as exc:
            raise MirrorDamaged(f"{self._named(row)} cannot be read: {exc}") from exc

    def _base_row(self, row: int) -> int:
        if self._bases is not None:
            # To look for its id takes half of the time that a long chain takes.
            return int(self._bases[row])
        base = int(self.table.find_raw(oid_array(self.table.raw_base(row)))[0])
        if base < 0:
            raise MirrorDamaged(f"{self._named(row)} is a delta on an object that is gone")
        return base

    def _applied(self, row: int, base: bytes, delta: bytes) -> bytes:
        try:
            return objects.apply_delta(base, delta)
        except ObjectBroken as exc:
            raise MirrorDamaged(f"{self._named(row)} cannot be resolved: {exc}") from exc

    def _named(self, row: int) -> str:
        return f"object {self.table.oid(row).decode()} of the mirror"


def _trailer(descriptor: int) -> bytes:
    return os.pread(descriptor, TRAILER_SIZE, max(os.fstat(descriptor).st_size - TRAILER_SIZE, 0))

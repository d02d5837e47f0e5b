"""A pack file read once, from front to back, and hashed on the way."""

import hashlib
import os
import zlib
from collections.abc import Callable
from typing import BinaryIO

from goblet_node.objects import PackRejected

TRAILER_SIZE = 20
_READ_SIZE = 1 << 18
# One call of zlib returns at most this much, so a blob of any size passes in pieces.
_PIECE = 1 << 20
# More than deflate adds to bytes that it cannot compress: an ordinary entry
# then needs one call of zlib, and little of the next entry is copied by it.
_DEFLATE_MARGIN = 64


class PackWindow:
    """The bytes of a pack before its trailer, a stretch at a time.

    Memory is bounded by the stretch, whatever the size of the pack or of an
    object. After `finish` the pack is known to end where it must.

    Raises:
        PackRejected: From every method, if the file is not what a pack must be.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        size = os.fstat(file.fileno()).st_size
        # Entries end here; the window never reaches into the trailer.
        self._end = max(size - TRAILER_SIZE, 0)
        self._hash = hashlib.sha1()
        self._held = b""
        self._held_from = 0
        self._next = 0

    @property
    def offset(self) -> int:
        """Return the place in the file of the next byte that will be taken."""
        return self._held_from + self._next

    @property
    def left(self) -> int:
        """Return how many bytes are still to come before the trailer."""
        return self._end - self.offset

    def take(self, size: int) -> bytes:
        """Return exactly the next `size` bytes; at most a stretch."""
        if len(self._held) - self._next < size:
            self._fill()
        taken = self._held[self._next : self._next + size]
        if len(taken) < size:
            raise PackRejected(f"the upstream's pack ends within an entry, at {self.offset}")
        self._next += size
        return taken

    def take_varint_head(self) -> tuple[int, int, int]:
        """Return kind, size and length of the head that begins every entry."""
        byte = self._take_byte()
        kind, size, shift, length = (byte >> 4) & 7, byte & 15, 4, 1
        while byte & 0x80:
            if shift > 60:
                raise PackRejected(f"the upstream's pack has an endless size at {self.offset}")
            byte = self._take_byte()
            size |= (byte & 0x7F) << shift
            shift += 7
            length += 1
        return kind, size, length

    def take_distance(self) -> tuple[int, int]:
        """Return the distance of an OFS_DELTA to its base, and the length of the number."""
        byte = self._take_byte()
        distance, length = byte & 0x7F, 1
        while byte & 0x80:
            if length > 9:
                raise PackRejected(f"the upstream's pack has an endless distance at {self.offset}")
            byte = self._take_byte()
            distance = ((distance + 1) << 7) | (byte & 0x7F)
            length += 1
        return distance, length

    def inflate(self, size: int, consume: Callable[[bytes], object]) -> None:
        """Take one zlib stream that inflates to exactly `size` bytes; `consume` gets them."""
        stream = zlib.decompressobj()
        wanted = size
        try:
            while not stream.eof:
                held = len(self._held) - self._next
                ask = min(wanted + (wanted >> 8) + _DEFLATE_MARGIN, _READ_SIZE)
                if held < ask and held < self.left:
                    self._fill()
                given = memoryview(self._held)[self._next : self._next + ask]
                # One byte more than is wanted: a stream that is too long shows itself.
                piece = stream.decompress(given, min(wanted + 1, _PIECE))
                # At the end what is left is in `unused_data`, and if the call before
                # was cut short by its limit, in `unconsumed_tail` a second time.
                left = stream.unused_data if stream.eof else stream.unconsumed_tail
                taken = len(given) - len(left)
                self._next += taken
                wanted -= len(piece)
                if wanted < 0 or not (taken or piece or stream.eof):
                    break
                consume(piece)
        except zlib.error as exc:
            raise PackRejected(f"the upstream's pack is damaged near {self.offset}: {exc}") from exc
        if wanted or not stream.eof:
            raise PackRejected(
                f"the upstream's pack has an object that is not of its stated size, "
                f"near {self.offset}"
            )

    def finish(self) -> bytes:
        """Return the trailer's checksum, after the last entry was taken.

        Raises:
            PackRejected: Bytes follow the last entry, or the checksum is wrong.
        """
        if self.left:
            raise PackRejected(f"the upstream's pack has bytes after its last entry: {self.left}")
        trailer = self._file.read(TRAILER_SIZE + 1)
        if trailer != self._hash.digest():
            raise PackRejected("the upstream's pack does not have the checksum that it states")
        return trailer

    def _take_byte(self) -> int:
        if self._next >= len(self._held):
            self._fill()
            if not self._held:
                raise PackRejected(f"the upstream's pack ends within an entry, at {self.offset}")
        byte = self._held[self._next]
        self._next += 1
        return byte

    def _fill(self) -> None:
        rest = self._held[self._next :]
        begin = self.offset
        unread = self._end - begin - len(rest)
        more = self._file.read(min(_READ_SIZE, unread)) if unread > 0 else b""
        self._hash.update(more)
        self._held_from, self._next, self._held = begin, 0, rest + more

"""Segments as one pack, byte for byte as they lie.

The entries of a log, one segment after another, are a pack: offset deltas stay inside
their segment and reference deltas find their bases before them.
"""

import hashlib
import os
from collections.abc import AsyncGenerator, Iterable, Sequence

import trio

from goblet_node.errors import MirrorDamaged
from goblet_node.mirror.concat import HEADER_SIZE, log_header
from goblet_node.mirror.disk import reading
from goblet_node.mirror.log import Segment, Stretch
from goblet_node.mirror.window import TRAILER_SIZE
from goblet_node.wire.answers import Dialect
from goblet_shared.parts import FileSpan, Part, cut, size_of

# 64 packets of the large side-band, about 4 MB: what a message carries, and how long
# descriptors that are not needed any more stay open.
_BATCH = 64 * 65515
_SLICE = 1 << 20


def trailer_of(segments: Iterable[Segment], stretches: Sequence[Stretch]) -> bytes | None:
    """Return the trailer of these entries as a pack, if they are all of one segment: its own."""
    for segment in segments:
        if list(stretches) == [Stretch(segment.pack, HEADER_SIZE, segment.body)]:
            return bytes.fromhex(segment.checksum)
    return None


class FramedPack:
    """Stretches of a log as one pack, as it travels: framed, and never read to be sent.

    `length` is how many bytes travel. `trailer` is the pack's SHA-1. Where it was not
    given, the files are read once, in threads, to compute it, and it is known when the
    last batch is: whoever remembers it spares the next answer all reading.
    """

    def __init__(
        self,
        stretches: Sequence[Stretch],
        *,
        objects: int,
        trailer: bytes | None,
        dialect: Dialect,
    ) -> None:
        """Frame the `objects` entries that lie in `stretches` as `dialect` does."""
        self._stretches = stretches
        self._header = log_header(objects)
        self._dialect = dialect
        self._entries = sum(stretch.length for stretch in stretches)
        self.trailer = trailer
        self.length = dialect.framed_size(HEADER_SIZE + self._entries + TRAILER_SIZE)

    async def batches(self) -> AsyncGenerator[list[Part]]:
        """Yield parts for `Reply.send_parts`, about 4 MB at a time. Iterate with `aclosing`.

        The descriptors in a batch are good until the next is asked for, or this is
        closed: a slow client takes minutes, and thousands of clients times dozens of
        segments would be too many to hold. Once through only.

        Raises:
            MirrorDamaged: A segment is gone or shorter than it was. That is noticed
                before the first batch, so before a head is sent, if it was so by then.
            DiskFailed: The disk refuses to be read for another reason.
        """
        running = hashlib.sha1() if self.trailer is None else None
        left = HEADER_SIZE + self._entries
        opened: dict[int, int] = {}
        is_checked = False
        try:
            for numbered in cut(self._numbered(), self._batch_size):
                needed = {part.file for part in numbered if isinstance(part, FileSpan)}
                for passed in opened.keys() - needed:
                    os.close(opened.pop(passed))
                if not is_checked or needed - opened.keys():
                    await trio.to_thread.run_sync(self._open, needed, opened, is_checked)
                    is_checked = True
                batch = [_behind(opened, part) for part in numbered]
                if running is not None:
                    await trio.to_thread.run_sync(self._hash, numbered, batch, running)
                left -= size_of(batch)
                if not left:
                    if running is not None:
                        self.trailer = running.digest()
                    batch.append(self.trailer or b"")
                yield self._dialect.framed(batch)
        finally:
            for descriptor in opened.values():
                os.close(descriptor)

    @property
    def _batch_size(self) -> int:
        # Full packets: only the last of a pack may be shorter.
        return _BATCH - _BATCH % max(1, int(self._dialect.side_band))

    def _numbered(self) -> list[Part]:
        """Return the pack without its trailer; in place of descriptors stand numbers."""
        spans = [
            FileSpan(file=number, offset=stretch.offset, count=stretch.length)
            for number, stretch in enumerate(self._stretches)
        ]
        return [self._header, *spans]

    def _open(self, needed: set[int], opened: dict[int, int], is_checked: bool) -> None:
        """Open what is needed and is not yet; before that, once, see whether all is there."""
        if not is_checked:
            for stretch in self._stretches:
                with reading(stretch.pack):
                    size = stretch.pack.stat().st_size
                if size < stretch.offset + stretch.length:
                    raise _shorter(stretch)
        for number in needed - opened.keys():
            pack = self._stretches[number].pack
            with reading(pack):
                opened[number] = os.open(pack, os.O_RDONLY | os.O_CLOEXEC)

    def _hash(
        self, numbered: Sequence[Part], batch: Sequence[Part], running: "hashlib._Hash"
    ) -> None:
        for named, part in zip(numbered, batch, strict=True):
            if isinstance(part, FileSpan) and isinstance(named, FileSpan):
                with reading(self._stretches[named.file].pack):
                    is_whole = _hash_span(part, running)
                if not is_whole:
                    raise _shorter(self._stretches[named.file])
            elif isinstance(part, bytes):
                running.update(part)


def _behind(opened: dict[int, int], part: Part) -> Part:
    if not isinstance(part, FileSpan):
        return part
    return FileSpan(file=opened[part.file], offset=part.offset, count=part.count)


def _hash_span(span: FileSpan, running: "hashlib._Hash") -> bool:
    at, stop = span.offset, span.offset + span.count
    while at < stop:
        data = os.pread(span.file, min(_SLICE, stop - at), at)
        if not data:
            return False
        running.update(data)
        at += len(data)
    return True


def _shorter(stretch: Stretch) -> MirrorDamaged:
    return MirrorDamaged(f"segment {stretch.pack.name} is shorter than it was")

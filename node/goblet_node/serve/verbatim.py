"""Segments as one pack, byte for byte as they lie."""

import hashlib
import struct
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from goblet_node.errors import MirrorDamaged
from goblet_node.mirror.log import Segment

# One thread hop a slice: 16 side-band packets, about 1 MB.
SLICE = 16 * 65515
_HEADER = 12
_TRAILER = 20


def whole_pack(segments: Sequence[Segment], *, trailer: bytes | None) -> Generator[bytes]:
    """Yield the entries of `segments` as one pack, in slices; its trailer comes last, alone.

    The entries of a log, one segment after another, are a pack: offset deltas stay
    inside their segment and reference deltas find their bases before them.
    `trailer` is the pack's SHA-1 if it is known, which spares computing it.
    Raises MirrorDamaged if a segment is gone or has another length than it had.
    """
    header = struct.pack(">4sLL", b"PACK", 2, sum(segment.objects for segment in segments))
    running = hashlib.sha1(header) if trailer is None else None
    yield header
    for segment in segments:
        for data in _entries(segment.pack, segment.bytes - _HEADER - _TRAILER):
            if running is not None:
                running.update(data)
            yield data
    yield running.digest() if running is not None else trailer or b""


def _entries(pack: Path, length: int) -> Iterator[bytes]:
    try:
        with pack.open("rb", buffering=0) as file:
            file.seek(_HEADER)
            while length:
                data = file.read(min(SLICE, length))
                if not data:
                    raise MirrorDamaged(f"segment {pack.name} is shorter than it was")
                length -= len(data)
                yield data
    except OSError as exc:
        raise MirrorDamaged(f"segment {pack.name} cannot be read ({exc.strerror})") from exc

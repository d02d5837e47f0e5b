"""Segments as one pack, byte for byte as they lie."""

from collections.abc import Generator, Sequence

import numpy as np

from goblet_node.mirror.concat import body
from goblet_node.mirror.log import Segment
from goblet_node.serve.pieces import RUN, sealed, slices_of


def whole_pack(segments: Sequence[Segment], *, trailer: bytes | None) -> Generator[bytes]:
    """Yield the entries of `segments` as one pack, in slices; its trailer comes last, alone.

    The entries of a log, one segment after another, are a pack: offset deltas stay
    inside their segment and reference deltas find their bases before them.
    `trailer` is the pack's SHA-1 if it is known, which spares computing it.
    Raises MirrorDamaged if a segment is gone or shorter than it was, DiskFailed if
    the disk refuses to be read for another reason.
    """
    entries = [body(segment.bytes) for segment in segments]
    runs = np.array([(n, at.start, len(at)) for n, at in enumerate(entries)], dtype=RUN)
    slices = slices_of([segment.pack for segment in segments], runs)
    return sealed(sum(segment.objects for segment in segments), slices, trailer=trailer)

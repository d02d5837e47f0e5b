"""A log, or a stretch of it, as one pack.

Segments hold no object twice, their OFS_DELTAs stay inside them and the bases of
their REF_DELTAs lie in earlier ones. So their entries one after another, under
one header and trailer, are a pack as git wants it, and nothing in them changes.
"""

from goblet_node.mirror.window import TRAILER_SIZE

HEADER_SIZE = 12


def log_header(count: int) -> bytes:
    """Return the header of a pack of `count` entries."""
    return b"PACK\0\0\0\2" + count.to_bytes(4, "big")


def body(size: int) -> range:
    """Return where the entries lie in a pack file of `size` bytes."""
    return range(HEADER_SIZE, size - TRAILER_SIZE)

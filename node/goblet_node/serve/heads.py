"""The heads of deltas that move: thousands at once, as arrays of bytes laid end to end.

A delta's entry begins with kind and size as a varint, then names its base: by its
distance, whose digits take more bytes the farther the base, or by its id. A new head
keeps the varint's size and says the rest anew (git's gitformat-pack).
"""

import numpy as np
from numpy.typing import NDArray

from goblet_node.objects import OFS_DELTA, RAW_ID_SIZE, REF_DELTA

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int64]

# How often distances are computed anew before what still moves is given up. Two
# rounds are usual: one finds what changed, one that nothing else did. What takes
# more was made to: each round settles one delta at least, which may be all.
_ROUNDS = 16

# A distance of at least the first of these takes two bytes, the second three, ...
_WIDER = np.cumsum([1 << 7 * span for span in range(1, 9)], dtype=np.int64)


def whole_head(kind: int, size: int) -> bytes:
    """Return the head of a whole object."""
    byte, rest = (kind << 4) | (size & 15), size >> 4
    head = bytearray()
    while rest:
        head.append(byte | 0x80)
        byte, rest = rest & 0x7F, rest >> 7
    head.append(byte)
    return bytes(head)


def distance_spans(distances: Numbers) -> Numbers:
    """Return how many bytes each distance takes in an OFS_DELTA's head."""
    return np.searchsorted(_WIDER, distances, side="right").astype(np.int64) + 1


def settle(lengths: Numbers, near: Numbers, bases: Numbers, spans: Numbers) -> Numbers:
    """Return how far each OFS_DELTA will be from its base, for as many as that settles for.

    A distance depends on the entries between, these on their distances. As all bases
    precede, there is one solution; it is found by trying, for all entries at once.
    The result is shorter than `near` if that takes too long: then it is right for
    those that it has, however long the others become.

    Args:
        lengths: Of all entries, in the order of sending; of those that are OFS_DELTAs
            without the bytes of the distance.
        near: The places of the OFS_DELTAs in that order, ascending.
        bases: The place of each one's base.
        spans: How many bytes each one's distance may take; a guess.
    """
    known = 0
    distances = np.zeros(len(near), dtype=np.int64)
    for _ in range(_ROUNDS):
        tried = lengths.copy()
        tried[near] += spans
        starts = np.cumsum(tried) - tried
        distances = starts[near] - starts[bases]
        found = distance_spans(distances)
        moved = np.flatnonzero(found != spans)
        if not len(moved):
            return distances
        known, spans = int(moved[0]), found
    return distances[:known]


def near_heads(sizes: Bytes, size_spans: Numbers, distances: Numbers) -> tuple[Bytes, Numbers]:
    """Return heads of OFS_DELTAs end to end, and how long each is.

    Args:
        sizes: The varints with which the entries begin now, end to end.
        size_spans: How long each of those is.
        distances: How far away the bases are.
    """
    spans = distance_spans(distances)
    digits = np.zeros(int(spans.sum()), dtype=np.uint8)
    ends, rest = np.cumsum(spans), distances
    # The last digit first; all but the last are marked as not the last, and since a
    # longer number is never a shorter one written longer, count from one less.
    for digit in range(int(spans.max(initial=0))):
        has_digit = spans > digit
        digits[ends[has_digit] - 1 - digit] = (rest[has_digit] & 0x7F) | (0x80 if digit else 0)
        rest = (rest >> 7) - 1
    return _woven(_of_kind(OFS_DELTA, sizes, size_spans), size_spans, digits, spans)


def named_heads(
    sizes: Bytes, size_spans: Numbers, bases: NDArray[np.bytes_]
) -> tuple[Bytes, Numbers]:
    """Return heads of REF_DELTAs end to end, and how long each is; `bases` are raw ids."""
    spans = np.full(len(bases), RAW_ID_SIZE, dtype=np.int64)
    ids = np.frombuffer(bases.tobytes(), dtype=np.uint8)
    return _woven(_of_kind(REF_DELTA, sizes, size_spans), size_spans, ids, spans)


def _of_kind(kind: int, sizes: Bytes, spans: Numbers) -> Bytes:
    sizes = sizes.copy()
    firsts = np.cumsum(spans) - spans
    sizes[firsts] = (sizes[firsts] & 0x8F) | (kind << 4)
    return sizes


def _woven(
    former: Bytes, former_spans: Numbers, latter: Bytes, latter_spans: Numbers
) -> tuple[Bytes, Numbers]:
    """Return a part of `former`, one of `latter`, the next of `former`, ..., end to end."""
    spans = former_spans + latter_spans
    starts = np.cumsum(spans) - spans
    woven = np.zeros(len(former) + len(latter), dtype=np.uint8)
    woven[_indexes(starts, former_spans)] = former
    woven[_indexes(starts + former_spans, latter_spans)] = latter
    return woven, spans


def _indexes(starts: Numbers, spans: Numbers) -> Numbers:
    """Return start, start + 1, ... for each start, as many as its span says."""
    before = np.cumsum(spans) - spans
    return np.repeat(starts - before, spans) + np.arange(int(spans.sum()), dtype=np.int64)

"""A delta between two versions of a file or a tree, made quickly rather than small.

What both begin and end with is copied. What lies between is cut into lines (of a tree,
into entries). A line that the base has exactly once is an anchor, as in Bram Cohen's
patience diff; from there a copy goes on backwards and forwards for as long as the bytes
agree. The rest is inserted. git's own diff-delta looks at every sixteenth byte of the
base and at every byte of the result, which takes Python a microsecond each.
"""

import re
from collections import Counter

import numpy as np

from goblet_node.objects import TREE

# The most that one instruction copies or inserts (git's gitformat-pack).
_MOST_COPIED = 0xFFFF
_MOST_INSERTED = 0x7F
# A copy takes up to seven bytes to say: shorter lines are no anchors.
_LEAST_ANCHOR = 8
# Less than this between a common start and a common end is inserted unseen.
_SMALL = 64
# How many bytes are compared at first where two stretches may agree.
_STRETCH = 64

_LINE = re.compile(rb"[^\n]*\n|[^\n]+")
# The search may begin within an entry, so nothing here may run on: in a name of a
# megabyte of digits every one of them would be tried as the mode of an entry.
_TREE_ENTRY = re.compile(rb"[0-7]{5,6}+ [^\0]{1,255}+\0.{20}", re.DOTALL)


def make_delta(kind: int, base: bytes, content: bytes) -> bytes:
    """Return a delta that makes `content` of `base`, both objects of this type."""
    start = _agreeing(base, 0, content, 0)
    end = _agreeing_back(base, len(base), content, len(content), most=len(content) - start)
    end = min(end, len(base) - start)
    delta = bytearray(_varint(len(base)) + _varint(len(content)))
    _copy(delta, 0, start)
    if len(content) - end - start < _SMALL:
        _insert(delta, content[start : len(content) - end])
    else:
        pieces = _TREE_ENTRY if kind == TREE else _LINE
        _follow(delta, pieces, base, content, start, len(content) - end)
    _copy(delta, len(base) - end, end)
    return bytes(delta)


def _follow(
    delta: bytearray, pieces: re.Pattern[bytes], base: bytes, content: bytes, start: int, end: int
) -> None:
    """Add what makes the stretch of `content` from `start` to `end`."""
    anchors = _anchors(pieces, base)
    # Up to where `content` is made already.
    done = start
    for found in pieces.finditer(content, start, end):
        at = found.start()
        if at < done or (anchor := anchors.get(found[0])) is None:
            continue
        before = _agreeing_back(base, anchor, content, at, most=at - done)
        length = before + min(_agreeing(base, anchor, content, at), end - at)
        _insert(delta, content[done : at - before])
        _copy(delta, anchor - before, length)
        done = at - before + length
    _insert(delta, content[done:end])


def _anchors(pieces: re.Pattern[bytes], base: bytes) -> dict[bytes, int]:
    """Return where those pieces of the base are that are long enough and there once."""
    places = {found[0]: found.start() for found in pieces.finditer(base)}
    counts = Counter(pieces.findall(base))
    return {
        piece: place
        for piece, place in places.items()
        if counts[piece] == 1 and len(piece) >= _LEAST_ANCHOR
    }


def _agreeing(left: bytes, at: int, right: bytes, there: int) -> int:
    """Return for how many bytes two contents agree from these places on."""
    agreed, stretch = 0, _STRETCH
    while True:
        ours = left[at + agreed : at + agreed + stretch]
        theirs = right[there + agreed : there + agreed + stretch]
        if ours != theirs:
            size = min(len(ours), len(theirs))
            differs = np.frombuffer(ours[:size], np.uint8) != np.frombuffer(theirs[:size], np.uint8)
            return agreed + (int(differs.argmax()) if differs.any() else size)
        if not ours:
            return agreed
        agreed += len(ours)
        stretch *= 2


def _agreeing_back(left: bytes, at: int, right: bytes, there: int, *, most: int) -> int:
    """Return for how many bytes, at most so many, two contents agree before these places."""
    size = min(at, there, most)
    ours, theirs = left[at - size : at], right[there - size : there]
    if ours == theirs:
        return size
    differs = np.frombuffer(ours, np.uint8)[::-1] != np.frombuffer(theirs, np.uint8)[::-1]
    return int(differs.argmax())


def _copy(delta: bytearray, offset: int, size: int) -> None:
    while size > 0:
        copied = min(size, _MOST_COPIED)
        numbers = offset.to_bytes(4, "little") + copied.to_bytes(2, "little")
        # A bit for each byte that is not zero, and only those follow.
        delta.append(0x80 | sum(1 << bit for bit, byte in enumerate(numbers) if byte))
        delta += bytes(byte for byte in numbers if byte)
        offset += copied
        size -= copied


def _insert(delta: bytearray, content: bytes) -> None:
    for start in range(0, len(content), _MOST_INSERTED):
        piece = content[start : start + _MOST_INSERTED]
        delta.append(len(piece))
        delta += piece


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number >= 0x80:
        digits.append(0x80 | (number & 0x7F))
        number >>= 7
    digits.append(number)
    return bytes(digits)

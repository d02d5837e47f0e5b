"""A received pack without the objects that the log has already.

Upstreams repeat objects (without bitmaps, `pack-objects` leaves out only what
the boundary trees show), and git's index-pack stops at a pack that holds one
twice. Entries that stay keep their compressed bytes. Only heads change: of a
delta whose base was dropped (now named by id, the log has it), and of one whose
distance to its base changed with what was dropped between them.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from goblet_node.mirror.concat import HEADER_SIZE, log_header
from goblet_node.mirror.scan import Scan
from goblet_node.mirror.table import Entries
from goblet_node.objects import OFS_DELTA, RAW_ID_SIZE, REF_DELTA

_COPY_SIZE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalised:
    """A segment: its entries as they lie in it, and its trailer."""

    entries: Entries
    checksum: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The next bytes of a segment: a new head, if any, then a stretch of the received pack."""

    head: bytes
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    entries: Entries
    pieces: tuple[Piece, ...]


def entry_head(kind: int, size: bytes, reference: bytes) -> bytes:
    """Return the head of a delta entry.

    Args:
        kind: OFS_DELTA or REF_DELTA.
        size: The varint of kind and size with which an entry of the same size begins.
        reference: The encoded distance, or the raw id of the base.
    """
    return bytes([(size[0] & 0x8F) | (kind << 4)]) + size[1:] + reference


def encode_distance(distance: int) -> bytes:
    """Return an OFS_DELTA's distance as git writes it (gitformat-pack, "offset encoding")."""
    digits = [distance & 0x7F]
    while distance := distance >> 7:
        distance -= 1
        digits.append(0x80 | (distance & 0x7F))
    return bytes(reversed(digits))


def normalise(received: Path, scan: Scan, keep: NDArray[np.bool_], dest: Path) -> Normalised:
    """Write to `dest` the segment that holds only the entries to keep; the caller syncs it.

    Every object of an entry that is not kept must be in the log, or be kept in
    another entry of the same pack.

    Args:
        received: The pack as it came.
        scan: What it holds.
        keep: One element an entry, in pack order; at least one is true.
        dest: Where to; must not exist.
    """
    with received.open("rb") as source:
        plan = plan_pieces(scan, keep, source)
        digest = hashlib.sha1()
        with dest.open("xb") as target:
            for chunk in _chunks(plan, source):
                digest.update(chunk)
                target.write(chunk)
            target.write(digest.digest())
    return Normalised(entries=plan.entries, checksum=digest.digest())


def plan_pieces(scan: Scan, keep: NDArray[np.bool_], source: BinaryIO) -> _Plan:
    """Decide where every kept entry goes and which heads change; `source` is only read for those.

    One pass in pack order is enough: the base of an OFS_DELTA lies before it, so
    its new place is known.
    """
    kept = np.flatnonzero(keep)
    entries = scan.entries[kept]
    # Old offset -> new offset of what was kept so far.
    moved: dict[int, int] = {}
    pieces: list[Piece] = []
    place = HEADER_SIZE
    for row, (index, old, length, header, kind) in enumerate(
        zip(
            kept.tolist(),
            entries["offset"].tolist(),
            entries["length"].tolist(),
            entries["header"].tolist(),
            entries["kind"].tolist(),
            strict=True,
        )
    ):
        moved[old] = place
        head, body = b"", old
        if kind == OFS_DELTA:
            base = int(scan.base_offsets[index])
            new_base = moved.get(base)
            if new_base is None:
                entries["kind"][row] = REF_DELTA
                raw_base = entries["base"][row : row + 1].tobytes()
                head = entry_head(REF_DELTA, _size_varint(source, old), raw_base)
            elif place - new_base != old - base:
                distance = encode_distance(place - new_base)
                head = entry_head(OFS_DELTA, _size_varint(source, old), distance)
        if head:
            body += header
            entries["header"][row] = len(head)
        entries["offset"][row] = place
        end = old + length
        place += len(head) + end - body
        entries["length"][row] = place - moved[old]
        _append(pieces, Piece(head=head, start=body, end=end))
    return _Plan(entries=entries, pieces=tuple(pieces))


def _append(pieces: list[Piece], piece: Piece) -> None:
    """Add a piece, as part of the one before where the bytes simply go on."""
    if pieces and not piece.head and pieces[-1].end == piece.start:
        piece = Piece(head=pieces[-1].head, start=pieces[-1].start, end=piece.end)
        pieces.pop()
    pieces.append(piece)


def _size_varint(source: BinaryIO, offset: int) -> bytes:
    source.seek(offset)
    start = source.read(RAW_ID_SIZE)
    length = next(number for number, byte in enumerate(start, 1) if byte < 0x80)
    return start[:length]


def _chunks(plan: _Plan, source: BinaryIO) -> Iterator[bytes]:
    yield log_header(len(plan.entries))
    for piece in plan.pieces:
        if piece.head:
            yield piece.head
        source.seek(piece.start)
        left = piece.end - piece.start
        while left:
            chunk = source.read(min(left, _COPY_SIZE))
            yield chunk
            left -= len(chunk)

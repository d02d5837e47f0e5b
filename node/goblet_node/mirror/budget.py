"""What to delete so that what is being written finds room. Pure: nothing is deleted here.

The cap is one number of bytes for mirrors and recordings together, fixed when the
node starts. A cap that follows the free space would shrink with every neighbour on
the disk, and two nodes on one disk would take turns in emptying each other.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from pydantic import ByteSize, TypeAdapter, ValidationError

from goblet_shared.errors import GobletError
from goblet_shared.repo_key import RepoKey

_SIZE = TypeAdapter(ByteSize)
_WRITTEN_SIZE = re.compile(r"[0-9]+(\.[0-9]+)?\s*[A-Za-z]*")
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]+)?)\s*%")

# What a segment takes beside its pack, an object: 67 bytes of table, 20 of links, and
# 4 for each object that it refers to. Measured: 100 to 150 in all; where trees are
# wide it may be more, which is claimed once it is known.
_BESIDE_AN_OBJECT = 160
# The shortest entry of a pack: a head, an offset, and an empty zlib stream.
_SHORTEST_ENTRY = 9


class BadCap(GobletError):
    """A cap that cannot be kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """The most bytes for mirrors and recordings: a number, or a share of the file system's size.

    Exactly one of the two is given; `share` is above 0 and at most 1.
    """

    bytes: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read "200GB", "1.5TiB", a number of bytes, or "80%". Raises BadCap."""
        if (percent := _PERCENT.fullmatch(text.strip())) is not None:
            share = float(percent[1]) / 100
            if not 0 < share <= 1:
                raise BadCap(f"{text!r} of the file system cannot be had: want 1% to 100%")
            return cls(share=share)
        try:
            # ByteSize itself would read "80 GB%" as 80 GB.
            written = _WRITTEN_SIZE.fullmatch(text.strip())
            size = int(_SIZE.validate_python(written[0] if written else ""))
        except (ValidationError, OverflowError):
            raise BadCap(f"{text!r} is no size: want one such as 200GB, or 80%") from None
        if size <= 0:
            raise BadCap(f"{text!r} leaves no room at all: want a size such as 200GB, or 80%")
        return cls(bytes=size)

    def of(self, file_system: int) -> int:
        """Return the cap in bytes on a file system of so many bytes in all.

        Raises:
            BadCap: it is more than there is, or a share of what does not tell its size.
        """
        if self.share is not None:
            if file_system <= 0:
                raise BadCap(f"the cache's file system does not tell its size: {self} is nothing")
            return math.floor(file_system * self.share)
        assert self.bytes is not None
        if 0 < file_system < self.bytes:
            raise BadCap(
                f"the cache's file system has {file_system} bytes in all: {self} cannot be kept"
            )
        return self.bytes

    def __str__(self) -> str:
        """Return what `parse` reads."""
        return f"{self.bytes}" if self.share is None else f"{self.share * 100:g}%"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One mirror: how many bytes it takes, and when it was last used (later is greater)."""

    key: RepoKey
    bytes: int
    used_at: float
    is_in_use: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What takes bytes on the disk. `reserved` is promised to writes, or cannot be deleted."""

    cap: int
    mirrors: Sequence[Kept]
    recordings: int
    reserved: int

    @property
    def excess(self) -> int:
        """How many bytes must go for the cap to be kept; 0 if none."""
        held = sum(mirror.bytes for mirror in self.mirrors)
        return max(0, held + self.recordings + self.reserved - self.cap)


@dataclass(frozen=True, slots=True, kw_only=True)
class Eviction:
    """What is to go: so many bytes of recordings, then these mirrors in this order."""

    recordings: int = 0
    mirrors: tuple[RepoKey, ...] = ()


def intake_needs(received: int, *, objects: int, grows: bool) -> int:
    """Return how many bytes an intake may write beside a received pack of so many bytes.

    Args:
        received: The pack's size.
        objects: How many objects its header says that it has; a lie costs nothing.
        grows: Whether there is a log that may have some of them, so that the pack is
            copied without those. One pack alone does not repeat itself unless its
            sender means harm; then the copy is claimed once it is there.
    """
    entries = min(objects, received // _SHORTEST_ENTRY)
    return entries * _BESIDE_AN_OBJECT + (received if grows else 0)


def what_to_evict(use: Use) -> Eviction | None:
    """Choose what goes so that the cap is kept; None if it cannot be, and then nothing should.

    Recordings first: they can be made again from a mirror. Then whole mirrors, the
    least recently used before others, and never one in use. No mirror is named that
    those before it make needless.
    """
    excess = use.excess
    recordings = min(excess, use.recordings)
    left = excess - recordings
    mirrors: list[RepoKey] = []
    for mirror in sorted(use.mirrors, key=lambda mirror: mirror.used_at):
        if left <= 0:
            break
        if not mirror.is_in_use and mirror.bytes:
            mirrors.append(mirror.key)
            left -= mirror.bytes
    if left > 0:
        return None
    return Eviction(recordings=recordings, mirrors=tuple(mirrors))

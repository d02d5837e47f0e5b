"""A body whose bytes lie in files: what is sent, without being read first.

Plain values, so that whoever decides what is sent need not know how. The ASGI
message that carries them is `{"type": ZEROCOPY, "parts": [...], "more_body": ...}`,
which a server takes that offers ZEROCOPY in `scope["extensions"]`. The ASGI
extension of that name knows one file a message; with many parts, a body of many small
pieces of files, and bytes between them, costs one message.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias, cast

from goblet_shared.errors import GobletError

ZEROCOPY = "http.response.zerocopysend"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSpan:
    """`count` bytes from `offset` on of the file behind the descriptor `file`.

    Whoever sends it keeps the descriptor open until the sending has returned, and
    what is in the span does not change before all of it has reached the client.
    """

    file: int
    offset: int
    count: int


Part: TypeAlias = bytes | FileSpan


class FileFailed(GobletError):
    """A file ended before a span that was to be sent of it, or could not be read."""


def size_of(parts: Iterable[Part]) -> int:
    """Return how many bytes `parts` are."""
    return sum(part.count if isinstance(part, FileSpan) else len(part) for part in parts)


def cut(parts: Iterable[Part], most: int) -> Iterator[list[Part]]:
    """Yield the same bytes in lists of `most` bytes each; the last may have fewer.

    No list is empty. Bytes that stand side by side are joined, spans and bytes of no
    length left out.
    """
    batch: list[Part] = []
    room = most
    touching, after_span = False, True
    for part in parts:
        is_span = isinstance(part, FileSpan)
        at, size = 0, part.count if isinstance(part, FileSpan) else len(part)
        while at < size:
            taken = min(size - at, room)
            batch.append(part if taken == size else _piece(part, at, taken))
            touching = touching or not (is_span or after_span)
            after_span = is_span
            at += taken
            room -= taken
            if not room:
                yield _joined(batch) if touching else batch
                batch, room, touching, after_span = [], most, False, True
    if batch:
        yield _joined(batch) if touching else batch


def extents(parts: Iterable[Part], most: int) -> list[FileSpan]:
    """Return where the first `most` bytes of files in `parts` lie, neighbours as one."""
    found: list[FileSpan] = []
    file = start = stop = -1
    room = most
    for part in parts:
        if not isinstance(part, FileSpan):
            continue
        taken = min(part.count, room)
        if part.file != file or part.offset != stop:
            if stop > start:
                found.append(FileSpan(file=file, offset=start, count=stop - start))
            file, start, stop = part.file, part.offset, part.offset
        stop += taken
        room -= taken
        if not room:
            break
    if stop > start:
        found.append(FileSpan(file=file, offset=start, count=stop - start))
    return found


def _joined(batch: list[Part]) -> list[Part]:
    joined: list[Part] = []
    for is_span, run in groupby(batch, lambda part: isinstance(part, FileSpan)):
        if is_span:
            joined += run
        else:
            joined.append(b"".join(cast(Iterable[bytes], run)))
    return joined


def _piece(part: Part, at: int, count: int) -> Part:
    if isinstance(part, FileSpan):
        return FileSpan(file=part.file, offset=part.offset + at, count=count)
    return part[at : at + count]

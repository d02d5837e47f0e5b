"""Git objects as bytes: kinds, ids, references, deltas. The only module that uses dulwich.

Everything here is a plain function of bytes, made to run in worker processes.
What cannot be parsed raises `ObjectBroken`; who knows where the bytes came from
turns that into `PackRejected` (the upstream sent them) or `MirrorDamaged` (the
disk returned them).
"""

import binascii
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO

from dulwich import pack as dulwich_pack
from dulwich.errors import ApplyDeltaError

from goblet_node.errors import UpstreamError
from goblet_node.wire.refs import ObjectId
from goblet_shared.errors import GobletError

# Object kinds as pack entries number them (git's gitformat-pack).
COMMIT, TREE, BLOB, TAG, OFS_DELTA, REF_DELTA = 1, 2, 3, 4, 6, 7
WHOLE_KINDS = frozenset({COMMIT, TREE, BLOB, TAG})
DELTA_KINDS = frozenset({OFS_DELTA, REF_DELTA})

RAW_ID_SIZE = 20
_HEX_ID_SIZE = 40
_TYPE_NAMES = {COMMIT: b"commit", TREE: b"tree", BLOB: b"blob", TAG: b"tag"}
_TYPES = {name: number for number, name in _TYPE_NAMES.items()}
_HEX_DIGITS = frozenset(b"0123456789abcdef")

# Entries of a tree: an octal mode, a name, a raw id. Possessive, since nothing is to be
# tried again: a broken tree of a hundred megabytes is refused in one pass.
_TREE = re.compile(rb"(?:[0-7]++ [^\0]++\0.{20})*+", re.DOTALL)
# Of each entry its id, or nothing if its mode says that it names a commit of another
# repository (a submodule): the only reference that a closed log need not hold.
_TREE_ENTRY = re.compile(
    rb"(?:[0-7]*[1357]6[0-7]{4} [^\0]+\0.{20}|[0-7]+ [^\0]+\0(.{20}))", re.DOTALL
)

# Two sizes, each a varint of at most ten bytes for 64 bits, begin a delta.
DELTA_SIZES_SPAN = 20


class PackRejected(UpstreamError):
    """The upstream sent a pack that is damaged, incomplete, or beyond a configured limit."""


class ObjectBroken(GobletError):
    """Bytes that are not the object or delta they are said to be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What the walks need of a commit. `committed` is in seconds since 1970, 0 if unreadable."""

    tree: ObjectId
    parents: tuple[ObjectId, ...]
    committed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """What an annotated tag points at: an object and the type it says that object has."""

    target: ObjectId
    type: int


def raw_id(oid: ObjectId) -> bytes:
    """Return the 20 bytes that 40 hex digits stand for."""
    return binascii.unhexlify(oid)


def hex_id(raw: bytes) -> ObjectId:
    """Return the 40 hex digits of a 20-byte object id."""
    return ObjectId(binascii.hexlify(raw))


def object_header(kind: int, size: int) -> bytes:
    """Return what git hashes before an object's content."""
    return b"%s %d\0" % (_TYPE_NAMES[kind], size)


def object_id(kind: int, content: bytes) -> bytes:
    """Return the raw id of an object."""
    # No collision detection as in git's sha1dc: an object that the log has is
    # never replaced by a later one of the same name, so a collision can only
    # reach clients of an upstream that itself made it, and their git looks.
    name = hashlib.sha1(object_header(kind, len(content)))
    name.update(content)
    return name.digest()


def delta_sizes(delta: bytes) -> tuple[int, int]:
    """Return the base's and the result's size as a delta (or its first bytes) states them.

    Raises:
        ObjectBroken: It ends within the sizes.
    """
    sizes = []
    position = 0
    for _ in range(2):
        size = shift = 0
        while True:
            if position >= len(delta) or shift > 63:
                raise ObjectBroken("a delta ends within its sizes")
            byte = delta[position]
            position += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        sizes.append(size)
    return sizes[0], sizes[1]


def apply_delta(base: bytes, delta: bytes) -> bytes:
    """Return what the delta makes of the base.

    The caller has looked at `delta_sizes` and accepted the size of the result.

    Raises:
        ObjectBroken: The delta does not fit the base.
    """
    try:
        return b"".join(dulwich_pack.apply_delta(base, delta))
    except (ApplyDeltaError, MemoryError) as exc:
        raise ObjectBroken(f"a delta does not fit its base: {exc}") from exc


def raw_references(kind: int, content: bytes) -> tuple[bytes, int]:
    """Return the objects that must be there for this one to be whole, and when it was committed.

    The first are raw ids, end to end: of a commit its tree, then its parents in order;
    of a tree its entries in order, gitlinks excepted; of a tag its target. The second
    is in seconds since 1970, and 0 for all but commits.

    Raises:
        ObjectBroken: The content is not an object of that kind.
    """
    if kind == TREE:
        if not _TREE.fullmatch(content):
            raise ObjectBroken("a tree cannot be parsed")
        return b"".join(_TREE_ENTRY.findall(content)), 0
    if kind == COMMIT:
        commit = parse_commit(content)
        return binascii.unhexlify(b"".join((commit.tree, *commit.parents))), commit.committed
    if kind == TAG:
        return raw_id(parse_tag(content).target), 0
    return b"", 0


def parse_commit(content: bytes) -> Commit:
    """Read the header of a commit; nothing of it that a walk does not need must be in order.

    dulwich's own parser refuses the author and time lines that old importers
    left behind; git serves those commits, so a mirror of them must work.

    Raises:
        ObjectBroken: Tree or parents cannot be read.
    """
    tree, position = _id_line(content, b"tree ", 0)
    parents = []
    while content.startswith(b"parent ", position):
        parent, position = _id_line(content, b"parent ", position)
        parents.append(parent)
    return Commit(tree=tree, parents=tuple(parents), committed=_committed(content, position))


def parse_tag(content: bytes) -> Tag:
    """Read the header of an annotated tag.

    Raises:
        ObjectBroken: Target or type cannot be read.
    """
    target, position = _id_line(content, b"object ", 0)
    end = content.find(b"\n", position)
    name = content[position:end].removeprefix(b"type ") if end >= 0 else b""
    if name not in _TYPES:
        raise ObjectBroken(f"a tag names no type of object: {name[:20]!r}")
    return Tag(target=target, type=_TYPES[name])


def write_index(file: IO[bytes], rows: Iterable[tuple[bytes, int, int]], checksum: bytes) -> None:
    """Write a version 2 pack index.

    Args:
        file: Where to; the caller closes it.
        rows: Raw id, offset and CRC-32 of every entry, sorted by id.
        checksum: The 20 bytes at the end of the pack.
    """
    dulwich_pack.write_pack_index_v2(file, rows, checksum)


def _id_line(content: bytes, keyword: bytes, position: int) -> tuple[ObjectId, int]:
    start = position + len(keyword)
    end = start + _HEX_ID_SIZE
    oid = content[start:end]
    if (
        not content.startswith(keyword, position)
        or len(oid) != _HEX_ID_SIZE
        or content[end : end + 1] != b"\n"
        or not _HEX_DIGITS.issuperset(oid)
    ):
        raise ObjectBroken(f"an object has no line {keyword.decode()!r} where it must")
    return ObjectId(oid), end + 1


def _committed(content: bytes, position: int) -> int:
    # Only the header counts: a message may well contain a line "committer ...".
    header_end = content.find(b"\n\n", position)
    start = content.find(b"\ncommitter ", position - 1, header_end if header_end >= 0 else None)
    if start < 0:
        return 0
    end = content.find(b"\n", start + 1)
    words = content[start + 1 : end if end >= 0 else None].rsplit(b" ", 2)
    # Sixteen digits are 300 million years; int() on more is a way to waste time.
    seconds = words[-2] if len(words) == 3 else b""
    return int(seconds) if seconds.isdigit() and len(seconds) <= 16 else 0

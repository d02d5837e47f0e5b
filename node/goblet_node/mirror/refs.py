"""The file that holds one generation's refs: one line a ref, a checksum at the end."""

import hashlib
from collections.abc import Iterable, Sequence

from goblet_node.errors import MirrorDamaged
from goblet_node.wire.refs import ObjectId, Ref

_HEAD = b"goblet-refs 1\n"
_SEAL = b"sha256 "
_SEAL_LENGTH = len(_SEAL) + 64 + 1
# No ref name holds a space or is a lone dash, so neither can be taken for one.
_NONE = b"-"


def encode_refs(refs: Sequence[Ref]) -> bytes:
    """Return the content of a refs file; `decode_refs` gives back the same refs in the same order.

    Raises:
        ValueError: a name holds a space or a line feed, which the wire refuses.
    """
    body = b"".join(
        b"%b %b %b %b\n"
        % (ref.oid or _NONE, ref.peeled or _NONE, ref.symref_target or _NONE, ref.name)
        for ref in refs
    )
    if body.count(b" ") != 3 * len(refs) or body.count(b"\n") != len(refs):
        raise ValueError("a ref's name holds a space or a line feed")
    content = _HEAD + body
    return content + _seal(content)


def decode_refs(content: bytes) -> tuple[Ref, ...]:
    """Return the refs of a refs file.

    Raises:
        MirrorDamaged: it is not byte for byte what `encode_refs` made.
    """
    check_refs(content)
    lines = content[len(_HEAD) : -_SEAL_LENGTH].split(b"\n")[:-1]
    # The checksum has shown that these are our own bytes: no check a line.
    return tuple(_decode_line(line) for line in lines)


def check_refs(content: bytes) -> None:
    """Raise MirrorDamaged unless `content` is whole; far cheaper than decoding it."""
    if not content.startswith(_HEAD) or content[-_SEAL_LENGTH:] != _seal(content[:-_SEAL_LENGTH]):
        raise MirrorDamaged(
            f"a refs file of {len(content)} bytes is not what was written; "
            "the mirror must be filled again"
        )


def tips(refs: Iterable[Ref]) -> frozenset[ObjectId]:
    """Return the distinct objects that refs name; what a tag peels to is reached through it."""
    return frozenset(ref.oid for ref in refs if ref.oid is not None)


def _decode_line(line: bytes) -> Ref:
    oid, peeled, symref_target, name = line.split(b" ")
    return Ref(
        name=name,
        oid=None if oid == _NONE else ObjectId(oid),
        symref_target=None if symref_target == _NONE else symref_target,
        peeled=None if peeled == _NONE else ObjectId(peeled),
    )


def _seal(content: bytes) -> bytes:
    return b"%b%b\n" % (_SEAL, hashlib.sha256(content).hexdigest().encode())

"""Mirrors for tests that care for files and not for histories: every object is a blob."""

import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path

from goblet_node.mirror.intake import Intake, IntakeJob, take_in
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.refs import tips
from goblet_node.mirror.store import MirrorStore
from goblet_node.wire.refs import JoinedIds, ObjectId, Ref
from goblet_shared.repo_key import RepoKey

_BLOB = 3


def blob_id(content: bytes) -> ObjectId:
    """Return the object id that git gives a blob."""
    return ObjectId(hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest().encode())


def blob_pack(contents: Sequence[bytes]) -> bytes:
    """Return a pack of these blobs, whole, in this order."""
    pack = b"PACK" + (2).to_bytes(4, "big") + len(contents).to_bytes(4, "big")
    pack += b"".join(_entry_head(len(c)) + zlib.compress(c) for c in contents)
    return pack + hashlib.sha1(pack).digest()


def heads(**branches: bytes) -> tuple[Ref, ...]:
    """Return refs/heads/NAME at the blob with the given content, for each."""
    return tuple(
        Ref(name=f"refs/heads/{name}".encode(), oid=blob_id(content))
        for name, content in branches.items()
    )


def take_blobs(
    scratch: Path, *, base: Mirror | None, refs: Sequence[Ref], contents: Sequence[bytes]
) -> Intake:
    """Take in a pack of blobs for a mirror, as a worker process would; none if there are none."""
    received = None
    if contents:
        received = scratch / "received.pack"
        received.write_bytes(blob_pack(contents))
    job = IntakeJob(
        received=received,
        scratch=scratch,
        segments=base.files if base else (),
        tips=JoinedIds.of(sorted(tips(refs))),
        old_tips=JoinedIds.of(sorted(base.tips) if base else ()),
        old_orphans=JoinedIds.of(base.current.orphans if base else ()),
    )
    return take_in(job)


def grow(
    store: MirrorStore, key: RepoKey, refs: Sequence[Ref], contents: Sequence[bytes] = ()
) -> Mirror:
    """Bring a mirror to these refs, with new blobs, in all the steps of a refresh."""
    scratch = store.new_scratch()
    try:
        base = store.get(key)
        intake = take_blobs(scratch, base=base, refs=refs, contents=contents)
        return store.commit(key, base=base, refs=refs, intake=intake)
    finally:
        store.discard_scratch(scratch)


def _entry_head(size: int) -> bytes:
    head = bytearray()
    byte, size = _BLOB << 4 | size & 15, size >> 4
    while size:
        head.append(byte | 0x80)
        byte, size = size & 0x7F, size >> 7
    head.append(byte)
    return bytes(head)

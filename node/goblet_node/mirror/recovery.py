"""What a mirror on disk must satisfy, and what becomes of one that does not.

A mirror is what its manifest says, or it is nothing: there is no half-good
mirror. A lost one costs one fetch from upstream, a wrong one costs every client.
"""

import logging
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from goblet_node.errors import DiskFailed, MirrorDamaged
from goblet_node.mirror.disk import Disk, read_file, reading
from goblet_node.mirror.layout import MANIFEST, CacheRoot
from goblet_node.mirror.log import Segment
from goblet_node.mirror.manifest import Manifest, decode_manifest
from goblet_node.mirror.refs import check_refs

log = logging.getLogger(__name__)

_TRAILER_BYTES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """One thing that was put right when a cache root was opened.

    `place` is the repository's key, or where the manifest does not tell it the
    directory, relative to the root; `sentence` says what was found and done.
    """

    place: str
    sentence: str


def recover(
    directory: Path, *, root: CacheRoot, disk: Disk
) -> tuple[Manifest | None, Repair | None]:
    """Return what the mirror in `directory` is, and what was put right.

    Afterwards the directory holds exactly what the manifest names, or is gone.

    Raises:
        DiskFailed: it cannot be read or mended for a reason other than damage.
    """
    place = str(directory.relative_to(root.path))
    try:
        manifest = read_manifest(directory)
        if manifest is None:
            discard_mirror(directory, root=root, disk=disk)
            return None, Repair(place=place, sentence="a first commit was never finished; removed")
        place = manifest.key
        check_mirror(manifest, directory, root=root)
    except MirrorDamaged as exc:
        discard_mirror(directory, root=root, disk=disk)
        return None, Repair(place=place, sentence=f"{exc}; removed")
    leftovers = strangers(directory, manifest)
    if not leftovers:
        return manifest, None
    clear(leftovers, disk=disk)
    sentence = f"{len(leftovers)} files that its manifest does not name; removed"
    return manifest, Repair(place=place, sentence=sentence)


def read_manifest(directory: Path) -> Manifest | None:
    """Return what the manifest in `directory` says, or None if there is none.

    Raises:
        MirrorDamaged: there is one, and it is no good.
    """
    path = directory / MANIFEST
    with reading(path):
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
    return decode_manifest(content, directory)


def check_mirror(manifest: Manifest, directory: Path, *, root: CacheRoot) -> None:
    """Raise MirrorDamaged unless the files in a mirror's directory are those its manifest names.

    Segments by size and trailer: reading gigabytes at each start would be the
    worse evil, and what is sent is checked by every client. The current refs are
    read whole. Going back to older refs when they are damaged would have to give
    up the segments after them too, for a case that is as rare as it is cheap to
    fill again; so the mirror is given up. Tables and links are looked at when
    they are loaded, for they can be made again from their segments.
    """
    if directory != root.directory_of(manifest.key):
        raise MirrorDamaged(
            f"a mirror of {manifest.key!r} lies where another repository's belongs; "
            "the mirror must be filled again"
        )
    for segment in manifest.segments:
        _check_segment(segment)
    check_refs(read_file(directory / manifest.generations[-1].refs_file))


def strangers(directory: Path, *known: Manifest, besides: Iterable[Segment] = ()) -> list[Path]:
    """Return the files in a mirror's directory that none of these manifests names.

    Those of the segments `besides` are left out too.
    """
    named = frozenset[str]().union(*(manifest.file_names() for manifest in known))
    named |= {path.name for segment in besides for path in segment.files}
    with reading(directory):
        return sorted(path for path in directory.iterdir() if path.name not in named)


def clear(paths: Iterable[Path], *, disk: Disk) -> None:
    """Remove files and whole directories that nothing names."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            disk.remove_tree(path)
        else:
            disk.remove_file(path)


def discard_mirror(directory: Path, *, root: CacheRoot, disk: Disk) -> None:
    """Delete a mirror's directory, so that it is there whole or not at all at every moment.

    Raises:
        DiskFailed: it could not be moved away and is there still. What cannot be
            deleted after that stays in the scratch until the next start.
    """
    aside = root.scratch / f"dropped-{secrets.token_hex(8)}"
    # The name goes first, and durably: what is being deleted must not come back half.
    disk.publish(directory, aside)
    discard_scratch(aside, disk=disk)


def discard_scratch(path: Path, *, disk: Disk) -> None:
    """Delete something in the scratch; if the disk refuses, the next start does it."""
    try:
        if path.exists():
            disk.remove_tree(path)
    except DiskFailed as exc:
        log.warning("scratch %s stays until the next start: %s", path.name, exc)


def _check_segment(segment: Segment) -> None:
    with reading(segment.pack), segment.pack.open("rb") as pack:
        size = os.fstat(pack.fileno()).st_size
        if size != segment.bytes:
            raise MirrorDamaged(
                f"{segment.pack.name!r} has {size} bytes and not {segment.bytes}; "
                "the mirror must be filled again"
            )
        pack.seek(size - _TRAILER_BYTES)
        if pack.read(_TRAILER_BYTES).hex() != segment.checksum:
            raise MirrorDamaged(
                f"{segment.pack.name!r} does not end in its checksum; "
                "the mirror must be filled again"
            )

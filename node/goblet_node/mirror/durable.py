"""Bring a commit's files to the disk, or what is left of a commit that failed off it."""

import logging
from collections.abc import Iterable
from pathlib import Path

from goblet_node.errors import DiskFailed, MirrorDamaged
from goblet_node.mirror.commit import Commit
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.layout import MANIFEST, aside
from goblet_node.mirror.log import Mirror, Segment
from goblet_node.mirror.manifest import encode_manifest
from goblet_node.mirror.recovery import clear, read_manifest, strangers
from goblet_node.mirror.view import manifest_of

log = logging.getLogger(__name__)


def make_durable(commit: Commit, *, disk: Disk, used_at: float | None) -> None:
    """Bring a commit's files to the disk; the last rename is the commit.

    With `used_at` the manifest tells that time as the mirror's last use, else now.
    """
    directory = commit.directory
    disk.make_directory(directory)
    for source, target in commit.moves:
        disk.sync_file(source)
        disk.rename(source, target)
    if commit.refs_file is not None:
        refs_path, refs_content = commit.refs_file
        # Not straight to its name: a commit that failed in its last step may
        # have left a manifest on the disk that names the very same file.
        disk.write_new(aside(refs_path), refs_content)
        disk.rename(aside(refs_path), refs_path)
    manifest_path = directory / MANIFEST
    disk.write(aside(manifest_path), encode_manifest(commit.manifest))
    if used_at is not None:
        disk.date(aside(manifest_path), used_at)
    disk.sync_file(aside(manifest_path))
    disk.sync_directory(directory)
    # From here on all that the manifest names is durable, with its name.
    disk.publish(aside(manifest_path), manifest_path)


def clear_leftovers(
    directory: Path, mirror: Mirror | None, retired: Iterable[Segment], *, disk: Disk
) -> None:
    """Remove what no commit named or will name again, so that a full disk does not stay full.

    `mirror` is the one that `directory` holds (None: it holds none), `retired` are
    segments of older ones that somebody still reads. If the disk refuses, that is logged.
    """
    # The manifest on the disk counts too: it may be that of a commit which failed
    # after the rename, and what a restart finds.
    try:
        if not directory.exists():
            return
        on_disk = read_manifest(directory)
        known = [] if on_disk is None else [on_disk]
        if mirror is not None:
            known.append(manifest_of(mirror))
        if known:
            clear(strangers(directory, *known, besides=retired), disk=disk)
        else:
            disk.remove_tree(directory)
    except (DiskFailed, MirrorDamaged) as exc:
        log.warning("files that nothing names stay until the next commit: %s", exc)

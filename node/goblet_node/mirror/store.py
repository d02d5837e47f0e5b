"""All mirrors of one cache root: find them, make them grow, recover them after a crash.

Plain synchronous code. What touches the disk (`open`, `commit`, `drop`,
`new_scratch`, `discard_scratch`) is run in a thread by the caller; `get` and
`keys` read memory only.
"""

import logging
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from goblet_node.errors import DiskFailed, MirrorDamaged
from goblet_node.mirror.commit import Commit, changes, plan_commit
from goblet_node.mirror.disk import Disk, reading
from goblet_node.mirror.intake import Intake, rebuild_table
from goblet_node.mirror.layout import MANIFEST, CacheRoot, is_mirror_directory
from goblet_node.mirror.lock import RootLock
from goblet_node.mirror.log import Mirror, Segment
from goblet_node.mirror.manifest import Manifest, encode_manifest
from goblet_node.mirror.recovery import (
    Repair,
    check_mirror,
    clear,
    discard_mirror,
    discard_scratch,
    read_manifest,
    recover,
    strangers,
)
from goblet_node.mirror.view import as_mirror, manifest_of
from goblet_node.wire.refs import Ref
from goblet_shared.errors import GobletError
from goblet_shared.repo_key import RepoKey

log = logging.getLogger(__name__)


RebuildTable = Callable[[Sequence[tuple[Path, Path]], Path, Path], None]
"""Writes the table of a segment anew: (pack, table) of the log before it, its pack, its table."""


class MirrorMoved(GobletError):
    """The mirror is no longer the one that a change was made for."""

    status = 503


class NoSuchMirror(GobletError):
    """The cache root holds no mirror of that repository."""

    status = 404


class MirrorStore:
    """The mirrors below one root, which no other process may have open at the same time."""

    def __init__(
        self, root: Path, *, disk: Disk, rebuild_table: RebuildTable = rebuild_table
    ) -> None:
        self._root = CacheRoot(root)
        self._disk = disk
        self._rebuild_table = rebuild_table
        self._lock = RootLock(self._root.lock)
        # All mutable state: the current mirrors, and the keys that a thread is
        # changing right now. A mirror is swapped for its successor in one
        # assignment, so readers need no lock; `_changing` is guarded by its own.
        self._mirrors: dict[RepoKey, Mirror] = {}
        self._changing: set[RepoKey] = set()
        self._changing_guard = threading.Lock()

    def open(self) -> tuple[Repair, ...]:
        """Lock the root and recover every mirror; return what had to be put right.

        Afterwards the root holds good mirrors and nothing else of ours. Reads a
        manifest and a refs file a mirror, no table, and keeps no file open.

        Raises:
            CacheRootInUse: another process has the root open.
            DiskFailed: the root cannot be read or written; the lock is released.
        """
        self._disk.make_directory(self._root.path)
        self._lock.acquire()
        try:
            for directory in (self._root.mirrors, self._root.scratch):
                self._disk.make_directory(directory)
            clear(_children(self._root.scratch), disk=self._disk)
            repairs = tuple(self._recover_all())
        except BaseException:
            self._lock.release()
            raise
        for repair in repairs:
            log.warning("%s: %s", repair.place, repair.sentence)
        return repairs

    def close(self) -> None:
        """Forget all mirrors and let go of the root; what was handed out stays readable."""
        self._mirrors.clear()
        self._lock.release()

    def get(self, key: RepoKey) -> Mirror | None:
        """Return the mirror of a repository as of its last commit."""
        return self._mirrors.get(key)

    def keys(self) -> tuple[RepoKey, ...]:
        """Return the repositories that have a mirror."""
        return tuple(self._mirrors)

    def new_scratch(self) -> Path:
        """Return a new empty directory on the mirrors' file system; the caller discards it."""
        path = self._root.scratch / secrets.token_hex(8)
        self._disk.create_directory(path)
        return path

    def discard_scratch(self, path: Path) -> None:
        """Remove a scratch directory with all it holds; if that fails, the next start does it."""
        discard_scratch(path, disk=self._disk)

    def commit(
        self, key: RepoKey, *, base: Mirror | None, refs: Sequence[Ref], intake: Intake
    ) -> Mirror:
        """Make `refs` and what was taken in the mirror's current generation, durably; return it.

        `base` is the mirror that the intake was made for (None: there was none).
        The intake's files are moved from their scratch. If nothing would change,
        `base` is returned. If this raises, the mirror is what it was; only a
        failure of the very last step may show the new generation after a restart.

        Raises:
            MirrorMoved: the mirror is not `base` any more, or somebody else is
                changing it: a segment made for another log would repeat its
                objects or miss its bases.
            DiskFailed: the disk refused; `base` is untouched.
        """
        with self._changing_alone(key):
            if self._mirrors.get(key) is not base:
                raise MirrorMoved(f"the mirror of {key!r} has changed meanwhile; try again")
            if base is not None and not changes(base, refs=refs, intake=intake):
                return base
            commit = plan_commit(
                key=key,
                directory=self._root.directory_of(key),
                base=base,
                refs=refs,
                intake=intake,
            )
            try:
                self._make_durable(commit)
            except DiskFailed:
                self._clear_failed(commit.directory, base)
                raise
            mirror = self._mirror(commit.manifest, refs=tuple(refs), base=base)
            self._mirrors[key] = mirror
            self._clear_replaced(commit)
            return mirror

    def drop(self, key: RepoKey, *, only: Mirror | None = None) -> None:
        """Forget and delete a mirror; the repository is cold again. Dropping none is no error.

        With `only`, nothing is done if another log has taken that one's place.

        Raises:
            MirrorMoved: somebody is changing it.
            DiskFailed: the disk refused; the mirror is forgotten all the same, and
                found again by the next start unless it is committed or dropped before.
        """
        with self._changing_alone(key):
            now = self._mirrors.get(key)
            if only is not None and now is not None and not now.grew_from(only):
                return
            # First of all: a mirror is dropped because nobody should read it.
            self._mirrors.pop(key, None)
            directory = self._root.directory_of(key)
            if directory.exists():
                discard_mirror(directory, root=self._root, disk=self._disk)

    def _make_durable(self, commit: Commit) -> None:
        """Bring a commit's files to the disk; the last rename is the commit."""
        disk, directory = self._disk, commit.directory
        disk.make_directory(directory)
        for source, target in commit.moves:
            disk.sync_file(source)
            disk.rename(source, target)
        refs_path, refs_content = commit.refs_file
        # Not straight to its name: a commit that failed in its last step may
        # have left a manifest on the disk that names the very same file.
        refs_aside = _aside(refs_path)
        disk.write_new(refs_aside, refs_content)
        disk.rename(refs_aside, refs_path)
        manifest_path = directory / MANIFEST
        disk.write_new(_aside(manifest_path), encode_manifest(commit.manifest))
        disk.sync_directory(directory)
        # From here on all that the manifest names is durable, with its name.
        disk.publish(_aside(manifest_path), manifest_path)

    def _clear_failed(self, directory: Path, base: Mirror | None) -> None:
        """Remove what a failed commit left, so that a full disk does not stay full."""
        # The manifest on the disk counts beside `base`: if the failure came after
        # the rename, it is the failed commit's own, and may be what a restart finds.
        try:
            if not directory.exists():
                return
            on_disk = read_manifest(directory)
            known = [] if on_disk is None else [on_disk]
            if base is not None:
                known.append(manifest_of(base))
            if known:
                clear(strangers(directory, *known), disk=self._disk)
            else:
                self._disk.remove_tree(directory)
        except (DiskFailed, MirrorDamaged) as exc:
            log.warning("leftovers of a failed commit stay until the next: %s", exc)

    def _clear_replaced(self, commit: Commit) -> None:
        """Remove refs files that are out of date, and what failed commits left."""
        try:
            clear(strangers(commit.directory, commit.manifest), disk=self._disk)
        except DiskFailed as exc:
            log.warning("files that nothing names stay until the next commit: %s", exc)

    def _recover_all(self) -> Iterator[Repair]:
        for fan in _children(self._root.mirrors):
            for directory in filter(is_mirror_directory, _children(fan)):
                manifest, repair = recover(directory, root=self._root, disk=self._disk)
                if repair is not None:
                    yield repair
                if manifest is not None:
                    self._mirrors[manifest.key] = self._mirror(manifest, refs=None, base=None)

    def _mirror(
        self, manifest: Manifest, *, refs: tuple[Ref, ...] | None, base: Mirror | None
    ) -> Mirror:
        same_log = base is not None and base.segments == manifest.segments
        return as_mirror(
            manifest,
            directory=self._root.directory_of(manifest.key),
            refs=refs,
            # A log that did not grow keeps its table.
            table=base.lazy_table if base is not None and same_log else None,
            mend=self._mend_table,
        )

    def _mend_table(self, segments: Sequence[Segment], position: int) -> None:
        """Make a lost or damaged table anew from its segment, durably."""
        segment = segments[position]
        log.warning("%s is lost or damaged; making it anew from its pack", segment.table.name)
        scratch = self.new_scratch()
        try:
            table = scratch / segment.table.name
            before = [(earlier.pack, earlier.table) for earlier in segments[:position]]
            self._rebuild_table(before, segment.pack, table)
            self._disk.sync_file(table)
            self._disk.publish(table, segment.table)
        finally:
            self.discard_scratch(scratch)

    @contextmanager
    def _changing_alone(self, key: RepoKey) -> Iterator[None]:
        with self._changing_guard:
            if key in self._changing:
                raise MirrorMoved(f"the mirror of {key!r} is being changed; try again")
            self._changing.add(key)
        try:
            yield
        finally:
            with self._changing_guard:
                self._changing.discard(key)


def read_mirror(root: Path, key: RepoKey) -> Mirror:
    """Return the mirror of a repository without locking or changing anything: for a second process.

    A node may go on committing meanwhile. A mirror that it drops disappears
    under the reader, who then gets MirrorDamaged.

    Raises:
        NoSuchMirror: there is none.
        MirrorDamaged: it is no good. A table that is no good shows when it is loaded.
    """
    place = CacheRoot(root)
    directory = place.directory_of(key)
    manifest = read_manifest(directory)
    if manifest is None:
        raise NoSuchMirror(
            f"the cache root {str(root)!r} holds no mirror of {key!r}; "
            "clone it through the node of this root first"
        )
    check_mirror(manifest, directory, root=place)
    mirror = as_mirror(manifest, directory=directory, refs=None, table=None, mend=_mend_nothing)
    # At once: a busy node deletes the file after a few more commits.
    mirror.lazy_refs.get()
    return mirror


def _mend_nothing(segments: Sequence[Segment], position: int) -> None:
    """Leave a damaged table to the process that holds the lock."""


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.new")


def _children(directory: Path) -> list[Path]:
    with reading(directory):
        return sorted(directory.iterdir()) if directory.is_dir() else []

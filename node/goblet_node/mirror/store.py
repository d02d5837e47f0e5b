"""All mirrors of one cache root: find them, make them grow, recover them after a crash.

Plain synchronous code. What touches the disk (`open`, `commit`, `adopt`, `replace`,
`renew`, `drop`, `evict`, `sweep`, `note_uses`, `new_scratch`, `discard_scratch`) is run in a
thread by the caller; everything else reads memory only.
"""

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from goblet_node.errors import DiskFailed
from goblet_node.mirror.adopt import plan_adoption
from goblet_node.mirror.commit import Commit, changes, plan_commit, plan_join, plan_renewal
from goblet_node.mirror.disk import Disk, reading
from goblet_node.mirror.durable import clear_leftovers, make_durable
from goblet_node.mirror.intake import Intake, rebuild
from goblet_node.mirror.layout import MANIFEST, CacheRoot, SegmentFiles, is_mirror_directory
from goblet_node.mirror.leases import Leases
from goblet_node.mirror.lock import RootLock
from goblet_node.mirror.log import Mirror, Segment
from goblet_node.mirror.manifest import Manifest
from goblet_node.mirror.recovery import (
    Repair,
    clear,
    discard_mirror,
    discard_scratch,
    recover,
)
from goblet_node.mirror.turns import Turns
from goblet_node.mirror.usage import Usage
from goblet_node.mirror.view import as_mirror
from goblet_node.wire.refs import Ref
from goblet_shared.errors import GobletError
from goblet_shared.repo_key import RepoKey

log = logging.getLogger(__name__)


Rebuild = Callable[[Sequence[SegmentFiles], Path, Path], SegmentFiles]
"""Makes table and links of a segment anew: the log before it, its pack, a scratch directory."""


class MirrorMoved(GobletError):
    """The mirror is no longer the one that a change was made for, or that was to be read."""

    status = 503


class MirrorStore:
    """The mirrors below one root, which no other process may have open at the same time."""

    def __init__(self, root: Path, *, disk: Disk, rebuild: Rebuild = rebuild) -> None:
        self._root = CacheRoot(root)
        self._disk = disk
        self._rebuild = rebuild
        self._lock = RootLock(self._root.lock)
        # All mutable state: the current mirrors, who reads them, what they take, and
        # who changes them. A mirror is swapped for its successor in one assignment, so
        # readers need no lock.
        self._mirrors: dict[RepoKey, Mirror] = {}
        self._leases = Leases()
        self._usage = Usage()
        self._turns = Turns()

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
        for key in self._mirrors:
            self._usage.forget(key)
        self._mirrors.clear()
        self._lock.release()

    # Reading ---------------------------------------------------------------

    def get(self, key: RepoKey) -> Mirror | None:
        """Return the mirror of a repository as of its last commit."""
        return self._mirrors.get(key)

    def keys(self) -> tuple[RepoKey, ...]:
        """Return the repositories that have a mirror."""
        return tuple(self._mirrors)

    @contextmanager
    def reading(self, mirror: Mirror) -> Iterator[Mirror]:
        """Keep the files of a mirror where they lie until the block is left.

        An old one too: it may have been replaced since it was handed out. Whoever
        opens its files has to be in such a block; `get` and this, with no await
        between them, find the files there in all but a race of microseconds.

        Raises:
            MirrorMoved: its files may be gone already; `get` has the mirror of now.
        """
        if not self._leases.take(mirror):
            raise MirrorMoved(f"the mirror of {mirror.key!r} is being deleted; try again")
        try:
            if not self._is_there(mirror):
                raise MirrorMoved(f"the mirror of {mirror.key!r} has changed meanwhile; try again")
            yield mirror
        finally:
            self._leases.give_back(mirror)

    def touch(self, key: RepoKey) -> None:
        """Note that the mirror of a repository is used now; `note_uses` tells the disk."""
        self._usage.touch(key)

    def used_at(self, key: RepoKey) -> float:
        """Return when a mirror was used last, in seconds since 1970; 0 if there is none."""
        return self._usage.used_at(key)

    def is_in_use(self, key: RepoKey) -> bool:
        """Say whether somebody reads a mirror of the repository, or changes it."""
        return self._leases.is_held(key) or self._turns.is_taken(key)

    def sizes(self) -> Mapping[RepoKey, int]:
        """Return how many bytes each mirror takes on disk."""
        return self._usage.sizes()

    @property
    def total_bytes(self) -> int:
        """What all mirrors take on disk, with what is not deleted yet because it is read."""
        return self._usage.total + self._leases.bytes

    # Changing --------------------------------------------------------------

    def scratch_name(self) -> Path:
        """Return where a directory may be made on the mirrors' file system; who does discards it.

        Reads memory only.
        """
        return self._root.scratch / secrets.token_hex(8)

    def new_scratch(self) -> Path:
        """Return a new empty directory on the mirrors' file system; the caller discards it."""
        path = self.scratch_name()
        self._disk.create_directory(path)
        return path

    def discard_scratch(self, path: Path) -> None:
        """Remove a scratch directory with all it holds; if that fails, the next start does it."""
        discard_scratch(path, disk=self._disk)

    def commit(
        self, key: RepoKey, *, base: Mirror | None, refs: Sequence[Ref], intake: Intake
    ) -> Mirror:
        """Make `refs` and what was taken in the mirror's current generation, durably; return it.

        `base` is the mirror that the intake was made for (None: there was none). That
        its segments were joined meanwhile does no harm. The intake's files are moved
        from their scratch. If nothing would change, the mirror is returned as it is. If
        this raises, the mirror is what it was; only a failure of the very last step may
        show the new generation after a restart.

        Raises:
            MirrorMoved: the mirror has another generation than `base`: a segment made
                for another log would repeat its objects or miss its bases.
            DiskFailed: the disk refused; `base` is untouched.
        """
        with self._turns.alone(key):
            now = self._still(key, base)
            if now is not None and not changes(now, refs=refs, intake=intake):
                return now
            commit = plan_commit(
                key=key,
                directory=self._root.directory_of(key),
                base=now,
                refs=refs,
                intake=intake,
            )
            return self._put(commit, base=now, refs=tuple(refs), earlier=now, used_at=None)

    def adopt(self, copied: Manifest, refs: bytes, *, used_at: float | None = None) -> Mirror:
        """Make a mirror that was copied from another node one of this root, durably; return it.

        `copied` was checked, its log's files lie in a scratch and are moved from there;
        `refs` is its refs file. `used_at` is its last use, None if that is now. If this
        raises, the repository is cold still.

        Raises:
            MirrorMoved: it has a mirror by now.
            DiskFailed: the disk refused.
        """
        with self._turns.alone(copied.key):
            self._still(copied.key, None)
            directory = self._root.directory_of(copied.key)
            commit = plan_adoption(copied, refs, directory=directory)
            return self._put(commit, base=None, refs=None, earlier=None, used_at=used_at)

    def replace(self, base: Mirror, first: int, last: int, joined: Intake) -> Mirror:
        """Put `joined` in the place of the segments of `base` from `first` up to `last`, durably.

        It holds their entries in their order, so no place and no generation changes;
        `base` may have grown meanwhile. Who reads the old segments goes on reading
        them. Failures are as `commit` has them.

        Raises:
            MirrorMoved: the mirror does not begin with those segments any more.
            DiskFailed: the disk refused.
        """
        with self._turns.alone(base.key):
            now = self._mirrors.get(base.key)
            if now is None or now.segments[:last] != base.segments[:last]:
                raise MirrorMoved(f"the mirror of {base.key!r} has changed meanwhile; try again")
            commit = plan_join(now, first, last, joined)
            used_at = self._usage.used_at(base.key)
            return self._put(commit, base=now, refs=now.refs, earlier=now, used_at=used_at)

    def renew(self, base: Mirror, renewed: Intake) -> Mirror:
        """Make `renewed` the whole log of a mirror, durably; the refs stay those of `base`.

        Who reads the old log goes on reading it. Failures are as `commit` has them.

        Raises:
            MirrorMoved: the mirror has another generation than `base`.
            DiskFailed: the disk refused.
        """
        with self._turns.alone(base.key):
            now = self._still(base.key, base)
            assert now is not None
            commit = plan_renewal(now, renewed)
            used_at = self._usage.used_at(base.key)
            return self._put(commit, base=now, refs=now.refs, earlier=None, used_at=used_at)

    def drop(self, key: RepoKey, *, only: Mirror | None = None) -> None:
        """Forget and delete a mirror; the repository is cold again. Dropping none is no error.

        With `only`, nothing is done if another log has taken that one's place. Who
        reads it meets missing files: a mirror is dropped because nobody should read it.

        Raises:
            DiskFailed: the disk refused; the mirror is forgotten all the same, and
                found again by the next start unless it is committed or dropped before.
        """
        with self._turns.alone(key):
            now = self._mirrors.get(key)
            if only is not None and now is not None and not now.grew_from(only):
                return
            self._mirrors.pop(key, None)
            self._delete(key)

    def evict(self, key: RepoKey, *, only: Mirror) -> int:
        """Delete a mirror if nobody uses it and it is `only` still; return the bytes freed.

        Raises:
            DiskFailed: the disk refused, and the mirror is there still.
        """
        with self._turns.alone_now(key) as is_mine:
            if not is_mine or self._mirrors.get(key) is not only or not self._leases.close(key):
                return 0
            try:
                del self._mirrors[key]
                return self._delete(key)
            except DiskFailed:
                if only.directory.exists():
                    self._mirrors[key] = only
                    self._measure(only)
                raise
            finally:
                self._leases.reopen(key)

    def sweep(self) -> None:
        """Delete the segments that were replaced and that nobody reads any more.

        If the disk refuses, that is logged, and they stay until the next change.
        """
        for key in self._leases.waiting():
            with self._turns.alone(key):
                if self._leases.release(key) and (mirror := self._mirrors.get(key)) is not None:
                    self._clear(key, mirror)

    def note_uses(self) -> None:
        """Tell the disk of uses, so that a restart knows them within a few minutes."""
        for key, at in self._usage.take_due().items():
            with self._turns.alone(key):
                mirror = self._mirrors.get(key)
                if mirror is None:
                    continue
                try:
                    self._disk.date(mirror.directory / MANIFEST, at)
                except DiskFailed as exc:
                    log.warning("a restart will not know when %s was used: %s", key, exc)

    def _put(
        self,
        commit: Commit,
        *,
        base: Mirror | None,
        refs: tuple[Ref, ...] | None,
        earlier: Mirror | None,
        used_at: float | None,
    ) -> Mirror:
        """Make a commit durable, and its mirror the current one in the place of `base`.

        Refs that are not at hand (None) are read when they are asked for. `earlier` is a
        mirror of the same log; `used_at` the last use, None if that is now.
        """
        key = commit.manifest.key
        try:
            make_durable(commit, disk=self._disk, used_at=used_at)
        except DiskFailed:
            self._clear(key, base)
            raise
        mirror = self._mirror(commit.manifest, refs=refs, earlier=earlier)
        if base is not None:
            self._leases.retire(key, set(base.segments).difference(mirror.segments))
        self._mirrors[key] = mirror
        self._measure(mirror)
        self._leases.release(key)
        self._clear(key, mirror)
        return mirror

    def _clear(self, key: RepoKey, mirror: Mirror | None) -> None:
        """Remove what neither `mirror`, the repository's, nor the disk names and nobody reads."""
        retired = self._leases.retired(key)
        clear_leftovers(self._root.directory_of(key), mirror, retired, disk=self._disk)

    def _delete(self, key: RepoKey) -> int:
        """Delete what there is of a mirror; return how many bytes it took."""
        size = self._usage.forget(key) + sum(s.bytes + s.beside for s in self._leases.retired(key))
        directory = self._root.directory_of(key)
        if directory.exists():
            discard_mirror(directory, root=self._root, disk=self._disk)
        self._leases.forget(key)
        return size

    def _still(self, key: RepoKey, base: Mirror | None) -> Mirror | None:
        """Return the mirror of now, if it has the log and the generation of `base`."""
        now = self._mirrors.get(key)
        if now is not base and (
            now is None
            or base is None
            or now.lineage is not base.lineage
            or now.current != base.current
        ):
            raise MirrorMoved(f"the mirror of {key!r} has changed meanwhile; try again")
        return now

    def _is_there(self, mirror: Mirror) -> bool:
        now = self._mirrors.get(mirror.key)
        if now is mirror:
            return True
        there = self._leases.retired(mirror.key).union(() if now is None else now.segments)
        return now is not None and there.issuperset(mirror.segments)

    def _recover_all(self) -> Iterator[Repair]:
        for fan in _children(self._root.mirrors):
            for directory in filter(is_mirror_directory, _children(fan)):
                manifest, repair = recover(directory, root=self._root, disk=self._disk)
                if repair is not None:
                    yield repair
                if manifest is not None:
                    mirror = self._mirror(manifest, refs=None, earlier=None)
                    self._mirrors[manifest.key] = mirror
                    self._measure(mirror)

    def _measure(self, mirror: Mirror) -> None:
        """Note what a mirror takes on disk, and the use of it that the disk knows."""
        manifest = mirror.directory / MANIFEST
        beside = (manifest, mirror.directory / mirror.current.refs_file)
        self._usage.found(
            mirror.key,
            bytes=mirror.bytes + sum(map(_size, beside)),
            used_at=_changed_at(manifest),
        )

    def _mirror(
        self, manifest: Manifest, *, refs: tuple[Ref, ...] | None, earlier: Mirror | None
    ) -> Mirror:
        return as_mirror(
            manifest,
            directory=self._root.directory_of(manifest.key),
            refs=refs,
            earlier=earlier,
            mend=self._mend,
        )

    def _mend(self, segments: Sequence[Segment], position: int) -> None:
        """Make the lost or damaged table and links of a segment anew from its pack, durably."""
        segment = segments[position]
        log.warning("what lies beside %s is made anew from it", segment.pack.name)
        scratch = self.new_scratch()
        try:
            before = [earlier.files for earlier in segments[:position]]
            made = self._rebuild(before, segment.pack, scratch)
            for source, target in ((made.table, segment.table), (made.links, segment.links)):
                self._disk.sync_file(source)
                self._disk.publish(source, target)
        finally:
            self.discard_scratch(scratch)


def _children(directory: Path) -> list[Path]:
    with reading(directory):
        return sorted(directory.iterdir()) if directory.is_dir() else []


def _size(path: Path) -> int:
    # For an account that a few kilobytes do not falsify: a commit must not fail by it.
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _changed_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0

"""Every write, fsync and rename that a mirror's life depends on.

A file is on stable storage when it was fsynced; its name is when the directory
was. So what must survive is written under a name that nobody looks for, synced,
and only then renamed. All of it goes through one object that a test can make
fail, or stop, at any of its steps.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from goblet_node.errors import DiskFailed, MirrorDamaged


class Disk:
    """The steps that write. `write`, `sync_file`, `rename`, ... are the single ones.

    The others are made of them, so that whoever replaces the single steps sees
    everything. Every method raises DiskFailed when the disk refuses.
    """

    def write(self, path: Path, content: bytes) -> None:
        """`path` holds exactly `content`, though a power cut may still take it."""
        with _translated("write", path):
            path.write_bytes(content)

    def sync_file(self, path: Path) -> None:
        """What `path` holds survives a power cut; its name may not yet."""
        with _translated("sync", path):
            _fsync(path, os.O_RDONLY)

    def sync_directory(self, path: Path) -> None:
        """The names in `path` survive a power cut."""
        with _translated("sync", path):
            _fsync(path, os.O_RDONLY | os.O_DIRECTORY)

    def rename(self, source: Path, target: Path) -> None:
        """`target` is what `source` was, at once; a power cut may still undo it."""
        with _translated("name", target):
            source.rename(target)

    def date(self, path: Path, seconds: float) -> None:
        """`path` was last changed at that time, in seconds since 1970, by its own account."""
        with _translated("date", path):
            os.utime(path, (seconds, seconds))

    def create_directory(self, path: Path) -> None:
        """`path` is a directory; a power cut may still undo it."""
        with _translated("create", path):
            path.mkdir(exist_ok=True)

    def remove_file(self, path: Path) -> None:
        """`path` is gone, also if it never was; a power cut may bring it back."""
        with _translated("remove", path):
            path.unlink(missing_ok=True)

    def remove_tree(self, path: Path) -> None:
        """`path` and all below it are gone, file by file: never a directory that somebody reads."""
        with _translated("remove", path):
            shutil.rmtree(path)

    def write_new(self, path: Path, content: bytes) -> None:
        """`path` holds `content` and survives a power cut, except for its name."""
        self.write(path, content)
        self.sync_file(path)

    def publish(self, source: Path, target: Path) -> None:
        """`target` is what `source` was, and stays so after a power cut."""
        self.rename(source, target)
        # The new name first: with the old one gone and the new one not yet
        # durable, a file system that orders less than ext4 could lose both.
        self.sync_directory(target.parent)
        if source.parent != target.parent:
            self.sync_directory(source.parent)

    def make_directory(self, path: Path) -> None:
        """`path` is a directory, with all above it, and stays so after a power cut."""
        if path.is_dir():
            return
        self.make_directory(path.parent)
        self.create_directory(path)
        self.sync_directory(path.parent)


def read_file(path: Path) -> bytes:
    """Return what `path` holds.

    Raises:
        MirrorDamaged: the file is missing or its sectors cannot be read.
        DiskFailed: reading is refused for a reason that says nothing about the
            content (permissions, too many open files): no ground to drop a mirror.
    """
    with reading(path):
        return path.read_bytes()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Translate what the operating system says of reading `path`, as `read_file` promises."""
    try:
        yield
    except FileNotFoundError as exc:
        raise MirrorDamaged(f"{path.name!r} is missing; the mirror must be filled again") from exc
    except OSError as exc:
        if exc.errno == errno.EIO:
            raise MirrorDamaged(
                f"{path.name!r} cannot be read ({exc.strerror}); the mirror must be filled again"
            ) from exc
        raise DiskFailed(
            f"{path.name!r} cannot be read ({exc.strerror}); see to the cache disk of this node"
        ) from exc


@contextmanager
def _translated(verb: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        # Only the file's own name: the sentence may reach a client, whom the
        # layout of this machine does not concern.
        raise DiskFailed(
            f"the disk refused to {verb} {path.name!r} ({exc.strerror}); "
            "see to the cache disk of this node and try again"
        ) from exc


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

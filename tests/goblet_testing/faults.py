"""A disk that fails on cue, and loses in a power cut what a real one may lose."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from goblet_node.errors import DiskFailed
from goblet_node.mirror.disk import Disk


class PowerCut(BaseException):
    """The machine is off: no handler of the code under test may catch this and go on."""


class Kind(Enum):
    """What happens at the step that a fault names."""

    REFUSED = auto()  # it fails; of a write, half has happened
    REFUSED_AFTER = auto()  # it fails although it took effect, as an fsync may
    CUT_BEFORE = auto()
    CUT_AFTER = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """`kind` happens at the step with this number, counted from 0."""

    step: int
    kind: Kind


@dataclass(frozen=True, slots=True)
class _Change:
    """A change of a directory that is not durable until `directory` is synced."""

    directory: Path
    undo: Callable[[], None]


class FaultDisk(Disk):
    """A Disk on real files that knows what is durable. It syncs nothing really.

    What it models, harsher than any journaling file system: a file that was not
    synced since it was written ends anywhere, or in zeros; each name that was made
    or removed since its directory was synced may, independently of the others, be
    as it was before (the old and the new name of a renamed file too).

    `limbo` is a directory on the same file system, outside of what is tested.
    """

    def __init__(self, limbo: Path, *, fault: Fault | None = None) -> None:
        self._limbo = limbo
        self._fault = fault
        self._awaited: tuple[str, Kind] | None = None
        self._is_refused: Callable[[str], bool] = lambda step: False
        self.steps: list[str] = []
        # Identities (inode, size, mtime) of files whose content is durable. Limbo
        # keeps a link to whatever was removed, so no inode is used twice.
        self._synced: set[tuple[int, int, int]] = set()
        self._pending: list[_Change] = []
        self._is_off = False

    def fail_next(self, name: str, kind: Kind) -> None:
        """Let `kind` happen at the next step of this name."""
        self._awaited = (name, kind)

    def refuse(self, is_refused: Callable[[str], bool]) -> None:
        """Refuse every step from now on whose name says that it is to be refused."""
        self._is_refused = is_refused

    def write(self, path: Path, content: bytes) -> None:
        with self._step(f"write {path.name}", half=lambda: path.write_bytes(content[::2])):
            is_new = not path.exists()
            super().write(path, content)
            inode = path.stat().st_ino
            self._synced = {known for known in self._synced if known[0] != inode}
            if is_new:
                self._added(path, lambda: path.unlink(missing_ok=True))

    def sync_file(self, path: Path) -> None:
        with self._step(f"sync {path.name}"):
            self._synced.add(_identity(path))

    def sync_directory(self, path: Path) -> None:
        with self._step(f"sync directory {path.name}"):
            assert path.is_dir()
            self._pending = [change for change in self._pending if change.directory != path]

    def rename(self, source: Path, target: Path) -> None:
        with self._step(f"rename {source.name} to {target.name}"):
            if source.is_dir():
                super().rename(source, target)
                self._added(target, lambda: _move_back(target, source))
                return
            self._removed(source)
            replaced = self._keep(target) if target.exists() else None
            super().rename(source, target)
            if replaced is None:
                self._added(target, lambda: target.unlink(missing_ok=True))
            else:
                self._added(target, lambda: _restore(replaced, target))

    def date(self, path: Path, seconds: float) -> None:
        with self._step(f"date {path.name}"):
            is_synced = _identity(path) in self._synced
            super().date(path, seconds)
            # A file's time is not its content: a cut may lose the one and not the other.
            if is_synced:
                self._synced.add(_identity(path))

    def create_directory(self, path: Path) -> None:
        with self._step(f"create {path.name}"):
            is_new = not path.exists()
            super().create_directory(path)
            if is_new:
                self._added(path, lambda: shutil.rmtree(path, ignore_errors=True))

    def remove_file(self, path: Path) -> None:
        with self._step(f"remove {path.name}"):
            if path.exists():
                self._removed(path)
            super().remove_file(path)

    def remove_tree(self, path: Path) -> None:
        # Half of the files first: a tree does not go in one step.
        files = [below for below in sorted(path.rglob("*")) if below.is_file()]
        for file in files[: len(files) // 2]:
            self.remove_file(file)
        with self._step(f"remove tree {path.name}"):
            for file in files[len(files) // 2 :]:
                self._removed(file)
            super().remove_tree(path)

    def cut_power(self, root: Path, chance: random.Random) -> None:
        """Leave below `root` what may be found when the power is back."""
        for change in reversed(self._pending):
            if chance.random() < 0.5:
                change.undo()
        for path in sorted(root.rglob("*")):
            if path.is_file() and _identity(path) not in self._synced:
                _spoil(path, chance)

    @contextmanager
    def _step(self, name: str, *, half: Callable[[], object] | None = None) -> Iterator[None]:
        if self._is_off:
            raise PowerCut(name)
        number = len(self.steps)
        self.steps.append(name)
        kind = self._fault.kind if self._fault and self._fault.step == number else None
        if self._awaited is not None and self._awaited[0] == name:
            kind, self._awaited = self._awaited[1], None
        if self._is_refused(name):
            kind = Kind.REFUSED
        if kind is Kind.CUT_BEFORE:
            self._cut(name)
        if kind is Kind.REFUSED:
            if half is not None:
                half()
            raise DiskFailed(f"the disk refused to {name} (No space left on device)")
        yield
        if kind is Kind.CUT_AFTER:
            self._cut(name)
        if kind is Kind.REFUSED_AFTER:
            raise DiskFailed(f"the disk refused to {name} (Input/output error)")

    def _cut(self, name: str) -> None:
        self._is_off = True
        raise PowerCut(name)

    def _added(self, path: Path, undo: Callable[[], None]) -> None:
        self._pending.append(_Change(path.parent, undo))

    def _removed(self, path: Path) -> None:
        kept = self._keep(path)
        self._pending.append(_Change(path.parent, lambda: _restore(kept, path)))

    def _keep(self, path: Path) -> Path:
        kept = self._limbo / str(len(os.listdir(self._limbo)))
        os.link(path, kept)
        return kept


def _restore(kept: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.link(kept, path)


def _move_back(target: Path, source: Path) -> None:
    if target.exists() and source.parent.exists():
        target.rename(source)


def _spoil(path: Path, chance: random.Random) -> None:
    size = path.stat().st_size
    end = chance.randint(0, size)
    with path.open("r+b") as file:
        file.truncate(end)
        if chance.random() < 0.25:
            # Allocated and never written: some file systems show zeros.
            file.truncate(size)


def _identity(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns

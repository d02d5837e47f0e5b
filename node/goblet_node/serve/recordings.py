"""Answers that were given, kept as files that are sent as they lie.

A recording is the very body of an answer, framing included. It is written elsewhere,
synced, and renamed to its place, so a half one is never found. What there is is known
from one look at the folder when the node starts; from then on use is a running
number, and the order of use is in memory. The time of a file's last change is its
last use, noted now and then, so that the order survives a restart.

Each repository has a folder of its own: a question is never answered with another
repository's answer, whatever its key.

Safe between threads. `open`, `open_file`, `read`, `forget`, `free`, `discard` and `Writing.keep`
touch the disk, and are for a worker thread.
"""

import logging
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from goblet_node.errors import DiskFailed
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.layout import CacheRoot
from goblet_node.serve.open_files import Lent, OpenFiles
from goblet_node.serve.small_answers import SmallAnswer, SmallAnswers
from goblet_shared.repo_key import RepoKey

log = logging.getLogger(__name__)

# A name and its size in memory take half a kilobyte: 50 MB of them. Ten gigabytes of
# recordings that are smaller than 100 KB each are not what the budget is for.
MAX_RECORDINGS = 100_000
# How often the use of a recording is noted on the disk, in seconds. A crash forgets that much.
NOTED_EVERY = 300.0
# Descriptors of recordings that are kept for the next who asks.
MAX_OPEN = 64
# Recordings up to here are kept in memory instead, so many bytes of them.
SMALL = 64 * 1024
SMALL_MEMORY = 16 << 20

_BLOCK = 4096
_DIRECTORY = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"([0-9a-f]{64})\.(pack|words)")

_Place = tuple[str, str]
"""A repository's folder and a key."""


@dataclass(slots=True, kw_only=True)
class _Entry:
    size: int
    has_pack: bool
    noted_at: float  # seconds since the epoch, as on the disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One answer on the disk: where, how many bytes, and whether they carry a pack."""

    place: tuple[str, str]
    path: Path
    size: int
    has_pack: bool

    @property
    def is_small(self) -> bool:
        """Whether it is to be read as a whole, and kept in memory."""
        return self.size <= SMALL


class Writing:
    """An answer that is being made and may become a recording."""

    def __init__(self, recordings: "Recordings", place: _Place) -> None:
        self._recordings = recordings
        self.place = place
        # Set by `discard`, in whichever thread: what it is made of may be gone.
        self.is_void = False

    def keep(self, source: Path, *, has_pack: bool) -> bool:
        """Make the file `source` the recording; return whether it is.

        It is not if its repository's were discarded since the writing began, or if
        it is larger than the budget; `source` is left alone then. Otherwise it is
        moved, durably, and what was used least makes room. Raises DiskFailed.
        """
        return self._recordings.keep(self, source, has_pack=has_pack)


class Recordings:
    """The recordings below one cache root, in a budget of bytes."""

    def __init__(self, root: Path, *, budget: int, disk: Disk) -> None:
        """Keep at most `budget` bytes, counted as a disk does, in whole blocks; 0 keeps none."""
        self._root = CacheRoot(root)
        self._disk = disk
        self.budget = budget
        self._lock = threading.Lock()
        # All mutable state, guarded by the lock: what lies on the disk, that used last
        # at the end; descriptors and contents of some of it; what it takes together; the
        # writings under way.
        self._entries: OrderedDict[_Place, _Entry] = OrderedDict()
        self._files: OpenFiles[_Place] = OpenFiles(most=MAX_OPEN)
        self._small: SmallAnswers[_Place] = SmallAnswers(memory=SMALL_MEMORY)
        self._total = 0
        self._writings: set[Writing] = set()

    def open(self) -> None:
        """Find what is there, in the order of its last use, and delete what is too much.

        What is in the folder and no recording is deleted: nobody else writes here.
        Raises DiskFailed.
        """
        self._disk.make_directory(self._root.recordings)
        found: list[tuple[float, _Place, _Entry]] = []
        try:
            for directory in os.scandir(self._root.recordings):
                if directory.is_dir(follow_symlinks=False) and _DIRECTORY.fullmatch(directory.name):
                    found += self._found_in(directory.name)
                else:
                    self._disk.remove_file(Path(directory.path))
        except OSError as exc:
            raise DiskFailed(
                f"the folder of recordings cannot be read ({exc.strerror}); "
                "see to the cache disk of this node"
            ) from exc
        with self._lock:
            for _, place, entry in sorted(found, key=lambda item: item[:2]):
                self._entries[place] = entry
                self._total += _blocks(entry.size)
        self.free(0)

    def close(self) -> None:
        """Let go of all descriptors that nobody uses; nothing is kept open after."""
        with self._lock:
            self._files.clear()
            self._small.clear()

    @property
    def total(self) -> int:
        """How many bytes all recordings take on the disk."""
        return self._total

    @property
    def count(self) -> int:
        """How many recordings there are."""
        return len(self._entries)

    def find(self, key: RepoKey, name: str) -> Recording | None:
        """Return a repository's answer to a question, by its key, and count that as its use."""
        place = self._place(key, name)
        with self._lock:
            entry = self._entries.get(place)
            if entry is None:
                return None
            self._entries.move_to_end(place)
        return Recording(
            place=place,
            path=self._path(place, has_pack=entry.has_pack),
            size=entry.size,
            has_pack=entry.has_pack,
        )

    def lend(self, recording: Recording) -> Lent | None:
        """Return a descriptor of a recording if one is open; it is to be given back."""
        with self._lock:
            entry = self._entries.get(recording.place)
            if entry is None or entry.size != recording.size or _is_due(entry):
                return None  # `open_file` notes its use
            return self._files.take(recording.place)

    def open_file(self, recording: Recording) -> Lent | None:
        """Return a descriptor of a recording, which is to be given back.

        None if it is not what it was; then it is forgotten. Whoever has the descriptor
        reads on when the recording is deleted. Raises DiskFailed if the disk refuses for
        another reason.
        """
        opened = self._opened(recording)
        if opened is None:
            return None
        file, entry = opened
        with self._lock:
            if self._entries.get(recording.place) is entry:
                return self._files.add(recording.place, file)
        return Lent(file)

    def give_back(self, lent: Lent) -> None:
        """End the use of a descriptor."""
        with self._lock:
            self._files.give_back(lent)

    def at_hand(self, key: RepoKey, name: str) -> SmallAnswer | None:
        """Return a repository's answer to a question if it is in memory, and count its use."""
        place = self._place(key, name)
        with self._lock:
            answer = self._small.take(place)
            if answer is None or _is_due(self._entries[place]):
                return None  # `read` notes its use
            self._entries.move_to_end(place)
            return answer

    def read(self, recording: Recording) -> SmallAnswer | None:
        """Return all of a recording, and have it at hand for the next who asks.

        None if it is not what it was; then it is forgotten. Raises DiskFailed if the disk
        refuses for another reason.
        """
        opened = self._opened(recording)
        if opened is None:
            return None
        file, entry = opened
        try:
            data = os.pread(file, recording.size, 0)
        except OSError as exc:
            self.forget(recording)
            raise DiskFailed(
                f"a recording cannot be read ({exc.strerror}); see to this node's disk"
            ) from exc
        finally:
            os.close(file)
        answer = SmallAnswer(data=data, has_pack=recording.has_pack)
        with self._lock:
            if self._entries.get(recording.place) is entry:
                self._small.add(recording.place, answer)
        return answer

    def forget(self, recording: Recording) -> None:
        """Delete a recording, because it is no good."""
        with self._lock:
            is_there = recording.place in self._entries
            gone = [self._taken_out(recording.place)] if is_there else []
        self._delete(gone)

    @contextmanager
    def writing(self, key: RepoKey, name: str) -> Iterator[Writing]:
        """Announce that an answer is being made, so that `discard` can forbid keeping it."""
        writing = Writing(self, self._place(key, name))
        with self._lock:
            self._writings.add(writing)
        try:
            yield writing
        finally:
            with self._lock:
                self._writings.discard(writing)

    def keep(self, writing: Writing, source: Path, *, has_pack: bool) -> bool:
        """Do what `Writing.keep` promises."""
        place = writing.place
        size = source.stat().st_size
        if writing.is_void or _blocks(size) > self.budget:
            return False
        target = self._path(place, has_pack=has_pack)
        self._disk.sync_file(source)
        with self._lock:
            if writing.is_void:
                return False
            # Under the lock: what `discard` deletes is all that there is, and an empty
            # folder is not deleted in between. The name need not survive a power cut.
            self._disk.create_directory(target.parent)
            self._disk.rename(source, target)
            gone = [self._taken_out(place)] if place in self._entries else []
            self._entries[place] = _Entry(size=size, has_pack=has_pack, noted_at=time.time())
            self._total += _blocks(size)
        self._delete([path for path in gone if path != target])
        self.free(0)
        return True

    def free(self, bytes: int) -> int:
        """Delete the least recently used until so many bytes are free, and the budget is kept.

        Returns how many bytes were freed. What is being sent just now is freed when it
        was sent.
        """
        gone: list[Path] = []
        freed = 0
        with self._lock:
            while self._entries and (
                freed < bytes or self._total > self.budget or len(self._entries) > MAX_RECORDINGS
            ):
                place = next(iter(self._entries))
                freed += _blocks(self._entries[place].size)
                gone.append(self._taken_out(place))
        self._delete(gone)
        return freed

    def discard(self, key: RepoKey) -> None:
        """Delete all recordings of a repository, and let none that is being made be kept."""
        directory = self._root.recordings_of(key).name
        with self._lock:
            for writing in self._writings:
                if writing.place[0] == directory:
                    writing.is_void = True
            places = [place for place in self._entries if place[0] == directory]
            gone = [self._taken_out(place) for place in places]
        self._delete(gone)

    def _found_in(self, directory: str) -> Iterator[tuple[float, _Place, _Entry]]:
        is_empty = True
        for file in os.scandir(self._root.recordings / directory):
            name = _NAME.fullmatch(file.name)
            if name is None or not file.is_file(follow_symlinks=False):
                self._disk.remove_file(Path(file.path))
                continue
            is_empty = False
            about = file.stat(follow_symlinks=False)
            # A clock that was set back must not make a recording the last one for ever.
            used_at = min(about.st_mtime, time.time())
            yield (
                used_at,
                (directory, name[1]),
                _Entry(size=about.st_size, has_pack=name[2] == "pack", noted_at=used_at),
            )
        if is_empty:
            _remove_empty(self._root.recordings / directory)

    def _place(self, key: RepoKey, name: str) -> _Place:
        return self._root.recordings_of(key).name, name

    def _path(self, place: _Place, *, has_pack: bool) -> Path:
        directory, name = place
        return self._root.recordings / directory / f"{name}.{'pack' if has_pack else 'words'}"

    def _taken_out(self, place: _Place) -> Path:
        """Take an entry out of the books, with the lock held; return what is to be deleted."""
        entry = self._entries.pop(place)
        self._files.let_go(place)
        self._small.let_go(place)
        self._total -= _blocks(entry.size)
        return self._path(place, has_pack=entry.has_pack)

    def _delete(self, gone: list[Path]) -> None:
        for path in gone:
            # A recording may have come to this place since: then the new one is lost
            # too, and forgotten when it is next asked for.
            try:
                self._disk.remove_file(path)
            except DiskFailed as exc:
                log.warning("a recording stays on the disk until the next start: %s", exc)
        with self._lock:
            for directory in {path.parent for path in gone}:
                _remove_empty(directory)

    def _opened(self, recording: Recording) -> tuple[int, _Entry] | None:
        """Return a descriptor of a recording and the entry that it is of; note its use."""
        with self._lock:
            entry = self._entries.get(recording.place)
        if entry is None:
            return None
        try:
            file = os.open(recording.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self.forget(recording)
            return None
        except OSError as exc:
            raise DiskFailed(
                f"a recording cannot be opened ({exc.strerror}); see to this node's disk"
            ) from exc
        if os.fstat(file).st_size != recording.size:
            os.close(file)
            self.forget(recording)
            return None
        self._note_use(entry, file)
        return file, entry

    def _note_use(self, entry: _Entry, descriptor: int) -> None:
        with self._lock:
            if not _is_due(entry):
                return
            entry.noted_at = time.time()
        with suppress(OSError):  # it is only the order after a restart
            os.utime(descriptor)


def _is_due(entry: _Entry) -> bool:
    """Whether the use of a recording is to be noted on the disk again."""
    return not 0 <= time.time() - entry.noted_at < NOTED_EVERY


def _blocks(size: int) -> int:
    """Return what a file of so many bytes takes on a disk."""
    return -(-size // _BLOCK) * _BLOCK


def _remove_empty(directory: Path) -> None:
    with suppress(OSError):  # it is not empty, or somebody was quicker
        directory.rmdir()

"""A process that commits to a mirror without end, to be killed at any moment.

Run as a script it reads a line `FIRST ROOT`, forks a child that opens the root
and commits number FIRST, FIRST + 1, ..., joining segments now and then, and waits
for the child's death. The fork saves importing everything for each of many kills.
On its stdout: the child's process id, a line for each commit that returned, and
`over`.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from goblet_node.mirror.disk import Disk
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.merge import JoinJob, join_segments
from goblet_node.mirror.store import MirrorStore
from goblet_node.wire.refs import Ref
from goblet_shared.repo_key import RepoKey
from goblet_testing.mirrors import blob_id, grow

_KEY = RepoKey("example.org/one")
_DROP_EVERY = 25
_JOIN_AT = 3


def content_of(number: int) -> bytes:
    """Return the blob that commit `number` points at; every third changes refs alone."""
    return b"content %d\n" % (number - (number % 3 == 0)) * 50


def refs_at(number: int) -> tuple[Ref, ...]:
    """Return the refs that commit `number` makes."""
    return (Ref(name=b"refs/heads/number-%d" % number, oid=blob_id(content_of(number))),)


def commit_without_end(root: Path, first: int) -> None:
    """Commit number after number, telling each one when it is done, until killed."""
    store = MirrorStore(root, disk=Disk())
    store.open()
    number = first
    while True:
        mirror = store.get(_KEY)
        if mirror is not None and mirror.current.number >= _DROP_EVERY:
            os.write(1, b"dropping\n")
            store.drop(_KEY)
            mirror = None
        new = mirror is None or mirror.missing([blob_id(content_of(number))])
        mirror = grow(store, _KEY, refs_at(number), [content_of(number)] if new else [])
        if len(mirror.segments) >= _JOIN_AT:
            join(store, mirror)
        os.write(1, b"%d\n" % number)
        number += 1


def join(store: MirrorStore, mirror: Mirror) -> None:
    """Make one segment of all."""
    scratch = store.new_scratch()
    joined = join_segments(JoinJob(segments=mirror.files, scratch=scratch))
    store.replace(mirror, 0, len(mirror.segments), joined)
    store.discard_scratch(scratch)


class Committer:
    """The script above as a subprocess, from the side of a test. One child at a time."""

    def __init__(self) -> None:
        self._script = subprocess.Popen(
            [sys.executable, "-m", "goblet_testing.committer"],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._child = 0
        self._said: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._child:
            os.kill(self._child, signal.SIGKILL)
        self._script.communicate(timeout=30)

    def start(self, root: Path, *, first: int) -> None:
        """Have a child commit to `root`, from number `first` on."""
        assert self._script.stdin is not None
        self._script.stdin.write(f"{first} {root}\n")
        self._script.stdin.flush()
        self._said = []
        self._child = int(self._read_line())

    def wait_for_word(self) -> None:
        """Wait until the child has told something."""
        self._said.append(self._read_line())

    def kill_after(self, seconds: float) -> None:
        """Kill the child after that time and read all that it had told."""
        time.sleep(seconds)
        os.kill(self._child, signal.SIGKILL)
        self._child = 0
        while not self._said or self._said[-1] != "over":
            self._said.append(self._read_line())
        self._said.pop()

    def words(self) -> list[int]:
        """Return the numbers that the last child told, in order."""
        return [int(word) for word in self._said if word.isdigit()]

    @property
    def is_dropping(self) -> bool:
        """Whether the last child's last word was that it drops its mirror."""
        return bool(self._said) and self._said[-1] == "dropping"

    def _read_line(self) -> str:
        assert self._script.stdout is not None
        line = self._script.stdout.readline()
        assert line, "the committer died"
        return line.strip()


def main() -> None:
    """Fork a child for every line that is read."""
    for line in sys.stdin:
        first, _, root = line.strip().partition(" ")
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            # Nothing is told before the parent has told who is talking.
            os.read(read_end, 1)
            try:
                commit_without_end(Path(root), int(first))
            finally:
                os._exit(1)
        os.write(1, b"%d\n" % child)
        os.write(write_end, b"!")
        os.waitpid(child, 0)
        os.close(read_end)
        os.close(write_end)
        os.write(1, b"over\n")


if __name__ == "__main__":
    main()

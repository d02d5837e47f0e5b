"""Make repositories like those that people have, and change them.

The makers write one `git fast-import` stream from a seed, so equal arguments
give equal object ids. The changers act on a bare repository as its owners would.
"""

import random
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from goblet_testing.gitcli import GitFailed, git, hermetic_env

_FIRST_COMMIT = 1_600_000_000
_IDENTITY = "A U Thor <author@example.test>"
_WORDS = ("node", "ring", "pack", "mirror", "fetch", "clone", "refs", "tree", "blob", "tag")
_MEBIBYTE = 1 << 20


class _Stream:
    """A fast-import stream: blobs and commits by mark, dates that only go forward."""

    def __init__(self, out: IO[bytes], seed: int, lengths: tuple[int, int]) -> None:
        self._out = out
        self._lengths = lengths
        self._mark = 0
        self._clock = _FIRST_COMMIT
        self._files: dict[str, list[str]] = {}
        self.dice = random.Random(seed)

    def blob(self, data: bytes) -> int:
        """Write a blob and return its mark."""
        self._mark += 1
        self._out.write(b"blob\nmark :%d\ndata %d\n%b\n" % (self._mark, len(data), data))
        return self._mark

    def edited(self, path: str) -> int:
        """Write the next version of a text file, a line or two away from its last one."""
        lines = self._files.get(path)
        if lines is None:
            count = self.dice.randint(*self._lengths)
            lines = self._files[path] = [self._line() for _ in range(count)]
        else:
            lines[self.dice.randrange(len(lines))] = self._line()
            if self.dice.random() < 0.3:
                lines.insert(self.dice.randrange(len(lines)), self._line())
        return self.blob("".join(lines).encode())

    def commit(
        self, branch: str, changes: Mapping[str, int], parent: int | None, merged: int | None = None
    ) -> int:
        """Write a commit on `branch` and return its mark."""
        self._mark += 1
        self._clock += self.dice.randint(60, 6000)
        who = f"{_IDENTITY} {self._clock} +0000"
        message = f"{self._line()}\n{self._line()}"
        lines = [f"commit refs/heads/{branch}", f"mark :{self._mark}"]
        lines += [f"author {who}", f"committer {who}", f"data {len(message)}", message]
        lines += [] if parent is None else [f"from :{parent}"]
        lines += [] if merged is None else [f"merge :{merged}"]
        lines += [f"M 100644 :{blob} {path}" for path, blob in changes.items()]
        self._write(lines)
        return self._mark

    def branch(self, name: str, commit: int) -> None:
        """Point a branch at a commit."""
        self._write([f"reset refs/heads/{name}", f"from :{commit}"])

    def tag(self, name: str, commit: int, *, annotated: bool) -> None:
        """Point a tag at a commit."""
        if annotated:
            who = f"tagger {_IDENTITY} {self._clock} +0000"
            self._write([f"tag {name}", f"from :{commit}", who, f"data {len(name)}", name])
        else:
            self._write([f"reset refs/tags/{name}", f"from :{commit}"])

    def _line(self) -> str:
        words = self.dice.choices(_WORDS, k=self.dice.randint(3, 9))
        return f"{' '.join(words)} {self.dice.getrandbits(32):x}\n"

    def _write(self, lines: list[str]) -> None:
        self._out.write("\n".join([*lines, ""]).encode())


def make_repo(
    path: Path,
    *,
    commits: int = 60,
    files: int = 30,
    branches: int = 3,
    tags: int = 4,
    seed: int = 1,
    edits: int = 3,
    lengths: tuple[int, int] = (5, 60),
) -> Path:
    """Make a bare repository with merges, side branches and both kinds of tags; return `path`.

    `main` has `commits` commits, a tenth of them merges; each changes `edits` of
    `files` text files in directories of two levels, whose number of lines lies in
    `lengths`.
    """
    with _importing(path, seed, lengths=lengths) as stream:
        dice = stream.dice
        names = [f"part{n % 7}/area{n // 7 % 9}/file{n}.txt" for n in range(files)]
        tip = stream.commit("main", {name: stream.edited(name) for name in names}, None)
        trunk = [tip]
        while len(trunk) < commits:
            chosen = dice.sample(names, min(edits, files))
            changes = {name: stream.edited(name) for name in chosen}
            if len(trunk) % 10 == 9:
                # The topic's files are not touched on main meanwhile, so the merge
                # is the union, as git would make it.
                topic = stream.commit("topic", changes, trunk[-2])
                tip = stream.commit("main", changes, tip, merged=topic)
            else:
                tip = stream.commit("main", changes, tip)
            trunk.append(tip)
        for number in range(branches):
            name = names[number % files]
            stream.commit(f"side/{number}", {name: stream.edited(name)}, dice.choice(trunk))
        for number in range(tags):
            stream.tag(f"v0.{number}", dice.choice(trunk), annotated=number % 2 == 0)
    delete_branch(path, "topic")
    return path


def make_large(path: Path, *, seed: int = 7) -> Path:
    """Make a bare repository of more than 50,000 objects, packed as a host packs: with a bitmap."""
    make_repo(path, commits=8500, files=500, branches=20, tags=40, seed=seed, edits=2)
    git("repack", "-adq", cwd=path, timeout=300)
    return path


def make_blobs(path: Path, *, megabytes: int, seed: int = 3) -> Path:
    """Make a bare repository of `megabytes` blobs of 1 MiB that do not compress."""
    # Stored as they are: deflating or comparing them would find nothing, slowly.
    with _importing(path, seed, compression=0, depth=0) as stream:
        tip: int | None = None
        for first in range(0, megabytes, 50):
            numbers = range(first, min(first + 50, megabytes))
            blobs = {
                f"blob{number:05}.bin": stream.blob(stream.dice.randbytes(_MEBIBYTE))
                for number in numbers
            }
            tip = stream.commit("main", blobs, tip)
    return path


def count_objects(repo: Path) -> int:
    """Return how many objects `repo` stores, loose and packed."""
    lines = git("count-objects", "-v", cwd=repo).stdout.splitlines()
    facts = dict(line.split(": ", 1) for line in lines)
    return int(facts["count"]) + int(facts["in-pack"])


def oid_of(repo: Path, name: str) -> str:
    """Return the id of the object that `name` stands for."""
    return git("rev-parse", "--verify", name, cwd=repo).stdout.strip()


def commit(
    repo: Path,
    branch: str = "main",
    *,
    files: Mapping[str, str],
    message: str = "change",
    parent: str | None = None,
) -> str:
    """Add a commit to `branch`, made at `parent` if the branch is new; return its id."""
    start = parent or f"refs/heads/{branch}"
    with _worktree(repo, start) as tree:
        for name, text in files.items():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(text)
        git("add", "--all", cwd=tree)
        _git_later(tree, "commit", "--quiet", "--allow-empty", "-m", message)
        return _move(repo, branch, oid_of(tree, "HEAD"))


def force_push(repo: Path, branch: str = "main", *, back: int = 1, text: str = "rewritten") -> str:
    """Replace the last `back` commits of `branch` by another one; return its id."""
    files = {"rewritten.txt": f"{text}\n"}
    return commit(
        repo, branch, files=files, message=text, parent=oid_of(repo, f"refs/heads/{branch}~{back}")
    )


def delete_branch(repo: Path, branch: str) -> None:
    """Delete `branch`, which may be there or not; its commits stay."""
    git("update-ref", "-d", f"refs/heads/{branch}", cwd=repo)


def add_tag(repo: Path, name: str, target: str = "main", *, annotated: bool = True) -> str:
    """Tag `target` (which may be a tag, a tree or a blob) and return the tag's id."""
    flags = ["-a", "-m", name] if annotated else []
    git("tag", "--force", *flags, name, target, cwd=repo)
    return oid_of(repo, f"refs/tags/{name}")


def squash(repo: Path, branch: str, *, onto: str = "main") -> str:
    """Add all that `branch` changed to `onto` as one commit; return its id."""
    with _worktree(repo, onto) as tree:
        git("merge", "--quiet", "--squash", branch, cwd=tree)
        _git_later(tree, "commit", "--quiet", "-m", f"squash {branch}")
        return _move(repo, onto, oid_of(tree, "HEAD"))


def cherry_pick(repo: Path, picked: str, *, onto: str = "main") -> str:
    """Add what `picked` changed to `onto`; return the new commit's id."""
    with _worktree(repo, onto) as tree:
        _git_later(tree, "cherry-pick", picked)
        return _move(repo, onto, oid_of(tree, "HEAD"))


def revert(repo: Path, reverted: str, *, branch: str = "main") -> str:
    """Add the reverse of what `reverted` changed to `branch`; return the new commit's id."""
    with _worktree(repo, branch) as tree:
        _git_later(tree, "revert", "--no-edit", reverted)
        return _move(repo, branch, oid_of(tree, "HEAD"))


@contextmanager
def _importing(
    path: Path,
    seed: int,
    *,
    compression: int = -1,
    depth: int = 50,
    lengths: tuple[int, int] = (5, 60),
) -> Iterator[_Stream]:
    path.parent.mkdir(parents=True, exist_ok=True)
    git("init", "--quiet", "--bare", path)
    command = ["git", "-c", f"core.compression={compression}"]
    # A few objects would lie loose otherwise, and every clone would look for deltas anew.
    command += ["-c", "fastimport.unpackLimit=0", "fast-import"]
    command += ["--quiet", "--force", f"--depth={depth}"]
    with subprocess.Popen(
        command, cwd=path, env=hermetic_env(), stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        yield _Stream(process.stdin, seed, lengths)
        process.stdin.close()
        stderr = process.stderr.read().decode()
    if process.returncode != 0:
        raise GitFailed(("fast-import",), process.returncode, stderr)


@contextmanager
def _worktree(repo: Path, start: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory, "tree")
        git("worktree", "add", "--quiet", "--detach", tree, start, cwd=repo)
        try:
            yield tree
        finally:
            git("worktree", "remove", "--force", tree, cwd=repo)


def _git_later(tree: Path, *args: str) -> None:
    """Run git as if a minute had passed since the commit that is checked out."""
    committed = int(git("log", "-1", "--format=%ct", cwd=tree).stdout)
    date = f"{committed + 60} +0000"
    git(*args, cwd=tree, env={"GIT_COMMITTER_DATE": date, "GIT_AUTHOR_DATE": date})


def _move(repo: Path, branch: str, oid: str) -> str:
    git("update-ref", f"refs/heads/{branch}", oid, cwd=repo)
    return oid

"""Histories as they come in real repositories, small and made from a seed.

Merges (criss-cross and octopus too), cherry-picks, reverts that bring old blobs
back, renames of files and directories, submodules, empty commits, several roots,
clocks that go wrong; tags of tags, of trees and of blobs. A `History` grows in
steps, between which branches are force-pushed and deleted as well.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from goblet_node.wire.refs import ObjectId
from goblet_testing.packs import Repo, make_bare, run_git

File = tuple[str, bytes]
"""Mode and content; a submodule's content is the commit that it names."""

_SUBMODULE = "160000"
_FOLDERS = ("", "", "lib/", "lib/", "lib/deep/", "doc/", "doc/more/", "src/")
_STEPS = (-60, 0, 0, 60, 60, 60, 60, 60, 60, 60, 3600, 86_400)
_A_YEAR = 365 * 86_400
# fast-import writes commits to a ref. Ours go to one that never outlives a run,
# so that branches are only what the model says they are.
_WORKSHOP = b"refs/workshop"
_NOTHING = b"0" * 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """One commit of the model: its mark, its parents' marks, and all of its files."""

    mark: int
    parents: tuple[int, ...]
    files: Mapping[str, File]


class History:
    """A bare repository that grows by chance. Equal seeds and calls give equal object ids.

    `commits` and `tags` are all that were ever made, oldest first, also those that
    no ref reaches any more.
    """

    def __init__(self, path: Path, seed: int) -> None:
        self.path = make_bare(path)
        self.commits: tuple[ObjectId, ...] = ()
        self.tags: tuple[ObjectId, ...] = ()
        self.dice = random.Random(seed)
        self._clock = 1_700_000_000
        self._marks = 0
        self._names = 0
        self._made: list[Made] = []
        self._tag_marks: list[int] = []
        self._branches: dict[str, Made] = {}
        self._stream: list[bytes] = []

    @property
    def repo(self) -> Repo:
        """The repository as one that packs are made of."""
        return Repo(self.path)

    def refs(self) -> dict[str, ObjectId]:
        """Return all refs."""
        return self.repo.refs()

    def grow(self, commits: int) -> None:
        """Add that many commits, and move, make and delete branches and tags as people do."""
        before = len(self._made)
        while len(self._made) - before < commits:
            name, tip = self._begin()
            for _ in range(self.dice.randint(1, 4)):
                tip = self._next(tip)
            self._set_branch(name, tip)
        self._rearrange()
        for _ in range(self.dice.choice((0, 0, 1, 1, 2, 3))):
            self._tag()
        self._write()
        if self.dice.random() < 0.3:
            self._name_something_odd()

    # One commit ---------------------------------------------------------------

    def _begin(self) -> tuple[str, Made | None]:
        roll = self.dice.random()
        if not self._branches or roll < 0.05:
            return self._new_name(), None
        name = self.dice.choice(sorted(self._branches))
        if roll < 0.35:
            return self._new_name(), self._any_commit()
        return name, self._branches[name]

    def _next(self, tip: Made | None) -> Made:
        if tip is None:
            return self._commit((), self._edited({}, edits=self.dice.randint(1, 8)))
        ways: tuple[Callable[[Made], Made], ...] = (
            self._edit,
            self._edit,
            self._edit,
            self._merge,
            self._merge,
            self._cherry_pick,
            self._revert,
            self._rename,
            self._submodule,
            self._empty,
        )
        return self.dice.choice(ways)(tip)

    def _edit(self, tip: Made) -> Made:
        edits = self.dice.randint(1, 3)
        return self._commit((tip.mark,), self._edited(tip.files, edits=edits))

    def _merge(self, tip: Made) -> Made:
        others = {self._any_commit().mark for _ in range(self.dice.choice((1, 1, 1, 2)))}
        others.discard(tip.mark)
        if not others:
            return self._empty(tip)
        files: dict[str, File] = {}
        for mark in sorted(others):
            files.update(self._made_as(mark).files)
        files.update(tip.files)
        if self.dice.random() < 0.3:
            files = self._edited(files, edits=1)
        return self._commit((tip.mark, *sorted(others)), files)

    def _cherry_pick(self, tip: Made) -> Made:
        picked = self._any_commit()
        return self._applied(tip, before=self._files_before(picked), after=picked.files)

    def _revert(self, tip: Made) -> Made:
        reverted = self._any_commit()
        return self._applied(tip, before=reverted.files, after=self._files_before(reverted))

    def _rename(self, tip: Made) -> Made:
        files = dict(tip.files)
        if not files:
            return self._edit(tip)
        old = self.dice.choice(sorted(files))
        folder = old.rpartition("/")[0]
        if folder and self.dice.random() < 0.5:
            moved = f"{folder}-{self.dice.randint(0, 1)}"
            inside = [name for name in files if name.startswith(f"{folder}/")]
            for name in inside:
                files[moved + name.removeprefix(folder)] = files.pop(name)
        else:
            new = self.dice.choice(_FOLDERS) + f"moved{self.dice.randint(0, 3)}"
            files[new] = files.pop(old)
        return self._commit((tip.mark,), files)

    def _submodule(self, tip: Made) -> Made:
        named = b"%040x" % self.dice.randint(1, 5)
        path = self.dice.choice(_FOLDERS) + "module"
        return self._commit((tip.mark,), {**tip.files, path: (_SUBMODULE, named)})

    def _empty(self, tip: Made) -> Made:
        return self._commit((tip.mark,), tip.files)

    def _edited(self, files: Mapping[str, File], *, edits: int) -> dict[str, File]:
        changed = dict(files)
        for _ in range(edits):
            if changed and self.dice.random() < 0.2:
                del changed[self.dice.choice(sorted(changed))]
                continue
            path = self.dice.choice(_FOLDERS) + f"file{self.dice.randint(0, 5)}"
            mode = self.dice.choice(("100644", "100644", "100644", "100755", "120000"))
            # Few contents, so that one blob lies at many paths; some of them large
            # and alike, so that there are deltas.
            lines = [b"%d\n" % number for number in range(self.dice.choice((0, 1, 50)))]
            changed[path] = (mode, b"".join(lines) + b"%d\n" % self.dice.randint(0, 12))
        return changed

    def _applied(self, tip: Made, *, before: Mapping[str, File], after: Mapping[str, File]) -> Made:
        files = {
            path: file
            for path, file in tip.files.items()
            if path in after or before.get(path) != file
        }
        files.update({path: file for path, file in after.items() if before.get(path) != file})
        return self._commit((tip.mark,), files)

    def _files_before(self, commit: Made) -> Mapping[str, File]:
        return self._made_as(commit.parents[0]).files if commit.parents else {}

    def _any_commit(self) -> Made:
        # Recent ones more often, so that some branches share most of their history.
        recent = self._made[-8:]
        return self.dice.choice(recent if self.dice.random() < 0.7 else self._made)

    def _made_as(self, mark: int) -> Made:
        return next(commit for commit in self._made if commit.mark == mark)

    def _commit(self, parents: tuple[int, ...], files: Mapping[str, File]) -> Made:
        self._clock += self.dice.choice(_STEPS)
        # Now and then a clock is wrong by years, for one commit.
        wrong = self.dice.choice((_A_YEAR, -_A_YEAR)) if self.dice.random() < 0.04 else 0
        made = Made(mark=self._new_mark(), parents=parents, files=files)
        lines = [
            b"reset %s\n\ncommit %s\nmark :%d\n" % (_WORKSHOP, _WORKSHOP, made.mark),
            b"committer C <c@example.test> %d +0000\ndata 2\nm\n" % (self._clock + wrong),
        ]
        for word, parent in zip((b"from", *[b"merge"] * 8), parents, strict=False):
            lines.append(b"%s :%d\n" % (word, parent))
        lines.append(b"deleteall\n")
        for path, (mode, content) in files.items():
            if mode == _SUBMODULE:
                lines.append(b"M %s %s %s\n" % (mode.encode(), content, path.encode()))
            else:
                lines.append(b"M %s inline %s\n" % (mode.encode(), path.encode()))
                lines.append(b"data %d\n%s\n" % (len(content), content))
        self._stream += lines
        self._made.append(made)
        return made

    # Refs ---------------------------------------------------------------------

    def _rearrange(self) -> None:
        for name in sorted(self._branches):
            roll = self.dice.random()
            if roll < 0.08 and len(self._branches) > 1:
                del self._branches[name]
                self._stream.append(b"reset refs/heads/%s\nfrom %s\n\n" % (name.encode(), _NOTHING))
            elif roll < 0.16:
                self._set_branch(name, self._any_commit())

    def _tag(self) -> None:
        self._clock += 60
        of_tag = bool(self._tag_marks) and self.dice.random() < 0.4
        target = self.dice.choice(self._tag_marks) if of_tag else self._any_commit().mark
        name = f"tag{self._new_mark()}".encode()
        if not of_tag and self.dice.random() < 0.3:
            self._stream.append(b"reset refs/tags/%s\nfrom :%d\n\n" % (name, target))
            return
        self._stream.append(
            b"tag %s\nmark :%d\nfrom :%d\ntagger T <t@example.test> %d +0000\ndata 2\nt\n"
            % (name, self._marks, target, self._clock)
        )
        self._tag_marks.append(self._marks)

    def _set_branch(self, name: str, tip: Made | None) -> None:
        if tip is not None:
            self._branches[name] = tip
            self._stream.append(b"reset refs/heads/%s\nfrom :%d\n\n" % (name.encode(), tip.mark))

    def _new_name(self) -> str:
        self._names += 1
        return "main" if self._names == 1 else f"branch{self._names}"

    def _new_mark(self) -> int:
        self._marks += 1
        return self._marks

    def _write(self) -> None:
        self._stream.append(b"reset %s\nfrom %s\n\n" % (_WORKSHOP, _NOTHING))
        marks = self.path / "marks"
        run_git(
            # Else less than a hundred objects become as many files.
            *("-c", "fastimport.unpackLimit=0"),
            *("fast-import", "--quiet", "--force"),
            f"--import-marks-if-exists={marks}",
            f"--export-marks={marks}",
            repo=self.path,
            stdin=b"".join(self._stream),
        )
        self._stream.clear()
        pairs = (line.split() for line in marks.read_bytes().splitlines())
        oids = {int(mark[1:]): ObjectId(oid) for mark, oid in pairs}
        # Two may be the same: equal files on the same parent at the same time.
        self.commits = tuple(dict.fromkeys(oids[commit.mark] for commit in self._made))
        self.tags = tuple(dict.fromkeys(oids[mark] for mark in self._tag_marks))

    def _name_something_odd(self) -> None:
        """Point tags at a tree and at a blob."""
        listed = run_git("ls-tree", "-rt", self.commits[-1].decode(), repo=self.path)
        entries = [line.split(None, 3)[:3] for line in listed.splitlines()]
        for mode, kind, oid in self.dice.sample(entries, min(len(entries), 2)):
            if mode != _SUBMODULE.encode():
                (self.path / f"refs/tags/a-{kind.decode()}").write_bytes(oid + b"\n")


def random_history(path: Path, seed: int, *, commits: int = 12) -> History:
    """Make a bare repository at `path` with at least that many commits."""
    history = History(path, seed)
    history.grow(commits)
    return history

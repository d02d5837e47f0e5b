"""Packs to take in: made by the real git from generated histories, or by hand, byte by byte.

A `Repo` is an origin on disk that grows by operations on a model of it (which
files each branch has), written with `git fast-import`. A `GrownLog` is a pack
log that takes in what the origin's `pack-objects` makes. `strict_index` is the
judge: git's own index-pack, inside a repository.
"""

import hashlib
import os
import shutil
import subprocess
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from goblet_node import objects
from goblet_node.mirror.concat import body, log_header
from goblet_node.mirror.graph import Graph
from goblet_node.mirror.intake import Intake, IntakeJob, take_in
from goblet_node.mirror.layout import SegmentFiles
from goblet_node.mirror.links import Links
from goblet_node.mirror.normalise import encode_distance
from goblet_node.mirror.table import Table
from goblet_node.wire.refs import JoinedIds, ObjectId
from goblet_testing.gitcli import GitFailed, hermetic_env

Files = Mapping[str, bytes]


def run_git(*words: str | Path, repo: Path, stdin: bytes = b"") -> bytes:
    """Return what git writes, as bytes.

    Raises:
        GitFailed: It ended with an error.
    """
    command = ["git", *map(str, words)]
    done = subprocess.run(
        command, cwd=repo, env=hermetic_env(), input=stdin, capture_output=True, check=False
    )
    if done.returncode:
        raise GitFailed(tuple(command[1:]), done.returncode, done.stderr.decode(errors="replace"))
    return done.stdout


def make_bare(path: Path) -> Path:
    """Make an empty bare repository without asking git: `git init` costs tens of milliseconds."""
    for name in ("objects/pack", "objects/info", "refs/heads", "refs/tags"):
        (path / name).mkdir(parents=True)
    (path / "HEAD").write_text("ref: refs/heads/main\n")
    (path / "config").write_text("[core]\n\trepositoryformatversion = 0\n\tbare = true\n")
    return path


@dataclass
class Repo:
    """An origin that grows. Nothing is written before `flush`, then all in one process."""

    path: Path
    branches: dict[str, Files] = field(default_factory=dict)
    _stream: list[bytes] = field(default_factory=list)
    _begun: set[str] = field(default_factory=set)
    _clock: int = 1_700_000_000

    @classmethod
    def create(cls, path: Path) -> "Repo":
        """Make an empty one."""
        return cls(make_bare(path))

    def commit(
        self,
        branch: str,
        files: Files,
        *,
        parent: str | None = None,
        merge: str | None = None,
        seconds: int = 60,
    ) -> None:
        """Make a commit with exactly these files on a branch, `seconds` after the last one.

        Its parent is the branch's tip, or `parent` (a branch), or nothing if that
        is empty; `merge` names a branch that becomes the second parent.
        """
        self._clock += seconds
        lines = []
        if parent is not None:
            lines.append(b"reset refs/heads/%s\n" % branch.encode())
            if parent:
                lines.append(b"from refs/heads/%s\n" % parent.encode())
            lines.append(b"\n")
        lines.append(
            b"commit refs/heads/%s\ncommitter C <c@example.test> %d +0000\ndata 2\nm\n"
            % (branch.encode(), self._clock)
        )
        # Of a branch that this run has not touched, fast-import must be told the tip.
        if parent is None and branch in self.branches and branch not in self._begun:
            lines.append(b"from refs/heads/%s^0\n" % branch.encode())
        if merge is not None:
            lines.append(b"merge refs/heads/%s\n" % merge.encode())
        lines.append(b"deleteall\n")
        for name, content in files.items():
            lines.append(b"M 100644 inline %s\ndata %d\n" % (name.encode(), len(content)))
            lines.append(content + b"\n")
        self._stream += [*lines, b"\n"]
        self.branches[branch] = dict(files)
        self._begun.add(branch)

    def tag(self, name: str, target: str) -> None:
        """Make an annotated tag on a ref, which may be a tag."""
        self._clock += 60
        if target.startswith("refs/tags/"):
            # fast-import finds no tag of its own run.
            self.flush()
        self._stream.append(
            b"tag %s\nfrom %s\ntagger T <t@example.test> %d +0000\ndata 2\nt\n"
            % (name.encode(), target.encode(), self._clock)
        )

    def flush(self) -> None:
        """Write what was asked for so far."""
        stream, self._stream = b"".join(self._stream), []
        self._begun.clear()
        if stream:
            # --force: branches are also set back, as a force-push does.
            run_git("fast-import", "--quiet", "--force", repo=self.path, stdin=stream)

    def point(self, ref: str, oid: ObjectId | None) -> None:
        """Set a ref to an object, or delete it."""
        self.flush()
        words = ("update-ref", "-d", ref) if oid is None else ("update-ref", ref, oid.decode())
        run_git(*words, repo=self.path)
        if oid is None:
            self.branches.pop(ref.removeprefix("refs/heads/"), None)

    def blob(self, content: bytes) -> ObjectId:
        """Store a blob that nothing refers to yet."""
        written = run_git("hash-object", "-w", "--stdin", repo=self.path, stdin=content)
        return ObjectId(written.strip())

    def refs(self) -> dict[str, ObjectId]:
        """Return all refs."""
        self.flush()
        lines = run_git("for-each-ref", "--format=%(objectname) %(refname)", repo=self.path)
        pairs = (line.split(b" ", 1) for line in lines.splitlines())
        return {name.decode(): ObjectId(oid) for oid, name in pairs}

    def tips(self) -> tuple[ObjectId, ...]:
        """Return the distinct objects that refs name, sorted."""
        return tuple(sorted(set(self.refs().values())))

    def pack(
        self,
        wants: Iterable[ObjectId],
        haves: Iterable[ObjectId] = (),
        *,
        flags: Sequence[str] = ("--thin", "--delta-base-offset"),
    ) -> bytes:
        """Return the pack that an upload-pack would send."""
        self.flush()
        lines = [*wants, *(b"^" + oid for oid in haves)]
        return run_git(
            "pack-objects",
            "--revs",
            "--stdout",
            "--quiet",
            # Else it does not try again what fast-import left whole.
            "--no-reuse-delta",
            *flags,
            repo=self.path,
            stdin=b"".join(line + b"\n" for line in lines),
        )

    def reachable(self) -> set[ObjectId]:
        """Return every object that some ref reaches."""
        self.flush()
        lines = run_git("rev-list", "--objects", "--all", repo=self.path).splitlines()
        return {ObjectId(line[:40]) for line in lines}


@dataclass
class GrownLog:
    """A log in a directory, grown as a node grows it."""

    directory: Path
    segments: list[SegmentFiles] = field(default_factory=list)
    tips: tuple[ObjectId, ...] = ()
    orphans: tuple[ObjectId, ...] = ()
    _taken: int = 0

    def take(self, pack: bytes | None, tips: Iterable[ObjectId], **limits: int) -> Intake:
        """Take a pack in, and put what came of it in its place."""
        self._taken += 1
        scratch = self.directory / f"scratch-{self._taken}"
        scratch.mkdir(parents=True)
        received = None
        if pack is not None:
            received = scratch / "received.pack"
            received.write_bytes(pack)
        job = IntakeJob(
            received=received,
            scratch=scratch,
            segments=tuple(self.segments),
            tips=JoinedIds.of(tips),
            old_tips=JoinedIds.of(self.tips),
            old_orphans=JoinedIds.of(self.orphans),
            **limits,
        )
        intake = take_in(job)
        if intake.files is not None:
            self.segments.append(intake.files)
        self.tips, self.orphans = tuple(tips), intake.orphans
        return intake

    def fetch(self, origin: Repo) -> Intake:
        """Do a refresh: all tips of the origin, thin against the tips that the log has."""
        tips = origin.tips()
        missing = self.table().missing(tips)
        haves = [*self.tips, *self.orphans]
        return self.take(origin.pack(missing, haves) if missing else None, tips)

    def table(self) -> Table:
        """Return the table of the whole log."""
        return Table.load([files.table for files in self.segments])

    def packs(self) -> list[Path]:
        """Return the segments' packs."""
        return [files.pack for files in self.segments]

    def links(self) -> list[Path]:
        """Return the segments' links."""
        return [files.links for files in self.segments]

    def graph(self) -> Graph:
        """Return the graph of the whole log."""
        return Graph(self.table(), Links.load(self.links()))

    def concatenated(self) -> bytes:
        """Return the whole log as one pack."""
        return joined([pack.read_bytes() for pack in self.packs()])


def joined(packs: Iterable[bytes]) -> bytes:
    """Return the entries of packs under one header and trailer."""
    packs = list(packs)
    count = sum(int.from_bytes(pack[8:12], "big") for pack in packs)
    bodies = [pack[body(len(pack)).start : body(len(pack)).stop] for pack in packs]
    return sealed(log_header(count) + b"".join(bodies))


def sealed(pack: bytes) -> bytes:
    """Return header and entries with the trailer that belongs to them."""
    return pack + hashlib.sha1(pack).digest()


def strict_index(pack: bytes, directory: Path) -> set[ObjectId]:
    """Return the objects that git finds in a pack that must be complete and sound.

    Raises:
        GitFailed: `git index-pack --strict --fsck-objects` does not accept it.
    """
    # Inside a repository, and a new one: outside git 2.39 crashes, and in one
    # with objects it would look for what the pack lacks there.
    repo = make_bare(directory / f"judge-{os.urandom(6).hex()}")
    try:
        said = run_git("index-pack", "--strict", "--fsck-objects", "--stdin", repo=repo, stdin=pack)
        name = said.split()[-1].decode()
        index = (repo / f"objects/pack/pack-{name}.idx").read_bytes()
        shown = run_git("show-index", repo=repo, stdin=index)
        return {ObjectId(line.split()[1]) for line in shown.splitlines()}
    finally:
        shutil.rmtree(repo)


@dataclass(frozen=True, kw_only=True)
class HandMade:
    """One entry to write: a whole object, or a delta on an entry's number or an id."""

    kind: int
    content: bytes
    base: int | bytes | None = None


def pack_of(entries: Sequence[HandMade], *, count: int | None = None) -> bytes:
    """Return a pack of these entries in this order; `count` is a lie for its header."""
    out = bytearray(log_header(len(entries) if count is None else count))
    offsets: list[int] = []
    for entry in entries:
        offsets.append(len(out))
        out += entry_start(entry.kind, len(entry.content))
        if entry.kind == objects.OFS_DELTA:
            assert isinstance(entry.base, int)
            out += encode_distance(offsets[-1] - offsets[entry.base])
        elif entry.kind == objects.REF_DELTA:
            assert isinstance(entry.base, bytes)
            out += entry.base
        out += zlib.compress(entry.content)
    return sealed(bytes(out))


def entry_start(kind: int, size: int) -> bytes:
    """Return the varint of kind and size that begins an entry."""
    first, rest = (kind << 4) | (size & 15), size >> 4
    out = bytearray()
    while rest:
        out.append(first | 0x80)
        first, rest = rest & 0x7F, rest >> 7
    out.append(first)
    return bytes(out)


def commit_of(tree: bytes, *parents: bytes, seconds: int = 1) -> bytes:
    """Return the content of a commit, of raw ids, that was made at this time."""
    lines = [b"tree " + objects.hex_id(tree)]
    lines += [b"parent " + objects.hex_id(parent) for parent in parents]
    person = b"A <a@example.test> %d +0000" % seconds
    return b"\n".join([*lines, b"author " + person, b"committer " + person, b"", b"m"])


def insert_delta(base: bytes, result: bytes) -> bytes:
    """Return a delta that makes a short `result` (up to 127 bytes) of any base."""
    assert 0 < len(result) < 128
    return _varint(len(base)) + _varint(len(result)) + bytes([len(result)]) + result


def copy_delta(base: bytes, times: int) -> bytes:
    """Return a delta that makes `times` copies of a base of up to 65535 bytes."""
    size = len(base)
    copy = bytes([0x80 | 0x10 | 0x20, size & 0xFF, size >> 8])
    return _varint(size) + _varint(size * times) + copy * times


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(0x80 | (number & 0x7F))
        number >>= 7
    out.append(number)
    return bytes(out)

"""What a repository holds, as far as negotiating over it needs; and small repositories to try.

The boundary comes from git itself; who is ready is decided as upload-pack decides it.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from goblet_node.serve.negotiate import Ready
from goblet_node.wire.answers import Dialect, V0Dialect
from goblet_node.wire.pktline import decode_all
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.requests import Fetch
from goblet_testing.dialects import encode_v0_request, speak
from goblet_testing.gitcli import git


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Where git says that a client's history ends, in its order."""

    shallow: tuple[ObjectId, ...] = ()
    unshallow: tuple[ObjectId, ...] = ()


def cut_by_git(repo: Path, fetch: Fetch) -> Cut:
    """Return the boundary that git tells to this request, told no haves."""
    if not fetch.has_depth:
        return Cut()
    said = speak(repo, encode_v0_request(fetch, V0Dialect(negotiates=False)), version=0)
    told: dict[bytes, list[ObjectId]] = {b"shallow": [], b"unshallow": []}
    for packet in decode_all(said):
        if isinstance(packet, bytes):
            word, _, oid = packet.partition(b" ")
            told[word].append(ObjectId(oid))
    return Cut(shallow=tuple(told[b"shallow"]), unshallow=tuple(told[b"unshallow"]))


class History:
    """What a repository holds, read once: enough to negotiate over it as git does."""

    def __init__(self, repo: Path) -> None:
        lines = git("cat-file", "--batch-all-objects", "--batch-check", cwd=repo).stdout
        self.objects = {ObjectId(line.split()[0].encode()) for line in lines.splitlines()}
        self.parents: dict[ObjectId, list[ObjectId]] = {}
        self.dates: dict[ObjectId, int] = {}
        for line in git("log", "--all", "--format=%H %ct %P", cwd=repo).stdout.splitlines():
            oid, date, *parents = line.split()
            self.dates[ObjectId(oid.encode())] = int(date)
            self.parents[ObjectId(oid.encode())] = [ObjectId(each.encode()) for each in parents]
        tags = [line.split()[0] for line in lines.splitlines() if " tag " in line]
        asked = "".join(f"{tag}^{{}}\n" for tag in tags)
        said = git("cat-file", "--batch-check=%(objectname)", cwd=repo, stdin=asked).stdout
        self._peeled = {
            ObjectId(tag.encode()): ObjectId(target.encode())
            for tag, target in zip(tags, said.split(), strict=True)
        }

    def held(self, oids: Iterable[ObjectId]) -> tuple[ObjectId, ...]:
        """Return those of `oids` that are here, in their order."""
        return tuple(oid for oid in oids if oid in self.objects)

    def ready(self, fetch: Fetch, dialect: Dialect, cut: Cut) -> Ready:
        """Return ok_to_give_up of upload-pack.c for one request.

        Version 0 has cut the history off when it asks, and wants the parents of
        what it unshallows too; version 2 asks before that.
        """
        parents: Mapping[ObjectId, Sequence[ObjectId]] = self.parents
        wants = [self._peeled.get(oid, oid) for oid in fetch.wants]
        if isinstance(dialect, V0Dialect):
            wants += [parent for oid in cut.unshallow for parent in self.parents[oid]]
            parents = {**parents, **dict.fromkeys((*cut.shallow, *fetch.shallow), ())}

        def is_ready(haves: Sequence[ObjectId]) -> bool:
            commits = [oid for oid in haves if oid in self.dates]
            oldest = min((self.dates[oid] for oid in commits), default=0)
            known = {*commits, *(parent for oid in commits for parent in parents[oid])}

            return _all_reach(
                sorted((want for want in wants if want in self.dates), key=self.dates.__getitem__),
                known,
                parents,
                is_old={oid for oid, date in self.dates.items() if date < oldest},
            )

        return is_ready


def _all_reach(
    wants: Sequence[ObjectId],
    known: set[ObjectId],
    parents: Mapping[ObjectId, Sequence[ObjectId]],
    *,
    is_old: set[ObjectId],
) -> bool:
    """Do what can_all_from_reach_with_flag of commit-reach.c does, step by step.

    A plain walk would differ where dates run back: git enters no old commit, yet
    remembers from one want to the next what it found.
    """
    reaching = set(known)
    met: set[ObjectId] = set()
    for want in wants:
        met.add(want)
        path = [want]
        while path:
            oid = path[-1]
            if oid in reaching:
                path.pop()
                reaching.update(path[-1:])
                continue
            for parent in parents[oid]:
                if parent in reaching:
                    reaching.add(oid)
                if parent not in met:
                    met.add(parent)
                    if parent not in is_old:
                        path.append(parent)
                        break
            else:
                path.pop()
        if want not in reaching:
            return False
    return True


def make_graph(path: Path, *, seed: int, commits: int = 16) -> Path:
    """Make a bare repository of criss-cross merges, several roots and dates that run back.

    Each commit adds a file of its own name; the newest are branches, and there are
    tags on commits, on a tag and on a blob.
    """
    dice = random.Random(seed)
    git("init", "--quiet", "--bare", path)
    for key in ("allowFilter", "allowAnySHA1InWant"):
        git("config", f"uploadpack.{key}", "true", cwd=path)
    lines = []
    for number in range(1, commits + 1):
        date = 1_700_000_000 + number * 100 + dice.randint(-400, 400)
        who = f"A U Thor <author@example.test> {date} +0000"
        parents = dice.sample(range(1, number), min(number - 1, dice.choice([0, 1, 1, 1, 2, 3])))
        lines += [f"commit refs/heads/c{number}", f"mark :{number}", f"committer {who}", "data 0"]
        words = ["from", "merge", "merge"]
        lines += [f"{word} :{one}" for word, one in zip(words, parents, strict=False)]
        lines += [f"M 100644 inline f{number}", "data 3", f"{number:03}", ""]
    stream = "\n".join(lines) + "\n"
    git("fast-import", "--quiet", "--force", cwd=path, stdin=stream)
    git("tag", "-a", "-m", "one", "one", f"c{commits - 1}", cwd=path)
    git("tag", "-a", "-m", "two", "two", "one", cwd=path)
    git("tag", "-a", "-m", "blob", "blob", f"c{commits}:f{commits}", cwd=path)
    return path

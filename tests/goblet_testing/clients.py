"""Clients that are not git: dulwich, libgit2, isomorphic-git, behind one face.

Each is asked by a `Wish`, and says by `lacks` what it has no words for. They leave
ordinary repositories behind, for git to judge.
"""

import json
import os
import re
import select
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Protocol

import pygit2
from dulwich import porcelain
from dulwich.client import HttpGitClient
from dulwich.objects import ObjectID
from dulwich.refs import Ref
from dulwich.repo import Repo

from goblet_testing.gitcli import hermetic_env

JAVASCRIPT = Path(__file__).parent.parent / "javascript"
"""Where `npm ci` puts isomorphic-git."""
INFINITE = 0x7FFFFFFF
"""The depth that means all of the history, in the protocol's own words."""
_PATIENCE = 60.0
_REMOTE_HEAD = Ref(b"refs/remotes/origin/HEAD")
_FETCHED = Ref(b"refs/tags/fetched")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a client is to ask for. `branch` alone, if it is named and `single` is set."""

    bare: bool = False
    branch: str | None = None
    single: bool = False
    tags: bool = True
    depth: int | None = None
    since: int | None = None
    """Seconds since the epoch."""
    exclude: str | None = None
    relative: bool = False
    """`depth` counts from where the client's history ends."""
    oid: str | None = None
    """Only this object and what it reaches."""
    prune: bool = False
    thin: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Lacks:
    """What a client cannot be told, by the names of a Wish's fields."""

    cloning: frozenset[str]
    fetching: frozenset[str]


class Client(Protocol):
    """One client program."""

    @property
    def name(self) -> str:
        """How a test calls it."""

    @property
    def lacks(self) -> Lacks:
        """The fields of a Wish that it has no words for."""

    def clone(self, url: str, dest: Path, wish: Wish) -> None:
        """Clone `url` to `dest`; raise whatever the client raises."""

    def fetch(self, repo: Path, wish: Wish) -> None:
        """Fetch from `origin` into a repository that this client cloned."""


@dataclass(frozen=True, slots=True)
class Dulwich:
    """dulwich's porcelain, in one protocol version."""

    version: int
    lacks: Lacks = Lacks(
        cloning=frozenset({"single", "tags", "since", "exclude", "oid"}),
        fetching=frozenset({"bare", "branch", "single", "tags", "since", "exclude", "relative"}),
    )

    @property
    def name(self) -> str:
        return f"dulwich-v{self.version}"

    def clone(self, url: str, dest: Path, wish: Wish) -> None:
        porcelain.clone(
            url,
            dest,
            bare=wish.bare,
            depth=wish.depth,
            branch=wish.branch,
            protocol_version=self.version,
            errstream=BytesIO(),
        ).close()

    def fetch(self, repo: Path, wish: Wish) -> None:
        # Not porcelain.fetch, which cannot be told the protocol's version.
        with Repo(str(repo)) as opened:
            url = opened.get_config().get((b"remote", b"origin"), b"url").decode()
            base, path = re.fullmatch(r"(\w+://[^/]+/)(.*)", url).groups()  # type: ignore[union-attr]
            client = HttpGitClient(base, thin_packs=wish.thin, quiet=True)
            done = client.fetch(
                path.encode(),
                opened,
                determine_wants=None if wish.oid is None else _always(wish.oid),
                depth=wish.depth,
                protocol_version=self.version,
            )
            client.close()
            if wish.oid is not None:
                opened.refs[_FETCHED] = ObjectID(wish.oid.encode())
            else:
                _follow(opened, done.refs, prune=wish.prune)


@dataclass(frozen=True, slots=True)
class LibGit2:
    """libgit2, through pygit2. It speaks version 0 only."""

    name: str = "libgit2"
    lacks: Lacks = Lacks(
        cloning=frozenset({"single", "tags", "since", "exclude", "oid"}),
        fetching=frozenset(
            {"bare", "branch", "single", "tags", "since", "exclude", "relative", "thin"}
        ),
    )

    def clone(self, url: str, dest: Path, wish: Wish) -> None:
        pygit2.clone_repository(
            url, str(dest), bare=wish.bare, checkout_branch=wish.branch, depth=wish.depth or 0
        ).free()

    def fetch(self, repo: Path, wish: Wish) -> None:
        opened = pygit2.Repository(str(repo))
        refspecs = None if wish.oid is None else [f"{wish.oid}:refs/tags/fetched"]
        pruning = pygit2.enums.FetchPrune.PRUNE if wish.prune else pygit2.enums.FetchPrune.NO_PRUNE
        opened.remotes["origin"].fetch(refspecs, prune=pruning, depth=wish.depth or 0)
        opened.free()


class IsomorphicGit:
    """isomorphic-git, in a process of node. It speaks version 0 only.

    To start it costs more than most clones, so it lives from the first wish until `close`.
    """

    name = "isomorphic-git"
    lacks = Lacks(
        cloning=frozenset({"bare", "oid", "thin"}),
        fetching=frozenset({"bare", "oid", "thin"}),
    )

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def close(self) -> None:
        """End its process, if it has one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def clone(self, url: str, dest: Path, wish: Wish) -> None:
        self._run("clone", dest, wish, url=url)

    def fetch(self, repo: Path, wish: Wish) -> None:
        self._run("fetch", repo, wish, remote="origin", tags=True)

    def _run(self, command: str, repo: Path, wish: Wish, **more: object) -> None:
        said = {
            "dir": str(repo),
            "ref": wish.branch,
            "singleBranch": wish.single or None,
            "noTags": None if wish.tags else True,
            "depth": wish.depth,
            "since": wish.since,
            "exclude": None if wish.exclude is None else [wish.exclude],
            "relative": wish.relative or None,
            "prune": wish.prune or None,
            **more,
        }
        asked = {word: value for word, value in said.items() if value is not None}
        if self._process is None:
            self._process = subprocess.Popen(
                ["node", str(JAVASCRIPT / "client.mjs")],
                env=hermetic_env(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([command, asked]), file=self._process.stdin, flush=True)
        ready, _, _ = select.select([self._process.stdout], [], [], _PATIENCE)
        failure = self._process.stdout.readline() if ready else "no answer in time"
        if failure != "null\n":
            self.close()
        assert failure == "null\n"


CLIENTS: tuple[Client, ...] = (Dulwich(version=0), Dulwich(version=2), LibGit2(), IsomorphicGit())


def is_able(client: Client, cloning: Wish, fetching: Wish | None = None) -> bool:
    """Say whether the client has words for a clone and, if there is one, the fetch after it."""
    return not (
        client.lacks.cloning & _said(cloning)
        or (fetching is not None and client.lacks.fetching & _said(fetching))
    )


def why_absent(client: Client) -> str | None:
    """Say what is missing to run the client, and how to get it; None if nothing is."""
    if not isinstance(client, IsomorphicGit):
        return None
    if shutil.which("node") is None:
        return "isomorphic-git needs node: install Node.js 18 or newer"
    if not (JAVASCRIPT / "node_modules/isomorphic-git").is_dir():
        return "isomorphic-git is not installed: run npm ci --prefix tests/javascript"
    return None


def set_url(repo: Path, url: str) -> None:
    """Let the repository's `origin` be at `url` from now on."""
    config = repo / ".git/config" if (repo / ".git").is_dir() else repo / "config"
    command = ["git", "config", "--file", os.fspath(config), "remote.origin.url", url]
    subprocess.run(command, env=hermetic_env(), check=True)


def keep_apart_from_this_machine() -> None:
    """Let libgit2, in this process, read no configuration but the repositories' own."""
    for level in (
        pygit2.enums.ConfigLevel.SYSTEM,
        pygit2.enums.ConfigLevel.XDG,
        pygit2.enums.ConfigLevel.GLOBAL,
    ):
        pygit2.settings.search_path[level] = os.devnull


def _always(oid: str) -> Callable[..., list[ObjectID]]:
    def wants(refs: Mapping[Ref, ObjectID], depth: int | None = None) -> list[ObjectID]:
        return [ObjectID(oid.encode())]

    return wants


def _follow(repo: Repo, listed: Mapping[Ref, ObjectID | None], *, prune: bool) -> None:
    """Give the repository the heads (as origin's) and tags that a remote listed."""
    ours = {
        Ref(re.sub(b"^refs/heads/", b"refs/remotes/origin/", name)): oid
        for name, oid in listed.items()
        if name.startswith((b"refs/heads/", b"refs/tags/")) and not name.endswith(b"^{}")
    }
    for name, oid in ours.items():
        if oid is not None:
            repo.refs[name] = oid
    for name in list(repo.refs.keys()) if prune else ():
        if name.startswith(b"refs/remotes/origin/") and name not in {*ours, _REMOTE_HEAD}:
            del repo.refs[name]


def _said(wish: Wish) -> set[str]:
    default = Wish()
    return {
        field.name
        for field in fields(Wish)
        if getattr(wish, field.name) != getattr(default, field.name)
    }

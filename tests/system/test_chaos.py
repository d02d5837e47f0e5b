"""Nodes die and return all the time, and whoever clones through the router hardly notices."""

import random
import shutil
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from goblet_testing import repos
from goblet_testing.fleet import Fleet
from goblet_testing.gitcli import clone, fsck, git, refs_of

pytestmark = [pytest.mark.system, pytest.mark.soak]

SECONDS = 120.0
EVERY = 5.0
"""Seconds from one death to the next."""
CLIENTS = 8
MOST = 2_000
"""Clones of one client at most, however quick they are."""
MEGABYTES = 3
"""The size of a clone: large enough that deaths fall into answers."""


@dataclass
class Client:
    """One who clones and fetches its own repository in a loop; only its thread changes it."""

    fleet: Fleet
    name: str
    behind: Path
    """A clone of long ago, to be copied and brought up to date."""
    place: Path
    good: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    """What git said of each attempt that failed."""
    wrong: list[str] = field(default_factory=list)
    """What must not be: not sound, not complete, not the origin's, or failed twice."""

    def work(self, until: float) -> None:
        """Go on until so many seconds of the monotonic clock."""
        refs = refs_of(self.fleet.origin.url_of(self.name))
        dice = random.Random(self.name)
        for number in range(MOST):
            if time.monotonic() > until:
                return
            kind = dice.choice(["full", "shallow", "fetch"])
            try:
                self._twice(kind, self.place / f"{number}", refs)
            except Exception as exc:
                self.wrong.append(f"{kind} {number}: {exc}")

    def _twice(self, kind: str, dest: Path, refs: dict[str, str]) -> None:
        said = self._once(kind, dest, refs)
        if said is not None:
            self.broken.append(said)
            again = self._once(kind, dest, refs)
            if again is not None:
                self.wrong.append(f"{kind} failed twice: {said}; {again}")

    def _once(self, kind: str, dest: Path, refs: dict[str, str]) -> str | None:
        """Return what git said if it failed; hold what it made to being the origin's."""
        url = self.fleet.url(self.name)
        if kind == "fetch":
            shutil.copytree(self.behind, dest)
            git("remote", "set-url", "origin", url, cwd=dest)
            had = refs_of(dest)
            done = git("fetch", "--quiet", cwd=dest, check=False)
        else:
            depth = ["--depth=1", "--no-single-branch"] if kind == "shallow" else []
            done = git("clone", "--quiet", "--mirror", *depth, url, dest, check=False)
        if done.returncode == 0:
            fsck(dest)
            assert refs_of(dest) == refs
            self.good[kind] += 1
        elif kind == "fetch":
            fsck(dest)
            assert refs_of(dest) == had, "a fetch that failed has moved refs"
        else:
            assert not dest.exists(), "a clone that failed has left something"
        shutil.rmtree(dest, ignore_errors=True)
        return None if done.returncode == 0 else done.stderr.strip()


def test_with_a_death_every_five_seconds_every_clone_works_or_fails_loudly_and_then_works(
    tmp_path: Path,
) -> None:
    """Only an answer that had begun on the node that died may fail; the router's log says so."""
    template = repos.make_repo(tmp_path / "template.git", commits=30)
    behind = clone(template, tmp_path / "behind", "--mirror")
    repos.make_blobs(tmp_path / "blobs.git", megabytes=MEGABYTES)
    git("fetch", "--quiet", tmp_path / "blobs.git", "main:refs/heads/blobs", cwd=template)
    with Fleet(tmp_path) as fleet:
        names = [f"org/repo{number}" for number in range(CLIENTS)]
        for name in names:
            shutil.copytree(template, fleet.origin.root / f"{name}.git")
        clients = [
            Client(fleet=fleet, name=name, behind=behind, place=tmp_path / "clones" / name)
            for name in names
        ]
        until = time.monotonic() + SECONDS
        threads = [threading.Thread(target=client.work, args=(until,)) for client in clients]
        for thread in threads:
            thread.start()
        deaths = kill_and_restart(fleet, until)
        for thread in threads:
            thread.join()
        fleet.wait_settled()
        said = fleet.router.log
    good = sum((client.good for client in clients), Counter[str]())
    broken = {client.name: len(client.broken) for client in clients}
    print(f"{deaths} deaths; good: {dict(good)}; broken off: {sum(broken.values())}")
    wrong = [f"{client.name}: {what}" for client in clients for what in client.wrong]
    assert not wrong, "\n".join(wrong)
    for name, count in broken.items():
        lines = [line for line in said.splitlines() if f"/{name} " in line and "broke off" in line]
        assert count <= len(lines), (name, count, lines)
    assert deaths >= SECONDS / EVERY - 4
    assert min(good[kind] for kind in ("full", "shallow", "fetch")) > 10


def kill_and_restart(fleet: Fleet, until: float) -> int:
    """Let one node after the other die and return at once; return how often."""
    deaths = 0
    while (now := time.monotonic()) < until - EVERY:
        name = fleet.names[deaths % len(fleet.names)]
        fleet.kill(name)
        fleet.restart(name)
        deaths += 1
        time.sleep(max(0.0, now + EVERY - time.monotonic()))
    return deaths

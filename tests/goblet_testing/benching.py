"""What several benches need: their options, repositories that are kept, servers to compare."""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from goblet_testing.asks import ask, ls_refs
from goblet_testing.gitcli import git
from goblet_testing.measuring import ROOT, Watch
from goblet_testing.processes import Running, Service, start_node, start_router
from goblet_testing.replaying import Job, Replayed, replay
from goblet_testing.repos import make_repo

HOST = "origin.test"
"""The name under which nodes know the origin."""
PACKAGES = ("trio", "hypercorn", "httpcore", "dulwich", "numpy")
COMMITS, FILES, LENGTHS = 6200, 700, (20, 250)
"""A project of some 51,000 objects and 26 MB, whose depth-1 clone costs git what trio's does."""
_WITHIN = 120.0
_POLL = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What answers for a repository: its clone URL, and the processes whose CPU time counts."""

    name: str
    url: str
    pids: tuple[int, ...] = ()

    def asked(
        self, body: bytes, *, streams: int = 1, seconds: float = 1.0, most: int = 1_000_000
    ) -> "Cost":
        """Replay a request for a pack and return what it took."""
        job = Job(
            url=f"{self.url}/git-upload-pack",
            body=body,
            streams=streams,
            seconds=seconds,
            most=most,
        )
        return cost_of(job, self.pids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a replay gave, and the server's CPU seconds a request; None if it is not ours to see."""

    replayed: Replayed
    cpu: float | None

    def row(self) -> dict[str, object]:
        """Return the cost as it is printed."""
        spread = self.replayed.spread
        return {
            "n": spread.n,
            "median_ms": round(spread.median * 1e3, 3),
            "p99_ms": round(spread.p99 * 1e3, 3),
            "requests_per_second": round(self.replayed.per_second, 1),
            "mb_per_second": round(self.replayed.mb_per_second, 1),
            "cpu_ms": None if self.cpu is None else round(self.cpu * 1e3, 3),
            "bytes": self.replayed.body_bytes,
            "cache": self.replayed.cache,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One figure of ours beside what it has to be."""

    figure: str
    measured: float
    limit: float
    is_least: bool
    """Whether `limit` is the least that it may be; otherwise it is the most."""

    @property
    def passes(self) -> bool:
        """Whether the figure is what it has to be."""
        if self.is_least:
            return self.measured >= self.limit
        return self.measured <= self.limit

    def line(self) -> str:
        """Return it for people."""
        bound = "at least" if self.is_least else "at most"
        said = "pass" if self.passes else "FAIL"
        return f"{said}  {self.measured:10.4g}  {bound:>8} {self.limit:<8g}{self.figure}"

    def row(self) -> dict[str, object]:
        """Return it as it is printed."""
        return {
            "figure": self.figure,
            "measured": float(f"{self.measured:.4g}"),
            "at_least" if self.is_least else "at_most": self.limit,
            "passes": self.passes,
        }


def surroundings(bench: str, *packages: str) -> dict[str, object]:
    """Return what the numbers of `bench` depend on: commit, machine, versions of `packages`."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "bench": bench,
        "commit": described.stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {pages / 1e9:.0f} GB",
        "versions": {
            "python": platform.python_version(),
            "git": git("--version").stdout.split()[2],
            **{name: version(name) for name in packages},
        },
    }


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every bench has."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write an SVG there, too")
    parser.add_argument(
        "--repo-cache",
        type=Path,
        metavar="DIR",
        help="keep the repositories that are made there, for the next run",
    )
    return parser


def add_url(parser: argparse.ArgumentParser) -> None:
    """Let a bench measure another server."""
    parser.add_argument(
        "--url", help="measure this clone URL, of any server, instead of starting Goblet"
    )
    parser.add_argument(
        "--pid",
        type=int,
        action="append",
        default=[],
        help="with --url: a process of that server, below which CPU time counts; repeat it",
    )


def report(
    bench: str,
    measured: Mapping[str, object],
    *,
    verdicts: Sequence[Verdict] = (),
    plot: Path | None = None,
    svg: Callable[[], str],
) -> None:
    """Print the JSON line, the verdicts to stderr, and write the plot if one is wanted."""
    for verdict in verdicts:
        print(verdict.line(), file=sys.stderr)
    rows = {"verdicts": [verdict.row() for verdict in verdicts]} if verdicts else {}
    print(json.dumps({**surroundings(bench, *PACKAGES), **measured, **rows}))
    if plot is not None:
        plot.write_text(svg())


def cost_of(job: Job, pids: Sequence[int]) -> Cost:
    """Run a job and return what it took, and what it cost these processes."""
    with Watch(pids) as watch:
        replayed = replay(job)
    return Cost(replayed=replayed, cpu=watch.cpu / len(replayed.seconds) if pids else None)


def kept_repo(cache: Path | None, directory: Path, make: Callable[[Path], Path], name: str) -> Path:
    """Return `directory`/`name`.git as `make` makes it: from the cache, if there is one.

    The repository may be changed; the one in the cache stays as it is.
    """
    dest = directory / f"{name}.git"
    if cache is None:
        return make(dest)
    kept = cache / f"{name.replace('/', '-')}.git"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        half = cache / f"{kept.name}.half"
        shutil.rmtree(half, ignore_errors=True)
        make(half).rename(kept)
    return Path(shutil.copytree(kept, dest))


def make_project(path: Path, *, commits: int = COMMITS, files: int = FILES) -> Path:
    """Make a bare repository like a project's, packed as a host packs: with a bitmap."""
    make_repo(
        path,
        commits=commits,
        files=files,
        branches=20,
        tags=40,
        seed=7,
        edits=2,
        lengths=LENGTHS,
    )
    pack_with_bitmap(path)
    return path


def pack_with_bitmap(repo: Path) -> None:
    """Put everything into one pack with a bitmap."""
    git("repack", "-adbq", cwd=repo, timeout=1800)


class OwnOrigin:
    """A git host as its own process, and what it was asked for."""

    def __init__(self, url: str, log: Path, pid: int) -> None:
        self.url = url
        self.pid = pid
        self._log = log

    def packs(self) -> tuple[int, int]:
        """Return how many requests for a pack the host has answered, and with how many bytes."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        seen = [json.loads(line) for line in lines]
        asked = [one for one in seen if one["wants_pack"]]
        return len(asked), sum(one["response_bytes"] for one in asked)


@contextmanager
def own_origin(root: Path, log: Path, *, listen: str = "127.0.0.1:0") -> Iterator[OwnOrigin]:
    """Run the host for the repositories below `root` as its own process."""
    command = [sys.executable, "-m", "goblet_testing.origin", "--listen", listen]
    command += ["--root", str(root), "--log", str(log)]
    env = {"PYTHONPATH": str(ROOT / "tests")}
    with Running(command, log_file=root / "origin.log", env=env) as origin:
        yield OwnOrigin(origin.first_line(), log, origin.pid)


class Goblet:
    """One node before an origin, and if wanted a router before the node."""

    def __init__(self, node: Service, router: Service | None) -> None:
        self.node = node
        self.router = router

    def at_node(self, repo: str) -> Server:
        """Return the node's own port."""
        return Server(name="node", url=self.node.url(f"{HOST}/{repo}"), pids=(self.node.pid,))

    def at_router(self, repo: str) -> Server:
        """Return the router; the node's CPU time counts, too."""
        assert self.router is not None
        pids = (self.router.pid, self.node.pid)
        return Server(name="router", url=self.router.url(f"{HOST}/{repo}"), pids=pids)

    def fill(self, repo: str, directory: Path) -> None:
        """Return when the node holds the repository, by a clone into `directory`."""
        dest = directory / "filling"
        before = self._mirrors()
        git("clone", "--quiet", "--bare", self.at_node(repo).url, dest, timeout=1800)
        shutil.rmtree(dest)
        self.wait_until_mirrored(before + 1)

    def wait_until_mirrored(self, count: int = 1) -> None:
        """Return when the node holds `count` mirrors: it takes one in after a cold clone's end."""
        self._wait(lambda: self._mirrors() >= count, f"the node holds no {count} mirrors")

    def refresh(self, repo: str) -> None:
        """Let the node learn that the origin's refs moved; return when it has followed."""
        before = self._refreshes()
        ls_refs(self.at_node(repo).url, "HEAD", "refs/heads/", "refs/tags/")
        self._wait(lambda: self._refreshes() > before, f"the node did not follow {repo}")

    def metric(self, name: str, labels: str = "") -> float:
        """Return the sum of a node's metric over all its labels that hold `labels`."""
        found = self.node.metrics().items()
        return sum(
            value
            for key, value in found
            if key.partition("{")[0] == name and labels in key.partition("{")[2]
        )

    def _mirrors(self) -> int:
        return int(json.loads(ask(f"{self.node.base}/-/status").body)["mirrors"])

    def _refreshes(self) -> float:
        return self.metric("goblet_node_refreshes_total")

    def _wait(self, is_so: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + _WITHIN
        while not is_so():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{otherwise} after {_WITHIN:g} s\n{self.node.log[-3000:]}")
            time.sleep(_POLL)


@contextmanager
def start_goblet(
    origin_url: str, directory: Path, *, with_router: bool = False, flags: Sequence[str] = ()
) -> Iterator[Goblet]:
    """Run a node before the origin, and a router if wanted; `flags` are the node's."""
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        node = stack.enter_context(
            start_node("goblet-1", directory=directory, upstreams={HOST: origin_url}, flags=flags)
        )
        router = None
        if with_router:
            nodes = {"goblet-1": node.base}
            router = stack.enter_context(start_router(directory=directory, nodes=nodes))
        yield Goblet(node, router)

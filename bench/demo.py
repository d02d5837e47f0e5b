"""What does a clone cost cold, warm, and after its node was killed?

Needs no network: makes a repository and a git host for it in a temporary
directory, starts a router and three nodes, clones with real git, and prints what
the answers' headers and the host's log said. Ends with 1 and a sentence if
something is not as it should be.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from goblet_testing.cluster import Cluster, LeftBehind
from goblet_testing.gitcli import GitFailed, fsck, git, refs_of
from goblet_testing.origin import Origin
from goblet_testing.processes import StartFailed
from goblet_testing.repos import count_objects, make_repo

REPO = "org/demo"
# Large enough that a pack is work to make, small enough to end in seconds.
COMMITS = 3000
FILES = 250


class NotAsItShouldBe(Exception):
    """The demo ran, and showed something that Goblet promises not to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One clone, as measured."""

    name: str
    seconds: float
    node: str
    cache: str
    requests: int
    packs: int

    def row(self) -> str:
        """Return the step as a line of the table."""
        asked = f"{self.requests} ({self.packs})"
        return f"{self.name:<34}{self.seconds:>8.2f}  {self.node:<10}{self.cache:<14}{asked:>12}"


HEADER = f"{'step':<34}{'seconds':>8}  {'node':<10}{'Goblet-Cache':<14}{'to the host':>12}"


def main() -> int:
    """Run the demo and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--commits", type=int, default=COMMITS, help="size of the repository")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="goblet-demo-") as directory:
            run(Path(directory), commits=options.commits)
    except (NotAsItShouldBe, GitFailed, StartFailed, LeftBehind, TimeoutError) as exc:
        notes = "\n".join(getattr(exc, "__notes__", ()))
        print(f"demo failed: {exc}\n{notes}", file=sys.stderr)
        return 1
    return 0


def run(directory: Path, *, commits: int) -> None:
    """Make everything below `directory`, clone, print, and check.

    Raises:
        NotAsItShouldBe: a step was answered in another way than promised.
    """
    root = directory / "host"
    repo = make_repo(root / f"{REPO}.git", commits=commits, files=FILES, branches=10, tags=20)
    git("repack", "-adq", cwd=repo)
    print(f"a repository of {count_objects(repo)} objects, and a git host for it")
    with Origin(root) as origin, Cluster(origin.url, directory / "cluster") as cluster:
        print(f"a router and its nodes at {cluster.base}, clients clone {cluster.url(REPO)}\n")
        print(f"{HEADER}\n{'-' * len(HEADER)}", flush=True)
        try:
            show(origin, cluster, repo, directory / "clones")
        except Exception as exc:
            exc.add_note(f"the end of the cluster's log:\n{cluster.log[-4000:]}")
            raise
    print("\nto the host: requests that reached it (of them for a pack)")


def show(origin: Origin, cluster: Cluster, repo: Path, directory: Path) -> None:
    """Clone in every way, print each as a line, and check what was promised of it.

    Raises:
        NotAsItShouldBe: a step was answered in another way than promised.
    """
    owner, successor = cluster.owners(REPO)[:2]
    clones = Clones(origin, repo, directory)
    clones.make("from the host itself", origin.url_of(REPO))
    cold = clones.make("cold", cluster.url(REPO))
    must(cold.node == owner, f"the cold clone came from {cold.node}, and {owner} owns it")
    must(cold.packs == 1, f"the cold clone cost the host {cold.packs} packs, not 1")
    cluster.wait_until_mirrored(owner)
    warm = clones.make("warm", cluster.url(REPO))
    must(warm.node == owner, f"the warm clone came from {warm.node}, and {owner} owns it")
    must(warm.packs == 0, f"the warm clone cost the host {warm.packs} packs, not 0")
    cluster.kill_node(owner)
    killed = clones.make(f"after kill -9 of {owner}", cluster.url(REPO))
    must(killed.node == successor, f"{killed.node} answered for {owner}, not {successor}")
    cluster.wait_until_mirrored(successor)
    again = clones.make("warm again", cluster.url(REPO))
    must(again.packs == 0, f"the last clone cost the host {again.packs} packs, not 0")


class Clones:
    """Clones one repository again and again, and compares each with the host's own."""

    def __init__(self, origin: Origin, repo: Path, directory: Path) -> None:
        self._origin = origin
        self._repo = repo
        self._directory = directory
        directory.mkdir()

    def make(self, name: str, url: str) -> Step:
        """Clone `url`, check the clone, print the step and return it.

        Raises:
            GitFailed: git could not clone, or found the clone damaged.
            NotAsItShouldBe: the clone's refs are not those of the host.
        """
        dest = self._directory / name.replace(" ", "-")
        self._origin.clear_log()
        begun = time.perf_counter()
        trace = self._directory / "trace"
        trace.unlink(missing_ok=True)
        env = {"GIT_TRACE_CURL": str(trace), "GIT_TRACE_CURL_NO_DATA": "1"}
        git("clone", "--quiet", "--mirror", url, dest, env=env)
        seconds = time.perf_counter() - begun
        heads = list(answer_heads(trace.read_text()))
        step = Step(
            name=name,
            seconds=seconds,
            node=next((head["goblet-node"] for head in heads if "goblet-node" in head), "-"),
            cache=next((head["goblet-cache"] for head in heads if "goblet-cache" in head), "-"),
            requests=len(self._origin.log),
            packs=len(self._origin.packs()),
        )
        print(step.row(), flush=True)
        fsck(dest)
        must(refs_of(dest) == refs_of(self._repo), f"{name}: the clone's refs are not the host's")
        return step


def answer_heads(trace: str) -> Iterator[dict[str, str]]:
    """Yield the headers of each answer in a GIT_TRACE_CURL, the last answer (the pack) first."""
    heads: list[dict[str, str]] = []
    for line in trace.splitlines():
        _, found, header = line.partition("<= Recv header: ")
        if not found:
            continue
        if header.startswith("HTTP/"):
            heads.append({})
        elif ":" in header and heads:
            name, _, value = header.partition(":")
            heads[-1][name.lower()] = value.strip()
    yield from reversed(heads)


def must(is_so: bool, otherwise: str) -> None:
    """Raise `NotAsItShouldBe` with a sentence unless it is so."""
    if not is_so:
        raise NotAsItShouldBe(otherwise)


if __name__ == "__main__":
    sys.exit(main())

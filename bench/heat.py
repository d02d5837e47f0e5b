"""Do the nodes share the work when everybody wants one repository?

Runs three nodes behind one router, warms one repository at its owner, and replays a full
clone of it over some connections at once: with the router's spread, and without. Prints
what each node's CPU took, the ratio of the busiest node to the mean (stderr), and one
JSON line. The other nodes copy the repository from its owner: upstream is not asked.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from goblet_testing.asks import post
from goblet_testing.benching import (
    COMMITS,
    FILES,
    Verdict,
    kept_repo,
    make_project,
    parser_of,
    report,
)
from goblet_testing.fleet import Fleet
from goblet_testing.gitcli import git
from goblet_testing.measuring import cpu_seconds
from goblet_testing.plotting import bars
from goblet_testing.recorded import record_usual
from goblet_testing.replaying import Job, Replayed, replay

REPO = "org/project"
NODES = 3
SPREAD, HOME = "spread", "without spread"


@dataclass(frozen=True, slots=True, kw_only=True)
class Heated:
    """What came of one rush: the answers, each node's CPU seconds, and upstream's packs."""

    replayed: Replayed
    cpu: dict[str, float]
    upstream_packs: int

    @property
    def busiest(self) -> float:
        """CPU of the busiest node, as a multiple of the mean."""
        return max(self.cpu.values()) * len(self.cpu) / sum(self.cpu.values())

    def row(self) -> dict[str, object]:
        """Return it as it is printed."""
        return {
            "n": self.replayed.spread.n,
            "requests_per_second": round(self.replayed.per_second, 1),
            "median_ms": round(self.replayed.spread.median * 1e3, 1),
            "p99_ms": round(self.replayed.spread.p99 * 1e3, 1),
            "cpu_seconds": {name: round(spent, 2) for name, spent in self.cpu.items()},
            "busiest_to_mean": round(self.busiest, 3),
            "upstream_packs": self.upstream_packs,
        }


def main() -> int:
    """Run the bench, print its line, and return its exit code."""
    parser = parser_of(__doc__)
    parser.add_argument("--commits", type=int, default=COMMITS, help="size of the repository")
    parser.add_argument("--files", type=int, default=FILES, help="how many files it has")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each rush lasts")
    parser.add_argument("--streams", type=int, default=8, help="how many clients there are")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="goblet-heat-") as directory:
        root = Path(directory) / "host"
        kept_repo(
            options.repo_cache,
            root,
            lambda path: make_project(path, commits=options.commits, files=options.files),
            REPO,
        )
        found = measure(Path(directory), root, options)
    tell(found, options)
    return 0


def measure(directory: Path, root: Path, options: argparse.Namespace) -> dict[str, Heated]:
    """Return what came of a rush without the spread, and of one with it."""
    with Fleet(directory, nodes=NODES, root=root) as fleet:
        home = fleet.add_router(["--spread-factor", "0"])
        git("clone", "--quiet", "--bare", fleet.url(REPO), directory / "warming", timeout=1800)
        body = record_usual(fleet.url(REPO), directory)[0].body
        post(fleet.url(REPO), body)
        return {
            HOME: rush(fleet, home.url(f"origin.test/{REPO}"), body, options),
            SPREAD: rush(fleet, fleet.url(REPO), body, options),
        }


def rush(fleet: Fleet, url: str, body: bytes, options: argparse.Namespace) -> Heated:
    """Replay a clone at this URL for a while."""
    packs = len(fleet.origin.packs())
    before = spent(fleet)
    job = Job(
        url=f"{url}/git-upload-pack",
        body=body,
        streams=options.streams,
        seconds=options.seconds,
    )
    replayed = replay(job)
    return Heated(
        replayed=replayed,
        cpu={name: after - before[name] for name, after in spent(fleet).items()},
        upstream_packs=len(fleet.origin.packs()) - packs,
    )


def spent(fleet: Fleet) -> dict[str, float]:
    """Return the CPU seconds that each node took so far, its workers' with them."""
    return {name: cpu_seconds([fleet.node(name).pid]) for name in fleet.names}


def tell(found: dict[str, Heated], options: argparse.Namespace) -> None:
    """Print what was found."""
    for name, heated in found.items():
        each = ", ".join(f"{node} {spent:.2f} s" for node, spent in heated.cpu.items())
        print(f"{name}: {heated.replayed.per_second:.1f} clones/s; {each}", file=sys.stderr)
    verdicts = [
        Verdict(
            figure="one hot repository: CPU of the busiest node, times the mean",
            measured=found[SPREAD].busiest,
            limit=1.25,
            is_least=False,
        ),
        Verdict(
            figure="upstream pack requests while it spread",
            measured=found[SPREAD].upstream_packs,
            limit=0,
            is_least=False,
        ),
    ]
    report(
        "heat",
        {
            "clients": options.streams,
            "seconds": options.seconds,
            "rushes": {name: heated.row() for name, heated in found.items()},
        },
        verdicts=verdicts,
        plot=options.plot,
        svg=lambda: bars(
            "CPU of each node", "seconds", {name: heated.cpu for name, heated in found.items()}
        ),
    )


if __name__ == "__main__":
    sys.exit(main())

"""What do N clones at once cost, cold and warm, beside cloning from the host itself?

Makes a project of some 51,000 objects and 26 MB and a host for it in its own process,
and clones it with real git from the host, from a node that has never seen it, and from
one that has: one client alone, then N at once. Prints wall seconds, CPU seconds of
Goblet's processes and of the host's, packs and bytes that the host sent, the ratios
that Goblet is held to (stderr) and one JSON line.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from goblet_testing.benching import (
    COMMITS,
    FILES,
    OwnOrigin,
    Verdict,
    kept_repo,
    make_project,
    own_origin,
    parser_of,
    report,
    start_goblet,
)
from goblet_testing.gitcli import Cloned, storm
from goblet_testing.measuring import Spread, Watch, highest_rss_mb
from goblet_testing.plotting import bars
from goblet_testing.repos import make_blobs

REPO = "org/project"
CLIENTS = 16
# A single clone is repeated so often: its wall time is compared closely.
ALONE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Storm:
    """What some clones at once took, from the first one's start to the last one's end."""

    wall: float
    each: Spread
    server_cpu: float
    host_cpu: float
    host_packs: int
    host_bytes: int
    max_rss_mb: float

    def row(self) -> dict[str, object]:
        """Return it as it is printed."""
        return {
            "n": self.each.n,
            "wall_seconds": round(self.wall, 3),
            "median_seconds": round(self.each.median, 3),
            "p99_seconds": round(self.each.p99, 3),
            "server_cpu_seconds": round(self.server_cpu, 3),
            "host_cpu_seconds": round(self.host_cpu, 3),
            "host_packs": self.host_packs,
            "host_bytes": self.host_bytes,
            "max_rss_mb": self.max_rss_mb,
        }


def main() -> int:
    """Run the bench, print its line, and return its exit code."""
    parser = parser_of(__doc__)
    parser.add_argument("--clients", type=int, default=CLIENTS, help="how many clone at once")
    parser.add_argument("--commits", type=int, default=COMMITS, help="size of the repository")
    parser.add_argument("--files", type=int, default=FILES, help="how many files it has")
    parser.add_argument(
        "--megabytes", type=int, help="instead, a repository of blobs that do not compress"
    )
    parser.add_argument(
        "--depth", type=int, help="shallow clones of this depth instead of full ones"
    )
    parser.add_argument("--router", action="store_true", help="clone through a router")
    parser.add_argument(
        "--url",
        help="measure this clone URL, of any server, instead of starting Goblet; its upstream "
        f"is the host at --host-listen, which has the repository {REPO}",
    )
    parser.add_argument(
        "--pid", type=int, action="append", default=[], help="with --url: a process of that server"
    )
    parser.add_argument("--host-listen", default="127.0.0.1:0", help="where the host listens")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="goblet-storm-") as directory:
        measure(Path(directory), options)
    return 0


def measure(directory: Path, options: argparse.Namespace) -> None:
    """Clone in every way and print what was found."""
    root = directory / "host"
    place_repo(root, options)
    flags = ["--bare", *([] if options.depth is None else [f"--depth={options.depth}"])]
    with own_origin(root, directory / "log", listen=options.host_listen) as origin:
        clones = Clones(origin, directory / "clones", flags)
        direct = f"{origin.url}/{REPO}"
        found = {"direct storm": [clones.make(direct, options.clients)]}
        if options.url is None:
            found |= through_goblet(clones, origin, directory, options)
        else:
            found["direct"] = [clones.make(direct, 1) for _ in range(ALONE)]
            found["cold storm"] = [clones.make(options.url, options.clients, options.pid)]
            found["warm"] = [clones.make(options.url, 1, options.pid) for _ in range(ALONE)]
            found["warm storm"] = [clones.make(options.url, options.clients, options.pid)]
    measured = {name: middle(storms).row() for name, storms in found.items()}
    report(
        "clone_storm",
        {"clients": options.clients, "storms": measured},
        verdicts=judge(found) if options.url is None else [],
        plot=options.plot,
        svg=lambda: bars(
            "Clones",
            "seconds, logarithmic",
            {
                name: {"wall": storms[0].wall, "server CPU": storms[0].server_cpu}
                for name, storms in found.items()
            },
        ),
    )


def place_repo(root: Path, options: argparse.Namespace) -> None:
    """Give the host its repository."""
    if options.megabytes is None:
        made = f"{REPO}-{options.commits}-{options.files}"
        repo = kept_repo(
            options.repo_cache,
            root,
            lambda path: make_project(path, commits=options.commits, files=options.files),
            made,
        )
    else:
        repo = kept_repo(
            options.repo_cache,
            root,
            lambda path: make_blobs(path, megabytes=options.megabytes),
            f"{REPO}-blobs-{options.megabytes}",
        )
    repo.rename(root / f"{REPO}.git")


def through_goblet(
    clones: "Clones", origin: OwnOrigin, directory: Path, options: argparse.Namespace
) -> dict[str, list[Storm]]:
    """Clone cold and warm, through a new node for each cold storm.

    Each clone that is alone and cold follows a direct one: so both have the same
    machine, however busy it is.
    """
    found: dict[str, list[Storm]] = {"direct": [], "cold": [], "cold storm": []}
    for number, size in enumerate([1] * ALONE + [options.clients]):
        place = directory / f"goblet-{number}"
        with start_goblet(origin.url, place, with_router=options.router) as goblet:
            server = goblet.at_router(REPO) if options.router else goblet.at_node(REPO)
            name = "cold" if size == 1 else "cold storm"
            settle = goblet.wait_until_mirrored if options.depth is None else None
            if size == 1:
                found["direct"].append(clones.make(f"{origin.url}/{REPO}", 1))
            found[name].append(clones.make(server.url, size, server.pids, settle=settle))
            if size > 1:
                found["warm"] = [clones.make(server.url, 1, server.pids) for _ in range(ALONE)]
                found["warm storm"] = [clones.make(server.url, size, server.pids)]
        rmtree(place)
    return found


class Clones:
    """Clones with real git, and looks at everybody's costs meanwhile."""

    def __init__(self, origin: OwnOrigin, directory: Path, flags: Sequence[str]) -> None:
        self._origin = origin
        self._directory = directory
        self._flags = flags

    def make(
        self,
        url: str,
        count: int,
        pids: Sequence[int] = (),
        *,
        settle: Callable[[], None] | None = None,
    ) -> Storm:
        """Clone `url` `count` times at once; `pids` are the server's.

        What the server does until `settle` returns is its cost, too, but no client's
        time.
        """
        self._directory.mkdir()
        packs, sent = self._origin.packs()
        with Watch(pids) as server, Watch([self._origin.pid]) as host:
            begun = time.perf_counter()
            made = trio.run(self._storm, url, count)
            wall = time.perf_counter() - begun
            if settle is not None:
                settle()
        packs_after, sent_after = self._origin.packs()
        rmtree(self._directory)
        return Storm(
            wall=wall,
            each=Spread.of(clone.seconds for clone in made),
            server_cpu=server.cpu,
            host_cpu=host.cpu,
            host_packs=packs_after - packs,
            host_bytes=sent_after - sent,
            max_rss_mb=highest_rss_mb(pids),
        )

    async def _storm(self, url: str, count: int) -> list[Cloned]:
        return await storm(count, url, self._directory, *self._flags, at_once=count)


def middle(storms: Sequence[Storm]) -> Storm:
    """Return the one of median wall time."""
    return sorted(storms, key=lambda storm: storm.wall)[len(storms) // 2]


def judge(found: dict[str, list[Storm]]) -> list[Verdict]:
    """Return the ratios that Goblet is held to."""
    storm, count = middle(found["cold storm"]), found["cold storm"][0].each.n
    return [
        Verdict(
            figure="cold clone: wall, times a direct one's",
            measured=middle(found["cold"]).wall / middle(found["direct"]).wall,
            limit=1.1,
            is_least=False,
        ),
        Verdict(
            figure=f"{count} cold clones at once: packs from the host",
            measured=storm.host_packs,
            limit=1,
            is_least=False,
        ),
        Verdict(
            figure=f"{count} cold clones at once: wall, times {count} direct ones'",
            measured=storm.wall / middle(found["direct storm"]).wall,
            limit=1.2,
            is_least=False,
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())

"""What does a router before a node cost: the Python one, one that redirects, and HAProxy?

Asks one warm node directly, through `goblet router`, through `goblet router --workers`,
and through HAProxy as `goblet haproxy` renders it, for the small first question of a
clone and for a recorded clone of 26 MB, over one kept connection and over several. In
redirect mode a router is asked the first question alone: the pack comes from the node.
Prints a table (stderr) and one JSON line. CPU is that of what stands before the node.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from goblet_router.haproxy.files import write_files
from goblet_router.haproxy.placement import Placement
from goblet_router.haproxy.render import render
from goblet_router.haproxy.settings import HAProxySettings
from goblet_shared.members import members_of
from goblet_testing.asks import post
from goblet_testing.benching import (
    COMMITS,
    FILES,
    HOST,
    Cost,
    Goblet,
    cost_of,
    kept_repo,
    make_project,
    own_origin,
    parser_of,
    report,
    start_goblet,
)
from goblet_testing.fleet import until
from goblet_testing.haproxy import HAProxy, missing_haproxy
from goblet_testing.plotting import bars
from goblet_testing.processes import start_router
from goblet_testing.recorded import record_usual
from goblet_testing.replaying import Job

REPO = "org/project"
NODE = "goblet-1"
QUESTION = "info/refs?service=git-upload-pack"
BEFORE_RECORDED = 10
Costs = dict[str, dict[str, Cost]]
"""By question, then by front."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """What clients connect to: its base URL, and the processes whose CPU time counts."""

    name: str
    base: str
    pids: tuple[int, ...]
    redirects: bool = False


def main() -> int:
    """Run the bench, print its line, and return its exit code."""
    parser = parser_of(__doc__)
    parser.add_argument("--commits", type=int, default=COMMITS, help="size of the repository")
    parser.add_argument("--files", type=int, default=FILES, help="how many files it has")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long to ask each")
    parser.add_argument("--streams", type=int, default=16, help="how many connections at once")
    parser.add_argument("--workers", type=int, default=2, help="of a further router; 1: none")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="goblet-overhead-") as directory:
        measure(Path(directory), options)
    return 0


def measure(directory: Path, options: argparse.Namespace) -> None:
    """Measure every front and print what was found."""
    root = directory / "host"
    repo = kept_repo(
        options.repo_cache,
        root,
        lambda path: make_project(path, commits=options.commits, files=options.files),
        REPO if options.repo_cache is None else f"{REPO}-{options.commits}-{options.files}",
    )
    name = str(repo.relative_to(root)).removesuffix(".git")
    costs: Costs = {}
    with ExitStack() as stack:
        origin = stack.enter_context(own_origin(root, directory / "log"))
        # Access is asked of upstream once, and not again while it is measured.
        flags = ("--access-seconds", "3600", "--record-whole-after", "1")
        goblet = stack.enter_context(start_goblet(origin.url, directory / "goblet", flags=flags))
        goblet.fill(name, directory)
        body = record_usual(goblet.at_node(name).url, directory)[0].body
        for _ in range(BEFORE_RECORDED):
            post(goblet.at_node(name).url, body)
        fronts = list(fronts_of(stack, goblet, directory, options.workers))
        for streams in (1, options.streams):
            for question, sent in (("refs", None), ("clone", body)):
                # Each round asks everybody, so that a noisy minute is everybody's.
                costs[f"{question}, {streams}"] = {
                    front.name: asked(front, name, sent, streams, options.seconds)
                    for front in fronts
                    if not (front.redirects and sent is not None)
                }
    tell(costs, plot=options.plot)


def fronts_of(stack: ExitStack, goblet: Goblet, directory: Path, workers: int) -> Iterator[Front]:
    """Start what stands before the node, and yield who is asked."""
    node = goblet.node
    yield Front(name="node alone", base=node.base, pids=(node.pid,))
    kinds: dict[str, tuple[str, ...]] = {"router": (), "router, redirect": ("--mode", "redirect")}
    if workers > 1:
        kinds[f"router, {workers} workers"] = ("--workers", str(workers))
    for name, flags in kinds.items():
        own = directory / name.replace(", ", "-").replace(" ", "-")
        own.mkdir()
        router = stack.enter_context(
            start_router(directory=own, nodes={NODE: node.base}, flags=flags)
        )
        is_redirect = "redirect" in flags
        yield Front(name=name, base=router.base, pids=(router.pid,), redirects=is_redirect)
    if (absent := missing_haproxy()) is not None:
        print(f"without HAProxy: {absent}", file=sys.stderr)
        return
    haproxy = stack.enter_context(HAProxy(directory / "haproxy"))
    settings = HAProxySettings.model_validate(
        {
            "listen": haproxy.listen,
            "stats_listen": haproxy.stats_listen,
            "socket": haproxy.socket,
            "probe_interval_seconds": 0.2,
        }
    )
    placement = Placement.over(members_of({NODE: node.base}))
    write_files(haproxy.directory, render(placement, settings))
    haproxy.start()
    # It listens for clients first.
    until(haproxy.socket.exists)
    haproxy.wait_for({f"goblet/{NODE}": "UP"})
    yield Front(name="haproxy", base=haproxy.base, pids=(haproxy.pid,))


def asked(front: Front, repo: str, body: bytes | None, streams: int, seconds: float) -> Cost:
    """Ask a front again and again, and return what it took."""
    endpoint = QUESTION if body is None else "git-upload-pack"
    job = Job(
        url=f"{front.base}/{HOST}/{repo}/{endpoint}",
        body=body,
        streams=streams,
        seconds=seconds,
        status=307 if front.redirects else 200,
    )
    return cost_of(job, front.pids)


def tell(costs: Costs, *, plot: Path | None) -> None:
    """Print what was found."""
    print(
        f"{'question, streams':<18} {'front':<20} {'/s':>9} {'p50 ms':>8}", end="", file=sys.stderr
    )
    print(f" {'p99 ms':>8} {'added':>7} {'MB/s':>8} {'CPU ms':>8}", file=sys.stderr)
    rows: dict[str, dict[str, object]] = {}
    for question, found in costs.items():
        alone = found["node alone"].replayed.spread.median
        rows[question] = {}
        for name, cost in found.items():
            added = round((cost.replayed.spread.median - alone) * 1e3, 3)
            rows[question][name] = {**cost.row(), "added_median_ms": added}
            spread = cost.replayed.spread
            line = f"{question:<18} {name:<20} {cost.replayed.per_second:9.1f}"
            line += f" {spread.median * 1e3:8.2f} {spread.p99 * 1e3:8.2f} {added:7.2f}"
            line += f" {cost.replayed.mb_per_second:8.1f} {(cost.cpu or 0) * 1e3:8.2f}"
            print(line, file=sys.stderr)
    spent = {
        question: {name: (cost.cpu or 0.0) * 1e3 for name, cost in found.items()}
        for question, found in costs.items()
    }
    report(
        "router_overhead",
        {"fronts": rows},
        plot=plot,
        svg=lambda: bars("CPU of what stands before the node", "ms an answer", spent),
    )


if __name__ == "__main__":
    sys.exit(main())

"""How many ls-refs a second does one process answer, and what does each cost?

Makes a repository with some refs and asks for them over kept connections, as the
first question of every clone and fetch does: a node that asks upstream every time, one
that may be five seconds late, a router before that, and `git http-backend` behind
nginx. Then sends a burst at once and counts how often the node asked an upstream that
is slow. Prints what Goblet is held to (stderr) and one JSON line.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from goblet_testing.asks import command_body
from goblet_testing.benching import (
    Cost,
    Goblet,
    Server,
    Verdict,
    add_url,
    kept_repo,
    parser_of,
    report,
    start_goblet,
)
from goblet_testing.faults_on_cue import Fault
from goblet_testing.measuring import highest_rss_mb
from goblet_testing.nginx import Nginx, missing_programs
from goblet_testing.origin import Origin
from goblet_testing.plotting import bars
from goblet_testing.repos import make_repo

REPO = "org/many"
STREAMS = 8
BURST = 200
DELAY = 1.0
FRESHNESS = 5
# What git asks before a clone.
PREFIXES = ("refs/heads/", "refs/tags/", "HEAD")
ASKED = command_body(
    "ls-refs", ["peel", "symrefs", "unborn", *(f"ref-prefix {prefix}" for prefix in PREFIXES)]
)
QUESTIONS = "goblet_node_upstream_requests_total"


def main() -> int:
    """Run the bench, print its line, and return its exit code."""
    parser = parser_of(__doc__)
    add_url(parser)
    parser.add_argument("--refs", type=int, default=60, help="how many branches there are")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long to ask each")
    parser.add_argument("--burst", type=int, default=BURST, help="how many to ask at once")
    options = parser.parse_args()
    if options.url:
        given = Server(name="given", url=options.url.rstrip("/"), pids=tuple(options.pid))
        tell({"given": ask_all([given], options.seconds)["given"]}, {}, options)
        return 0
    with tempfile.TemporaryDirectory(prefix="goblet-refs-") as directory:
        measure(Path(directory), options)
    return 0


def measure(directory: Path, options: argparse.Namespace) -> None:
    """Measure Goblet and git beside each other."""
    root = directory / "host"
    kept_repo(
        options.repo_cache,
        root,
        lambda path: make_repo(path, commits=options.refs + 10, branches=options.refs),
        f"{REPO}-{options.refs}",
    ).rename(root / f"{REPO}.git")
    with ExitStack() as stack:
        origin = stack.enter_context(Origin(root))
        always, late = (
            stack.enter_context(
                start_goblet(
                    origin.url,
                    directory / f"node-{freshness}",
                    with_router=freshness > 0,
                    flags=("--freshness-seconds", str(freshness)),
                )
            )
            for freshness in (0, FRESHNESS)
        )
        for goblet in (always, late):
            goblet.fill(REPO, directory)
        servers = [
            named(always.at_node(REPO), "node, freshness 0"),
            named(late.at_node(REPO), f"node, freshness {FRESHNESS}"),
            named(late.at_router(REPO), f"router, freshness {FRESHNESS}"),
        ]
        if (absent := missing_programs()) is not None:
            print(f"without the baseline: {absent}", file=sys.stderr)
        else:
            nginx = stack.enter_context(Nginx(root, directory / "nginx"))
            url = f"{nginx.bitmaps}/{REPO}.git"
            servers.append(Server(name="git", url=url, pids=tuple(nginx.pids)))
        found = ask_all(servers, options.seconds)
        # Upstreams are some way off; ours would answer between two of a burst.
        origin.misbehave(Fault(delay=DELAY), kind="ls-refs")
        asked = burst(always, servers[0], options.burst)
        tell(found, asked, options, max_rss=highest_rss_mb([late.node.pid]))


def named(server: Server, name: str) -> Server:
    """Return the server by another name."""
    return Server(name=name, url=server.url, pids=server.pids)


def ask_all(servers: Sequence[Server], seconds: float) -> dict[str, Cost]:
    """Ask each server, over several connections, and return what it cost."""
    return {
        server.name: server.asked(ASKED, streams=STREAMS, seconds=seconds) for server in servers
    }


def burst(goblet: Goblet, server: Server, count: int) -> dict[str, float]:
    """Send `count` questions at once; return how often the node asked upstream for refs."""
    server.asked(ASKED, most=1)  # so that the access check is remembered
    before = goblet.metric(QUESTIONS, 'question="ls-refs"')
    cost = server.asked(ASKED, streams=count, most=1)
    asked = goblet.metric(QUESTIONS, 'question="ls-refs"') - before
    return {"n": count, "upstream_questions": asked, "wall": round(cost.replayed.wall, 3)}


def tell(
    found: dict[str, Cost],
    asked: dict[str, float],
    options: argparse.Namespace,
    *,
    max_rss: float | None = None,
) -> None:
    """Print what was found."""
    measured: dict[str, object] = {
        "refs": options.refs,
        "streams": STREAMS,
        "servers": {name: cost.row() for name, cost in found.items()},
        "burst": asked,
        "max_rss_mb": max_rss,
    }
    rates = {name: {"a second": cost.replayed.per_second} for name, cost in found.items()}
    report(
        "refs",
        measured,
        verdicts=judge(found, asked) if asked else [],
        plot=options.plot,
        svg=lambda: bars("ls-refs", "requests a second, logarithmic", rates),
    )


def judge(found: dict[str, Cost], asked: dict[str, float]) -> list[Verdict]:
    """Return what Goblet is held to."""
    late = f"node, freshness {FRESHNESS}"
    return [
        Verdict(
            figure=f"ls-refs a second, {late}",
            measured=found[late].replayed.per_second,
            limit=1500,
            is_least=True,
        ),
        Verdict(
            figure=f"ls-refs a second of the node's own CPU time, {late}",
            measured=1 / (found[late].cpu or float("nan")),
            limit=1500,
            is_least=True,
        ),
        Verdict(
            figure=f"upstream questions of a burst of {asked['n']}, node, freshness 0",
            measured=asked["upstream_questions"],
            limit=1,
            is_least=False,
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())

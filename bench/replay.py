"""What does it cost a server to answer what git posts, again and again?

Makes a project of some 51,000 objects and 26 MB, records what real git posts for a
full clone, `--depth 1`, `blob:none` and a fetch of one commit, and replays it without
a client's unpacking: against a node, a router before it, `git http-backend` behind
nginx with and without bitmaps, and nginx sending the same bytes from a file. Prints
the ratios that Goblet is held to (stderr) and one JSON line. Without nginx and
fcgiwrap it measures Goblet alone.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from goblet_testing.asks import post
from goblet_testing.benching import (
    COMMITS,
    FILES,
    Cost,
    Goblet,
    OwnOrigin,
    Server,
    Verdict,
    add_url,
    cost_of,
    kept_repo,
    make_project,
    own_origin,
    pack_with_bitmap,
    parser_of,
    report,
    start_goblet,
)
from goblet_testing.gitcli import git
from goblet_testing.measuring import Watch, highest_rss_mb
from goblet_testing.nginx import Nginx, missing_programs
from goblet_testing.plotting import bars
from goblet_testing.recorded import Recorded, Recorder, fetch_body, record_usual
from goblet_testing.replaying import Job
from goblet_testing.repos import commit, oid_of

REPO = "org/project"
STREAMS = 8
# A node may record an answer from the second time on that it is asked for.
BEFORE_RECORDED = 10
ROUNDS = 5
Costs = dict[str, dict[str, Cost]]
"""By question, then by server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class First:
    """The mean of answers of which each was asked for the first time."""

    n: int
    cpu: float
    body_bytes: float
    cache: str | None


def main() -> int:
    """Run the bench, print its line, and return its exit code."""
    parser = parser_of(__doc__)
    add_url(parser)
    parser.add_argument("--commits", type=int, default=COMMITS, help="size of the repository")
    parser.add_argument("--files", type=int, default=FILES, help="how many files it has")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long to ask each")
    parser.add_argument("--pushes", type=int, default=8, help="how many first fetches to measure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="goblet-replay-") as directory:
        if options.url:
            measure_given(Path(directory), options)
        else:
            measure(Path(directory), options)
    return 0


def measure_given(directory: Path, options: argparse.Namespace) -> None:
    """Measure the server at --url."""
    server = Server(name="given", url=options.url.rstrip("/"), pids=tuple(options.pid))
    asked = record_usual(server.url, directory)
    alone, together = Bench([server], options.seconds).run(asked)
    tell(alone, together, {}, [], max_rss=highest_rss_mb(options.pid), plot=options.plot)


def measure(directory: Path, options: argparse.Namespace) -> None:
    """Measure Goblet, git and nginx beside each other."""
    root = directory / "host"
    repo = kept_repo(
        options.repo_cache,
        root,
        lambda path: make_project(path, commits=options.commits, files=options.files),
        REPO if options.repo_cache is None else f"{REPO}-{options.commits}-{options.files}",
    )
    name = str(repo.relative_to(root)).removesuffix(".git")
    with ExitStack() as stack:
        origin = stack.enter_context(own_origin(root, directory / "log"))
        goblet = stack.enter_context(
            start_goblet(origin.url, directory / "goblet", with_router=True)
        )
        nginx = None
        if (absent := missing_programs()) is not None:
            print(f"without the baselines: {absent}", file=sys.stderr)
        else:
            nginx = stack.enter_context(Nginx(root, directory / "nginx"))
        servers = list(servers_of(goblet, nginx, name))
        goblet.fill(name, directory)
        first = first_fetches(origin, goblet, servers, repo, name, directory, options.pushes)
        pack_with_bitmap(repo)
        asked = record_usual(f"{origin.url}/{name}", directory)
        alone, together = Bench(servers, options.seconds, nginx).run(asked)
        verdicts = judge(alone, first) if nginx is not None else []
        max_rss = highest_rss_mb([goblet.node.pid])
    tell(alone, together, first, verdicts, max_rss=max_rss, plot=options.plot)


def servers_of(goblet: Goblet, nginx: Nginx | None, name: str) -> Iterator[Server]:
    """Yield who is asked."""
    yield goblet.at_node(name)
    yield goblet.at_router(name)
    if nginx is not None:
        pids = tuple(nginx.pids)
        yield Server(name="git, bitmaps", url=f"{nginx.bitmaps}/{name}.git", pids=pids)
        yield Server(name="git, none", url=f"{nginx.plain}/{name}.git", pids=pids)


def first_fetches(
    origin: OwnOrigin,
    goblet: Goblet,
    servers: Sequence[Server],
    repo: Path,
    name: str,
    directory: Path,
    pushes: int,
) -> dict[str, First]:
    """Push commits one by one; ask for each as a client of the one before.

    The node has followed before it is asked, and is asked once. git is asked at the
    end, several times: it remembers nothing, and what its processes took is known in
    steps of 10 ms only.
    """
    node = goblet.at_node(name)
    bodies: list[bytes] = []
    costs: list[Cost] = []
    client = directory / "client"
    with Recorder(f"{origin.url}/{name}") as recorder:
        git("clone", "--quiet", "--bare", recorder.url, client, timeout=600)
        # A worker that starts is no part of an answer.
        node.asked(fetch_body([oid_of(repo, "main")], "deepen 2"), most=1)
        for number in range(pushes):
            commit(repo, files={f"part0/pushed{number % 3}.txt": f"pushed {number}\n"})
            goblet.refresh(name)
            git("fetch", "--quiet", recorder.url, "refs/heads/main:refs/heads/main", cwd=client)
            bodies.append(recorder.last())
            costs.append(node.asked(bodies[-1], most=1))
    found = {node.name: first_of(costs, sum(cost.cpu or 0.0 for cost in costs))}
    for server in servers:
        if server.name.startswith("git"):
            with Watch(server.pids) as watch:
                answers = [server.asked(body, most=1) for body in bodies * ROUNDS]
            found[server.name] = first_of(answers, watch.cpu)
    return found


def first_of(costs: Sequence[Cost], cpu: float) -> First:
    """Return the mean of some answers that took so many CPU seconds together."""
    return First(
        n=len(costs),
        cpu=cpu / len(costs),
        body_bytes=sum(cost.replayed.body_bytes for cost in costs) / len(costs),
        cache=costs[-1].replayed.cache,
    )


class Bench:
    """Asks every server everything, one stream alone and several together."""

    def __init__(
        self, servers: Sequence[Server], seconds: float, nginx: Nginx | None = None
    ) -> None:
        self._servers = servers
        self._seconds = seconds
        self._nginx = nginx

    def run(self, asked: Sequence[Recorded]) -> tuple[Costs, Costs]:
        """Return the costs of one stream, and of several."""
        alone: Costs = {}
        together: Costs = {}
        for question in asked:
            for _ in range(BEFORE_RECORDED):
                post(self._servers[0].url, question.body)
            alone[question.name] = self._ask(question, streams=1)
            together[question.name] = self._ask(question, streams=STREAMS)
        return alone, together

    def _ask(self, question: Recorded, *, streams: int) -> dict[str, Cost]:
        found = {
            server.name: server.asked(question.body, streams=streams, seconds=self._seconds)
            for server in self._servers
        }
        if self._nginx is not None:
            file = question.name.replace(" ", "-").replace(":", "-")
            (self._nginx.files / file).write_bytes(post(self._servers[0].url, question.body).body)
            job = Job(url=self._nginx.url_of(file), streams=streams, seconds=self._seconds)
            found["nginx, file"] = cost_of(job, self._nginx.pids)
        return found


def judge(alone: Costs, first: dict[str, First]) -> list[Verdict]:
    """Return the ratios that Goblet is held to."""

    def cpu(question: str, server: str) -> float:
        return alone[question][server].cpu or float("nan")

    def less(question: str, than: str, limit: float, note: str = "") -> Verdict:
        return Verdict(
            figure=f"recorded {question}: CPU, times less than {than}{note}",
            measured=cpu(question, than) / cpu(question, "node"),
            limit=limit,
            is_least=True,
        )

    full = alone["full"]
    per_28_mb = 28e6 / full["router"].replayed.body_bytes
    verdicts = [
        less("full", "git, bitmaps", 20),
        Verdict(
            figure="recorded full: CPU, times nginx's for the file",
            measured=cpu("full", "node") / cpu("full", "nginx, file"),
            limit=2,
            is_least=False,
        ),
        Verdict(
            figure="recorded full: MB/s of one stream, share of nginx's",
            measured=full["node"].replayed.mb_per_second
            / full["nginx, file"].replayed.mb_per_second,
            limit=0.7,
            is_least=True,
        ),
        less("depth 1", "git, none", 80),
        less("blob:none", "git, bitmaps", 10),
        less("one behind", "git, bitmaps", 10, ", repeated"),
        Verdict(
            figure="full through the router: CPU seconds of both a 28 MB",
            measured=cpu("full", "router") * per_28_mb,
            limit=0.06,
            is_least=False,
        ),
        Verdict(
            figure="full through the router: GB/s of one stream",
            measured=full["router"].replayed.mb_per_second / 1e3,
            limit=0.4,
            is_least=True,
        ),
    ]
    if first:
        verdicts += judge_first(first)
    return verdicts


def judge_first(first: dict[str, First]) -> list[Verdict]:
    """Return the ratios of fetches that were never asked for before."""
    return [
        Verdict(
            figure="one behind, first time: CPU, times git's",
            measured=first["node"].cpu / first["git, none"].cpu,
            limit=1.5,
            is_least=False,
        ),
        Verdict(
            figure="one behind, first time: bytes, times git's without bitmaps",
            measured=first["node"].body_bytes / first["git, none"].body_bytes,
            limit=1,
            is_least=False,
        ),
    ]


def tell(
    alone: Costs,
    together: Costs,
    first: dict[str, First],
    verdicts: Sequence[Verdict],
    *,
    max_rss: float,
    plot: Path | None,
) -> None:
    """Print what was found."""
    measured: dict[str, object] = {
        "one_stream": rows(alone),
        f"{STREAMS}_streams": rows(together),
        "max_rss_mb": max_rss,
    }
    if first:
        measured["one_behind_first_time"] = {
            name: {
                "n": one.n,
                "cpu_ms": round(one.cpu * 1e3, 3),
                "bytes": round(one.body_bytes),
                "cache": one.cache,
            }
            for name, one in first.items()
        }
    spent = {
        question: {name: (cost.cpu or 0.0) * 1e3 for name, cost in found.items()}
        for question, found in alone.items()
    }
    report(
        "replay",
        measured,
        verdicts=verdicts,
        plot=plot,
        svg=lambda: bars("Server CPU of one answer", "ms, logarithmic", spent),
    )


def rows(costs: Costs) -> dict[str, dict[str, object]]:
    """Return costs as they are printed."""
    return {
        question: {name: cost.row() for name, cost in found.items()}
        for question, found in costs.items()
    }


if __name__ == "__main__":
    sys.exit(main())

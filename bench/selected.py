"""What does a Selected answer cost beside git's own, on the same request?

Makes a repository of some 52,000 objects, grows a pack log of it by one first fetch
and 20 refreshes, and asks both for the same: `git upload-pack --stateless-rpc` with
and without bitmaps (the work of `git http-backend`), and need, emit and pack_of as a
node's worker runs them, its table in memory. Prints one JSON line: CPU seconds
(median of n, and the worst), objects and bytes of the pack.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from goblet_node.mirror.graph import Graph
from goblet_node.mirror.reader import LogReader
from goblet_node.serve.emit import emit
from goblet_node.serve.need import Question, need
from goblet_node.serve.pieces import pack_of
from goblet_node.serve.shallow import boundary
from goblet_node.wire.filters import parse_filter
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.requests import Fetch
from goblet_node.wire.v2 import parse_request
from goblet_testing.asks import command_body
from goblet_testing.gitcli import git, hermetic_env, refs_of
from goblet_testing.packs import GrownLog
from goblet_testing.repos import count_objects, make_repo
from goblet_testing.seen import pkt_lines

ROOT = Path(__file__).resolve().parents[1]
COMMITS = 6400
# A question is not asked again once it took this many seconds: the bench ends in a minute.
PATIENCE = 3.0
# How far behind the log's first fetch was, and how much each refresh brought.
BEHIND, STEP = 200, 10
ALWAYS = ("thin-pack", "ofs-delta", "no-progress", "done")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One answer: CPU seconds by what they were for, and the pack."""

    seconds: Mapping[str, float]
    pack: bytes


def main() -> int:
    """Run the bench, print its line, and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--commits", type=int, default=COMMITS, help="size of the repository")
    parser.add_argument("-n", type=int, default=5, help="how often to ask, at most")
    options = parser.parse_args()
    if options.commits <= BEHIND:
        parser.error(f"--commits must be more than {BEHIND}")
    with tempfile.TemporaryDirectory(prefix="goblet-selected-") as directory:
        found = measure(Path(directory), commits=options.commits, n=options.n)
    print(json.dumps({**surroundings(), **found}))
    return 0


def measure(directory: Path, *, commits: int, n: int) -> dict[str, object]:
    """Make repository and log, ask everything, and return what it cost."""
    repo = make_repo(
        directory / "large.git", commits=commits, files=500, branches=20, tags=40, seed=7, edits=2
    )
    git("repack", "-adq", cwd=repo, timeout=300)
    log = grow_log(repo, directory / "log")
    begun = time.process_time()
    graph = log.graph()
    loading = time.process_time() - begun
    answers = {
        name: {
            "goblet": measured(n, partial(ask_goblet, log, graph, body, directory)),
            "git_with_bitmaps": measured(n, partial(ask_git, repo, body)),
            "git_without_bitmaps": measured(
                n, partial(ask_git, repo, body, "-c", "pack.useBitmaps=false")
            ),
        }
        for name, body in questions(repo).items()
    }
    # What a log is asked when all of it is reached by refs, and that is known.
    answers["blob:none"]["goblet_clean_log"] = measured(
        n, partial(ask_goblet, log, graph, questions(repo)["blob:none"], directory, whole=True)
    )
    return {
        "objects": count_objects(repo),
        "segments": len(log.segments),
        "seconds_loading_table_and_links": round(loading, 4),
        "answers": answers,
        "max_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, 1),
    }


def grow_log(repo: Path, directory: Path) -> GrownLog:
    """Return a log that was filled a while ago and then followed `main`, and lastly all refs."""
    log = GrownLog(directory)
    for behind in range(BEHIND, 0, -STEP):
        follow(log, repo, [oid_of(repo, f"main~{behind}")])
    follow(log, repo, tips(repo))
    return log


def follow(log: GrownLog, repo: Path, wants: Sequence[str]) -> None:
    """Bring a log to these tips as a node does: by what upload-pack sends it."""
    body = fetch_body(wants, haves=[oid.decode() for oid in log.tips])
    log.take(ask_git(repo, body).pack, [ObjectId(oid.encode()) for oid in wants])


def questions(repo: Path) -> dict[str, bytes]:
    """Return the requests to compare, as bodies of protocol version 2."""
    main = [oid_of(repo, "main")]
    return {
        "full clone": fetch_body(tips(repo)),
        "single branch": fetch_body(main),
        "one behind": fetch_body(main, haves=[oid_of(repo, "main~1")]),
        "100 behind": fetch_body(main, haves=[oid_of(repo, "main~100")]),
        "depth 1": fetch_body(main, "deepen 1"),
        "blob:none": fetch_body(tips(repo), "filter blob:none"),
    }


def fetch_body(wants: Sequence[str], *more: str, haves: Sequence[str] = ()) -> bytes:
    """Return a fetch that leaves nothing to negotiate."""
    lines = [*ALWAYS, *more, *(f"want {oid}" for oid in wants), *(f"have {oid}" for oid in haves)]
    return command_body("fetch", lines)


def tips(repo: Path) -> list[str]:
    """Return what the refs name, each once."""
    named = refs_of(repo)
    return sorted({oid for name, oid in named.items() if not name.endswith("^{}")})


def oid_of(repo: Path, name: str) -> str:
    """Return the id of a commit."""
    return git("rev-parse", "--verify", name, cwd=repo).stdout.strip()


def measured(n: int, ask: Callable[[], Cost]) -> dict[str, object]:
    """Ask at most n times and return the medians, and the worst sum."""
    costs = [ask()]
    while len(costs) < n and sum(sum(cost.seconds.values()) for cost in costs) < PATIENCE:
        costs.append(ask())
    sums = [sum(cost.seconds.values()) for cost in costs]
    parts = costs[0].seconds if len(costs[0].seconds) > 1 else {}
    return {
        "n": len(costs),
        "cpu_seconds": round(median(sums), 4),
        "worst": round(max(sums), 4),
        **{part: round(median(cost.seconds[part] for cost in costs), 4) for part in parts},
        "objects": int.from_bytes(costs[0].pack[8:12], "big"),
        "bytes": len(costs[0].pack),
    }


def ask_goblet(
    log: GrownLog, graph: Graph, body: bytes, directory: Path, *, whole: bool = False
) -> Cost:
    """Answer as a worker and its parent do, in this process."""
    fetch = parse_request(body)
    assert isinstance(fetch, Fetch)
    packs, inline = log.packs(), directory / "inline"
    times = [time.process_time()]
    question = question_of(graph, fetch)
    needed = need(graph, replace(question, whole=len(graph) if whole else None))
    times.append(time.process_time())
    with LogReader(packs, graph.table, bases=graph.links.bases) as reader:
        pieces = emit(
            reader,
            packs,
            needed,
            graph=graph,
            thin=fetch.thin_pack,
            ofs_delta=fetch.ofs_delta,
            inline=inline,
        )
    times.append(time.process_time())
    pack = b"".join(pack_of(packs, pieces))
    times.append(time.process_time())
    inline.unlink(missing_ok=True)
    spans = [after - before for before, after in pairwise(times)]
    return Cost(seconds=dict(zip(("need", "emit", "send"), spans, strict=True)), pack=pack)


def question_of(graph: Graph, fetch: Fetch) -> Question:
    """Return what a fetch says of objects."""
    edge = None
    if fetch.deepen is not None:
        edge = boundary(graph, wants=fetch.wants, shallow=(), deepen=fetch.deepen)
    wanted_filter = None if fetch.filter_spec is None else parse_filter(fetch.filter_spec)
    return Question(wants=fetch.wants, haves=fetch.haves, boundary=edge, filter=wanted_filter)


def ask_git(repo: Path, body: bytes, *settings: str) -> Cost:
    """Let upload-pack answer, its pack-objects included."""
    command = ["git", "-c", "uploadpack.allowFilter=true", *settings]
    before = children_seconds()
    done = subprocess.run(
        [*command, "upload-pack", "--strict", "--stateless-rpc", str(repo)],
        env=hermetic_env({"GIT_PROTOCOL": "version=2"}),
        input=body,
        stdout=subprocess.PIPE,
        check=True,
    )
    spent = children_seconds() - before
    lines = pkt_lines(iter([done.stdout]))
    pack = b"".join(line[1:] for line in lines if line.startswith(b"\x01"))
    return Cost(seconds={"all": spent}, pack=pack)


def children_seconds() -> float:
    """Return the CPU time of all processes that this one started and waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def surroundings() -> dict[str, object]:
    """Return what the numbers depend on: commit, machine, versions."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "bench": "selected",
        "commit": described.stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {pages / 1e9:.0f} GB",
        "versions": {
            "python": platform.python_version(),
            "git": git("--version").stdout.split()[2],
            **{name: version(name) for name in ("numpy", "dulwich")},
        },
    }


if __name__ == "__main__":
    sys.exit(main())

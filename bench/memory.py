"""How much memory do router and nodes take while clones of 500 MB pass them?

Makes a repository of blobs that do not compress, and clones it through `goblet up`
cold and warm, and from the host itself for comparison; then the request of a full
clone is replayed by many streams at once, whose answers are thrown away. The host is
its own process. Prints one JSON line; ends with 1 if a main process (the router, or a
node without its workers) or a worker took more than its limit.
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from goblet_testing.asks import ls_refs
from goblet_testing.benching import (
    Cost,
    Server,
    Verdict,
    kept_repo,
    own_origin,
    parser_of,
    report,
)
from goblet_testing.cluster import Cluster
from goblet_testing.gitcli import git
from goblet_testing.measuring import Sampler
from goblet_testing.plotting import bars
from goblet_testing.recorded import fetch_body
from goblet_testing.repos import make_blobs

REPO = "org/blobs"
LIMIT_MB = 200
WORKER_LIMIT_MB = 300


def main() -> int:
    """Run the bench, print its line, and return its exit code."""
    parser = parser_of(__doc__)
    parser.add_argument("--megabytes", type=int, default=512, help="size of the repository")
    parser.add_argument("--nodes", type=int, default=3, help="how many nodes to start")
    parser.add_argument("--warm", type=int, default=2, help="how many warm clones to make")
    parser.add_argument("--streams", type=int, default=16, help="how many read it at once at last")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="goblet-memory-") as directory:
        measured = measure(
            Path(directory),
            cache=options.repo_cache,
            megabytes=options.megabytes,
            nodes=options.nodes,
            warm=options.warm,
            streams=options.streams,
        )
    peaks = measured["peak_rss_mb"]
    assert isinstance(peaks, Mapping)
    verdicts = judge(peaks)
    report(
        "memory",
        measured,
        verdicts=verdicts,
        plot=options.plot,
        svg=lambda: bars(
            "Peak memory", "MB, logarithmic", {one: {"": peaks[one]} for one in peaks}
        ),
    )
    return 0 if all(verdict.passes for verdict in verdicts) else 1


def measure(
    directory: Path, *, cache: Path | None, megabytes: int, nodes: int, warm: int, streams: int
) -> dict[str, object]:
    """Clone from the host, cold and warm, then replay; return sizes, seconds and memory."""
    root = directory / "host"
    repo = kept_repo(
        cache, root, lambda path: make_blobs(path, megabytes=megabytes), f"org/blobs-{megabytes}"
    )
    repo = repo.rename(root / f"{REPO}.git")
    pack_bytes = sum(pack.stat().st_size for pack in repo.glob("objects/pack/*.pack"))
    with (
        own_origin(root, directory / "requests.jsonl") as origin,
        Cluster(origin.url, directory / "cluster", nodes=nodes) as cluster,
        Sampler(lambda: names_of(cluster)) as sampler,
    ):
        dest = directory / "clone"
        direct = timed_clone(f"{origin.url}/{REPO}", dest)
        before, _ = origin.packs()
        cold = timed_clone(cluster.url(REPO), dest)
        cluster.wait_until_mirrored(cluster.owners(REPO)[0])
        between, _ = origin.packs()
        warms = sorted(timed_clone(cluster.url(REPO), dest) for _ in range(warm))
        storm = replay_full(cluster.url(REPO), streams)
        after, _ = origin.packs()
    return {
        "n": 2 + warm + streams,
        "pack_mb": round(pack_bytes / 1e6, 1),
        "seconds_direct": round(direct, 2),
        "seconds_cold": round(cold, 2),
        "seconds_warm": [round(seconds, 2) for seconds in warms],
        "packs_cold": between - before,
        "packs_warm": after - between,
        f"replayed_by_{streams}": storm.row(),
        "max_rss_mb": max(peak for name, peak in sampler.peaks_mb.items() if not is_worker(name)),
        "peak_rss_mb": sampler.peaks_mb,
        "processes": sampler.counts,
    }


def judge(peaks: Mapping[str, float]) -> Sequence[Verdict]:
    """Hold each process to its limit."""
    return [
        Verdict(
            figure=f"MB of {name}",
            measured=peak,
            limit=WORKER_LIMIT_MB if is_worker(name) else LIMIT_MB,
            is_least=False,
        )
        for name, peak in peaks.items()
    ]


def is_worker(name: str) -> bool:
    """Return whether a name of `names_of` is that of a node's workers."""
    return name.endswith(" worker")


def names_of(cluster: Cluster) -> dict[int, str]:
    """Return what a cluster's processes are called; a node's workers have one name together."""
    names: dict[int, str] = {}
    for live in cluster.processes():  # parents come first
        above = names.get(live.parent)
        name = live.node_name or ("router" if "router" in live.argv else "other")
        names[live.pid] = name if above is None else f"{above.split()[0]} worker"
    return names


def replay_full(url: str, streams: int) -> Cost:
    """Ask for everything with many streams, once each."""
    wants = sorted(set(ls_refs(url, "HEAD", "refs/heads/", "refs/tags/").refs.values()))
    return Server(name="router", url=url).asked(fetch_body(wants), streams=streams, most=1)


def timed_clone(url: str, dest: Path) -> float:
    """Clone, remove the clone, and return the seconds that cloning took."""
    begun = time.perf_counter()
    git("clone", "--quiet", "--bare", url, dest, timeout=600)
    seconds = time.perf_counter() - begun
    shutil.rmtree(dest)
    return seconds


if __name__ == "__main__":
    sys.exit(main())

"""How much memory do router and nodes take while a 500 MB clone passes them?

Makes a repository of blobs that do not compress, and clones it through
`goblet up` cold and warm, and from the host itself for comparison. The host is
its own process. Prints one JSON line; ends with 1 if a main process (the router,
or a node without its workers) took more than the limit.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from goblet_testing.cluster import Cluster
from goblet_testing.gitcli import git
from goblet_testing.processes import Running
from goblet_testing.repos import make_blobs

ROOT = Path(__file__).resolve().parents[1]
REPO = "org/blobs"
LIMIT_MB = 200
_SAMPLE_EVERY = 0.05


def main() -> int:
    """Run the bench, print its line, and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--megabytes", type=int, default=512, help="size of the repository")
    parser.add_argument("--nodes", type=int, default=3, help="how many nodes to start")
    parser.add_argument("--warm", type=int, default=2, help="how many warm clones to make")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="goblet-memory-") as directory:
        measured = measure(
            Path(directory), megabytes=options.megabytes, nodes=options.nodes, warm=options.warm
        )
    print(json.dumps({**surroundings(), **measured}))
    return 0 if measured["is_within_limit"] else 1


def measure(directory: Path, *, megabytes: int, nodes: int, warm: int) -> dict[str, object]:
    """Clone from the host, cold and warm, and return sizes, seconds and memory."""
    root = directory / "host"
    repo = make_blobs(root / f"{REPO}.git", megabytes=megabytes)
    pack_bytes = sum(pack.stat().st_size for pack in repo.glob("objects/pack/*.pack"))
    log = directory / "requests.jsonl"
    with (
        own_origin(root, log) as origin_url,
        Cluster(origin_url, directory / "cluster", nodes=nodes) as cluster,
        Sampler(cluster) as sampler,
    ):
        dest = directory / "clone"
        direct = timed_clone(f"{origin_url}/{REPO}", dest)
        before = packs_in(log)
        cold = timed_clone(cluster.url(REPO), dest)
        cluster.wait_until_mirrored(cluster.owners(REPO)[0])
        between = packs_in(log)
        warms = sorted(timed_clone(cluster.url(REPO), dest) for _ in range(warm))
        after = packs_in(log)
    main_peaks = {name: peak for name, peak in sampler.peaks_mb.items() if "worker" not in name}
    highest = max(main_peaks.values())
    return {
        "n": 2 + warm,
        "pack_mb": round(pack_bytes / 1e6, 1),
        "seconds_direct": round(direct, 2),
        "seconds_cold": round(cold, 2),
        "seconds_warm": [round(seconds, 2) for seconds in warms],
        "packs_cold": between - before,
        "packs_warm": after - between,
        "max_rss_mb": highest,
        "limit_mb": LIMIT_MB,
        "is_within_limit": highest <= LIMIT_MB,
        "peak_rss_mb": sampler.peaks_mb,
    }


class Sampler:
    """Notes the highest resident memory of each process of a cluster, in MB of 10^6 bytes.

    A context manager. `peaks_mb` names the router, the nodes, and all workers of
    a node together as one: the worst of them.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.peaks_mb: dict[str, float] = {}
        self._cluster = cluster
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler")

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(_SAMPLE_EVERY):
            names: dict[int, str] = {}
            for live in self._cluster.processes():
                above = names.get(live.parent)
                name = live.node_name or ("router" if "router" in live.argv else "other")
                names[live.pid] = name if above is None else f"{above.split()[0]} worker"
                peak = peak_rss_mb(live.pid)
                best = self.peaks_mb.get(names[live.pid], 0.0)
                self.peaks_mb[names[live.pid]] = max(best, peak)


def peak_rss_mb(pid: int) -> float:
    """Return the process's highest resident memory so far (VmHWM); 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    lines = (line.split() for line in status.splitlines() if line.startswith("VmHWM:"))
    return round(next((int(words[1]) * 1024 / 1e6 for words in lines), 0.0), 1)


@contextmanager
def own_origin(root: Path, log: Path) -> Iterator[str]:
    """Run the host as its own process, and yield its URL."""
    command: Sequence[str] = [
        *(sys.executable, "-m", "goblet_testing.origin"),
        *("--root", str(root), "--log", str(log)),
    ]
    env = {"PYTHONPATH": str(ROOT / "tests")}
    with Running(command, log_file=root / "origin.log", env=env) as origin:
        yield origin.first_line()


def timed_clone(url: str, dest: Path) -> float:
    """Clone, remove the clone, and return the seconds that cloning took."""
    begun = time.perf_counter()
    git("clone", "--quiet", "--bare", url, dest, timeout=600)
    seconds = time.perf_counter() - begun
    shutil.rmtree(dest)
    return seconds


def packs_in(log: Path) -> int:
    """Return how many requests for a pack the host has seen."""
    lines = log.read_text().splitlines() if log.exists() else []
    return sum(json.loads(line)["wants_pack"] for line in lines)


def surroundings() -> dict[str, object]:
    """Return what the numbers depend on: commit, machine, versions."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "bench": "memory",
        "commit": described.stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {pages / 1e9:.0f} GB",
        "versions": {
            "python": platform.python_version(),
            "git": git("--version").stdout.split()[2],
            **{name: version(name) for name in ("trio", "hypercorn", "httpx", "dulwich")},
        },
    }


if __name__ == "__main__":
    sys.exit(main())

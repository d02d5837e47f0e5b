"""The benches run, so that they cannot rot; what they measure is not judged here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from goblet_testing.benching import own_origin
from goblet_testing.nginx import missing_programs
from goblet_testing.processes import clean_env
from goblet_testing.repos import make_repo

pytestmark = [pytest.mark.system, pytest.mark.slow]
BENCH = Path(__file__).parents[2] / "bench"


def run_bench(name: str, *flags: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-W", "error", BENCH / name, *flags],
        env=clean_env(),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_demo_shows_every_step_and_ends_well() -> None:
    done = run_bench("demo.py", "--commits", "60")
    assert done.returncode == 0, done.stderr
    for step in ("from the host itself", "\ncold ", "\nwarm ", "after kill -9 of goblet-"):
        assert step in done.stdout


def line_of(name: str, *flags: str) -> dict[str, Any]:
    """Run a bench and return its one line; what it prints to stderr is in the failure."""
    done = run_bench(name, *flags)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    assert found["bench"] == name.removesuffix(".py")
    assert set(found["versions"]) >= {"python", "git", "trio"}
    assert "commit" in found
    assert "machine" in found
    return found


needs_nginx = pytest.mark.skipif(
    missing_programs() is not None and os.environ.get("CI") != "true",
    reason="nginx and fcgiwrap are not installed; CI installs them",
)


def test_the_memory_bench_prints_one_line_that_names_every_main_process() -> None:
    measured = line_of(
        "memory.py", "--megabytes", "4", "--warm", "1", "--nodes", "2", "--streams", "2"
    )
    assert {"router", "goblet-1", "goblet-2"} <= set(measured["peak_rss_mb"])
    assert measured["max_rss_mb"] > 10
    assert measured["packs_cold"] == 1
    assert measured["replayed_by_2"]["bytes"] > 4_000_000


@needs_nginx
@pytest.mark.soak
def test_answers_are_measured_beside_gits_and_nginxs(tmp_path: Path) -> None:
    """The smallest run: everything asked of everybody, with answers of about one size."""
    plot = tmp_path / "replay.svg"
    flags = ("--commits", "60", "--files", "20", "--seconds", "0.05", "--pushes", "2")
    measured = line_of("replay.py", *flags, "--plot", str(plot))
    assert set(measured["one_stream"]) == {"full", "depth 1", "blob:none", "one behind"}
    for costs in measured["one_stream"].values():
        assert set(costs) == {"node", "router", "git, bitmaps", "git, none", "nginx, file"}
        assert all(cost["cpu_ms"] > 0 for cost in costs.values())
        assert costs["node"]["bytes"] == costs["router"]["bytes"] == costs["nginx, file"]["bytes"]
        assert costs["node"]["bytes"] == pytest.approx(costs["git, none"]["bytes"], rel=0.3)
    assert all(verdict["measured"] > 0 for verdict in measured["verdicts"])
    assert len(measured["verdicts"]) == 10
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")


def test_a_server_that_is_there_already_can_be_measured(tmp_path: Path) -> None:
    """By its URL alone; and by its process, what it costs."""
    make_repo(tmp_path / "org" / "some.git")
    with own_origin(tmp_path, tmp_path / "log") as origin:
        measured = line_of(
            "replay.py",
            "--url",
            f"{origin.url}/org/some",
            "--pid",
            str(origin.pid),
            "--seconds",
            "0",
        )
    assert measured["one_stream"]["full"]["given"]["cpu_ms"] > 0
    assert "verdicts" not in measured


@pytest.mark.soak
def test_a_storm_is_measured_cold_and_warm() -> None:
    """The smallest run: three clients, and one pack from the host for all of them."""
    flags = ("--clients", "3", "--commits", "40", "--files", "10")
    measured = line_of("clone_storm.py", *flags)
    storms = measured["storms"]
    assert storms["direct storm"]["host_packs"] == 3
    assert storms["cold storm"]["host_packs"] == 1
    assert storms["warm storm"]["host_packs"] == 0
    assert storms["warm storm"]["server_cpu_seconds"] > 0
    assert len(measured["verdicts"]) == 3


def test_listing_refs_is_measured() -> None:
    measured = line_of("refs.py", "--refs", "5", "--seconds", "0.1", "--burst", "10")
    assert {"node, freshness 0", "node, freshness 5"} <= set(measured["servers"])
    assert all(server["requests_per_second"] > 0 for server in measured["servers"].values())
    assert measured["burst"]["upstream_questions"] >= 1


def test_growth_is_measured() -> None:
    """The smallest size of each axis."""
    measured = line_of("scale.py", "--only", "generations", "--most", "1", "--seconds", "0")
    (row,) = measured["rows"]
    assert row["objects"] > 1000
    assert row["answers"]["full"]["node, first"]["bytes"] > 100_000


@pytest.mark.soak
def test_a_change_of_members_is_measured() -> None:
    """The smallest run: one node, and another that joins it."""
    flags = ("--nodes", "1", "--clients", "2", "--seconds", "0.2", "--only", "join, warm")
    measured = line_of("rebalance.py", "--repos", "9", *flags)
    (change,) = measured["changes"].values()
    assert change["moved"]["least"] == 0.5
    assert change["moved"]["repos"] > 0
    assert change["moved"]["copied"] == round(9 * change["moved"]["repos"])
    assert change["moved"]["copied_bytes"] == change["moved"]["repo_bytes"]
    assert change["seen"]["clones"] > 0
    assert len(measured["verdicts"]) == 3


def test_the_spread_over_nodes_is_measured_beside_other_hashings(tmp_path: Path) -> None:
    """The smallest run: two rings, 1,000 repositories, all four placements."""
    plot = tmp_path / "spread.svg"
    flags = ("--repos", "1000", "--sizes", "3", "5", "--plot", str(plot))
    measured = line_of("ring_distribution.py", *flags)
    assert {row["nodes"] for row in measured["repositories"]} == {3, 5}
    for row in measured["repositories"]:
        assert all(1 <= row[name] < 5 for name in ("goblet", "uhashring", "HAProxy", "rendezvous"))
    assert all(verdict["passes"] for verdict in measured["verdicts"])
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")


def test_looking_up_owners_is_measured() -> None:
    measured = line_of("lookup.py", "--repos", "100", "--rounds", "1", "--sizes", "3")
    (ring,) = measured["rings"]
    assert all(value > 0 for value in ring.values())


def test_a_selected_answer_is_measured_beside_gits() -> None:
    """The smallest run: every request answered by both, with the same objects."""
    line = json.loads(run_bench("selected.py", "--commits", "250", "-n", "1").stdout)
    assert set(line["answers"]) >= {"full clone", "one behind", "depth 1", "blob:none"}
    for answer in line["answers"].values():
        assert answer["goblet"]["objects"] == answer["git_with_bitmaps"]["objects"]


def test_what_stands_before_a_node_is_measured_beside_the_node() -> None:
    """The smallest run: everybody asked at least once."""
    size = ("--commits", "20", "--files", "5")
    flags = (*size, "--seconds", "0", "--streams", "2", "--workers", "1")
    fronts = line_of("router_overhead.py", *flags)["fronts"]
    assert set(fronts) == {"refs, 1", "clone, 1", "refs, 2", "clone, 2"}
    assert {"node alone", "router"} <= set(fronts["clone, 2"])
    assert set(fronts["refs, 1"]) - set(fronts["clone, 1"]) == {"router, redirect"}
    assert len({front["bytes"] for front in fronts["clone, 1"].values()}) == 1


@pytest.mark.soak
def test_the_heat_of_one_repository_is_measured() -> None:
    flags = ("--commits", "20", "--files", "5", "--seconds", "0.3")
    measured = line_of("heat.py", *flags)
    assert set(measured["rushes"]) == {"spread", "without spread"}
    for rush in measured["rushes"].values():
        assert len(rush["cpu_seconds"]) == 3
        assert rush["upstream_packs"] == 0

"""The benches run, so that they cannot rot; what they measure is not judged here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from goblet_testing.processes import clean_env

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


def test_the_memory_bench_prints_one_line_that_names_every_main_process() -> None:
    done = run_bench("memory.py", "--megabytes", "4", "--warm", "1", "--nodes", "2")
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    measured = json.loads(line)
    assert {"router", "goblet-1", "goblet-2"} <= set(measured["peak_rss_mb"])
    assert measured["max_rss_mb"] > 10
    assert measured["packs_cold"] == 1


def test_a_selected_answer_is_measured_beside_gits() -> None:
    """The smallest run: every request answered by both, with the same objects."""
    line = json.loads(run_bench("selected.py", "--commits", "250", "-n", "1").stdout)
    assert set(line["answers"]) >= {"full clone", "one behind", "depth 1", "blob:none"}
    for answer in line["answers"].values():
        assert answer["goblet"]["objects"] == answer["git_with_bitmaps"]["objects"]

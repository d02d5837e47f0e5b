"""What the benches measure with: other processes' CPU time, and a client that throws away."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest

from goblet_testing.benching import Verdict
from goblet_testing.measuring import ROOT, Spread, Watch
from goblet_testing.plotting import bars, lines
from goblet_testing.processes import Running
from goblet_testing.replaying import Job, Replayed, ReplayFailed, replay

pytestmark = [pytest.mark.system, pytest.mark.slow]
BURN = "import time\nwhile time.process_time() < 0.2: pass\n"
# A parent that starts one, ends a line when it has ended, and stays.
WAITS = (
    f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN!r}])\nprint(flush=True)"
)
STAYS = "\nimport time\ntime.sleep(60)"
# One that ignores its children, as fcgiwrap does, and whose child leaves a grandchild.
FORGETS = f"""
import os, signal, sys, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
out, into = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        exec({BURN!r})
    os._exit(0)
os.close(into)
os.read(out, 1)
time.sleep(0.1)
print(flush=True)
"""


@contextmanager
def running(tmp_path: Path, *command: str) -> Iterator[Running]:
    env = {"PYTHONPATH": str(ROOT / "tests")}
    with Running([sys.executable, *command], log_file=tmp_path / "log", env=env) as process:
        yield process


def test_the_cpu_time_of_a_child_that_has_ended_counts(tmp_path: Path) -> None:
    with running(tmp_path, "-c", WAITS + STAYS) as process, Watch([process.pid]) as watch:
        process.first_line()
    assert watch.cpu > 0.19


def test_the_cpu_time_of_an_orphan_counts_where_orphans_are_reaped(tmp_path: Path) -> None:
    """Its own parent ignored it, so without a reaper nobody would know."""
    command = ("-m", "goblet_testing.reaping", sys.executable, "-c", FORGETS + STAYS)
    with running(tmp_path, *command) as process, Watch([process.pid]) as watch:
        process.first_line()
    assert watch.cpu > 0.19


def test_a_reaper_ends_with_its_command_and_as_it_did(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "goblet_testing.reaping", "sh", "-c", "exit 7"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        timeout=20,
    )
    assert done.returncode == 7


SERVER = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    connection, _ = listener.accept()
    while connection.recv(65536):
        connection.sendall({answer!r})
        {after}
"""
WHOLE = b"HTTP/1.1 200 OK\r\nGoblet-Cache: whole\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n3;x=y\r\nyou\r\n0\r\n\r\n"
)
CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello"


def replayed(tmp_path: Path, answer: bytes, *, after: str = "pass", streams: int = 1) -> Replayed:
    program = SERVER.format(answer=answer, after=after)
    with running(tmp_path, "-c", program) as server:
        url = f"http://127.0.0.1:{server.first_line()}/x"
        return replay(Job(url=url, body=b"0000", streams=streams, seconds=60, most=3))


@pytest.mark.parametrize(("answer", "size"), [(WHOLE, 5), (CHUNKED, 8)])
def test_answers_are_read_to_their_end_on_one_connection(
    tmp_path: Path, answer: bytes, size: int
) -> None:
    """The server takes one connection after the other: a second one would wait for ever."""
    found = replayed(tmp_path, answer)
    assert (len(found.seconds), found.body_bytes) == (3, size)
    assert found.per_second == pytest.approx(3 / found.wall)
    assert found.cache == ("whole" if answer == WHOLE else None)


@pytest.mark.parametrize("answer", [CUT, b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"])
def test_an_answer_that_is_not_as_it_should_be_fails_the_replay(
    tmp_path: Path, answer: bytes
) -> None:
    with pytest.raises(ReplayFailed):
        replayed(tmp_path, answer, after="connection.close(); break")


def test_a_spread_has_the_median_and_the_99th_of_a_hundred() -> None:
    assert Spread.of(range(1, 101)) == Spread(n=100, median=50.5, p99=99)
    assert Spread.of([3.0]) == Spread(n=1, median=3.0, p99=3.0)


def test_a_verdict_knows_on_which_side_of_its_limit_to_be() -> None:
    least = Verdict(figure="x", measured=2, limit=3, is_least=True)
    most = Verdict(figure="x", measured=2, limit=3, is_least=False)
    assert (least.passes, most.passes) == (False, True)
    assert least.line().startswith("FAIL")
    assert most.row() == {"figure": "x", "measured": 2.0, "at_most": 3, "passes": True}


def test_plots_show_every_value_in_its_place() -> None:
    """A tenth is as far from one as one is from ten: the scale is logarithmic."""
    drawn = ElementTree.fromstring(
        bars("t", "ms", {"<a>": {"x": 0.1, "y": 10.0}, "b": {"x": 1.0, "y": 0.0}})
    )
    heights = [one for one in drawn.iter() if one.get("height") == "13"]
    thin, wide, middle = (float(one.get("width", "0")) for one in heights)
    assert middle == pytest.approx(wide / 2, rel=0.01)
    assert thin == 1
    curve = ElementTree.fromstring(lines("t", "n", "s", {"x": [(1, 1), (10, 10), (100, 100)]}))
    points = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in curve.iter() if c.get("cx")]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert (x1 - x0, y1 - y0) == pytest.approx((x2 - x1, y2 - y1), abs=0.2)
    assert y2 < y0

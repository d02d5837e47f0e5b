"""A node as a process: it returns with what it had, ends when told, and keeps no secret."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from goblet_testing import asks
from goblet_testing.faults_on_cue import Fault
from goblet_testing.fleet import until
from goblet_testing.gitcli import clone, fsck
from goblet_testing.origin import Origin
from goblet_testing.processes import start_node
from goblet_testing.stand import HOST, Stand

pytestmark = [pytest.mark.system, pytest.mark.slow]


def test_a_restarted_node_serves_what_it_had(tmp_path: Path, origin: Origin) -> None:
    upstreams = {HOST: origin.url}
    with start_node("goblet-3", directory=tmp_path, upstreams=upstreams) as node:
        stand = Stand(origin, node, tmp_path)
        stand.warm("org/small")
        os.kill(node.pid, signal.SIGKILL)
        node.process.wait()
    origin.clear_log()
    with start_node("goblet-3", directory=tmp_path, upstreams=upstreams) as node:
        fsck(clone(node.url(f"{HOST}/org/small"), tmp_path / "again"))
        assert origin.packs() == []
        command = [sys.executable, "-m", "goblet_node", "--name", "goblet-3"]
        second = subprocess.run(
            [*command, "--listen", "127.0.0.1:0", "--cache-root", str(tmp_path / "goblet-3")],
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert second.returncode != 0
        assert "goblet-3" in second.stderr
        assert "Traceback" not in second.stderr


def test_a_credential_is_written_nowhere(tmp_path: Path, origin: Origin) -> None:
    canary = "canary-7f3a9c"
    origin.users["alice"] = canary
    upstreams = {HOST: origin.url}
    with start_node("goblet-4", directory=tmp_path, upstreams=upstreams) as node:
        url = node.url(f"{HOST}/secret/repo").replace("://", f"://alice:{canary}@", 1)
        fsck(clone(url, tmp_path / "clone"))
        until(lambda: node.metrics()["goblet_node_mirrors"] == 1, what="a mirror")
        origin.misbehave(Fault(status=500), kind="info-refs")
        asks.info_refs(node.url(f"{HOST}/org/small"), user=("alice", canary))
        argv = Path(f"/proc/{node.pid}/cmdline").read_bytes()
        metrics = asks.ask(f"{node.base}/metrics").body
        written = [path for path in (tmp_path / "goblet-4").rglob("*") if path.is_file()]
        for text in [argv, metrics, node.log.encode(), *(path.read_bytes() for path in written)]:
            assert canary.encode() not in text
            assert b"YWxpY2U6Y2FuYXJ5" not in text  # base64 of alice:canary
    assert written


def test_a_node_that_is_stopped_ends_soon_and_cleanly(tmp_path: Path, origin: Origin) -> None:
    with start_node("goblet-5", directory=tmp_path, upstreams={HOST: origin.url}) as node:
        port = int(node.base.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)):  # an idle client does not hold it up
            started = time.monotonic()
            assert node.stop() == 0
            assert time.monotonic() - started < 5
        assert "Traceback" not in node.log

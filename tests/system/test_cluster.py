"""The tools that start real routers and nodes start them, find them, and leave none behind."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from goblet_testing import asks
from goblet_testing.cluster import HOST, Cluster
from goblet_testing.gitcli import clone, fsck, refs_of
from goblet_testing.origin import Origin
from goblet_testing.processes import (
    Running,
    StartFailed,
    descendants,
    end_leftovers,
    is_live,
    live_process,
    start_node,
    start_router,
)
from goblet_testing.repos import oid_of

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.fixture(scope="module")
def shared_origin(shared_root: Path) -> Iterator[Origin]:
    """An origin that outlives the tests' clusters. Only to be read."""
    with Origin(shared_root) as origin:
        yield origin


def test_a_cluster_serves_the_origin_and_says_who_owns_what(
    shared_origin: Origin, shared_root: Path, tmp_path: Path
) -> None:
    with Cluster(shared_origin.url, tmp_path) as cluster:
        cloned = clone(cluster.url("org/small"), tmp_path / "clone", "--mirror")
        fsck(cloned)
        assert refs_of(cloned) == refs_of(shared_root / "org/small.git")
        owners = cluster.owners("org/small")
        assert sorted(owners) == ["goblet-1", "goblet-2", "goblet-3"]
        url, want = cluster.url("org/small"), oid_of(shared_root / "org/small.git", "main")
        answer = asks.fetch(url, [want])
        assert answer.pack.startswith(b"PACK")
        assert answer.node == owners[0]
        assert answer.cache is not None
        assert any(name.startswith("goblet_router_") for name in cluster.metrics())
        assert any(name.startswith("goblet_node_") for name in cluster.metrics(owners[0]))
        assert "org/small" in cluster.log


def test_a_killed_node_is_gone_and_the_rest_ends_with_the_cluster(
    shared_origin: Origin, tmp_path: Path
) -> None:
    with Cluster(shared_origin.url, tmp_path) as cluster:
        everyone = cluster.processes()
        pid = cluster.node_pid("goblet-2")
        cluster.kill_node("goblet-2")
        assert live_process(pid) is None
        with pytest.raises(LookupError, match="goblet-2"):
            cluster.node_pid("goblet-2")
        assert cluster.router_pid() in [live.pid for live in everyone]
        assert cluster.node_pid("goblet-3") in [live.pid for live in everyone]
    assert [live for live in everyone if is_live(live)] == []


def test_what_a_process_leaves_behind_is_ended_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goblet_testing.processes.LINGER_LIMIT", 0.1)
    command = ["sh", "-c", "sleep 60 & echo started; wait"]
    with Running(command, log_file=tmp_path / "log") as parent:
        parent.first_line()
        # A moment after the line it may still be the shell's fork.
        while (child := descendants(parent.pid)[0]).argv != ("sleep", "60"):
            time.sleep(0.01)
        parent.stop()
        assert not parent.was_killed
        assert end_leftovers([child]) == [child]
    assert end_leftovers([child]) == []


def test_a_process_that_does_not_hear_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goblet_testing.processes.STOP_LIMIT", 0.1)
    command = ["sh", "-c", "trap '' TERM; echo started; while :; do sleep 0.01; done"]
    with Running(command, log_file=tmp_path / "log") as deaf:
        deaf.first_line()
        assert deaf.stop() == -signal.SIGKILL
        assert deaf.was_killed


def test_a_cluster_that_does_not_start_says_why(shared_origin: Origin, tmp_path: Path) -> None:
    with (
        pytest.raises(StartFailed, match=r"ended with 2\n(.*\n)*.*No such option"),
        Cluster(shared_origin.url, tmp_path, flags=["--no-such-flag"]),
    ):
        pass


def test_a_router_and_a_node_run_alone_each_on_a_port_of_its_own(
    shared_origin: Origin, tmp_path: Path
) -> None:
    upstreams = {HOST: shared_origin.url}
    with (
        start_node("solo", directory=tmp_path, upstreams=upstreams) as node,
        start_router(directory=tmp_path, nodes={"solo": node.base}) as router,
    ):
        clone(router.url(f"{HOST}/org/other"), tmp_path / "clone")
        assert asks.info_refs(node.url(f"{HOST}/org/other")).node == "solo"
        assert "org/other" in node.log
        assert "org/other" in router.log
        assert node.metrics() != router.metrics()
        pids = [node.pid, router.pid]
    assert [live_process(pid) for pid in pids] == [None, None]


def test_a_node_that_does_not_start_says_why(tmp_path: Path) -> None:
    flags = ["--no-such-flag"]
    with (
        pytest.raises(StartFailed, match="No such option"),
        start_node("solo", directory=tmp_path, upstreams={}, flags=flags),
    ):
        pass

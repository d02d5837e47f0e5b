"""A router of several processes: one address, one set of metrics, and none that stays dead."""

import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio

from goblet_router.config import RouterSettings
from goblet_router.errors import StartFailed
from goblet_router.workers import pause_after, run_workers, shared_metrics
from goblet_testing.router import PACK, http_client
from goblet_testing.unruly import unruly_node

PYTHON = (sys.executable, "-I", "-S", "-c")


def test_pauses_grow_until_a_worker_is_given_up() -> None:
    pauses: list[float] = []
    while (pause := pause_after(len(pauses))) is not None:
        pauses.append(pause)
    assert pauses == sorted(set(pauses))
    assert sum(pauses) < 10


def test_without_workers_each_registry_is_its_own() -> None:
    assert shared_metrics({}) is None


@dataclass
class Ran:
    """What workers said."""

    lines: list[str] = field(default_factory=list)

    async def said(self, pattern: str, times: int = 1) -> list[re.Match[str]]:
        """Return what matches in their lines, as soon as it does so often."""
        with trio.fail_after(20):
            while True:
                found = [match for line in self.lines if (match := re.search(pattern, line))]
                if len(found) >= times:
                    return found
                await trio.sleep(0.01)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


@asynccontextmanager
async def running(command: Sequence[str], port: int, workers: int = 2) -> AsyncIterator[Ran]:
    """Run workers until the block ends; then they are told to end, and must."""
    ran = Ran()
    settings = RouterSettings(listen=f"127.0.0.1:{port}", workers=workers, grace_seconds=5.0)
    run = partial(
        run_workers, settings, command, environment=os.environ, write_line=ran.lines.append
    )
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield ran
            os.kill(os.getpid(), signal.SIGTERM)


def router(*flags: str) -> tuple[str, ...]:
    given = ("--no-bypass", "--probe-interval-seconds", "60", *flags, "--workers=1")
    return (sys.executable, "-P", "-m", "goblet_router", "router", *given)


async def ask(port: int) -> httpx.Response:
    """Ask over a connection of its own, so that any worker may take it."""
    async with http_client(f"http://127.0.0.1:{port}") as client:
        return await client.post(PACK, content=b"wants")


@pytest.mark.slow
async def test_workers_share_the_address_and_count_together_and_those_that_die_return() -> None:
    port = free_port()
    async with unruly_node() as node, running(router("--node", f"a={node.url}"), port) as ran:
        await ran.said("node a is ready", times=2)
        for _ in range(60):
            assert (await ask(port)).status_code == 200
        lines = await ran.said(r"^(\S+) \| .* endpoint=git-upload-pack ", times=60)
        assert {line[1] for line in lines} == {"worker-1", "worker-2"}
        assert len(lines) == 60
        async with http_client(f"http://127.0.0.1:{port}") as client:
            first = (await client.get("/metrics")).text
            assert 'goblet_router_forwarded_total{node="a",outcome="ok"} 60.0' in first
            assert "goblet_router_in_flight 0.0" in first
        pids = [int(pid) for pid in children_of(os.getpid()) if "goblet_router" in command_of(pid)]
        assert len(pids) == 2
        os.kill(pids[0], signal.SIGKILL)
        await ran.said("ended with signal SIGKILL: again in")
        await ran.said("node a is ready", times=3)
        assert (await ask(port)).status_code == 200
        async with http_client(f"http://127.0.0.1:{port}") as client:
            # What the dead one counted is not lost.
            again = (await client.get("/metrics")).text
            assert 'goblet_router_forwarded_total{node="a",outcome="ok"} 61.0' in again
    assert not any("goblet_router" in command_of(pid) for pid in children_of(os.getpid()))
    assert not any("Traceback" in line for line in ran.lines)


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def command_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


async def test_workers_that_are_told_to_end_leave_nobody_waiting_at_the_address() -> None:
    """They stop listening and finish what they have: who comes then must be refused."""
    code = (
        "import signal, socket, sys, time; fd = int(sys.argv[1].partition('fd://')[2]);"
        "listener = socket.socket(fileno=fd);"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]);"
        "print('up', flush=True); signal.sigwait([signal.SIGTERM]);"
        "listener.close(); print('closed', flush=True); time.sleep(20)"
    )
    port = free_port()
    async with running([*PYTHON, code], port, workers=1) as ran:
        await ran.said("up")
        os.kill(os.getpid(), signal.SIGTERM)
        await ran.said("closed")
        with pytest.raises(OSError, match="failed"):
            await trio.open_tcp_stream("127.0.0.1", port)


async def test_a_worker_gets_the_socket_and_a_place_for_its_metrics() -> None:
    code = (
        "import json, os, sys, socket, time; fd = int(sys.argv[1].partition('fd://')[2]);"
        "where = os.environ['PROMETHEUS_MULTIPROC_DIR'];"
        "print(json.dumps([socket.socket(fileno=fd).getsockname()[1], where]), flush=True);"
        "time.sleep(60)"
    )
    port = free_port()
    async with running([*PYTHON, code], port, workers=1) as ran:
        (said,) = await ran.said(r"worker-1 \| (.*)")
        heard, metrics = json.loads(said[1])
        assert heard == port
        assert await trio.Path(metrics).is_dir()
        assert shared_metrics({"PROMETHEUS_MULTIPROC_DIR": metrics}) is not None
    assert not await trio.Path(metrics).exists()


@pytest.mark.slow
async def test_a_worker_that_dies_again_and_again_ends_it_all_with_its_last_words() -> None:
    lines: list[str] = []
    settings = RouterSettings(listen="127.0.0.1:0", workers=2)
    code = "import sys; print('no such file'); sys.exit(3)"
    with trio.fail_after(20), pytest.raises(StartFailed) as caught:
        await run_workers(
            settings, [*PYTHON, code], environment=os.environ, write_line=lines.append
        )
    assert "exit code 3" in str(caught.value)
    assert "no such file" in str(caught.value)

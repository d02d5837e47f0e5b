"""`goblet up`: what it starts, says and leaves behind."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from goblet_router.local import LocalSettings, clone_command, data_directory, secret_in
from goblet_shared.cluster_secret import ClusterSecret
from goblet_shared.errors import GobletError
from goblet_testing.router import http_client


def test_mirrors_go_where_they_were_asked_to_be() -> None:
    settings = LocalSettings(data=Path("/srv/goblet"))
    assert data_directory(settings, {"XDG_CACHE_HOME": "/c"}) == Path("/srv/goblet")


@pytest.mark.parametrize("home", ["", "relative/cache"])
def test_without_a_cache_directory_mirrors_go_below_the_home(home: str) -> None:
    found = data_directory(LocalSettings(), {"XDG_CACHE_HOME": home})
    assert found == Path.home() / ".cache" / "goblet"


def test_a_cache_directory_of_the_users_is_used() -> None:
    assert data_directory(LocalSettings(), {"XDG_CACHE_HOME": "/c"}) == Path("/c/goblet")


def test_the_clone_command_names_the_first_upstream_or_github() -> None:
    base = "http://127.0.0.1:8080"
    assert clone_command(base, []) == f"git clone {base}/github.com/<owner>/<repo>"
    assert clone_command(base, ["a.test", "b"]) == f"git clone {base}/a.test/<owner>/<repo>"


def test_a_secret_is_made_once_for_this_user_alone(tmp_path: Path) -> None:
    made = secret_in(tmp_path / "data")
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    ClusterSecret.read(made)  # it is long enough
    content = made.read_bytes()
    assert secret_in(tmp_path / "data") == made
    assert made.read_bytes() == content


def test_where_no_secret_can_be_made_that_is_said(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    with pytest.raises(GobletError, match=r"file/cluster-secret cannot be made: "):
        secret_in(blocked)


class Up:
    """A running `goblet up`, its log collected so far, and its processes."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.log = ""
        self.url = ""

    def children(self) -> dict[str, int]:
        """Return the pids of the processes that run below it, by the node's name or `router`."""
        found = {}
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if not entry.name.isdigit() or _parent(entry) != self.process.pid:
                    continue
                words = (entry / "cmdline").read_bytes().decode().split("\0")
                name = words[words.index("--name") + 1] if "--name" in words else "router"
                found[name] = int(entry.name)
        return found

    async def logged(self, text: str) -> None:
        """Wait until the log holds `text`."""
        with trio.fail_after(20):
            while text not in self.log:  # noqa: ASYNC110  (a pipe's reader fills it)
                await trio.sleep(0.01)

    async def collect(self) -> None:
        assert self.process.stderr is not None
        async for chunk in self.process.stderr:
            self.log += chunk.decode()


def _parent(process: Path) -> int:
    return int((process / "stat").read_text().rpartition(")")[2].split()[1])


def is_alive(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@asynccontextmanager
async def up(data: Path, *arguments: str) -> AsyncIterator[Up]:
    """Start `goblet up`; it is killed at the end if it still runs."""
    command = [sys.executable, "-m", "goblet_router", "up", "--listen", "127.0.0.1:0"]
    async with trio.open_nursery() as nursery:
        process = await trio.lowlevel.open_process(
            [*command, "--data", str(data), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started = Up(process)
        nursery.start_soon(started.collect)
        try:
            yield started
        finally:
            if process.poll() is None:
                process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
            assert process.stdout is not None
            await process.stdout.aclose()
    assert process.stderr is not None
    await process.stderr.aclose()


@asynccontextmanager
async def ready(data: Path, *arguments: str) -> AsyncIterator[Up]:
    """Start `goblet up`, and wait for the one line on its stdout."""
    async with up(data, *arguments) as it:
        assert it.process.stdout is not None
        line = b""
        with trio.fail_after(30):
            while not line.endswith(b"\n"):
                chunk = await it.process.stdout.receive_some()
                assert chunk, f"it ended before it was ready:\n{it.log}"
                line += chunk
        words = line.decode().split()
        assert words[:3] == ["ready:", "git", "clone"]
        it.url = words[3].partition("/origin.test/")[0]
        yield it


UPSTREAM = ("--upstream", "origin.test=http://127.0.0.1:9")
slow_system = [pytest.mark.system, pytest.mark.slow]


class TestTogether:
    """With real nodes and a real router."""

    pytestmark = slow_system

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    async def test_a_signal_ends_all(self, tmp_path: Path, number: signal.Signals) -> None:
        async with ready(tmp_path, "--nodes", "2", *UPSTREAM) as it:
            children = it.children()
            assert sorted(children) == ["goblet-1", "goblet-2", "router"]
            assert sorted(os.listdir(tmp_path)) == ["cluster-secret", "goblet-1", "goblet-2"]
            async with http_client(it.url) as client:
                members = (await client.get("/-/ring")).json()["members"]
            assert [(member["name"], member["state"]) for member in members] == [
                ("goblet-1", "ready"),
                ("goblet-2", "ready"),
            ]
            it.process.send_signal(number)
            with trio.fail_after(15):
                assert await it.process.wait() == 0
            assert not any(map(is_alive, children.values()))
            assert "Traceback" not in it.log
            assert "killing the rest" not in it.log

    async def test_no_process_outlives_a_killed_parent(self, tmp_path: Path) -> None:
        async with ready(tmp_path, "--nodes", "2", *UPSTREAM) as it:
            children = it.children()
            assert len(children) == 3
            it.process.kill()
            with trio.fail_after(5):
                while any(map(is_alive, children.values())):  # noqa: ASYNC110  (the kernel's doing)
                    await trio.sleep(0.01)

    async def test_a_killed_node_is_reported_and_its_port_refuses(self, tmp_path: Path) -> None:
        """Had we kept our copy of its socket, requests to it would hang and not fail over."""
        async with ready(tmp_path, "--nodes", "2", *UPSTREAM) as it:
            os.kill(it.children()["goblet-2"], signal.SIGKILL)
            await it.logged("goblet-2 ended with signal SIGKILL; its successors take over\n")
            async with http_client(it.url) as client:
                for number in range(8):
                    target = f"/origin.test/r{number}/info/refs?service=git-upload-pack"
                    got = await client.get(target)
                    assert got.headers["goblet-node"] == "goblet-1"

    async def test_a_killed_router_ends_everything(self, tmp_path: Path) -> None:
        async with ready(tmp_path, "--nodes", "1", *UPSTREAM) as it:
            children = it.children()
            os.kill(children["router"], signal.SIGKILL)
            with trio.fail_after(15):
                assert await it.process.wait() == 1
            await it.logged("goblet: the router ended with signal SIGKILL")
            assert not any(map(is_alive, children.values()))

    async def test_a_node_that_cannot_start_is_shown_with_its_last_words(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / "goblet-1").write_text("not a directory")
        async with up(tmp_path, "--nodes", "1", *UPSTREAM) as it:
            with trio.fail_after(30):
                assert await it.process.wait() == 1
            await it.logged("goblet: goblet-1 ended with exit code 1 before it was ready")
            assert not it.children()

    async def test_an_address_in_use_starts_nothing(self, tmp_path: Path) -> None:
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        port = listener.socket.getsockname()[1]
        async with listener, up(tmp_path / "data", "--listen", f"127.0.0.1:{port}") as it:
            with trio.fail_after(20):
                assert await it.process.wait() == 1
            await it.logged(f"goblet: cannot listen at 127.0.0.1:{port}: Address already in use\n")
            assert not (tmp_path / "data").exists()

"""Real router and node processes, each with its own port and its log kept.

What fails to start fails loudly: the error holds the process's log.
"""

import http.client
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

from goblet_testing.asks import ask

START_LIMIT = 60.0
"""Seconds until a process must be ready: imports alone take several on a busy machine."""
STOP_LIMIT = 15.0
"""Seconds until a process must have ended after SIGTERM."""
LINGER_LIMIT = 2.0
"""Seconds that a process may outlive the one that started it."""
_POLL = 0.02


class StartFailed(Exception):
    """A process ended or was not ready in time; the text holds the end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A process as /proc shows it."""

    pid: int
    parent: int
    argv: tuple[str, ...]

    @property
    def node_name(self) -> str | None:
        """The value of `--name` on its command line."""
        for word, following in zip(self.argv, (*self.argv[1:], ""), strict=True):
            if word == "--name":
                return following
            if word.startswith("--name="):
                return word.removeprefix("--name=")
        return None


class Running:
    """A process that was started, with its stderr in a file. A context manager: it ends it."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        log_file: Path,
        listener: socket.socket | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._command = command
        self._log_file = log_file
        self.was_killed = False
        """It did not end within `STOP_LIMIT` of being told."""
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with log_file.open("ab") as stderr:
            self.process = subprocess.Popen(
                command,
                env={**clean_env(), **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                pass_fds=() if listener is None else (listener.fileno(),),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.process.pid

    @property
    def log(self) -> str:
        """What it wrote to stderr so far."""
        return self._log_file.read_text(errors="replace")

    def check_log(self, *, since: int = 0) -> None:
        """Hold its log, from character `since` on, to having no traceback in it."""
        log = self.log[since:]
        found = log.find("Traceback (")
        if found >= 0:
            # The line before names the request; further ones would only bury it.
            start = log.rfind("\n", 0, max(found - 1, 0)) + 1
            raise AssertionError(f"in {self._log_file.name}: {log[start : start + 5000]}")

    def first_line(self, *, within: float = START_LIMIT) -> str:
        """Return the first line that it writes to stdout.

        Raises:
            StartFailed: it ended first, or wrote none in time.
        """
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], within)
        line = self.process.stdout.readline().decode() if ready else ""
        if ready and not line:
            # Its stdout closes a moment before it is gone, and its code says more.
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(LINGER_LIMIT)
            raise self.failed("closed its stdout without a line")
        if not line:
            raise self.failed(f"wrote no line within {within:g} s")
        return line.rstrip("\n")

    def failed(self, how: str) -> StartFailed:
        """End it and return an error that says how it failed, with the end of its log."""
        code = self.process.poll()
        self.stop()
        what = how if code is None else f"ended with {code}"
        return StartFailed(f"{' '.join(self._command)}: {what}\n{self.log[-4000:]}")

    def tell(self, number: int) -> None:
        """Send the signal, if it runs still, and return at once."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    def stop(self, *, number: int = signal.SIGTERM) -> int:
        """Send the signal, wait, and return the exit code; kill what is not gone in time."""
        self.tell(number)
        return self.end()

    def end(self) -> int:
        """Wait until it has ended, and return the exit code; kill it if it has not in time."""
        if self.process.poll() is None:
            try:
                self.process.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired:
                self.was_killed = True
                self.process.kill()
                self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return self.process.returncode


class Service(Running):
    """A router or a node with its own URL."""

    def __init__(self, command: Sequence[str], *, log_file: Path, listener: socket.socket) -> None:
        host, port = listener.getsockname()[:2]
        super().__init__(command, log_file=log_file, listener=listener)
        # The child alone holds it now: were it open here too, a dead service's
        # port would accept connections and never answer.
        listener.close()
        self.base = f"http://{host}:{port}"

    def url(self, repo: str) -> str:
        """Return the clone URL of `repo` (with its host) at this service."""
        return f"{self.base}/{repo}"

    def wait_ready(self, *, within: float = START_LIMIT) -> None:
        """Return when /readyz says 200.

        Raises:
            StartFailed: it ended first, or did not say so in time.
        """
        deadline = time.monotonic() + within
        while time.monotonic() < deadline and self.process.poll() is None:
            with suppress(OSError, http.client.HTTPException):
                if ask(f"{self.base}/readyz").status == 200:
                    return
            time.sleep(_POLL)
        raise self.failed(f"was not ready within {within:g} s")

    def metrics(self) -> dict[str, float]:
        """Return its metrics, by name with labels."""
        return read_metrics(self.base)


def node_command(name: str, *, listener: socket.socket, cache_root: Path) -> list[str]:
    """Return the command of a node, without what it knows of others."""
    command = [sys.executable, "-m", "goblet_node", "--name", name]
    return [*command, "--listen", f"fd://{listener.fileno()}", "--cache-root", str(cache_root)]


def router_command(*, listener: socket.socket) -> list[str]:
    """Return the command of a router, without its nodes."""
    command = [sys.executable, "-m", "goblet_router", "router"]
    return [*command, "--listen", f"fd://{listener.fileno()}"]


@contextmanager
def start_node(
    name: str, *, directory: Path, upstreams: Mapping[str, str], flags: Sequence[str] = ()
) -> Iterator[Service]:
    """Run one node, ready, with its cache below `directory`; `upstreams` is name -> base URL."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    command = node_command(name, listener=listener, cache_root=directory / name)
    command += [word for pair in upstreams.items() for word in ("--upstream", "=".join(pair))]
    log_file = directory / f"{name}.log"
    with Service([*command, *flags], log_file=log_file, listener=listener) as node:
        node.wait_ready()
        yield node


@contextmanager
def start_router(
    *, directory: Path, nodes: Mapping[str, str], flags: Sequence[str] = ()
) -> Iterator[Service]:
    """Run one router, ready, before `nodes` (name -> base URL)."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    command = router_command(listener=listener)
    command += [word for pair in nodes.items() for word in ("--node", "=".join(pair))]
    log_file = directory / "router.log"
    with Service([*command, *flags], log_file=log_file, listener=listener) as router:
        router.wait_ready()
        yield router


def clean_env() -> dict[str, str]:
    """Return this process's environment without what would configure Goblet or a proxy."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GOBLET_") and not name.lower().endswith("_proxy")
    }


def read_metrics(base: str) -> dict[str, float]:
    """Return the metrics of the service at `base`: `name{label="value"}` -> number."""
    metrics: dict[str, float] = {}
    for family in text_string_to_metric_families(ask(f"{base}/metrics").text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            metrics[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return metrics


def live_process(pid: int) -> Live | None:
    """Return what /proc shows of the process; None if it is gone or a zombie."""
    try:
        # The name in parentheses may hold anything; the state and the parent follow it.
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        cmdline = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    argv = tuple(cmdline.decode(errors="replace").split("\0")[:-1])
    return Live(pid=pid, parent=int(words[1]), argv=argv) if argv else None


def is_live(once: Live) -> bool:
    """Return whether the process is there still, and not another one by its id."""
    now = live_process(once.pid)
    return now is not None and now.argv == once.argv


def end_leftovers(once: Sequence[Live]) -> list[Live]:
    """Kill those of `once` that have not ended by themselves within `LINGER_LIMIT`; return them."""
    # A node's idle workers see its end a moment later, and end then.
    deadline = time.monotonic() + LINGER_LIMIT
    while (left := [live for live in once if is_live(live)]) and time.monotonic() < deadline:
        time.sleep(_POLL)
    for live in left:
        with suppress(ProcessLookupError):
            os.kill(live.pid, signal.SIGKILL)
    return left


def descendants(pid: int) -> list[Live]:
    """Return the live processes below `pid`, parents before their children."""
    children: dict[int, list[Live]] = {}
    for entry in Path("/proc").iterdir():
        live = live_process(int(entry.name)) if entry.name.isdigit() else None
        if live is not None:
            children.setdefault(live.parent, []).append(live)
    found: list[Live] = []
    waiting = [pid]
    while waiting:
        below = sorted(children.get(waiting.pop(0), []), key=lambda live: live.pid)
        found += below
        waiting += [live.pid for live in below]
    return found


def listening_port(pid: int) -> int:
    """Return the TCP port on which the process listens (the first, if there are several).

    Raises:
        LookupError: it listens nowhere, or is gone.
    """
    inodes = set()
    with suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                inodes.add(os.readlink(link))
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
            return int(words[1].rpartition(":")[2], 16)
    raise LookupError(f"process {pid} listens on no port")

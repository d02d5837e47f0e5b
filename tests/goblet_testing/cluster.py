"""The real thing: `goblet up`, a router and its nodes as processes on loopback."""

import json
import os
import re
import signal
import sys
import time
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from goblet_testing.asks import ask
from goblet_testing.processes import (
    START_LIMIT,
    Live,
    Running,
    descendants,
    end_leftovers,
    listening_port,
    read_metrics,
)

HOST = "origin.test"
"""The name under which the cluster knows the origin."""
MIRRORED_WITHIN = 60.0
"""Seconds for a node to take in what a cold clone brought."""
_KILL_LIMIT = 5.0


class LeftBehind(Exception):
    """`goblet up` did not end in time, or processes that it started did not end with it."""


class Cluster:
    """`goblet up` before one origin; entering waits until it is ready, leaving ends it.

    `directory` gets the nodes' caches and the log.
    """

    def __init__(
        self,
        origin_url: str,
        directory: Path,
        *,
        nodes: int = 3,
        flags: Sequence[str] = (),
        start_within: float = START_LIMIT,
    ) -> None:
        self._command = [sys.executable, "-m", "goblet_router", "up"]
        self._command += ["--nodes", str(nodes), "--listen", "127.0.0.1:0"]
        self._command += ["--data", str(directory / "data")]
        self._command += ["--upstream", f"{HOST}={origin_url}", *flags]
        self._log_file = directory / "up.log"
        self._start_within = start_within
        self.ready_line = ""
        self.base = ""

    def __enter__(self) -> Self:
        self.up = Running(self._command, log_file=self._log_file)
        try:
            self.ready_line = self.up.first_line(within=self._start_within)
            address = re.search(r"http://[^/\s]+", self.ready_line)
            if address is None:
                raise self.up.failed(f"said {self.ready_line!r}, which names no URL")
            self.base = address[0]
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        left = self._end()
        if error is not None:
            return
        if self.up.was_killed:
            raise LeftBehind(f"`goblet up` did not end when told\n{self.log[-4000:]}")
        if left:
            raise LeftBehind(f"`goblet up` ended without ending {left}\n{self.log[-4000:]}")

    def _end(self) -> list[Live]:
        """End all; return the processes that `up` did not end and that were killed here."""
        below = self.processes()
        self.up.stop()
        return end_leftovers(below)

    @property
    def log(self) -> str:
        """What router and nodes wrote to stderr so far."""
        return self.up.log

    @property
    def pid(self) -> int:
        """The process that keeps the others."""
        return self.up.pid

    def url(self, repo: str) -> str:
        """Return the clone URL of the origin's `repo`."""
        return f"{self.base}/{HOST}/{repo}"

    def processes(self) -> list[Live]:
        """Return what runs below `up`: router, nodes, their workers."""
        return descendants(self.pid)

    def node_pid(self, name: str) -> int:
        """Return the id of the node's main process.

        Raises:
            LookupError: no such node runs.
        """
        for live in self.processes():  # parents first, so a forked worker is not taken for it
            if live.node_name == name:
                return live.pid
        raise LookupError(f"no node {name!r} runs")

    def router_pid(self) -> int:
        """Return the id of the router's process.

        Raises:
            LookupError: it does not run.
        """
        for live in self.processes():
            if "goblet_router" in live.argv:
                return live.pid
        raise LookupError("no router runs")

    def kill_node(self, name: str) -> None:
        """End the node as a crash would, and return when it is gone."""
        pid = self.node_pid(name)
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + _KILL_LIMIT
        while any(live.pid == pid for live in self.processes()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} (process {pid}) is there after SIGKILL")
            time.sleep(0.01)

    def owners(self, repo: str) -> list[str]:
        """Return the names of the nodes that own `repo`, in the router's order."""
        query = urllib.parse.urlencode({"repo": f"{HOST}/{repo}"})
        answer = ask(f"{self.base}/-/ring/locate?{query}")
        if answer.status != 200:
            raise LookupError(f"{answer.status} {answer.text}")
        owners: list[str] = json.loads(answer.body)["owners"]
        return owners

    def node_url(self, name: str) -> str:
        """Return the node's own base URL."""
        return f"http://127.0.0.1:{listening_port(self.node_pid(name))}"

    def metrics(self, name: str = "router") -> dict[str, float]:
        """Return the metrics of a node, or of the router."""
        return read_metrics(self.base if name == "router" else self.node_url(name))

    def wait_until_mirrored(self, name: str, count: int = 1) -> None:
        """Return when the node holds `count` mirrors: it takes one in after the cold clone's end.

        Raises:
            TimeoutError: it did not within `MIRRORED_WITHIN`.
        """
        status = f"{self.node_url(name)}/-/status"
        deadline = time.monotonic() + MIRRORED_WITHIN
        while json.loads(ask(status).body)["mirrors"] < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} holds no {count} mirrors after {MIRRORED_WITHIN:g} s")
            time.sleep(0.05)

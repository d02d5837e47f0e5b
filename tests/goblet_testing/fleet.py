"""Nodes and routers of one cluster as real processes, each of which may die, return or leave."""

import json
import os
import secrets
import signal
import socket
import time
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from goblet_testing.asks import ask
from goblet_testing.origin import Origin
from goblet_testing.processes import (
    Live,
    Service,
    descendants,
    end_leftovers,
    node_command,
    router_command,
)
from goblet_testing.stand import HOST

UNTIL_WITHIN = 20.0
"""Seconds after which `until` gives up, unless it is told."""
_POLL = 0.02
_WATCH = ["--members-poll-seconds", "0.1", "--probe-interval-seconds", "0.2"]

T = TypeVar("T")


def until(fact: Callable[[], T], within: float = UNTIL_WITHIN, *, what: str = "") -> T:
    """Return what `fact()` gives as soon as that is true; `what` names it where it fails.

    Raises:
        TimeoutError: it was not within so many seconds.
    """
    deadline = time.monotonic() + within
    while not (found := fact()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what or fact} did not come within {within:g} s: {found!r}")
        time.sleep(_POLL)
    return found


class Seat:
    """A port of loopback that is one service's for good, whether it runs or not.

    While it does not run, whoever connects is refused, and nobody else gets the port.
    """

    def __init__(self) -> None:
        # Bound but not listening: the kernel then gives the port to no one who asks for
        # any, and still lets those listen on it who ask for this one with SO_REUSEADDR.
        self._holder = socket.socket()
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._holder.bind(("127.0.0.1", 0))
        self.port: int = self._holder.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def listen(self) -> socket.socket:
        """Return a socket that listens on the port; the caller closes it."""
        return socket.create_server(("127.0.0.1", self.port), backlog=1024)

    def give_up(self) -> None:
        """Leave the port to others."""
        self._holder.close()


class Fleet:
    """An origin, nodes named goblet-1 and so on, and routers, which all watch one members file.

    A context manager. Entering waits until every router has found every node ready. Leaving
    ends all processes at once, without draining, and holds every log to having no traceback in it.
    `directory` gets the origin's `root` (unless one is given), the caches and the logs.
    Later flags replace those that the fleet gives itself.
    """

    def __init__(
        self,
        directory: Path,
        *,
        nodes: int = 3,
        routers: int = 1,
        node_flags: Sequence[str] = (),
        router_flags: Sequence[str] = (),
        users: Mapping[str, str] | None = None,
        root: Path | None = None,
    ) -> None:
        self.directory = directory
        self.members_file = directory / "members.json"
        self.secret_file = directory / "secret"
        root = root or directory / "root"
        root.mkdir(parents=True, exist_ok=True)
        self.origin = Origin(root, users=users)
        self._node_flags = node_flags
        self._router_flags = router_flags
        self._first = [f"goblet-{number}" for number in range(1, nodes + 1)]
        self._router_count = routers
        self._seats: dict[str, Seat] = {}
        self._flags: dict[str, Sequence[str]] = {}
        self._nodes: dict[str, Service] = {}
        self._ended: list[Live] = []
        self.routers: list[Service] = []
        self.names: list[str] = []
        """Who is in the members file."""

    def __enter__(self) -> Self:
        self.secret_file.write_text(secrets.token_hex(32))
        self.secret_file.chmod(0o600)
        self.origin.__enter__()
        try:
            for name in self._first:
                self._seats[name] = Seat()
            self.set_members(self._first)
            for name in self._first:
                self._start_node(name)
            for _ in range(self._router_count):
                self._start_router(())
            for service in (*self._nodes.values(), *self.routers):
                service.wait_ready()
            self.wait_settled()
        except BaseException as exc:
            self._end(exc)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end(error)
        if error is None:
            self.check_logs()

    @property
    def router(self) -> Service:
        """The first router."""
        return self.routers[0]

    def node(self, name: str) -> Service:
        """Return the node, as it was last started."""
        return self._nodes[name]

    def node_url(self, name: str) -> str:
        """Return where the node listens whenever it runs."""
        return self._seats[name].url

    def url(self, repo: str) -> str:
        """Return the clone URL of the origin's `repo` at the first router."""
        return self.router.url(f"{HOST}/{repo}")

    def owners(self, repo: str) -> list[str]:
        """Return the names of the nodes that own `repo`, in the first router's order."""
        query = urllib.parse.urlencode({"repo": f"{HOST}/{repo}"})
        answer = ask(f"{self.router.base}/-/ring/locate?{query}")
        if answer.status != 200:
            raise LookupError(f"{answer.status} {answer.text}")
        owners: list[str] = json.loads(answer.body)["owners"]
        return owners

    def states(self, router: int = 0) -> dict[str, str]:
        """Return the state of each member in a router's eyes, by name."""
        answer = ask(f"{self.routers[router].base}/-/ring")
        return {member["name"]: member["state"] for member in json.loads(answer.body)["members"]}

    def wait_settled(self) -> None:
        """Return when every router finds everyone in the members file ready, and nobody else.

        Raises:
            TimeoutError: that is not so within `UNTIL_WITHIN`.
        """
        wanted = dict.fromkeys(self.names, "ready")
        for number in range(len(self.routers)):
            until(
                lambda number=number: self.states(number) == wanted,  # type: ignore[misc]
                what=f"everyone ready at router-{number + 1}, who sees {self.states(number)},",
            )

    def add_node(self, name: str, flags: Sequence[str] = ()) -> Service:
        """Start a node that was not there and add it to the members; it may not be ready yet."""
        self._seats[name] = Seat()
        self._flags[name] = flags
        node = self._start_node(name)
        self.set_members([*self.names, name])
        return node

    def add_router(self, flags: Sequence[str] = ()) -> Service:
        """Start one more router, which is ready when this returns."""
        router = self._start_router(flags)
        router.wait_ready()
        return router

    def remove(self, name: str) -> None:
        """Take a node out of the members file; it runs on."""
        self.set_members([other for other in self.names if other != name])

    def set_members(self, names: Iterable[str]) -> None:
        """Have the members file name these nodes, all at once."""
        self.names = list(names)
        nodes = {name: self.node_url(name) for name in self.names}
        fresh = self.members_file.with_suffix(".new")
        fresh.write_text(json.dumps({"nodes": nodes}))
        fresh.replace(self.members_file)

    def kill(self, name: str) -> None:
        """End the node as a crash would, and return when it is gone."""
        node = self._nodes[name]
        self._ended += descendants(node.pid)
        node.stop(number=signal.SIGKILL)

    def terminate(self, name: str) -> None:
        """Tell the node to drain and end, and return at once."""
        self._ended += descendants(self._nodes[name].pid)
        self._nodes[name].tell(signal.SIGTERM)

    def restart(self, name: str, flags: Sequence[str] | None = None) -> Service:
        """Start an ended node again, on its port and with its cache; it may not be ready yet.

        With `flags` those take the place of the ones that it was added with.
        """
        self._nodes[name].end()
        if flags is not None:
            self._flags[name] = flags
        return self._start_node(name)

    def check_logs(self) -> None:
        """Hold every log to having no traceback in it."""
        for service in (*self._nodes.values(), *self.routers):
            service.check_log()

    def _start_node(self, name: str) -> Service:
        listener = self._seats[name].listen()
        command = node_command(name, listener=listener, cache_root=self.directory / name)
        command += ["--upstream", f"{HOST}={self.origin.url}"]
        command += [*self._members(), *self._node_flags, *self._flags.get(name, ())]
        log_file = self.directory / f"{name}.log"
        self._nodes[name] = Service(command, log_file=log_file, listener=listener)
        return self._nodes[name]

    def _start_router(self, flags: Sequence[str]) -> Service:
        name = f"router-{len(self.routers) + 1}"
        seat = self._seats[name] = Seat()
        listener = seat.listen()
        command = [*router_command(listener=listener), *self._members()]
        command += ["--upstream", f"{HOST}={self.origin.url}", *self._router_flags, *flags]
        router = Service(command, log_file=self.directory / f"{name}.log", listener=listener)
        self.routers.append(router)
        return router

    def _members(self) -> list[str]:
        command = ["--members-file", str(self.members_file), *_WATCH]
        return [*command, "--cluster-secret-file", str(self.secret_file)]

    def _end(self, error: BaseException | None) -> None:
        services = [*self._nodes.values(), *self.routers]
        for service in services:
            self._ended += descendants(service.pid)
            service.tell(signal.SIGINT)
            service.tell(signal.SIGCONT)  # a test may have stopped it
        for service in services:
            service.end()
        end_leftovers(self._ended)
        for seat in self._seats.values():
            seat.give_up()
        self.origin.__exit__(type(error) if error else None, error, None)
        deaf = [service.pid for service in services if service.was_killed]
        if deaf and error is None:
            raise TimeoutError(
                f"processes {deaf} did not end when told; see {os.fspath(self.directory)}"
            )

"""A whole cluster on one machine: `goblet up` starts the processes, watches them, stops them."""

import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import trio
from pydantic import Field

from goblet_router.child import Child
from goblet_router.errors import StartFailed
from goblet_shared.errors import GobletError
from goblet_shared.serve import listening_socket, stop_on_signals
from goblet_shared.settings import ProcessSettings

# Python, numpy and a mirror's recovery: seconds on a busy machine with a cold
# disk cache. Longer than this, something is wrong.
_START_WITHIN = 60.0
# Of that, for a node that was not there last time, to copy what it will own.
_JOIN_WITHIN = 30.0
_LOOK_EVERY = 0.05

_ROUTER = "router"


class LocalSettings(ProcessSettings):
    """How `goblet up` lays out its cluster."""

    nodes: int = Field(default=3, ge=1, le=64, description="How many cache nodes to start.")
    listen: str = Field(default="127.0.0.1:8080", description="Where clients connect: HOST:PORT.")
    data: Path | None = Field(
        default=None,
        description="Where the nodes keep their mirrors, in a directory each. Without it: "
        "goblet under $XDG_CACHE_HOME or ~/.cache.",
    )
    upstream: dict[str, str] = Field(
        default_factory=dict,
        description="NAME=URL: repositories of the host NAME are fetched from this base URL; "
        "repeat it for each. The usual hosts need none.",
    )
    grace_seconds: float = Field(
        default=10.0,
        gt=0,
        description="How long the processes have to end after Ctrl-C or SIGTERM.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One process to start: where it will answer, and its command but for `--listen`."""

    name: str
    listener: socket.socket
    url: str
    command: tuple[str, ...]


def data_directory(settings: LocalSettings, environment: Mapping[str, str]) -> Path:
    """Return where the mirrors go: what was asked for, or the user's cache directory."""
    if settings.data is not None:
        return settings.data.absolute()
    cache = environment.get("XDG_CACHE_HOME", "")
    # The XDG specification tells to ignore relative paths.
    base = Path(cache) if os.path.isabs(cache) else Path.home() / ".cache"
    return base / "goblet"


def secret_in(data: Path) -> Path:
    """Return the file with the cluster's secret, which is made if it is not there yet.

    Raises:
        GobletError: it cannot be made.
    """
    path = data / "cluster-secret"
    if path.exists():
        return path
    aside = path.with_name(f"{path.name}.new")
    try:
        data.mkdir(parents=True, exist_ok=True)
        aside.unlink(missing_ok=True)
        aside.touch(mode=0o600)
        aside.write_text(f"{secrets.token_hex(32)}\n")
        aside.rename(path)
    except OSError as exc:
        raise GobletError(f"{path} cannot be made: {exc.strerror}") from exc
    return path


def clone_command(base: str, hosts: Iterable[str]) -> str:
    """Return a `git clone` for the first of `hosts`, to be completed by the user."""
    return f"git clone {base}/{next(iter(hosts), 'github.com')}/<owner>/<repo>"


async def run_cluster(
    settings: LocalSettings, *, data: Path, write_line: Callable[[str], None]
) -> None:
    """Run a router and its nodes until a signal comes or the router ends.

    One line on stdout says when everything is ready; `write_line` gets the rest.
    When this returns or raises, none of the processes lives.

    Raises:
        StartFailed: a process ended before it was ready, or was not ready in time;
            or the router ended later.
        GobletError: an address cannot be listened at.
    """
    stop = trio.Event()
    parts = _lay_out(settings, data)
    children: list[Child] = []
    failure: GobletError | None = None
    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(stop_on_signals, stop)
            # The router last: of nodes that still join it would make a ring of some.
            for batch in (parts[:-1], parts[-1:]):
                for part in () if stop.is_set() else batch:
                    child = _start(part)
                    children.append(child)
                    nursery.start_soon(child.run, write_line)
                await _until_ready(batch, children, stop)
            if not stop.is_set():
                print(f"ready: {clone_command(parts[-1].url, settings.upstream)}", flush=True)
                await _until_over(children, stop, write_line)
                await _stop(children, settings.grace_seconds, write_line)
        except GobletError as exc:
            failure = exc  # kept from the nursery, which would wrap it in a group
        finally:
            for part in parts:
                part.listener.close()
            # Also those that a signal met before all were ready: they serve nobody yet,
            # and some would not hear one.
            for child in children:
                child.kill()
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _lay_out(settings: LocalSettings, data: Path) -> list[Part]:
    """Return what to start, the router last, with every listening socket open already.

    So there is no free port to lose between looking and binding, and all know the
    nodes' addresses before any of them runs.
    """
    addresses = {f"goblet-{number + 1}": "127.0.0.1:0" for number in range(settings.nodes)}
    listeners: dict[str, socket.socket] = {}
    try:
        for name, address in {**addresses, _ROUTER: settings.listen}.items():
            listeners[name] = listening_socket(address)
        cluster = [f"--node={name}={_url_of(listeners[name])}" for name in addresses]
        cluster += ["--cluster-secret-file", str(secret_in(data))]
    except BaseException:
        for listener in listeners.values():
            listener.close()
        raise
    upstreams = [f"--upstream={name}={url}" for name, url in settings.upstream.items()]
    common = ["--join-seconds", f"{_JOIN_WITHIN:g}", *upstreams]
    commands = {
        name: ("goblet_node", "--name", name, "--cache-root", str(data / name), *common)
        for name in addresses
    }
    commands[_ROUTER] = ("goblet_router", "router", *upstreams)
    return [
        Part(name=name, listener=it, url=_url_of(it), command=(*commands[name], *cluster))
        for name, it in listeners.items()
    ]


def _start(part: Part) -> Child:
    number = part.listener.fileno()
    # What the user set for all processes is theirs too, but a config file is
    # ours: to them, its keys would be unknown.
    environment = {name: value for name, value in os.environ.items() if name != "GOBLET_CONFIG"}
    # -P: a file called trio.py where the user stands is not our trio.
    command = [sys.executable, "-P", "-m", *part.command, "--listen", f"fd://{number}"]
    child = Child.start(part.name, command, inherit=(number,), environment=environment)
    # With our copy open, a dead node's port would still take connections, and
    # whoever came would hang.
    part.listener.close()
    return child


async def _until_ready(parts: Sequence[Part], children: Sequence[Child], stop: trio.Event) -> None:
    """Return when every /readyz says ready, or when a signal came."""
    failure: StartFailed | None = None
    with trio.move_on_after(_START_WITHIN) as waiting:
        async with trio.open_nursery() as nursery:

            async def no_child_ends(child: Child) -> None:
                nonlocal failure
                await child.ended()
                failure = StartFailed(
                    f"{child.name} ended with {child.fate} before it was ready; its last lines:\n"
                    f"{child.last_lines}"
                )
                nursery.cancel_scope.cancel()

            async def no_signal_comes() -> None:
                await stop.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(no_signal_comes)
            for child in children:
                nursery.start_soon(no_child_ends, child)
            await _all_answer(parts)
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if waiting.cancelled_caught:
        raise StartFailed(f"the cluster was not ready after {_START_WITHIN:g} s; the log has why")


async def _all_answer(parts: Iterable[Part]) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        for part in parts:
            await _answers(client, f"{part.url}/readyz")


async def _answers(client: httpx.AsyncClient, url: str) -> None:
    while True:
        with suppress(httpx.TransportError):
            if (await client.get(url)).is_success:
                return
        await trio.sleep(_LOOK_EVERY)


async def _until_over(
    children: Sequence[Child], stop: trio.Event, write_line: Callable[[str], None]
) -> None:
    """Return at a signal; report each node that ends; raise if the router does."""
    failure: StartFailed | None = None
    async with trio.open_nursery() as nursery:

        async def report(child: Child) -> None:
            nonlocal failure
            await child.ended()
            if child.name == _ROUTER:
                failure = StartFailed(f"the router ended with {child.fate}; the log has why")
                nursery.cancel_scope.cancel()
                return
            write_line(f"{child.name} ended with {child.fate}; its successors take over")

        for child in children:
            nursery.start_soon(report, child)
        await stop.wait()
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _stop(children: Sequence[Child], grace: float, write_line: Callable[[str], None]) -> None:
    """Ask all to end, and wait for that up to `grace` seconds."""
    for child in children:
        # Not SIGTERM, at which nodes hand over what they hold: all go, so nobody takes it.
        child.ask_to_stop(signal.SIGINT)
    with trio.move_on_after(grace) as waiting:
        for child in children:
            await child.ended()
    if waiting.cancelled_caught:
        write_line(f"not every process ended within {grace:g} s; killing the rest")


def _url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    # A wildcard is not an address to connect to.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

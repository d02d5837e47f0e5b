"""The command `goblet`: the only place that builds the router's parts."""

import logging
import os
import resource
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from importlib.metadata import version
from typing import Annotated

import httpx
import trio
import typer
from prometheus_client import CollectorRegistry

from goblet_router.app import build_app
from goblet_router.config import RouterSettings
from goblet_router.health import Health
from goblet_router.lane import Lane, Limits
from goblet_router.local import LocalSettings, data_directory, run_cluster
from goblet_router.metrics import RouterMetrics
from goblet_router.pages import build_pages, ring_id
from goblet_router.proxy import Proxy
from goblet_shared import repo_key
from goblet_shared.contract import NodeName
from goblet_shared.errors import GobletError
from goblet_shared.ring import SLOTS, Ring, slot_of
from goblet_shared.serve import listening_socket, serve, stop_on_signals
from goblet_shared.settings import takes

app = typer.Typer(
    name="goblet",
    help="A caching tier for git clone and git fetch: one endpoint, cache nodes behind it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
ring_app = typer.Typer(help="Ask where repositories are placed; needs no running router.")
app.add_typer(ring_app, name="ring", no_args_is_help=True)

Names = Annotated[
    list[str],
    typer.Option("--node", help="A member as NAME or NAME=URL; repeat it for each."),
]


def _say_version(is_asked: bool) -> None:
    if is_asked:
        print(f"goblet {version('goblet-cluster')}")
        raise typer.Exit


@app.callback()
def goblet(
    version_: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=_say_version),
    ] = False,
) -> None:
    """A caching tier for git clone and git fetch: one endpoint, cache nodes behind it."""


@app.command()
@takes(LocalSettings)
def up(settings: LocalSettings) -> None:
    """Run a router and its cache nodes on this machine, until Ctrl-C.

    Prints one line when everything is ready, with a clone command to copy. The
    processes' logs go to stderr, each line under its process's name. A node that
    ends is reported, and the others take over.
    """
    data = data_directory(settings, os.environ)
    _run(lambda: run_cluster(settings, data=data, write_line=_write_line))


@app.command()
@takes(RouterSettings)
def router(settings: RouterSettings) -> None:
    """Run one router: clients come here, and each repository goes to the node that owns it.

    Settings come from these flags, then from GOBLET_* variables, then from the
    TOML file that --config names.
    """
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    _raise_file_limit()
    _run(lambda: run_router(settings))


@ring_app.command()
def locate(
    repo: Annotated[str, typer.Argument(help="github.com/org/repo, or its https URL.")],
    node: Names,
) -> None:
    """Print a repository's slot, and its owners in the order in which they are asked."""
    try:
        key = repo_key.parse(repo)
    except GobletError as exc:
        raise typer.BadParameter(str(exc), param_hint="REPO") from None
    print(f"{key}  slot {slot_of(key)}  {' '.join(_ring_of(node).owners(key))}")


@ring_app.command()
def show(node: Names) -> None:
    """Print the ring's id, and how many of its slots each member owns."""
    ring = _ring_of(node)
    owned = Counter(ring.order(slot)[0] for slot in range(SLOTS))
    print(f"ring {ring_id(ring)}, {SLOTS} slots")
    for name in ring.members:
        print(f"{name}  {owned[name]} slots  {owned[name] / SLOTS:.1%}")


async def run_router(settings: RouterSettings) -> None:
    """Serve as `settings` say until a signal comes.

    Raises:
        GobletError: the address cannot be listened at.
    """
    listener = listening_socket(settings.listen)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(stop_on_signals, stop)
        await serve_router(settings, listener=listener, registry=CollectorRegistry(), stop=stop)
        nursery.cancel_scope.cancel()


async def serve_router(
    settings: RouterSettings,
    *,
    listener: socket.socket,
    registry: CollectorRegistry,
    stop: trio.Event,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Build the router's parts and serve until `stop` is set; `listener` is closed then."""
    metrics = RouterMetrics(registry)
    ring = Ring.of(member.name for member in settings.members)
    health = Health(
        ring.members, rise=settings.probe_rise, fall=settings.probe_fall, metrics=metrics
    )
    lanes = build_lanes(settings, metrics)
    proxy = Proxy(
        rings=lambda: ring,
        health=health,
        lanes=lanes,
        metrics=metrics,
        fallbacks=settings.fallbacks,
        replay_bytes=settings.replay_bytes,
        idle=settings.idle_seconds,
    )
    pages = build_pages(rings=lambda: ring, health=health, registry=registry)
    try:
        async with trio.open_nursery() as nursery:
            watch = partial(
                health.watch,
                lambda node: lanes[node].probe(),
                interval=settings.probe_interval_seconds,
                patience=settings.probe_timeout_seconds,
            )
            nursery.start_soon(watch)
            await serve(
                build_app(proxy=proxy, pages=pages, metrics=metrics),
                listener=listener,
                keep_alive=settings.keep_alive_seconds,
                grace=settings.grace_seconds,
                stop=stop,
                task_status=task_status,
            )
            nursery.cancel_scope.cancel()
    finally:
        for lane in lanes.values():
            await lane.aclose()


def build_lanes(settings: RouterSettings, metrics: RouterMetrics) -> dict[NodeName, Lane]:
    """Return a lane to each node; the caller closes them."""
    limits = Limits(
        connections=settings.max_connections,
        connect=settings.connect_seconds,
        first_byte=settings.first_byte_seconds,
        idle=settings.idle_seconds,
    )
    # Loading the certificate authorities takes some 50 ms: only if they are needed.
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if any(member.url.startswith("https:") for member in settings.members):
        tls = httpx.create_ssl_context(trust_env=False)
    on_stale = metrics.retried.labels("fresh connection").inc
    return {
        member.name: Lane(member, limits=limits, tls=tls, on_stale=on_stale)
        for member in settings.members
    }


def _ring_of(nodes: list[str]) -> Ring:
    return Ring.of(NodeName(node.partition("=")[0]) for node in nodes)


def _run(main: Callable[[], Awaitable[None]]) -> None:
    try:
        trio.run(main)
    except GobletError as exc:
        print(f"goblet: {exc}", file=sys.stderr)
        raise typer.Exit(1) from None


def _raise_file_limit() -> None:
    # A clone takes two descriptors. The usual soft limit, 1024, spares programs
    # that call select(); trio does not.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _write_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

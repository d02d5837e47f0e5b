"""The command `goblet`: the only place that builds the router's parts."""

import logging
import os
import resource
import socket
import sys
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Annotated

import trio
import typer
from prometheus_client import CollectorRegistry

from goblet_router import tools
from goblet_router.app import build_app
from goblet_router.config import RouterSettings
from goblet_router.haproxy import commands as haproxy
from goblet_router.local import LocalSettings, data_directory, run_cluster
from goblet_router.metrics import MemberMetrics, RouterMetrics
from goblet_router.pages import build_pages
from goblet_router.wiring import build_lanes, build_proxy, build_watch, close_old_lanes
from goblet_router.workers import run_workers, shared_metrics
from goblet_shared.errors import GobletError
from goblet_shared.serve import listening_socket, serve, stop_on_signals
from goblet_shared.settings import takes

app = typer.Typer(
    name="goblet",
    help="A caching tier for git clone and git fetch: one endpoint, cache nodes behind it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(tools.ring_app, name="ring", no_args_is_help=True)
app.command()(tools.warm)
app.command()(tools.purge)
app.add_typer(haproxy.app)


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
    if settings.workers == 1:
        _run(lambda: run_router(settings))
        return
    # The same command, and so the same settings, but for the place and the number.
    command = (sys.executable, "-P", "-m", "goblet_router", *sys.argv[1:], "--workers=1")
    _run(lambda: run_workers(settings, command, environment=os.environ, write_line=_write_line))


async def run_router(settings: RouterSettings) -> None:
    """Serve as `settings` say until a signal comes.

    Raises:
        GobletError: the address cannot be listened at.
    """
    listener = listening_socket(settings.listen)
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(stop_on_signals, stop)
        registry = CollectorRegistry()
        await serve_router(
            settings,
            listener=listener,
            registry=registry,
            scraped=shared_metrics(os.environ) or registry,
            stop=stop,
        )
        nursery.cancel_scope.cancel()


async def serve_router(
    settings: RouterSettings,
    *,
    listener: socket.socket,
    registry: CollectorRegistry,
    scraped: CollectorRegistry | None = None,
    stop: trio.Event,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Build the router's parts and serve until `stop` is set; `listener` is closed then.

    What is counted goes into `registry`, and /metrics shows `scraped`, or the same.
    """
    metrics = RouterMetrics(registry)
    lanes = build_lanes(settings, metrics)
    shown = MemberMetrics(registry, scraped=scraped or registry)
    watch = build_watch(settings, lanes=lanes, observer=shown)
    proxy = build_proxy(settings, members=watch, lanes=lanes, metrics=metrics)
    pages = build_pages(watch=watch, registry=scraped or registry)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(watch.run)
            nursery.start_soon(close_old_lanes, lanes, watch)
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
        await proxy.aclose()


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

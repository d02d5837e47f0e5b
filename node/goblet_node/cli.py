"""The command `goblet-node`: the only place where a node's parts are put together."""

import logging
import socket
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import anyio
import httpx
import trio
import typer
from prometheus_client import CollectorRegistry

from goblet_node.access import Access
from goblet_node.app import Node
from goblet_node.body import Bodies
from goblet_node.config import NodeSettings
from goblet_node.fill.connections import open_client
from goblet_node.fill.hosts import Upstreams
from goblet_node.fill.receive import Receiver
from goblet_node.fill.refresh import Refresher
from goblet_node.fill.refs import RefsDesk
from goblet_node.fill.upstream import Upstream
from goblet_node.metrics import NodeMetrics
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.export import export as export_log
from goblet_node.mirror.store import MirrorStore, read_mirror
from goblet_node.own import build_own
from goblet_node.serve.answer import Answerer
from goblet_shared import repo_key
from goblet_shared.errors import GobletError
from goblet_shared.serve import listening_socket, serve, stop_on_signals
from goblet_shared.settings import takes

log = logging.getLogger("goblet_node")


cli = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main(args: Sequence[str]) -> None:
    """Run the command line; options without a command are those of `serve`."""
    words = list(args)
    if words and words[0].startswith("-") and words[0] not in ("--help", "--version"):
        words.insert(0, "serve")
    cli(words, prog_name="goblet-node")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"goblet-node {version('goblet-cluster')}")
        raise typer.Exit


@cli.callback()
def group(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Say the version."),
    ] = False,
) -> None:
    """A cache node of Goblet: mirrors repositories and answers git clone and git fetch.

    Without a command it serves: `goblet-node --name goblet-1 --cache-root DIR` is
    short for `goblet-node serve ...`, whose --help lists all settings.
    """


@cli.command("serve")
@takes(NodeSettings)
def serve_node(settings: NodeSettings) -> None:
    """Serve git clients until SIGINT or SIGTERM."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)  # one line a request is ours to write
    try:
        trio.run(run, settings)
    except GobletError as exc:
        raise SystemExit(f"goblet-node: {exc}") from None


@cli.command()
def export(
    repo: Annotated[str, typer.Argument(help="The repository: github.com/owner/name, or its URL.")],
    dest: Annotated[Path, typer.Argument(help="Where to write it; must not exist or be empty.")],
    cache_root: Annotated[
        Path,
        typer.Option(help="The node's folder of mirrors.", envvar="GOBLET_CACHE_ROOT"),
    ],
) -> None:
    """Write a mirror as an ordinary bare repository, also while the node runs."""
    try:
        key = repo_key.parse(repo)
        mirror = read_mirror(cache_root, key)
        export_log(
            segments=[(segment.pack, segment.table) for segment in mirror.segments],
            refs=mirror.refs,
            dest=dest,
        )
    except GobletError as exc:
        raise SystemExit(f"goblet-node: {exc}") from None
    typer.echo(f"{key}: {sum(s.objects for s in mirror.segments)} objects in {dest}")


async def run(settings: NodeSettings) -> None:
    """Serve as `settings` say until a signal stops it."""
    listener = listening_socket(settings.listen)
    agent = f"goblet/{version('goblet-cluster')}"
    metrics = NodeMetrics(CollectorRegistry())
    store = MirrorStore(settings.cache_root, disk=Disk())
    await trio.to_thread.run_sync(store.open)
    try:
        async with (
            _client(settings) as questions,
            _client(settings) as packs,
            trio.open_nursery() as nursery,
        ):
            stop = trio.Event()
            await nursery.start(stop_on_signals, stop)
            upstream = Upstream(
                questions=questions,
                packs=packs,
                hosts=Upstreams(allowed=settings.allow_host, mapped=settings.upstream),
                question_timeout=settings.question_seconds,
                first_byte_timeout=settings.first_byte_seconds,
                idle_timeout=settings.idle_seconds,
                agent=agent,
                metrics=metrics,
            )
            node = _node(settings, agent, metrics, store, upstream, nursery)
            log.info("node %s listens at %s", settings.name, _address(listener))
            await serve(
                node,
                listener=listener,
                keep_alive=settings.keep_alive_seconds,
                grace=settings.grace_seconds,
                stop=stop,
            )
            nursery.cancel_scope.cancel()
    finally:
        store.close()


def _node(
    settings: NodeSettings,
    agent: str,
    metrics: NodeMetrics,
    store: MirrorStore,
    upstream: Upstream,
    nursery: trio.Nursery,
) -> Node:
    desk = RefsDesk(upstream=upstream, nursery=nursery)
    refresher = Refresher(
        store=store,
        receiver=Receiver(
            store=store,
            upstream=upstream,
            workers=anyio.CapacityLimiter(settings.workers),
            max_object_bytes=settings.max_object_bytes,
            metrics=metrics,
        ),
        desk=desk,
        nursery=nursery,
        retry_after_failure=settings.retry_refresh_seconds,
        metrics=metrics,
    )
    metrics.count_mirrors_with(lambda: len(store.keys()))
    return Node(
        name=settings.name,
        agent=agent,
        access=Access(
            judge=upstream,
            nursery=nursery,
            lifetime=settings.access_seconds,
            metrics=metrics,
        ),
        desk=desk,
        refresher=refresher,
        answerer=Answerer(
            name=settings.name,
            store=store,
            refresher=refresher,
            upstream=upstream,
            refresh_wait=settings.refresh_wait_seconds,
            selectors=anyio.CapacityLimiter(settings.selectors),
        ),
        upstream=upstream,
        metrics=metrics,
        own=build_own(
            registry=metrics.registry,
            status=lambda: {
                "name": settings.name,
                "version": version("goblet-cluster"),
                "state": "ready",
                "mirrors": len(store.keys()),
            },
        ),
        bodies=Bodies(
            limit=settings.max_request_bytes,
            budget=settings.max_bodies_bytes,
            idle=settings.body_idle_seconds,
        ),
    )


def _client(settings: NodeSettings) -> httpx.AsyncClient:
    return open_client(
        most=settings.upstream_connections,
        proxy=settings.upstream_proxy,
        connect_timeout=settings.connect_seconds,
        write_timeout=settings.idle_seconds,
        pool_timeout=settings.first_byte_seconds,
    )


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"{host}:{port}"

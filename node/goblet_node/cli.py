"""The command `goblet-node`: the only place where a node's parts are put together."""

import logging
import socket
import sys
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import trio
import typer
from prometheus_client import CollectorRegistry

from goblet_node.base import Base
from goblet_node.cluster.life import Fact, stop_after_notice
from goblet_node.clustering import build_cluster, build_life, is_member, notice_of
from goblet_node.config import NodeSettings
from goblet_node.metrics import NodeMetrics
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.export import export as export_log
from goblet_node.mirror.guest import with_mirror
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.store import MirrorStore
from goblet_node.serve.recordings import Recordings
from goblet_node.wiring import (
    build_filling,
    build_node,
    build_policy,
    build_room,
    build_tidier,
    upstream_client,
)
from goblet_shared import repo_key
from goblet_shared.audit import AuditFile, NoAudit
from goblet_shared.cluster_secret import ClusterSecret
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
        objects = with_mirror(cache_root, key, lambda mirror: _export(mirror, dest))
    except GobletError as exc:
        raise SystemExit(f"goblet-node: {exc}") from None
    typer.echo(f"{key}: {objects} objects in {dest}")


def _export(mirror: Mirror, dest: Path) -> int:
    export_log(segments=mirror.files, refs=mirror.refs, dest=dest)
    return mirror.current.objects


async def run(settings: NodeSettings) -> None:
    """Serve as `settings` say until a signal stops it, or until it was told to go and is done."""
    listener = listening_socket(settings.listen)
    secret = None
    if settings.cluster_secret_file is not None:
        secret = ClusterSecret.read(settings.cluster_secret_file)
    audit = NoAudit() if settings.audit_log is None else AuditFile(settings.audit_log)
    metrics = NodeMetrics(CollectorRegistry())
    store = MirrorStore(settings.cache_root, disk=Disk())
    await trio.to_thread.run_sync(store.open)
    try:
        recordings = Recordings(settings.cache_root, budget=settings.recordings_bytes, disk=Disk())
        await trio.to_thread.run_sync(recordings.open)
        policy = build_policy(settings)
        for key in filter(policy.excludes, store.keys()):
            await trio.to_thread.run_sync(store.drop, key)
            await trio.to_thread.run_sync(recordings.discard, key)
            log.info("the mirror of %s is deleted: it is never to be mirrored", key)
        room = build_room(settings, metrics, store, recordings)
        await room.settle()
        async with (
            upstream_client(settings) as questions,
            upstream_client(settings) as packs,
            trio.open_nursery() as nursery,
        ):
            base = Base(
                settings=settings,
                nursery=nursery,
                metrics=metrics,
                store=store,
                recordings=recordings,
                room=room,
                policy=policy,
                secret=secret,
                audit=audit,
            )
            cluster = build_cluster(base) if is_member(settings) else None
            filling = build_filling(base, cluster, questions=questions, packs=packs)
            nursery.start_soon(build_tidier(base, filling.refresher).run)
            life, stop = build_life(base, cluster), trio.Event()
            leave = partial(life.happens, Fact.TOLD_TO_GO)
            await nursery.start(partial(stop_on_signals, stop, leave=leave))
            if cluster is not None:
                nursery.start_soon(cluster.run, life, stop)
            else:
                nursery.start_soon(stop_after_notice, life, notice_of(settings), stop)
            log.info("node %s listens at %s", settings.name, _address(listener))
            await serve(
                build_node(base, filling, cluster, life),
                listener=listener,
                keep_alive=settings.keep_alive_seconds,
                grace=settings.grace_seconds,
                stop=stop,
            )
            nursery.cancel_scope.cancel()
    finally:
        recordings.close()
        store.close()


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"{host}:{port}"

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
from goblet_node.fill.policy import MirrorPolicy
from goblet_node.fill.receive import Receiver
from goblet_node.fill.refresh import Refresher
from goblet_node.fill.refs import RefsDesk
from goblet_node.fill.room import Room, cap_in
from goblet_node.fill.tidy import Tidier, TidyRules
from goblet_node.fill.upstream import Upstream
from goblet_node.metrics import NodeMetrics
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.export import export as export_log
from goblet_node.mirror.guest import with_mirror
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.store import MirrorStore
from goblet_node.mirror.wear import Bounds
from goblet_node.own import build_own
from goblet_node.serve.advertise import Advertiser
from goblet_node.serve.answer import Answerer
from goblet_node.serve.cold import Cold
from goblet_node.serve.listed import ListedRefs
from goblet_node.serve.phrasing import Phrasing
from goblet_node.serve.recorder import Recorder
from goblet_node.serve.recordings import Recordings
from goblet_node.serve.renew import renew
from goblet_node.serve.selecting import Selector
from goblet_node.serve.whole import Verbatim
from goblet_shared import repo_key
from goblet_shared.errors import GobletError
from goblet_shared.serve import listening_socket, serve, stop_on_signals
from goblet_shared.settings import takes
from goblet_shared.upstreams import Upstreams

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
    """Serve as `settings` say until a signal stops it."""
    listener = listening_socket(settings.listen)
    agent = f"goblet/{version('goblet-cluster')}"
    metrics = NodeMetrics(CollectorRegistry())
    store = MirrorStore(settings.cache_root, disk=Disk())
    await trio.to_thread.run_sync(store.open)
    try:
        recordings = Recordings(settings.cache_root, budget=settings.recordings_bytes, disk=Disk())
        await trio.to_thread.run_sync(recordings.open)
        for key in filter(_policy(settings).excludes, store.keys()):
            await trio.to_thread.run_sync(store.drop, key)
            await trio.to_thread.run_sync(recordings.discard, key)
            log.info("the mirror of %s is deleted: it is never to be mirrored", key)
        room = _room(settings, metrics, store, recordings)
        await room.settle()
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
            node = _node(settings, agent, metrics, store, recordings, room, upstream, nursery)
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
        recordings.close()
        store.close()


def _node(
    settings: NodeSettings,
    agent: str,
    metrics: NodeMetrics,
    store: MirrorStore,
    recordings: Recordings,
    room: Room,
    upstream: Upstream,
    nursery: trio.Nursery,
) -> Node:
    policy = _policy(settings)
    desk = RefsDesk(
        upstream=upstream,
        nursery=nursery,
        freshness=settings.freshness_seconds,
        memory=settings.refs_memory_bytes,
    )
    refresher = Refresher(
        store=store,
        receiver=Receiver(
            store=store,
            upstream=upstream,
            room=room,
            workers=anyio.CapacityLimiter(settings.workers),
            max_object_bytes=settings.max_object_bytes,
            max_mirror_bytes=settings.max_mirror_bytes,
            note_too_large=policy.note_too_large,
            metrics=metrics,
        ),
        desk=desk,
        nursery=nursery,
        retry_after_failure=settings.retry_refresh_seconds,
        policy=policy,
        metrics=metrics,
        discard=recordings.discard,
    )
    nursery.start_soon(_tidier(settings, metrics, store, recordings, room, refresher).run)
    metrics.count_mirrors_with(lambda: len(store.keys()))
    return Node(
        name=settings.name,
        access=Access(
            judge=upstream,
            nursery=nursery,
            lifetime=settings.access_seconds,
            metrics=metrics,
        ),
        advertiser=Advertiser(
            agent=agent,
            desk=desk,
            listed=ListedRefs(agent=agent, nursery=nursery, memory=settings.refs_memory_bytes),
            refresher=refresher,
            upstream=upstream,
        ),
        answerer=Answerer(
            store=store,
            refresher=refresher,
            phrasing=Phrasing(desk=desk),
            recorder=Recorder(
                recordings=recordings,
                store=store,
                room=room,
                nursery=nursery,
                record_after=settings.record_after,
                record_whole_after=settings.record_whole_after,
                metrics=metrics,
            ),
            verbatim=Verbatim(name=settings.name, store=store),
            selector=Selector(
                name=settings.name,
                store=store,
                room=room,
                workers=anyio.CapacityLimiter(settings.selectors),
            ),
            cold=Cold(upstream=upstream),
            refresh_wait=settings.refresh_wait_seconds,
        ),
        metrics=metrics,
        own=build_own(
            registry=metrics.registry,
            status=lambda: {
                "name": settings.name,
                "version": version("goblet-cluster"),
                "state": "ready",
                "mirrors": len(store.keys()),
                "disk": {"cap": room.cap} | {kind: at() for kind, at in room.kinds().items()},
            },
        ),
        bodies=Bodies(
            limit=settings.max_request_bytes,
            budget=settings.max_bodies_bytes,
            idle=settings.body_idle_seconds,
        ),
    )


def _room(
    settings: NodeSettings, metrics: NodeMetrics, store: MirrorStore, recordings: Recordings
) -> Room:
    cap = cap_in(settings.cache_root, settings.cache_bytes)
    room = Room(cap=cap, mirrors=store, recordings=recordings, metrics=metrics)
    metrics.count_disk_with(room.kinds(), cap=cap)
    return room


def _tidier(
    settings: NodeSettings,
    metrics: NodeMetrics,
    store: MirrorStore,
    recordings: Recordings,
    room: Room,
    refresher: Refresher,
) -> Tidier:
    return Tidier(
        store=store,
        room=room,
        is_refreshing=lambda key: refresher.flying(key) is not None,
        drop=refresher.drop,
        renew=renew,
        discard=recordings.discard,
        rules=TidyRules(
            quiet=settings.tidy_quiet_seconds,
            patience=settings.tidy_within_seconds,
            bounds=Bounds(orphans=settings.renew_orphan_percent / 100, depth=settings.renew_depth),
        ),
        metrics=metrics,
    )


def _policy(settings: NodeSettings) -> MirrorPolicy:
    return MirrorPolicy(
        never=settings.never_mirror,
        after=settings.mirror_after,
        within=settings.mirror_after_within_seconds,
        max_refs=settings.max_mirror_refs,
        too_large_for=settings.retry_too_large_seconds,
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

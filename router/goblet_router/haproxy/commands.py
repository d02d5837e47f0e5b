"""The commands of `goblet haproxy`; they build its parts."""

import logging
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import httpx
import trio
import typer

from goblet_router.haproxy.files import write_files
from goblet_router.haproxy.following import Following, NoPlacement, RouterRing, WatchedMembers
from goblet_router.haproxy.placement import Placement
from goblet_router.haproxy.render import CONFIG, render
from goblet_router.haproxy.runtime import RuntimeApi
from goblet_router.haproxy.settings import HAProxySettings
from goblet_router.haproxy.sync import Sync
from goblet_shared.discovery import source_of
from goblet_shared.errors import GobletError
from goblet_shared.listing import Source
from goblet_shared.members import Member, MemberState, state_said
from goblet_shared.membership import Rules
from goblet_shared.ring import ring_id
from goblet_shared.serve import stop_on_signals
from goblet_shared.settings import takes
from goblet_shared.watch import MemberView, MemberWatch

app = typer.Typer(
    name="haproxy",
    help="HAProxy in the router's place, with the very same ring.",
    no_args_is_help=True,
)

_T = TypeVar("_T")
Directory = Annotated[
    Path, typer.Argument(help="Where HAProxy's files are written: haproxy.cfg and the maps.")
]


@app.command("render")
@takes(HAProxySettings)
def render_files(settings: HAProxySettings, directory: Directory) -> None:
    """Write haproxy.cfg, and a map of slots for each rank, as the ring says now.

    Start HAProxy with them as `haproxy -W -f DIRECTORY/haproxy.cfg`. The directory may be
    copied or mounted elsewhere: HAProxy looks for the maps beside the configuration.
    """
    placement = _run(lambda: learn(settings))
    try:
        changed = write_files(directory, render(placement, settings))
    except GobletError as exc:
        raise _failed(exc) from None
    names = ", ".join(changed) or "nothing, all is as it was"
    print(f"ring {ring_id(placement.ring)}, members: {len(placement.members)}; wrote {names}")
    print(f"haproxy -W -f {directory / CONFIG}")


@app.command()
@takes(HAProxySettings)
def sync(settings: HAProxySettings, directory: Directory) -> None:
    """Keep a running HAProxy, and its files, at the ring of now, until a signal comes.

    No reload is needed: servers and maps change through the runtime API. While nothing
    can be learned, or HAProxy does not answer, all stays as it is.
    """
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs each probe
    _run(lambda: follow(settings, directory))


async def follow(settings: HAProxySettings, directory: Path) -> None:
    """Do what `goblet haproxy sync` does, until a signal comes."""
    stop = trio.Event()
    # Here, where what is wrong with it is an error and not yet a group of one.
    source = None if settings.router is not None else _source(settings)
    async with open_client() as client, trio.open_nursery() as nursery:
        await nursery.start(stop_on_signals, stop)
        following = await _begin_following(settings, source, client, nursery)
        api = RuntimeApi(settings.socket)
        sync = Sync(following, api, directory=directory, settings=settings)
        nursery.start_soon(sync.run)
        await stop.wait()
        nursery.cancel_scope.cancel()


async def learn(settings: HAProxySettings) -> Placement:
    """Return the placement of now: the router's, or the one over all members that are listed.

    Raises:
        GobletError: it cannot be learned, or there are no members.
    """
    if settings.router is not None:
        async with open_client() as client:
            return await _router_ring(settings, client).look()
    return Placement.over((await _source(settings).look()).members)


def open_client() -> httpx.AsyncClient:
    """Return a client for members and routers; the environment's proxies are not for it."""
    return httpx.AsyncClient(trust_env=False, timeout=None, follow_redirects=False)


async def probe(client: httpx.AsyncClient, member: Member) -> MemberState | None:
    """Return what a node says of itself; None if it gives no proper answer.

    The caller bounds the time.
    """
    try:
        answer = await client.get(f"{member.url}/readyz", headers={"connection": "close"})
    except httpx.HTTPError:
        return None
    return state_said(answer.status_code, answer.content)


async def _begin_following(
    settings: HAProxySettings,
    source: Source | None,
    client: httpx.AsyncClient,
    nursery: trio.Nursery,
) -> Following:
    """Learn the placement from now on, in `nursery`; return once there was a first look.

    Without a source of members, from the router.
    """
    if source is None:
        ring = _router_ring(settings, client)
        await nursery.start(ring.run)
        return ring
    watch = MemberWatch(
        source=source,
        probe=lambda member: probe(client, member),
        rules=Rules(
            rise=settings.probe_rise,
            fall=settings.probe_fall,
            gone_after=settings.gone_after_seconds,
            interval=settings.probe_interval_seconds,
            timeout=settings.probe_timeout_seconds,
        ),
        observer=_Unobserved(),
    )
    await nursery.start(watch.run)
    return WatchedMembers(watch)


def _source(settings: HAProxySettings) -> Source:
    """Return where the members are listed.

    Raises:
        GobletError: the settings name no source, or it cannot be asked on this machine.
    """
    if not (settings.node or settings.members_file or settings.members_dns):
        raise NoPlacement(
            "there are no members: name them with --node NAME=URL, --members-file or "
            "--members-dns, or name a router with --router http://HOST:PORT"
        )
    return source_of(settings)


def _router_ring(settings: HAProxySettings, client: httpx.AsyncClient) -> RouterRing:
    assert settings.router is not None
    return RouterRing(
        settings.router,
        client,
        interval=settings.members_poll_seconds,
        patience=settings.probe_timeout_seconds,
    )


class _Unobserved:
    """Hears what the watch finds; its log says it all."""

    def members_changed(self, views: Sequence[MemberView], *, epoch: int) -> None:
        """Take no note."""

    def discovery_failed(self) -> None:
        """Take no note."""


def _run(main: Callable[[], Awaitable[_T]]) -> _T:
    try:
        return trio.run(main)
    except GobletError as exc:
        raise _failed(exc) from None


def _failed(exc: GobletError) -> typer.Exit:
    print(f"goblet: {exc}", file=sys.stderr)
    return typer.Exit(1)

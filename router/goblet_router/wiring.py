"""The data path's parts, built from the settings."""

from functools import cache

import httpx
import trio

from goblet_router.bypass import Bypass
from goblet_router.config import RouterSettings
from goblet_router.lane import Limits
from goblet_router.lanes import Lanes
from goblet_router.metrics import RouterMetrics
from goblet_router.proxy import Members, Proxy
from goblet_router.redirect import Redirects
from goblet_router.spread import Spread, SpreadRules
from goblet_shared.discovery import source_of
from goblet_shared.members import Member, members_of
from goblet_shared.watch import MemberWatch, Observer


def build_lanes(settings: RouterSettings, metrics: RouterMetrics) -> Lanes:
    """Return the lanes to all nodes; the caller closes them."""
    # Loading the certificate authorities takes some 50 ms: once, and only if needed.
    tls = cache(lambda: httpx.create_ssl_context(trust_env=False))
    on_stale = metrics.retried.labels("fresh connection").inc
    return Lanes(limits=_limits(settings), tls=tls, on_stale=on_stale)


def build_watch(settings: RouterSettings, *, lanes: Lanes, observer: Observer) -> MemberWatch:
    """Return the watch over the nodes that the settings list, who are probed over `lanes`."""
    return MemberWatch(
        source=source_of(settings),
        probe=lanes.probe,
        rules=settings.membership_rules,
        observer=observer,
    )


async def close_old_lanes(lanes: Lanes, watch: MemberWatch) -> None:
    """Close the lanes to nodes that are gone or have moved, for ever."""
    while True:
        views = watch.views
        await lanes.keep(Member(name=view.name, url=view.url) for view in views)
        if watch.views is views:
            await watch.changed()


def build_proxy(
    settings: RouterSettings, *, members: Members, lanes: Lanes, metrics: RouterMetrics
) -> Proxy:
    """Return what forwards to `members`; the caller closes it."""
    rules = SpreadRules(
        factor=settings.spread_factor,
        after=settings.spread_after,
        cool=settings.spread_cool_seconds,
    )
    redirects = Redirects(
        advertised={member.name: member.url for member in members_of(settings.advertise)},
        with_credentials=settings.redirect_credentials,
    )
    return Proxy(
        members=members,
        lanes=lanes,
        spread=Spread(rules, clock=trio.current_time),
        metrics=metrics,
        fallbacks=settings.fallbacks,
        replay_bytes=settings.replay_bytes,
        idle=settings.idle_seconds,
        bypass=_bypass(settings, metrics) if settings.bypass else None,
        redirects=redirects if settings.mode == "redirect" else None,
    )


def _bypass(settings: RouterSettings, metrics: RouterMetrics) -> Bypass:
    lanes = Lanes(
        limits=_limits(settings),
        tls=cache(lambda: httpx.create_ssl_context(trust_env=False)),
        on_stale=metrics.retried.labels("fresh connection").inc,
        may_end_by_close=True,
    )
    return Bypass(upstreams=settings.upstreams, lanes=lanes, replay_bytes=settings.replay_bytes)


def _limits(settings: RouterSettings) -> Limits:
    return Limits(
        connections=settings.max_connections,
        connect=settings.connect_seconds,
        first_byte=settings.first_byte_seconds,
        idle=settings.idle_seconds,
    )

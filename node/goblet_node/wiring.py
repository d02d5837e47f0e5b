"""A node's parts put together, room by room, from the disk up."""

import random
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

import anyio
import httpx
from starlette.routing import BaseRoute

from goblet_node.access.callers import Callers
from goblet_node.access.check import Access
from goblet_node.admin import build_admin
from goblet_node.app import Node
from goblet_node.base import Base
from goblet_node.body import Bodies
from goblet_node.cluster.life import Life
from goblet_node.clustering import Cluster
from goblet_node.config import NodeSettings
from goblet_node.ensure import Ensurer
from goblet_node.fill.breaker import Breakers
from goblet_node.fill.breaker import Rules as BreakerRules
from goblet_node.fill.connections import open_client
from goblet_node.fill.grants import Grants
from goblet_node.fill.outages import Outages
from goblet_node.fill.policy import MirrorPolicy
from goblet_node.fill.receive import Receiver
from goblet_node.fill.refresh import Refresher
from goblet_node.fill.refs import RefsDesk
from goblet_node.fill.retrying import Backoff
from goblet_node.fill.room import Room, cap_in
from goblet_node.fill.stale import StaleRefs
from goblet_node.fill.tidy import Tidier, TidyRules
from goblet_node.fill.upstream import Upstream
from goblet_node.limits import Limits
from goblet_node.metrics import NodeMetrics
from goblet_node.mirror.store import MirrorStore
from goblet_node.mirror.wear import Bounds
from goblet_node.own import build_own
from goblet_node.passing import Passing
from goblet_node.peering import build_peering
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
from goblet_shared.upstreams import Upstreams

AGENT = f"goblet/{version('goblet-cluster')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """Where bytes come from."""

    upstream: Upstream
    grants: Grants
    desk: RefsDesk
    refresher: Refresher
    outages: Outages


def build_room(
    settings: NodeSettings, metrics: NodeMetrics, store: MirrorStore, recordings: Recordings
) -> Room:
    """Return the room on the disk, with the metrics that show it."""
    cap = cap_in(settings.cache_root, settings.cache_bytes)
    room = Room(cap=cap, mirrors=store, recordings=recordings, metrics=metrics)
    metrics.count_disk_with(room.kinds(), cap=cap)
    return room


def build_policy(settings: NodeSettings) -> MirrorPolicy:
    """Return what decides which repositories are mirrored."""
    return MirrorPolicy(
        never=settings.never_mirror,
        after=settings.mirror_after,
        within=settings.mirror_after_within_seconds,
        max_refs=settings.max_mirror_refs,
        too_large_for=settings.retry_too_large_seconds,
    )


def upstream_client(settings: NodeSettings) -> httpx.AsyncClient:
    """Return connections to upstreams; the caller closes them."""
    return open_client(
        most=settings.upstream_connections,
        proxy=settings.upstream_proxy,
        connect_timeout=settings.connect_seconds,
        write_timeout=settings.idle_seconds,
        pool_timeout=settings.first_byte_seconds,
    )


def build_filling(
    base: Base,
    cluster: Cluster | None,
    *,
    questions: httpx.AsyncClient,
    packs: httpx.AsyncClient,
) -> Filling:
    """Return the room `fill`."""
    settings, policy = base.settings, base.policy
    grants = Grants()
    upstream = Upstream(
        questions=questions,
        packs=packs,
        hosts=Upstreams(allowed=settings.allow_host, mapped=settings.upstream),
        question_timeout=settings.question_seconds,
        first_byte_timeout=settings.first_byte_seconds,
        idle_timeout=settings.idle_seconds,
        pack_idle_timeout=settings.pack_idle_seconds,
        breakers=Breakers(
            rules=BreakerRules(failures=settings.breaker_failures, rest=settings.breaker_seconds),
            metrics=base.metrics,
            random=random.random,
        ),
        backoff=Backoff(tries=settings.upstream_tries),
        agent=AGENT,
        metrics=base.metrics,
        refused=grants.refused,
    )
    desk = RefsDesk(
        upstream=upstream,
        nursery=base.nursery,
        freshness=settings.freshness_seconds,
        memory=settings.refs_memory_bytes,
    )
    refresher = Refresher(
        store=base.store,
        receiver=Receiver(
            store=base.store,
            upstream=upstream,
            room=base.room,
            workers=anyio.CapacityLimiter(settings.workers),
            max_object_bytes=settings.max_object_bytes,
            max_mirror_bytes=settings.max_mirror_bytes,
            note_too_large=policy.note_too_large,
            metrics=base.metrics,
        ),
        desk=desk,
        nursery=base.nursery,
        retry_after_failure=settings.retry_refresh_seconds,
        policy=policy,
        metrics=base.metrics,
        discard=base.recordings.discard,
        copies=None if cluster is None else cluster.copier,
    )
    return Filling(
        upstream=upstream,
        grants=grants,
        desk=desk,
        refresher=refresher,
        outages=Outages(metrics=base.metrics),
    )


def build_tidier(base: Base, refresher: Refresher) -> Tidier:
    """Return what sees to mirrors while it is quiet."""
    settings = base.settings
    return Tidier(
        store=base.store,
        room=base.room,
        is_refreshing=lambda key: refresher.flying(key) is not None,
        drop=refresher.drop,
        renew=renew,
        discard=base.recordings.discard,
        rules=TidyRules(
            quiet=settings.tidy_quiet_seconds,
            patience=settings.tidy_within_seconds,
            bounds=Bounds(orphans=settings.renew_orphan_percent / 100, depth=settings.renew_depth),
        ),
        metrics=base.metrics,
    )


def build_answerer(base: Base, filling: Filling) -> Answerer:
    """Return the part of the room `serve` that answers fetches."""
    settings = base.settings
    return Answerer(
        store=base.store,
        refresher=filling.refresher,
        phrasing=Phrasing(desk=filling.desk),
        recorder=Recorder(
            recordings=base.recordings,
            store=base.store,
            room=base.room,
            nursery=base.nursery,
            record_after=settings.record_after,
            record_whole_after=settings.record_whole_after,
            metrics=base.metrics,
        ),
        verbatim=Verbatim(name=settings.name, store=base.store),
        selector=Selector(
            name=settings.name,
            store=base.store,
            room=base.room,
            workers=anyio.CapacityLimiter(settings.selectors),
        ),
        cold=Cold(upstream=filling.upstream),
        refresh_wait=settings.refresh_wait_seconds,
        copy_wait=settings.peer_wait_seconds,
    )


def build_advertiser(base: Base, filling: Filling) -> Advertiser:
    """Return the part of the room `serve` that tells refs."""
    settings = base.settings
    memory = settings.refs_memory_bytes
    stale = StaleRefs(
        desk=filling.desk,
        store=base.store,
        confirmed=filling.refresher.confirmed,
        stale=settings.stale_seconds,
        stale_after=settings.stale_after_seconds,
        outages=filling.outages,
    )
    return Advertiser(
        agent=AGENT,
        desk=filling.desk,
        stale=stale,
        listed=ListedRefs(agent=AGENT, nursery=base.nursery, memory=memory),
        refresher=filling.refresher,
        upstream=filling.upstream,
    )


def build_node(base: Base, filling: Filling, cluster: Cluster | None, life: Life) -> Node:
    """Return the application."""
    settings, store, metrics = base.settings, base.store, base.metrics
    metrics.count_mirrors_with(lambda: len(store.keys()))
    access = Access(
        judge=filling.upstream,
        grants=filling.grants,
        nursery=base.nursery,
        lifetime=settings.access_seconds,
        metrics=metrics,
        outages=filling.outages,
        stale=settings.stale_seconds,
        stale_after=settings.stale_after_seconds,
    )
    return Node(
        name=settings.name,
        callers=Callers(),
        limits=Limits(requests=settings.max_requests, per_caller=settings.max_requests_per_caller),
        access=access,
        passing=Passing(),
        advertiser=build_advertiser(base, filling),
        answerer=build_answerer(base, filling),
        ensurer=Ensurer(
            desk=filling.desk,
            refresher=filling.refresher,
            store=store,
            within=settings.ensure_seconds,
        ),
        metrics=metrics,
        own=build_own(
            registry=metrics.registry,
            life=life,
            status=partial(_status, base),
            secret=base.secret,
            routes=_routes(base, cluster),
        ),
        bodies=Bodies(
            limit=settings.max_request_bytes,
            budget=settings.max_bodies_bytes,
            idle=settings.body_idle_seconds,
        ),
        audit=base.audit,
    )


def _routes(base: Base, cluster: Cluster | None) -> list[BaseRoute]:
    """Return the endpoints for operators, and those for other members."""
    store, secret = base.store, base.secret
    admin = partial(build_admin, mirrors=store, discard=base.recordings.discard, secret=secret)
    if cluster is None:
        return [*admin()]
    peering = build_peering(store=store, taker=cluster.taker, secret=secret, metrics=base.metrics)
    return [*admin(forget=cluster.copier.forget), *peering]


def _status(base: Base) -> dict[str, object]:
    room = base.room
    return {
        "name": base.settings.name,
        "version": version("goblet-cluster"),
        "mirrors": len(base.store.keys()),
        "disk": {"cap": room.cap} | {kind: at() for kind, at in room.kinds().items()},
    }

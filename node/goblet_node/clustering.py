"""A node's place in its cluster, put together: whom it knows, what it copies, how it goes."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import httpx
import trio

from goblet_node.base import Base
from goblet_node.cluster.course import Bounds, Course
from goblet_node.cluster.drain import Drain
from goblet_node.cluster.join import Join
from goblet_node.cluster.life import Life
from goblet_node.cluster.marker import Marker
from goblet_node.config import NodeSettings
from goblet_node.fill.connections import open_client
from goblet_node.fill.copying import Copier
from goblet_node.fill.pace import Pace
from goblet_node.fill.peers import Peers
from goblet_node.fill.taking import Taker
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.layout import CacheRoot
from goblet_shared.contract import NodeName
from goblet_shared.discovery import source_of
from goblet_shared.members import MemberState
from goblet_shared.repo_key import RepoKey
from goblet_shared.watch import MemberWatch

log = logging.getLogger(__name__)

# How long a member goes on answering after it said that it goes: what routers that are
# set up as they come need from one probe to the end of the next, and a second.
MEMBERS_NOTICE = 5.0
# To each other member a question and a few files; of more there are few.
_CONNECTIONS = 100


def is_member(settings: NodeSettings) -> bool:
    """Say whether the settings name a cluster: any other node, or a place that may list some."""
    others = [member for member in settings.members if member.name != settings.name]
    return bool(others or settings.members_file or settings.members_dns)


def notice_of(settings: NodeSettings) -> float:
    """Return for how many seconds a node that goes has to answer on."""
    if settings.drain_notice_seconds is not None:
        return settings.drain_notice_seconds
    return MEMBERS_NOTICE if is_member(settings) else 0.0


def marker_of(settings: NodeSettings) -> Marker:
    """Return the note that the node of these settings was ready before."""
    path = CacheRoot(settings.cache_root).marker
    return Marker(path, NodeName(settings.name), disk=Disk())


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What a member has that a node by itself lacks."""

    base: Base
    client: httpx.AsyncClient
    watch: MemberWatch
    peers: Peers
    copier: Copier
    taker: Taker

    async def run(self, life: Life, stop: trio.Event) -> None:
        """Watch the others and live; `stop` is set when the node has drained."""
        settings = self.base.settings
        known = trio.Event()
        course = Course(
            life=life,
            known=known.wait,
            join=self._join(life),
            drain=Drain(
                me=NodeName(settings.name),
                neighbours=self.watch,
                takers=self.peers,
                here=self._most_used_first,
                report=life.report,
            ),
            marker=marker_of(settings),
            bounds=Bounds(
                join=settings.join_seconds,
                drain=settings.drain_seconds,
                notice=notice_of(settings),
            ),
        )
        async with self.client, trio.open_nursery() as nursery:
            nursery.start_soon(partial(self._watch, known))
            nursery.start_soon(self.taker.run)
            nursery.start_soon(course.run, stop)

    async def _watch(self, known: trio.Event) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.watch.run)
            known.set()

    def _join(self, life: Life) -> Join:
        settings, store, room = self.base.settings, self.base.store, self.base.room
        rate = settings.copy_bytes_per_second
        return Join(
            me=NodeName(settings.name),
            neighbours=self.watch,
            lists=self.peers,
            copies=self.copier,
            here=lambda: frozenset(store.keys()),
            free=lambda: room.cap - room.used,
            pace=Pace(rate) if rate else None,
            at_once=settings.join_copies,
            report=life.report,
        )

    def _most_used_first(self) -> Sequence[RepoKey]:
        store = self.base.store
        return sorted(store.keys(), key=store.used_at, reverse=True)


def build_cluster(base: Base) -> Cluster:
    """Return what makes the node a member; nothing of it is known or done before it runs."""
    settings = base.settings
    me = NodeName(settings.name)
    if base.secret is None:
        log.warning(
            "without --cluster-secret-file only members on this machine are let in: "
            "no mirror is copied from or to another one"
        )
    client = open_client(
        most=_CONNECTIONS,
        proxy=None,
        connect_timeout=settings.peer_question_seconds,
        write_timeout=settings.peer_idle_seconds,
        pool_timeout=settings.peer_question_seconds,
    )
    # The watch asks through the peers, and these ask at the addresses that it knows.
    peers = Peers(
        me=me,
        member=lambda name: watch.member(name),
        secret=base.secret,
        client=client,
        question_timeout=settings.peer_question_seconds,
        idle_timeout=settings.peer_idle_seconds,
    )
    watch = MemberWatch(
        source=source_of(settings),
        probe=peers.probe,
        rules=settings.membership_rules,
        observer=base.metrics,
        me=me,
    )
    copier = Copier(
        me=me,
        members=watch,
        peers=peers,
        store=base.store,
        room=base.room,
        policy=base.policy,
        max_mirror_bytes=settings.max_mirror_bytes,
        nursery=base.nursery,
        metrics=base.metrics,
    )
    return Cluster(
        base=base,
        client=client,
        watch=watch,
        peers=peers,
        copier=copier,
        taker=Taker(copies=copier, at_once=settings.join_copies),
    )


def build_life(base: Base, cluster: Cluster | None) -> Life:
    """Return the life of a node: it begins by joining if it is new to its cluster. Reads a file."""
    if cluster is None:
        return Life(MemberState.READY, observers=[base.metrics.show_state])
    was_ready = marker_of(base.settings).is_set()
    return Life(
        MemberState.READY if was_ready else MemberState.JOINING,
        observers=[base.metrics.show_state, cluster.watch.set_own_state],
    )

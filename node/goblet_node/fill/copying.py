"""Mirrors from other members instead of from upstream: before they are needed, or when they are.

Who holds a mirror of a repository that is cold here is asked before upstream is, and
copied from; upstream is then asked only for what is newer. Nothing of a copy is seen
before all of it was checked: see `mirror.adopt`.
"""

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import trio

from goblet_node.errors import DiskFailed, MirrorDamaged
from goblet_node.fill.flights import Flights
from goblet_node.fill.pace import Pace
from goblet_node.fill.peers import Offer, PeerFailed, Peers
from goblet_node.fill.policy import MirrorPolicy, TooLargeToMirror
from goblet_node.fill.room import Room
from goblet_node.fill.scratch import scratch_of
from goblet_node.fill.transfer import Received, Speed, Transfer
from goblet_node.metrics import NodeMetrics
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.store import MirrorMoved, MirrorStore
from goblet_shared.contract import NodeName
from goblet_shared.members import MemberState
from goblet_shared.repo_key import RepoKey
from goblet_shared.ring import Ring

log = logging.getLogger(__name__)

# How long it is remembered that nobody has a mirror, or that none could be copied: a
# clone asks for the refs and then for a pack, and both would ask around.
_REMEMBERED = 5.0
_MAX_REMEMBERED = 65_536
# How long what was purged is not copied: other nodes may hold it still, since they are
# told one after the other.
_PURGED_FOR = 30.0
# How many mirrors are on their way at once; those that join the cluster bring fewer.
_AT_ONCE = 16
# How many questions are asked at once, of all members. Far fewer than there are connections,
# so that none waits for one and is taken for unanswered, the probes of the watch least of all.
_QUESTIONS_AT_ONCE = 24
# How long the log is quiet about why a member cannot be asked, unless that changes.
_QUIET_FOR = 60.0
# Who may hold something and can be expected to answer. A suspect could, too, but a
# clone of what is cold would wait for it, each time, until the question's time is over.
_ASKED = frozenset({MemberState.READY, MemberState.DRAINING, MemberState.JOINING})


class View(Protocol):
    """One member as it is seen from here."""

    @property
    def name(self) -> NodeName:
        """Its name."""

    @property
    def state(self) -> MemberState:
        """What is known of it."""


class Members(Protocol):
    """The members of the cluster: what MemberWatch says."""

    @property
    def ring(self) -> Ring:
        """The ring of now."""

    @property
    def views(self) -> Sequence[View]:
        """Every member, this node too."""


class Copier:
    """Copies mirrors from other members; for each repository once, however many wait."""

    def __init__(
        self,
        *,
        me: NodeName,
        members: Members,
        peers: Peers,
        store: MirrorStore,
        room: Room,
        policy: MirrorPolicy,
        max_mirror_bytes: int | None,
        nursery: trio.Nursery,
        metrics: NodeMetrics,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        """Copy in `nursery` what `policy` allows and is no larger than `max_mirror_bytes`."""
        self._me = me
        self._members = members
        self._peers = peers
        self._store = store
        self._room = room
        self._policy = policy
        self._max_mirror_bytes = max_mirror_bytes
        self._nursery = nursery
        self._metrics = metrics
        self._clock = clock
        self._flights: Flights[RepoKey, Mirror | None] = Flights(nursery)
        self._places = trio.CapacityLimiter(_AT_ONCE)
        self._questions = trio.CapacityLimiter(_QUESTIONS_AT_ONCE)
        # All mutable state. Changed only between awaits: how fast what is under way goes,
        # and until when a repository is not asked for, the latest last.
        self._speeds: dict[RepoKey, Speed] = {}
        self._absent_until: OrderedDict[RepoKey, float] = OrderedDict()
        self._purged_at: dict[RepoKey, float] = {}
        # Why members could not be asked, and until when that was said often enough.
        self._silent: dict[NodeName, tuple[str, float]] = {}

    def is_under_way(self, key: RepoKey) -> bool:
        """Say whether a mirror is being asked for or copied."""
        return key in self._flights

    async def copy(
        self, key: RepoKey, source: NodeName, *, pace: Pace | None = None
    ) -> Mirror | None:
        """Copy a mirror from a member; None if that failed, which is logged.

        The one that is here already, if there is one. A copy that is under way is waited
        for. Cancelling the caller stops its waiting, not the copy.
        """
        mirror = self._store.get(key)
        if mirror is not None or not self._may_copy(key):
            return mirror
        return await self._flights.join(
            key, lambda: self._copy(key, [source], Speed(pace), is_used=False)
        )

    async def bring(self, key: RepoKey) -> Mirror | None:
        """Copy a mirror that is needed now from whoever has it; None if nobody could give it.

        The one that is here already, if there is one. That nobody has it is remembered
        for some seconds. Cancelling the caller stops its waiting, not the copy.
        """
        mirror = self._store.get(key)
        if mirror is None and key in self._flights:
            if key in self._speeds:
                self._speeds[key].hurry()
            mirror = await self._flights.join(key, lambda: self._bring(key))
        if mirror is not None or not self._may_ask(key):
            return mirror
        return await self._flights.join(key, lambda: self._bring(key))

    def begin(self, key: RepoKey) -> None:
        """Do what `bring` does, for who does not wait: somebody will soon need the mirror."""
        if self._store.get(key) is None and key not in self._flights and self._may_ask(key):
            self._nursery.start_soon(self._begin, key)

    def forget(self, key: RepoKey) -> None:
        """Have no mirror copied for a while, and none kept that is being copied.

        Nobody should read it any more; other members may not know that yet.
        """
        now = self._clock()
        recent = {k: at for k, at in self._purged_at.items() if now - at < _PURGED_FOR}
        self._purged_at = {**recent, key: now}

    async def _begin(self, key: RepoKey) -> None:
        try:
            await self.bring(key)
        except Exception as exc:  # the nursery is the node's
            log.error("the mirror of %s could not be asked for", key, exc_info=exc)

    def _may_ask(self, key: RepoKey) -> bool:
        if self._absent_until.get(key, 0.0) > self._clock():
            return False
        return self._may_copy(key) and bool(self._others(key))

    def _may_copy(self, key: RepoKey) -> bool:
        return self._policy.may_mirror(key) and not self._is_purged(key)

    def _is_purged(self, key: RepoKey) -> bool:
        return self._clock() < self._purged_at.get(key, -math.inf) + _PURGED_FOR

    def _others(self, key: RepoKey) -> list[NodeName]:
        """Return whom to ask for a mirror, in the order in which the ring has them."""
        views = self._members.views
        asked = {view.name for view in views if view.state in _ASKED and view.name != self._me}
        order = [name for name in self._members.ring.owners(key) if name in asked]
        return order + sorted(asked.difference(order))

    async def _bring(self, key: RepoKey) -> Mirror | None:
        mirror = None
        try:
            holders = await self._holders(key)
        except Exception as exc:  # whoever waits can be answered by upstream
            log.error("nobody could be asked for the mirror of %s", key, exc_info=exc)
            holders = []
        if holders:
            mirror = await self._copy(key, holders, Speed(None), is_used=True)
        else:
            self._metrics.peer_copies.labels("absent").inc()
        if mirror is None:
            self._note_absent(key)
        return mirror

    async def _holders(self, key: RepoKey) -> list[NodeName]:
        """Return who has a mirror, in the ring's order; who answers late may be left out.

        All are asked at once, and none that comes later in the order is waited for.
        """
        others = self._others(key)
        answers: dict[NodeName, bool] = {}
        answered = trio.Event()

        async def ask(node: NodeName) -> None:
            nonlocal answered
            try:
                async with self._questions:
                    answers[node] = await self._peers.has(node, key)
            except PeerFailed as exc:
                answers[node] = False
                self._note_silent(node, str(exc))
            answered.set()
            answered = trio.Event()

        async with trio.open_nursery() as nursery:
            for node in others:
                nursery.start_soon(ask, node)
            while not _is_decided(others, answers):
                await answered.wait()
            nursery.cancel_scope.cancel()
        return [node for node in others if answers.get(node)]

    async def _copy(
        self, key: RepoKey, sources: Sequence[NodeName], speed: Speed, *, is_used: bool
    ) -> Mirror | None:
        """Copy a mirror from the first of `sources` that gives it whole; log what fails."""
        self._speeds[key] = speed
        try:
            async with self._places:
                return await self._copy_from(key, sources, speed, is_used=is_used)
        except MirrorMoved:
            return self._store.get(key)
        except (DiskFailed, TooLargeToMirror) as exc:
            log.warning("the mirror of %s is not copied: %s", key, exc)
            self._metrics.peer_copies.labels("refused").inc()
        except Exception as exc:
            log.error("the mirror of %s could not be copied", key, exc_info=exc)
            self._metrics.peer_copies.labels("failed").inc()
        finally:
            del self._speeds[key]
        return None

    async def _copy_from(
        self, key: RepoKey, sources: Sequence[NodeName], speed: Speed, *, is_used: bool
    ) -> Mirror | None:
        with self._room.claim(key) as claim:
            async with scratch_of(self._store) as scratch:
                transfer = Transfer(
                    scratch,
                    peers=self._peers,
                    claim=claim,
                    speed=speed,
                    accept=lambda offer: self._accept(key, offer),
                    metrics=self._metrics,
                )
                for node in sources:
                    began = self._clock()
                    try:
                        received = await transfer.fetch(node)
                    except (PeerFailed, MirrorDamaged) as exc:
                        log.warning("the mirror of %s is not copied from %s: %s", key, node, exc)
                        self._metrics.peer_copies.labels("failed").inc()
                        continue
                    mirror = await self._adopt(received, None if is_used else received.used_at)
                    if self._is_purged(key):
                        # In a thread, and after the one that purged: whichever was first.
                        drop = partial(self._store.drop, key, only=mirror)
                        await trio.to_thread.run_sync(drop)
                        log.info("the mirror of %s is not kept: it was purged meanwhile", key)
                        self._metrics.peer_copies.labels("refused").inc()
                        return None
                    # At once: it is the mirror's now, and would be counted twice.
                    claim.shrink_to(0)
                    self._metrics.peer_copies.labels("copied").inc()
                    took = self._clock() - began
                    log.info("copied the mirror of %s from %s in %.2f s", key, node, took)
                    return mirror
        return None

    async def _adopt(self, received: Received, used_at: float | None) -> Mirror:
        manifest, refs = received.manifest, received.refs
        if used_at is not None:
            # A clock that is ahead would keep it from being evicted.
            used_at = min(used_at, time.time())
        return await trio.to_thread.run_sync(
            lambda: self._store.adopt(manifest, refs, used_at=used_at)
        )

    def _accept(self, key: RepoKey, offer: Offer) -> None:
        """Raise TooLargeToMirror, and have it remembered, for what this node may not hold."""
        # A line a ref, one before them and one after.
        self._policy.check_refs(key, offer.refs.count(b"\n") - 2)
        if self._max_mirror_bytes is not None and offer.bytes > self._max_mirror_bytes:
            self._policy.note_too_large(key)
            raise TooLargeToMirror(
                f"it takes {offer.bytes} bytes, more than the {self._max_mirror_bytes} of a mirror"
            )

    def _note_silent(self, node: NodeName, why: str) -> None:
        now = self._clock()
        known = {n: said for n, said in self._silent.items() if now < said[1]}
        if known.get(node, ("", 0.0))[0] != why:
            known[node] = (why, now + _QUIET_FOR)
            log.warning("%s cannot be asked for mirrors: %s", node, why)
        self._silent = known

    def _note_absent(self, key: RepoKey) -> None:
        self._absent_until[key] = self._clock() + _REMEMBERED
        self._absent_until.move_to_end(key)
        if len(self._absent_until) > _MAX_REMEMBERED:
            self._absent_until.popitem(last=False)


def _is_decided(order: Sequence[NodeName], answers: Mapping[NodeName, bool]) -> bool:
    """Say whether it is known who comes first in `order` of those who answer yes."""
    for node in order:
        if node not in answers:
            return False
        if answers[node]:
            return True
    return True

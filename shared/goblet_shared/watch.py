"""The members of the cluster as one process sees them: discovery and probes, all the time."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from goblet_shared.contract import NodeName
from goblet_shared.listing import DiscoveryFailed, Source
from goblet_shared.members import Member, MemberState
from goblet_shared.membership import SAID, Fact, Membership, Rules, at, heard, listed
from goblet_shared.ring import Ring, ring_id

_log = logging.getLogger(__name__)

# One that does not answer at once has perhaps only just been started: it is asked again
# soon, at first after twice this share of the interval, then ever later.
_FIRST_PAUSE = 1 / 16

Probe = Callable[[Member], Awaitable[MemberState | None]]
"""Asks a node how it is; None if it gives no proper answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberView:
    """What others may know of a member."""

    name: NodeName
    url: str
    state: MemberState
    is_on_ring: bool


class Observer(Protocol):
    """Hears what the watch finds, for metrics; the log is the watch's own."""

    def members_changed(self, views: Sequence[MemberView], *, epoch: int) -> None:
        """Take note of all members that there are now, and how often the ring changed."""

    def discovery_failed(self) -> None:
        """Take note that it could not be found out who the members are."""


class MemberWatch:
    """Follows who the members are and how they do, while `run` runs.

    Before it runs there are no members. One that is listed is probed at once and then
    every `rules.interval` seconds (more often until it first answers), each by a task of
    its own, so that none waits for another. What requests find out comes in by `note_failure`.
    """

    def __init__(
        self,
        *,
        source: Source,
        probe: Probe,
        rules: Rules,
        observer: Observer,
        me: NodeName | None = None,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        """Watch whom `source` lists.

        `me` is the node that watches, if it is one: it is not probed, but is what
        `set_own_state` says. An exception of `probe` ends the watch: it should return
        None instead. `clock` gives seconds and never goes back.
        """
        self._source = source
        self._probe = probe
        self._rules = rules
        self._observer = observer
        self._me = me
        self._clock = clock
        # All mutable state. The membership and what follows from it are changed by _turn
        # alone, which has no await; the probing tasks are run's.
        self._membership = Membership()
        self._ring = Ring.of(())
        self._views: tuple[MemberView, ...] = ()
        self._own_state = MemberState.JOINING
        self._changed = trio.Event()
        self._departure_changed = trio.Event()
        self._probing: dict[Member, trio.CancelScope] = {}
        self._failure = ""

    @property
    def ring(self) -> Ring:
        """The ring over the members that have a place; the same object while it is equal."""
        return self._ring

    @property
    def epoch(self) -> int:
        """How often the ring has changed since this watch began; of no meaning to others."""
        return self._membership.epoch

    @property
    def views(self) -> tuple[MemberView, ...]:
        """All members that are not gone, sorted by name."""
        return self._views

    def member(self, name: NodeName, /) -> Member | None:
        """Return where a member answers; None if there is none of the name."""
        standing = self._membership.standings.get(name)
        return None if standing is None else standing.member

    def state(self, name: NodeName, /) -> MemberState:
        """Return what a member is; whoever is not known is gone."""
        return self._membership.state(name)

    def willing(self, owners: Sequence[NodeName], /) -> tuple[NodeName, ...]:
        """Return all of `owners` in the order in which to ask them.

        The ready come first, then suspects, then who drains, then who joins; within
        each the order stays.
        """
        return self._membership.willing(owners)

    def note_failure(self, name: NodeName, why: str, /) -> None:
        """Take note that a request to a member failed; `why` goes to the log if it is news."""
        self._hear(name, Fact.REQUEST_FAILED, why)

    def set_own_state(self, state: MemberState, /) -> None:
        """Say how the node that watches is: joining, ready or draining."""
        assert self._me is not None, "only a node has a state of its own"
        self._own_state = state
        self._hear(self._me, SAID[state], "says so")

    async def changed(self) -> None:
        """Return at the next change of members, their states, or the ring."""
        await self._changed.wait()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled.

        It has started once members were asked for and each was probed, or did not
        answer: at most twice `rules.timeout` after it was called.
        """
        async with trio.open_nursery() as nursery:
            pause = 0.0
            with trio.move_on_after(self._rules.timeout) as first_look:
                pause = await self._look()
            if first_look.cancelled_caught:
                _log.warning("who the members are is not known yet: no answer so far")
            async with trio.open_nursery() as first_round:
                for member in self._begin_probing():
                    first_round.start_soon(nursery.start, self._probe_for_ever, member)
            nursery.start_soon(self._see_departures)
            task_status.started()
            while True:
                await trio.sleep(pause)
                pause = await self._look()
                for member in self._begin_probing():
                    nursery.start_soon(self._probe_for_ever, member)

    async def _look(self) -> float:
        """Ask who the members are, and return in how many seconds to ask again."""
        try:
            listing = await self._source.look()
        except DiscoveryFailed as exc:
            self._observer.discovery_failed()
            if str(exc) != self._failure:
                self._failure = str(exc)
                _log.warning("who the members are is not known: %s", exc)
            return exc.ask_again_in
        if self._failure:
            self._failure = ""
            _log.info("who the members are is known again")
        membership = listed(self._membership, listing.members, self._clock(), self._rules)
        self._turn(membership, "the list of members changed")
        return listing.ask_again_in

    def _begin_probing(self) -> list[Member]:
        """Return the members, at their addresses of now, that nobody probes yet; note them."""
        standings = self._membership.standings.values()
        new = [one.member for one in standings if one.member not in self._probing]
        self._probing.update({member: trio.CancelScope() for member in new})
        return new

    async def _probe_for_ever(
        self, member: Member, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Probe a member until it is gone or has moved; started once it was probed."""
        longest = self._rules.interval
        pause = longest * _FIRST_PAUSE
        with self._probing[member]:
            while True:
                has_answered = await self._probe_once(member)
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                pause = longest if has_answered else min(2 * pause, longest)
                await trio.sleep(pause)

    async def _probe_once(self, member: Member) -> bool:
        """Ask a member how it is, and return whether it gave a proper answer."""
        if member.name == self._me:
            said: MemberState | None = self._own_state
            await trio.lowlevel.checkpoint()
        else:
            said = None
            with trio.move_on_after(self._rules.timeout):
                said = await self._probe(member)
        if member in self._probing:  # else it has moved, and this is old news
            fact = Fact.PROBE_FAILED if said is None else SAID[said]
            self._hear(member.name, fact, fact.value)
        return said is not None

    async def _see_departures(self) -> None:
        """Let those go whose time has come."""
        while True:
            due = self._membership.next_departure
            if due is not None and (wait := due - self._clock()) > 0:
                with trio.move_on_after(wait):
                    await self._departure_changed.wait()
            elif due is None:
                await self._departure_changed.wait()
            self._turn(at(self._membership, self._clock()), Fact.OVERDUE.value)

    def _hear(self, name: NodeName, fact: Fact, why: str) -> None:
        self._turn(heard(self._membership, name, fact, self._clock(), self._rules), why)

    def _turn(self, after: Membership, why: str) -> None:
        """Make `after` what is believed; whoever waits for a change hears of it."""
        before, self._membership = self._membership, after
        if after is before:
            return  # most probes bring no news, and looking at all members for each is n squared
        if after.next_departure != before.next_departure:
            self._departure_changed.set()
            self._departure_changed = trio.Event()
        if after.ring != before.ring:
            self._ring = Ring.of(after.ring)
        views = _views_of(after)
        if views == self._views:
            return
        old, self._views = self._views, views
        self._stop_probing(after)
        _log_changes(old, views, why)
        if after.ring != before.ring:
            _log.info(
                "ring %s, epoch %d: %s",
                ring_id(self._ring), after.epoch, " ".join(after.ring) or "nobody",
            )  # fmt: skip
        self._observer.members_changed(views, epoch=after.epoch)
        self._changed.set()
        self._changed = trio.Event()

    def _stop_probing(self, membership: Membership) -> None:
        current = {standing.member for standing in membership.standings.values()}
        for member in self._probing.keys() - current:
            self._probing.pop(member).cancel()


def _views_of(membership: Membership) -> tuple[MemberView, ...]:
    on_ring = frozenset(membership.ring)
    return tuple(
        MemberView(
            name=name,
            url=standing.member.url,
            state=standing.state,
            is_on_ring=name in on_ring,
        )
        for name, standing in sorted(membership.standings.items())
    )


def _log_changes(old: Sequence[MemberView], new: Sequence[MemberView], why: str) -> None:
    before = {view.name: view for view in old}
    for view in new:
        known = before.pop(view.name, None)
        if known is None or known.url != view.url:
            _log.info("node %s is at %s", view.name, view.url)
        if known is not None and known.state is not view.state:
            level = logging.WARNING if view.state is MemberState.SUSPECT else logging.INFO
            _log.log(level, "node %s is %s: %s", view.name, view.state.value, why)
    for name in before:
        _log.info("node %s is gone: %s", name, why)

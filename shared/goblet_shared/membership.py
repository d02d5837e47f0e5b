"""What is believed of each member, and which members make the ring: facts in, no I/O.

A membership is a value, and every function here returns the next one. The states and
what turns one into another are the table below; `now` is any clock's seconds that
never goes back.

The ring is meant to change rarely, because each change moves repositories. So no
failure ever changes it: a member that fails is suspect, keeps its place and is asked
after others. A member comes onto the ring when it is ready (or was listed at the very
first), and leaves it only when it was not listed for long enough, whatever it said. After
each departure within an hour a member has to be away twice as long before the next, so
that one that comes and goes does not move its repositories each time.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from goblet_shared.contract import NodeName
from goblet_shared.members import Member, MemberState

# Departures are remembered for so long: most things that flap do so within minutes,
# and a node that is moved twice a day has done nothing wrong.
DEPARTURES_COUNT_FOR = 3600.0
# 2 to the power of this: with a minute to begin with, an hour.
_MOST_DOUBLINGS = 6


class Fact(enum.Enum):
    """What may become known of one member."""

    SAID_READY = "it says that it is ready"
    SAID_JOINING = "it says that it is joining"
    SAID_DRAINING = "it says that it is draining"
    PROBE_FAILED = "it gave no proper answer at /readyz"
    REQUEST_FAILED = "a request to it failed"
    UNLISTED = "it is not listed any more"
    OVERDUE = "it was not listed for too long"


SAID: Final[Mapping[MemberState, Fact]] = MappingProxyType(
    {
        MemberState.READY: Fact.SAID_READY,
        MemberState.JOINING: Fact.SAID_JOINING,
        MemberState.DRAINING: Fact.SAID_DRAINING,
    }
)


class _Needs(enum.Enum):
    """How often in a row a fact must come before it is believed."""

    ONCE = enum.auto()
    RISE = enum.auto()
    FALL = enum.auto()


_ONCE, _RISE, _FALL = _Needs.ONCE, _Needs.RISE, _Needs.FALL
_JOINING, _READY = MemberState.JOINING, MemberState.READY
_SUSPECT, _DRAINING = MemberState.SUSPECT, MemberState.DRAINING

# Every transition; a pair that is not here changes nothing. What a node says of itself
# is believed at once, but for a suspect, of whom one good probe could be luck. A failed
# request is better evidence than a probe, and the next one should not find out again.
# One that drains may fail: it said that it would go, and is asked late as it is.
_NEXT: Final[Mapping[tuple[MemberState, Fact], tuple[MemberState, _Needs]]] = MappingProxyType(
    {
        (_JOINING, Fact.SAID_READY): (_READY, _ONCE),
        (_JOINING, Fact.SAID_DRAINING): (_DRAINING, _ONCE),
        (_JOINING, Fact.PROBE_FAILED): (_SUSPECT, _FALL),
        (_JOINING, Fact.REQUEST_FAILED): (_SUSPECT, _ONCE),
        (_READY, Fact.SAID_JOINING): (_JOINING, _ONCE),
        (_READY, Fact.SAID_DRAINING): (_DRAINING, _ONCE),
        (_READY, Fact.PROBE_FAILED): (_SUSPECT, _FALL),
        (_READY, Fact.REQUEST_FAILED): (_SUSPECT, _ONCE),
        (_READY, Fact.UNLISTED): (_SUSPECT, _ONCE),
        (_SUSPECT, Fact.SAID_READY): (_READY, _RISE),
        (_SUSPECT, Fact.SAID_JOINING): (_JOINING, _ONCE),
        (_SUSPECT, Fact.SAID_DRAINING): (_DRAINING, _ONCE),
        (_DRAINING, Fact.SAID_READY): (_READY, _ONCE),
        (_DRAINING, Fact.SAID_JOINING): (_JOINING, _ONCE),
        **{(state, Fact.OVERDUE): (MemberState.GONE, _ONCE) for state in MemberState},
    }
)

# Who is asked first among the owners of a repository. One that joins has the least.
_PREFERENCE: Final = (_READY, _SUSPECT, _DRAINING, _JOINING, MemberState.GONE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How much evidence is needed, and how long the watch waits; all times in seconds."""

    rise: int
    """Good probes in a row after which a suspect is ready."""
    fall: int
    """Bad probes in a row after which a ready member is suspect."""
    gone_after: float
    """How long a member that is not listed keeps its place."""
    interval: float
    """From the end of one probe of a member to the next."""
    timeout: float
    """After so long a probe has failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is believed of one member."""

    member: Member
    state: MemberState = MemberState.JOINING
    is_on_ring: bool = False
    was_ready: bool = False
    has_spoken: bool = False
    """Whether it ever said how it is."""
    count: int = 0
    """How often in a row a fact came that would turn it, but not often enough yet."""
    leaves_at: float | None = None
    """When it goes; None while it is listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """All members that are not gone, and the ring over them; never changed in place."""

    standings: Mapping[NodeName, Standing] = field(default_factory=dict)
    departures: Mapping[NodeName, tuple[float, ...]] = field(default_factory=dict)
    """When members left the ring, of late."""
    ring: tuple[NodeName, ...] = ()
    epoch: int = 0
    """How often the ring has changed."""
    has_begun: bool = False
    """Whether members were listed at all."""

    def state(self, name: NodeName) -> MemberState:
        """Return what a member is; whoever is not known is gone."""
        standing = self.standings.get(name)
        return MemberState.GONE if standing is None else standing.state

    def willing(self, owners: Sequence[NodeName]) -> tuple[NodeName, ...]:
        """Return all of `owners`, whom to ask first in front; else in the order given."""
        return tuple(sorted(owners, key=lambda name: _PREFERENCE.index(self.state(name))))

    @property
    def next_departure(self) -> float | None:
        """When `at` should be called, because somebody is to go then; None if nobody is."""
        return min(
            (one.leaves_at for one in self.standings.values() if one.leaves_at is not None),
            default=None,
        )


def listed(
    membership: Membership, members: Sequence[Member], now: float, rules: Rules
) -> Membership:
    """Return the membership once exactly `members` are listed.

    The first whom this ever lists are on the ring before they are heard of: a router
    that starts has the same ring as others, whoever of the members may be down. An
    empty list is believed late: nobody goes at once for it, place or none.
    """
    named = {member.name: member for member in members}
    standings = dict(membership.standings)
    for name, member in named.items():
        known = standings.get(name)
        if known is None:
            standings[name] = Standing(member=member, is_on_ring=not membership.has_begun)
        elif known.member != member:
            # What was counted was counted elsewhere.
            known = replace(known, member=member, count=0)
            standings[name] = replace(known, leaves_at=None)
        elif known.leaves_at is not None:
            standings[name] = replace(known, leaves_at=None, count=0)
    for name, known in standings.items():
        if name not in named and known.leaves_at is None:
            turned = _turned(known, Fact.UNLISTED, rules)
            wait = _wait(membership, turned, now, rules)
            if not named:
                wait = max(wait, rules.gone_after)
            standings[name] = replace(turned, leaves_at=now + wait)
    begun = membership.has_begun or bool(named)
    return at(replace(membership, standings=standings, has_begun=begun), now)


def heard(
    membership: Membership, name: NodeName, fact: Fact, now: float, rules: Rules
) -> Membership:
    """Return the membership once `fact` is known of a member; the same one if that is no news.

    Of whoever is no member nothing is believed.
    """
    before = membership.standings.get(name)
    if before is None:
        return membership
    after = _turned(before, fact, rules)
    if after == before:
        return membership
    return at(replace(membership, standings={**membership.standings, name: after}), now)


def at(membership: Membership, now: float) -> Membership:
    """Return the membership at `now`, without those whose time has come."""
    standings, departures = dict(membership.standings), dict(membership.departures)
    for name, standing in membership.standings.items():
        if standing.leaves_at is not None and standing.leaves_at <= now:
            del standings[name]
            if standing.is_on_ring:
                recent = _recent(membership, name, now)
                departures[name] = (*recent, now)[-_MOST_DOUBLINGS:]
    departures = {name: left for name, left in departures.items() if _is_recent(left[-1], now)}
    placed = [name for name, standing in standings.items() if standing.is_on_ring]
    # Better all than nobody: somebody has to be asked.
    ring = tuple(sorted(placed or standings))
    epoch = membership.epoch + (ring != membership.ring)
    return replace(membership, standings=standings, departures=departures, ring=ring, epoch=epoch)


def _turned(before: Standing, fact: Fact, rules: Rules) -> Standing:
    """Return the standing after a fact, by the table."""
    known = replace(before, has_spoken=True) if fact in SAID.values() else before
    after, needs = _NEXT.get((before.state, fact), (before.state, _ONCE))
    if _is_out_of_place(before, fact, after) or after is before.state:
        return _placed(replace(known, count=0), fact)
    # No state waits for more than one fact, so there is only one to count.
    count = before.count + 1
    if count < _needed(needs, before, rules):
        return replace(known, count=count)
    return _placed(replace(known, state=after, count=0), fact)


def _is_out_of_place(before: Standing, fact: Fact, after: MemberState) -> bool:
    """Tell whether a transition of the table is not for this member now."""
    if after is MemberState.READY:
        return before.leaves_at is not None  # it is not ours to send anyone to any more
    # Nothing is expected of one that has no place yet or says that it joins, so it is
    # suspected of nothing; it is asked last already.
    return (
        before.state is MemberState.JOINING
        and after is MemberState.SUSPECT
        and (before.has_spoken or not before.is_on_ring)
    )


def _placed(standing: Standing, fact: Fact) -> Standing:
    """Return the standing with its place: what was said to get or to lose one."""
    if standing.state is MemberState.READY:
        return replace(standing, was_ready=True, is_on_ring=True)
    if fact is Fact.SAID_JOINING and not standing.was_ready:
        return replace(standing, is_on_ring=False)
    return standing


def _needed(needs: _Needs, standing: Standing, rules: Rules) -> int:
    if needs is _Needs.FALL:
        return rules.fall
    # One that was never ready cannot have fallen: it has only just come up.
    return rules.rise if needs is _Needs.RISE and standing.was_ready else 1


def _wait(membership: Membership, standing: Standing, now: float, rules: Rules) -> float:
    """Return how long a member is waited for from now on, not being listed.

    As long for one that drains: where nodes restart one after the other, each would
    else move its repositories twice, and its heir is asked before it all the while.
    """
    if not standing.is_on_ring:
        return 0.0
    departures = len(_recent(membership, standing.member.name, now))
    return rules.gone_after * (1 << min(departures, _MOST_DOUBLINGS))


def _recent(membership: Membership, name: NodeName, now: float) -> tuple[float, ...]:
    times = membership.departures.get(name, ())
    return tuple(left for left in times if _is_recent(left, now))


def _is_recent(left: float, now: float) -> bool:
    return now - left < DEPARTURES_COUNT_FOR

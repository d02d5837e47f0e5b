"""A node that goes hands what it owned to those who will own it then."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Protocol, TypeVar

import trio

from goblet_node.cluster.join import Lists, Neighbours
from goblet_node.fill.peers import PeerFailed
from goblet_shared.contract import NodeName
from goblet_shared.members import MemberState
from goblet_shared.repo_key import RepoKey
from goblet_shared.ring import Ring

log = logging.getLogger(__name__)

_LOOK_EVERY = 0.5
# How often in a row an heir may fail to answer: one that copies is busy.
_TRIES = 4

T = TypeVar("T")


class Takers(Lists, Protocol):
    """Who can tell a member to take mirrors over."""

    async def hand_over(self, node: NodeName, keys: Sequence[RepoKey]) -> None:
        """Tell `node` to copy these from this node, in their order. Raises PeerFailed."""

    async def awaited(self, node: NodeName) -> AbstractSet[RepoKey]:
        """Return what `node` was told to copy and has not tried yet. Raises PeerFailed."""


def heirs(
    *,
    me: NodeName,
    now: Ring,
    then: Ring,
    keys: Iterable[RepoKey],
    state: Callable[[NodeName], MemberState],
) -> Mapping[NodeName, tuple[RepoKey, ...]]:
    """Return who is to take which of `keys`, in their order: those that `me` is asked for.

    That is those that it owns on the ring of `now`, and what it took over from who goes, too,
    and is on the ring still. An heir is who will be asked for a repository on the ring `then`,
    without `me`: the first that is ready.
    """
    found: dict[NodeName, list[RepoKey]] = {}

    def first(order: Iterable[NodeName]) -> NodeName | None:
        return next((n for n in order if n == me or state(n) is MemberState.READY), None)

    for key in keys:
        if first(now.owners(key)) != me:
            continue
        heir = first(then.owners(key))
        if heir is not None:
            found.setdefault(heir, []).append(key)
    return {heir: tuple(taken) for heir, taken in sorted(found.items())}


class Drain:
    """Hands over what this node owns; its caller bounds the time."""

    def __init__(
        self,
        *,
        me: NodeName,
        neighbours: Neighbours,
        takers: Takers,
        here: Callable[[], Sequence[RepoKey]],
        report: Callable[[str], None],
    ) -> None:
        """`here` gives the mirrors of this node, those first that are needed most."""
        self._me = me
        self._neighbours = neighbours
        self._takers = takers
        self._here = here
        self._report = report

    async def run(self) -> None:
        """Have the others take what this node owns; return when they hold what they can take."""
        ring = self._neighbours.ring
        shares = heirs(
            me=self._me,
            now=ring,
            then=Ring.of(name for name in ring.members if name != self._me),
            keys=self._here(),
            state=self._neighbours.state,
        )
        left = {heir: len(keys) for heir, keys in shares.items()}
        total = sum(left.values())

        def note(heir: NodeName, missing: int) -> None:
            left[heir] = missing
            self._report(f"{total - sum(left.values())} of {total} mirrors handed over")

        async with trio.open_nursery() as nursery:
            for heir, keys in shares.items():
                nursery.start_soon(self._hand_over, heir, keys, note)
        log.info("draining: %d of %d mirrors handed over", total - sum(left.values()), total)

    async def _hand_over(
        self, heir: NodeName, keys: Sequence[RepoKey], note: Callable[[NodeName, int], None]
    ) -> None:
        """Tell `heir` of what it lacks, and watch it take that; `note` hears how many are left."""
        try:
            missing = await self._missing(heir, keys)
            note(heir, len(missing))
            if missing:
                await _patiently(partial(self._takers.hand_over, heir, missing))
            awaited: AbstractSet[RepoKey] = frozenset(missing)
            while not awaited.isdisjoint(missing):
                await trio.sleep(_LOOK_EVERY)
                # Before what it holds: what it took in between is in one of the two.
                awaited = await _patiently(partial(self._takers.awaited, heir))
                missing = await self._missing(heir, missing)
                note(heir, len(missing))
            if missing:
                log.warning("draining: %s could not take %d mirrors over", heir, len(missing))
        except PeerFailed as exc:
            log.warning("draining: %s takes nothing over any more: %s", heir, exc)

    async def _missing(self, heir: NodeName, keys: Sequence[RepoKey]) -> tuple[RepoKey, ...]:
        mirrors = await _patiently(partial(self._takers.mirrors, heir))
        held = {mirror.key for mirror in mirrors}
        return tuple(key for key in keys if key not in held)


async def _patiently(ask: Callable[[], Awaitable[T]]) -> T:
    """Return what an heir answers in the end. Raises PeerFailed."""
    for _ in range(_TRIES - 1):
        try:
            return await ask()
        except PeerFailed:
            await trio.sleep(_LOOK_EVERY)
    return await ask()

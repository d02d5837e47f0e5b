"""A node that is new copies the mirrors that it will own from those who hold them."""

import logging
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from goblet_node.fill.pace import Pace
from goblet_node.fill.peers import PeerFailed, PeerMirror
from goblet_shared.contract import NodeName
from goblet_shared.members import MemberState
from goblet_shared.repo_key import RepoKey
from goblet_shared.ring import Ring

log = logging.getLogger(__name__)

# How long a new node asks around before it makes do with what it has heard: others may
# still be starting. What they hold after all comes when it is asked for.
_NOBODY_AFTER = 5.0
_ASK_EVERY = 0.5
_ANSWER_WITHIN = 5.0
# Of one mirror, from all who hold it: a busy peer may take too long once.
_TRIES = 2
_SAY_EVERY = 10.0


class View(Protocol):
    """A member, as this node sees it."""

    @property
    def name(self) -> NodeName:
        """Its name."""

    @property
    def state(self) -> MemberState:
        """What is known of it."""


class Neighbours(Protocol):
    """The other members, as this node sees them: what MemberWatch says."""

    @property
    def ring(self) -> Ring:
        """The ring of now."""

    @property
    def views(self) -> Sequence[View]:
        """Every member, this node too."""

    def state(self, name: NodeName) -> MemberState:
        """Return what is known of a member."""


class Lists(Protocol):
    """Who can be asked for what a member holds."""

    async def mirrors(self, node: NodeName) -> tuple[PeerMirror, ...]:
        """Return what `node` holds. Raises PeerFailed."""


class Copies(Protocol):
    """Who copies a mirror."""

    async def copy(
        self, key: RepoKey, source: NodeName, *, pace: Pace | None = None
    ) -> object | None:
        """Copy a mirror from a member; None if that failed, which is logged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A mirror that this node will own and does not hold."""

    key: RepoKey
    bytes: int
    used_at: float
    sources: tuple[NodeName, ...]
    """Who holds it, the likeliest to have its newest generation first."""


def wanted(
    *,
    me: NodeName,
    now: Ring,
    then: Ring,
    held: Mapping[NodeName, Iterable[PeerMirror]],
    here: Container[RepoKey],
) -> tuple[Wanted, ...]:
    """Return what `me` will own once the ring is `then`, the most recently used first.

    `held` is what the others hold, `here` what this node holds. A mirror's first source
    is its owner on the ring of `now`, who was asked for it until now.
    """
    holders: dict[RepoKey, dict[NodeName, PeerMirror]] = {}
    for node, mirrors in sorted(held.items()):
        for mirror in mirrors:
            holders.setdefault(mirror.key, {})[node] = mirror
    found = [
        Wanted(
            key=key,
            bytes=max(mirror.bytes for mirror in by_node.values()),
            used_at=max(mirror.used_at for mirror in by_node.values()),
            sources=_in_order(now.owners(key), by_node),
        )
        for key, by_node in holders.items()
        if key not in here and then.owners(key)[0] == me
    ]
    return tuple(sorted(found, key=lambda want: (-want.used_at, want.key)))


def _in_order(order: Sequence[NodeName], nodes: Iterable[NodeName]) -> tuple[NodeName, ...]:
    """Return `nodes` in this order; who is not in it comes last: what it has may be old."""
    place = {node: rank for rank, node in enumerate(order)}
    return tuple(sorted(nodes, key=lambda node: (place.get(node, len(order)), node)))


class Join:
    """Copies what a new node will own; its caller bounds the time."""

    def __init__(
        self,
        *,
        me: NodeName,
        neighbours: Neighbours,
        lists: Lists,
        copies: Copies,
        here: Callable[[], Container[RepoKey]],
        free: Callable[[], int],
        pace: Pace | None,
        at_once: int,
        report: Callable[[str], None],
    ) -> None:
        """`free` says how many bytes the cache has room for, `report` is told how far it is."""
        self._me = me
        self._neighbours = neighbours
        self._lists = lists
        self._copies = copies
        self._here = here
        self._free = free
        self._pace = pace
        self._at_once = at_once
        self._report = report

    async def run(self) -> None:
        """Copy what this node will own, until nobody holds any more of it that can be had.

        Then asks again, for what clients of the others brought meanwhile. Cancelled, it
        leaves the mirrors that it has copied, and the next join goes on after them.
        """
        tries: Counter[RepoKey] = Counter()
        copied = 0
        while todo := [want for want in await self._wanted() if tries[want.key] < _TRIES]:
            tries.update(want.key for want in todo)
            log.info(
                "joining: %d mirrors of %d bytes to copy",
                len(todo),
                sum(want.bytes for want in todo),
            )
            copied += await self._copy_all(todo)
        log.info("joined: %d of %d mirrors copied", copied, len(tries))

    async def _wanted(self) -> tuple[Wanted, ...]:
        held: dict[NodeName, Sequence[PeerMirror]] = {}
        why: dict[NodeName, str] = {}
        patience = trio.current_time() + _NOBODY_AFTER
        while silent := [view for view in self._others() if view.name not in held]:
            held |= await self._ask_all([view.name for view in silent], why)
            # Who is not ready may be dead, or as new as this node.
            are_missed = any(
                view.state is MemberState.READY for view in silent if view.name not in held
            )
            if (held and not are_missed) or trio.current_time() >= patience:
                break
            await trio.sleep(_ASK_EVERY)
        # Once each, however often they were asked.
        for node, last in sorted(why.items()):
            if node not in held:
                log.info("joining: %s does not say what it holds: %s", node, last)
        others = [name for name in self._neighbours.ring.members if name != self._me]
        return wanted(
            me=self._me,
            now=Ring.of(others),
            then=Ring.of([*others, self._me]),
            held=held,
            here=self._here(),
        )

    def _others(self) -> Sequence[View]:
        views = self._neighbours.views
        return [v for v in views if v.name != self._me and v.state is not MemberState.GONE]

    async def _ask_all(
        self, nodes: Iterable[NodeName], why: dict[NodeName, str]
    ) -> Mapping[NodeName, Sequence[PeerMirror]]:
        """Return what each of `nodes` holds, of those who say it in time; note `why` not."""
        held: dict[NodeName, Sequence[PeerMirror]] = {}

        async def ask(node: NodeName) -> None:
            try:
                held[node] = await self._lists.mirrors(node)
            except PeerFailed as exc:
                why[node] = str(exc)

        with trio.move_on_after(_ANSWER_WITHIN):
            async with trio.open_nursery() as nursery:
                for node in nodes:
                    nursery.start_soon(ask, node)
        return held

    async def _copy_all(self, todo: Sequence[Wanted]) -> int:
        """Copy them in their order, several at once; return how many could be."""
        waiting = iter(todo)
        done = copied = 0
        said = trio.current_time()

        async def copy_some() -> None:
            nonlocal done, copied, said
            for want in waiting:
                is_here = await self._copy(want)
                copied += is_here
                done += 1
                self._report(f"{done} of {len(todo)} mirrors copied")
                if trio.current_time() - said >= _SAY_EVERY:
                    said = trio.current_time()
                    log.info("joining: %d of %d mirrors copied", done, len(todo))

        self._report(f"0 of {len(todo)} mirrors copied")
        async with trio.open_nursery() as nursery:
            for _ in range(self._at_once):
                nursery.start_soon(copy_some)
        return copied

    async def _copy(self, want: Wanted) -> bool:
        # What clients asked this node for is worth more than what they may ask for:
        # nothing makes way for a copy.
        if want.bytes > self._free():
            log.info("joining: no room for %s, %d bytes", want.key, want.bytes)
            return False
        for source in want.sources:
            if await self._copies.copy(want.key, source, pace=self._pace) is not None:
                return True
        return False

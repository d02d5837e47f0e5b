"""The lanes to all nodes, made when they are first needed and closed when a node has left."""

import ssl
from collections.abc import Callable, Iterable

from goblet_router.lane import Lane, Limits
from goblet_shared.members import Member, MemberState


class Lanes:
    """A lane to each member at its present URL.

    A lane belongs to a name *and* a URL: a node that has moved gets a new one, and
    what is under way on the old one ends there.
    """

    def __init__(
        self,
        *,
        limits: Limits,
        tls: Callable[[], ssl.SSLContext],
        on_stale: Callable[[], None],
        may_end_by_close: bool = False,
    ) -> None:
        """Take what each lane takes; `tls` is asked once somebody has an https URL."""
        self._limits = limits
        self._tls = tls
        self._on_stale = on_stale
        self._may_end_by_close = may_end_by_close
        # All mutable state. Changed without an await.
        self._lanes: dict[Member, Lane] = {}

    def of(self, member: Member) -> Lane:
        """Return the lane to a member; it stays of use, whatever becomes of the member."""
        lane = self._lanes.get(member)
        if lane is None:
            lane = self._lanes[member] = Lane(
                member,
                limits=self._limits,
                tls=self._tls,
                on_stale=self._on_stale,
                may_end_by_close=self._may_end_by_close,
            )
        return lane

    async def probe(self, member: Member) -> MemberState | None:
        """Return what a member says of itself at /readyz; None if that is no node's answer.

        The caller bounds the time.
        """
        return await self.of(member).probe()

    async def keep(self, members: Iterable[Member]) -> None:
        """Close the lanes to all others; requests that are under way on them go on."""
        for member in self._lanes.keys() - set(members):
            await self._lanes.pop(member).aclose()

    async def aclose(self) -> None:
        """Close all lanes."""
        await self.keep(())

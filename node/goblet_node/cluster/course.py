"""The course of a node's life: join, be ready until told to go, drain, stop."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import trio

from goblet_node.cluster.life import Fact, Life
from goblet_node.cluster.marker import Marker
from goblet_shared.members import MemberState

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How long the parts of a life take, in seconds."""

    join: float
    """The longest that joining may take."""
    drain: float
    """The longest that handing over may take."""
    notice: float
    """The shortest from saying that one goes to going."""


class Task(Protocol):
    """Something that is done to its end, unless it is cancelled."""

    async def run(self) -> None:
        """Do it."""


class Course:
    """Takes a member of a cluster through its life."""

    def __init__(
        self,
        *,
        life: Life,
        known: Callable[[], Awaitable[None]],
        join: Task,
        drain: Task,
        marker: Marker,
        bounds: Bounds,
    ) -> None:
        """`known` returns once it is known who the other members are."""
        self._life = life
        self._known = known
        self._join = join
        self._drain = drain
        self._marker = marker
        self._bounds = bounds

    async def run(self, stop: trio.Event) -> None:
        """Join unless that was done before, serve until told to go, drain, and set `stop`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._become_ready)
            await self._life.until_draining()
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            # Requests come until everybody has noticed, however little is handed over.
            nursery.start_soon(trio.sleep, self._bounds.notice)
            with trio.move_on_after(self._bounds.drain) as handing_over:
                await self._drain.run()
        if handing_over.cancelled_caught:
            log.warning(
                "draining: not all was handed over within %g s (%s)",
                self._bounds.drain,
                self._life.progress,
            )
        stop.set()

    async def _become_ready(self) -> None:
        if self._life.state is not MemberState.JOINING:
            return
        with trio.move_on_after(self._bounds.join) as joining:
            await self._known()
            await self._join.run()
        if joining.cancelled_caught:
            log.warning(
                "joining: not all was copied within %g s (%s); the rest comes when it is asked for",
                self._bounds.join,
                self._life.progress,
            )
        self._life.happens(Fact.JOINED)
        await trio.to_thread.run_sync(self._marker.set)

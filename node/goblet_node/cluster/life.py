"""What a node is to others, from its start to its end: one enum of facts and one table."""

import enum
import logging
from collections.abc import Callable, Mapping, Sequence

import trio

from goblet_shared.members import MemberState

log = logging.getLogger(__name__)


class Fact(enum.Enum):
    """What can happen to a node, as far as others are concerned."""

    JOINED = "it holds what it will own"
    TOLD_TO_GO = "it was told to go"


NEXT: Mapping[MemberState, Mapping[Fact, MemberState]] = {
    MemberState.JOINING: {
        Fact.JOINED: MemberState.READY,
        Fact.TOLD_TO_GO: MemberState.DRAINING,
    },
    MemberState.READY: {Fact.TOLD_TO_GO: MemberState.DRAINING},
    MemberState.DRAINING: {},
}
"""What each fact makes of each state; a fact that is not there changes nothing."""

# A draining node answers 404: to HAProxy's disable-on-404 that is a server which gets
# no new work and is not dead.
STATUS: Mapping[MemberState, int] = {
    MemberState.JOINING: 503,
    MemberState.READY: 200,
    MemberState.DRAINING: 404,
}


class Life:
    """The state of one node, and what it is busy with."""

    def __init__(
        self, state: MemberState, *, observers: Sequence[Callable[[MemberState], None]]
    ) -> None:
        """Begin in `state`; each of `observers` is told of it, and of every later one."""
        # All mutable state. Changed only by `happens` and `report`, which have no await.
        self._state = state
        self._progress = ""
        self._draining = trio.Event()
        self._observers = observers
        for tell in observers:
            tell(state)

    @property
    def state(self) -> MemberState:
        """What the node is now: joining, ready or draining."""
        return self._state

    @property
    def progress(self) -> str:
        """What the node does to leave its state, such as `12 of 40 mirrors copied`; or nothing."""
        return self._progress

    @property
    def sentence(self) -> str:
        """State and progress, as /readyz has them."""
        return f"{self._state.value}: {self._progress}" if self._progress else self._state.value

    @property
    def status(self) -> int:
        """The status of /readyz."""
        return STATUS[self._state]

    def happens(self, fact: Fact) -> None:
        """Make of the state what the table says; observers hear of it if it changed."""
        state = NEXT[self._state].get(fact, self._state)
        if state is self._state:
            return
        self._state = state
        self._progress = ""
        log.info("this node is %s: %s", state.value, fact.value)
        if state is MemberState.DRAINING:
            self._draining.set()
        for tell in self._observers:
            tell(state)

    def report(self, progress: str) -> None:
        """Have /readyz say what the node does now; forgotten when the state changes."""
        self._progress = progress

    async def until_draining(self) -> None:
        """Return when the node was told to go."""
        await self._draining.wait()


async def stop_after_notice(life: Life, notice: float, stop: trio.Event) -> None:
    """Set `stop` `notice` seconds after a node was told to go that is a member of nothing."""
    await life.until_draining()
    await trio.sleep(notice)
    stop.set()

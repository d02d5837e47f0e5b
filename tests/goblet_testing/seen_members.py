"""The members of a cluster as a node sees them, set by a test."""

from collections.abc import Mapping
from dataclasses import dataclass

from goblet_shared.contract import NodeName
from goblet_shared.members import MemberState
from goblet_shared.ring import Ring


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A member, as the node sees it."""

    name: NodeName
    state: MemberState


class SeenMembers:
    """What a MemberWatch says: all of `others` are on the ring, and `me` if `is_on_ring`."""

    def __init__(
        self, *, me: NodeName, others: Mapping[NodeName, MemberState], is_on_ring: bool = False
    ) -> None:
        self._me = me
        self.others = dict(others)
        self._is_on_ring = is_on_ring

    @property
    def ring(self) -> Ring:
        """The ring of the others, and `me` if it is on it."""
        return Ring.of([*self.others, *([self._me] if self._is_on_ring else [])])

    @property
    def views(self) -> tuple[View, ...]:
        """Everybody, `me` too."""
        own = MemberState.READY if self._is_on_ring else MemberState.JOINING
        everybody = {**self.others, self._me: own}
        return tuple(View(name=name, state=state) for name, state in sorted(everybody.items()))

    def state(self, name: NodeName) -> MemberState:
        """Return the state of one of the others."""
        return self.others[name]

"""What a source of members says, and how it fails."""

from dataclasses import dataclass
from typing import Protocol

from goblet_shared.errors import GobletError
from goblet_shared.members import Member


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The members as they are now, and in how many seconds to ask again."""

    members: tuple[Member, ...]
    ask_again_in: float


class DiscoveryFailed(GobletError):
    """It could not be found out who the members are now: those of before go on."""

    def __init__(self, problem: str, *, ask_again_in: float) -> None:
        super().__init__(problem)
        self.ask_again_in = ask_again_in


class Source(Protocol):
    """Where the members are listed."""

    async def look(self) -> Listing:
        """Return the members as they are now.

        Raises:
            DiscoveryFailed: that is not known; the text says what to do about it.
        """

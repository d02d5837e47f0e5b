"""Small answers that are asked for again and again, in memory: to send one needs no file.

Not safe between threads: the owner holds a lock.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

# What an answer takes beside its bytes: its name, and its place in a dict.
_OVERHEAD = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallAnswer:
    """All of an answer, and whether it carries a pack."""

    data: bytes
    has_pack: bool


class SmallAnswers(Generic[K]):
    """Keeps the answers that were used last, by name."""

    def __init__(self, *, memory: int) -> None:
        """Keep about `memory` bytes of answers at most."""
        self._memory = memory
        self._kept: OrderedDict[K, SmallAnswer] = OrderedDict()
        self._bytes = 0

    def take(self, name: K) -> SmallAnswer | None:
        """Return the answer of this name if it is kept, and count that as its use."""
        answer = self._kept.get(name)
        if answer is not None:
            self._kept.move_to_end(name)
        return answer

    def add(self, name: K, answer: SmallAnswer) -> None:
        """Keep an answer; whatever had this name is let go, and those used longest ago."""
        self.let_go(name)
        self._kept[name] = answer
        self._bytes += _size(answer)
        while self._bytes > self._memory:
            self.let_go(next(iter(self._kept)))

    def let_go(self, name: K) -> None:
        """Keep this one no longer."""
        answer = self._kept.pop(name, None)
        if answer is not None:
            self._bytes -= _size(answer)

    def clear(self) -> None:
        """Let go of all."""
        self._kept.clear()
        self._bytes = 0


def _size(answer: SmallAnswer) -> int:
    return len(answer.data) + _OVERHEAD

"""How fast something may go: so many bytes a second, for all who share it."""

from collections.abc import Callable

import trio


class Pace:
    """A bucket of bytes that fills at a steady rate, and that any number of tasks draw from.

    Kept as the time at which it is full again (virtual scheduling: ITU-T I.371, annex A),
    so nothing has to fill it. Who draws more than is in it waits until that has
    flowed in, and those who draw after it wait until then, too.
    """

    def __init__(
        self, rate: float, *, burst: float = 0.1, clock: Callable[[], float] = trio.current_time
    ) -> None:
        """Let `rate` bytes a second pass, and after a rest those of `burst` seconds at once."""
        self._rate = rate
        self._burst = burst
        self._clock = clock
        # All mutable state: when all that was drawn has flowed in. `draw` has no await.
        self._even_at = clock()

    def draw(self, bytes: int) -> float:
        """Draw so many bytes; return the time, of the clock, at which to draw again."""
        rested = self._clock() - self._burst
        self._even_at = max(self._even_at, rested) + bytes / self._rate
        return self._even_at

"""How many requests are let in at once: of one caller, and in all."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from goblet_node.access.callers import ANONYMOUS, Caller
from goblet_shared.errors import BadRequest, GobletError


class TooManyRequests(BadRequest):
    """One caller has more requests under way than are let in."""

    status = 429


class Busy(GobletError):
    """All callers together have more requests under way than are let in."""

    status = 503


class Limits:
    """Counts who is in."""

    def __init__(self, *, requests: int, per_caller: int) -> None:
        """Let so many `requests` in at once, and so many `per_caller`; 0 is without a limit."""
        self._requests = requests
        self._per_caller = per_caller
        # All mutable state: who is in, how often. Changed only between awaits.
        self._inside: Counter[str] = Counter()
        self._total = 0

    @contextmanager
    def entered(self, caller: Caller) -> Iterator[None]:
        """Count a caller as in for the length of the block.

        Raises:
            TooManyRequests, Busy: it is not let in.
        """
        who = _counted_as(caller)
        if self._per_caller and self._inside[who] >= self._per_caller:
            raise TooManyRequests(
                f"{self._per_caller} requests of this caller are under way: wait for one to end"
            )
        if self._requests and self._total >= self._requests:
            raise Busy("this node answers as many requests as it may: try again")
        self._inside[who] += 1
        self._total += 1
        try:
            yield
        finally:
            self._total -= 1
            self._inside[who] -= 1
            if not self._inside[who]:
                del self._inside[who]


def _counted_as(caller: Caller) -> str:
    if caller.name is not None:
        return f"name {caller.name}"
    if caller.fingerprint != ANONYMOUS:
        return f"credential {caller.fingerprint}"
    return f"address {caller.address}"

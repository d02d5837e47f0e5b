"""Ask an upstream again what it failed to answer: only what changes nothing, and only in time."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

import trio

from goblet_node.errors import UpstreamDown, UpstreamResting
from goblet_node.fill.failures import Refused

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How often and how soon: a pause is up to `first` seconds, then twice that, and so on.

    `tries` counts the first one, too.
    """

    tries: int = 3
    first: float = 0.2
    longest: float = 5.0


USUAL = Backoff()


def pause_after(
    failure: Exception, *, tried: int, left: float, backoff: Backoff, jitter: float
) -> float | None:
    """Return how many seconds to wait before the next try; None says that there is none.

    Exponential backoff with full jitter, after Marc Brooker, "Exponential Backoff And
    Jitter" (AWS Architecture Blog, 2015): those that failed at one moment do not come
    back at one. Upstream's own Retry-After counts instead, where it gave one.

    Args:
        failure: What the last try ended with. A 4xx is an answer, but for a 429 that
            says when to come back.
        tried: How many tries there were, at least 1.
        left: Seconds until nobody waits for the answer any more.
        backoff: How often and how soon.
        jitter: A random number from 0 to 1.
    """
    if tried >= backoff.tries:
        return None
    if isinstance(failure, Refused):
        asked_for = failure.retry_after if failure.status == 429 else None
        if asked_for is None:
            return None
    elif isinstance(failure, UpstreamDown) and not isinstance(failure, UpstreamResting):
        asked_for = failure.retry_after
    else:
        return None
    if asked_for is not None:
        pause = asked_for + jitter * backoff.first
    else:
        pause = jitter * min(backoff.longest, backoff.first * 2 ** (tried - 1))
    return pause if pause < left else None


async def retried(
    ask: Callable[[], Awaitable[T]],
    *,
    deadline: float,
    backoff: Backoff,
    random: Callable[[], float],
) -> T:
    """Return what `ask` returns, asking again while `pause_after` says so.

    `ask` ends by `deadline` itself, in seconds of trio's clock. Raises what the last
    try raised that upstream was asked in.
    """
    failure: Exception | None = None
    for tried in count(1):
        try:
            return await ask()
        except (UpstreamDown, Refused) as exc:
            if failure is not None and isinstance(exc, UpstreamResting):
                raise failure from None
            failure = exc
            left = deadline - trio.current_time()
            pause = pause_after(exc, tried=tried, left=left, backoff=backoff, jitter=random())
            if pause is None:
                raise
        await trio.sleep(pause)
    raise AssertionError("unreachable")  # count has no end

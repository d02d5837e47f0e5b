"""Wait for an answer only as long as none that is older would do."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from goblet_node.errors import UpstreamDown

T = TypeVar("T")

# What upstream is given to answer if it failed the last time: it may be back, but
# nobody should wait long to find out.
DOUBTED = 1.0


async def in_time_or_old(
    ask: Callable[[], Awaitable[T]],
    old: Callable[[UpstreamDown | None], Awaitable[T | None]],
    *,
    patience: float,
) -> T:
    """Return what `ask` returns, or what `old` does if upstream is down or takes too long.

    `old` is called once upstream failed, with how it did, or after `patience` seconds,
    with None; it returns None if there is nothing that may stand in. `ask` is cancelled
    then, and called again if there was nothing: what it asks should go on meanwhile.
    """
    failure: UpstreamDown | None = None
    with trio.move_on_after(max(0.0, patience)):
        try:
            return await ask()
        except UpstreamDown as exc:
            failure = exc
    stand_in = await old(failure)
    if stand_in is not None:
        return stand_in
    if failure is not None:
        raise failure
    return await ask()

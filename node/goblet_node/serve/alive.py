"""Say something while work takes long."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

T = TypeVar("T")


async def while_working(
    work: Callable[[], Awaitable[T]], say: Callable[[], Awaitable[None]], *, every: float
) -> T:
    """Return what `work` returns; meanwhile call `say` each time `every` seconds have passed.

    `say` is never cut off by the end of the work, so what it sends is whole.
    """
    done = trio.Event()
    failure: Exception | None = None

    async def speak() -> None:
        nonlocal failure
        while True:
            with trio.move_on_after(every):
                await done.wait()
            if done.is_set():
                return
            try:
                await say()
            except Exception as exc:
                failure = exc
                nursery.cancel_scope.cancel()
                return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(speak)
        try:
            result = await work()
        except Exception as exc:
            failure = exc  # re-raised below, bare: callers never see a group
        done.set()
    if failure is not None:
        raise failure
    return result

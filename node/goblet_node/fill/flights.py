"""Ask once, however many wait."""

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import trio

from goblet_node.errors import NodeStopping

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Flight(Generic[V]):
    def __init__(self) -> None:
        self.began = trio.current_time()
        self.landed = trio.Event()
        self.answer: V
        self.error: Exception | None = None


class Flights(Generic[K, V]):
    """Questions under way, at most one a key.

    A flight lives in the node's nursery: it goes on when the request that
    started it is cancelled, and its failure reaches those who wait for it and
    nobody else. After Go's singleflight, without its leader's context.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        # All mutable state. Changed only between awaits, so no lock is needed.
        self._flying: dict[K, _Flight[V]] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._flying

    def age(self, key: K) -> float:
        """Return for how many seconds the flight of `key` is under way, 0 if there is none."""
        flight = self._flying.get(key)
        return 0.0 if flight is None else trio.current_time() - flight.began

    async def join(self, key: K, fly: Callable[[], Awaitable[V]]) -> V:
        """Wait for the flight of `key`, starting one with `fly` if there is none.

        Cancelling the caller stops its waiting, not the flight.
        """
        flight = self._flying.get(key)
        if flight is None:
            flight = self._flying[key] = _Flight()
            self._nursery.start_soon(self._fly, key, flight, fly)
        await flight.landed.wait()
        if flight.error is not None:
            raise flight.error
        return flight.answer

    async def _fly(self, key: K, flight: _Flight[V], fly: Callable[[], Awaitable[V]]) -> None:
        try:
            flight.answer = await fly()
        except Exception as exc:
            flight.error = exc  # kept from the nursery: it belongs to those who wait
        except BaseException:
            flight.error = NodeStopping("this node is stopping: ask again")
            raise
        finally:
            del self._flying[key]
            flight.landed.set()

"""Mirrors that another member hands over: copied behind its request, a few at a time."""

from collections import Counter
from collections.abc import Iterable
from typing import Protocol

import trio

from goblet_node.fill.pace import Pace
from goblet_node.mirror.log import Mirror
from goblet_shared.contract import NodeName
from goblet_shared.errors import GobletError
from goblet_shared.repo_key import RepoKey

# What a node owns that is about to go, and some more.
MAX_WAITING = 100_000


class TooManyTaken(GobletError):
    """So many mirrors wait to be copied that no more are noted."""

    status = 503


class Copies(Protocol):
    """Who copies a mirror."""

    async def copy(
        self, key: RepoKey, source: NodeName, *, pace: Pace | None = None
    ) -> Mirror | None:
        """Copy a mirror from a member; None if that failed, which is logged."""


class Taker:
    """Copies what it was told of, in the order in which it was told."""

    def __init__(self, *, copies: Copies, at_once: int) -> None:
        """Copy `at_once` mirrors at once."""
        self._copies = copies
        self._at_once = at_once
        # All mutable state: what is to be copied, and from whom, and what is being copied
        # by how many. Changed only between awaits.
        self._waiting: dict[RepoKey, NodeName] = {}
        self._copying: Counter[RepoKey] = Counter()
        self._told = trio.Event()

    def take(self, source: NodeName, keys: Iterable[RepoKey]) -> None:
        """Note that these are to be copied from `source`; one that waits has a new source.

        Raises:
            TooManyTaken: More than `MAX_WAITING` would wait; none of these is noted.
        """
        told = {**self._waiting, **dict.fromkeys(keys, source)}
        if len(told) > MAX_WAITING:
            raise TooManyTaken(f"{len(self._waiting)} mirrors wait to be copied: ask again later")
        self._waiting = told
        # Each waits for the event that it found, so all of them are woken by this one.
        self._told.set()
        self._told = trio.Event()

    @property
    def awaited(self) -> frozenset[RepoKey]:
        """What is to be copied still: who is not here once it is not awaited will not come."""
        return frozenset([*self._waiting, *+self._copying])

    async def run(self) -> None:
        """Copy for ever; cancelled, what waits is forgotten."""
        async with trio.open_nursery() as nursery:
            for _ in range(self._at_once):
                nursery.start_soon(self._copy_all)

    async def _copy_all(self) -> None:
        while True:
            while not self._waiting:
                await self._told.wait()
            key = next(iter(self._waiting))
            source = self._waiting.pop(key)
            self._copying[key] += 1
            try:
                await self._copies.copy(key, source)
            finally:
                self._copying -= Counter([key])

"""Answers that list refs, in either dialect: encoded once a listing, however many ask.

What is asked by one client is asked by all who use the same git: 200 clones of a
CI ask for one and the same text.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import trio

from goblet_node.fill.flights import Flights
from goblet_node.fill.refs import Listing
from goblet_node.wire import v0, v2
from goblet_node.wire.requests import LsRefs

# A listing up to here is encoded in 2 ms; while a longer one is, others go on.
ENCODED_AT_ONCE = 2000
# A question with more prefixes than this is one client's own: 130 refspecs of a fetch.
MAX_PREFIXES = 512
# What an answer takes in memory besides itself, and each prefix of its name.
_OVERHEAD = 500
_PREFIX_OVERHEAD = 50


@dataclass(frozen=True, slots=True)
class _Name:
    """What an answer is made of: refs, by their digest, and what is asked of them."""

    digest: bytes
    said: tuple[object, ...]
    prefixes: tuple[bytes, ...] = ()

    @property
    def bytes(self) -> int:
        """What it takes in memory, about: a client may invent long ones."""
        return _OVERHEAD + sum(len(prefix) + _PREFIX_OVERHEAD for prefix in self.prefixes)


class ListedRefs:
    """Makes answers of listings, and keeps those that may be asked for again."""

    def __init__(self, *, agent: str, nursery: trio.Nursery, memory: int) -> None:
        """Keep at most `memory` bytes of answers, about, those used last."""
        self._agent = agent
        self._memory = memory
        self._flights: Flights[_Name, bytes] = Flights(nursery)
        # All mutable state, last used at the end. Changed only between awaits.
        self._kept: OrderedDict[_Name, bytes] = OrderedDict()
        self._kept_bytes = 0

    async def ls_refs(self, listing: Listing, request: LsRefs) -> bytes:
        """Return the answer to version 2's ls-refs."""

        def encode() -> bytes:
            return b"".join(v2.encode_ls_refs(listing.refs, request))

        if len(request.prefixes) > MAX_PREFIXES:
            return await self._encoded(listing, encode)
        said = (request.peel, request.symrefs, request.unborn)
        return await self._answer(_Name(listing.digest, said, request.prefixes), listing, encode)

    async def advertisement(self, listing: Listing, *, version: int) -> bytes:
        """Return the body of info/refs in version 0 or 1, which holds every ref."""

        def encode() -> bytes:
            pieces = v0.encode_advertisement(listing.refs, agent=self._agent, version=version)
            return b"".join(pieces)

        return await self._answer(_Name(listing.digest, (version,)), listing, encode)

    async def _answer(self, name: _Name, listing: Listing, encode: Callable[[], bytes]) -> bytes:
        answer = self._kept.get(name)
        if answer is None:
            answer = await self._flights.join(name, lambda: self._encoded(listing, encode))
            self._keep(name, answer)
        else:
            self._kept.move_to_end(name)
        return answer

    async def _encoded(self, listing: Listing, encode: Callable[[], bytes]) -> bytes:
        if len(listing.refs) <= ENCODED_AT_ONCE:
            return encode()
        return await trio.to_thread.run_sync(encode)

    def _keep(self, name: _Name, answer: bytes) -> None:
        size = name.bytes + len(answer)
        # One that would take the place of most others is not worth theirs.
        if name in self._kept or size > self._memory // 2:
            return
        self._kept[name] = answer
        self._kept_bytes += size
        while self._kept_bytes > self._memory:
            other, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= other.bytes + len(oldest)

"""What the body of a POST asks, read once for all who send the same."""

from collections.abc import Callable
from functools import lru_cache

import trio

from goblet_node.wire import v0, v2
from goblet_node.wire.answers import Dialect, V2Dialect
from goblet_node.wire.requests import Fetch, LsRefs

# Bodies from here on are read in a thread, 10 ms at the least: others must not wait.
PARSED_AT_ONCE = 256 * 1024
# 200 jobs of a CI send the same bytes, and to read those of an ls-refs takes 35 us.
# So many bodies of so many bytes are remembered for that, with what they say.
REMEMBERED_BODIES = 512
REMEMBERED_BODY = 4096

Read = tuple[LsRefs | Fetch, Dialect]
"""What is asked, and how the answer is to be said."""


class Questions:
    """Reads bodies, with a memory for those that come again and again."""

    def __init__(self) -> None:
        self._v2 = _remembering(_parse_v2)
        self._v0 = _remembering(_parse_v0)

    async def read(self, body: bytes, *, version: int) -> Read:
        """Return what the body of a POST asks in a version of the protocol.

        Raises ProtocolError.
        """
        parse = self._v2 if version == 2 else self._v0
        if len(body) < PARSED_AT_ONCE:
            return parse(body)
        return await trio.to_thread.run_sync(parse, body)


def _remembering(parse: Callable[[bytes], Read]) -> Callable[[bytes], Read]:
    """Return `parse`, which is pure, with a memory for short bodies."""
    known = lru_cache(REMEMBERED_BODIES)(parse)
    return lambda body: known(body) if len(body) <= REMEMBERED_BODY else parse(body)


def _parse_v2(body: bytes) -> Read:
    return v2.parse_request(body), V2Dialect()


def _parse_v0(body: bytes) -> Read:
    return v0.parse_request(body)

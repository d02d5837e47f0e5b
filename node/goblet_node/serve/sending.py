"""One answer from the log, as it is sent: its head, then its pack."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import trio

from goblet_node.serve.negotiate import negotiate
from goblet_node.serve.reply import NOT_TO_BE_KEPT, RESULT, Reply
from goblet_node.serve.selection import Selection
from goblet_node.wire.answers import Dialect
from goblet_node.wire.requests import Fetch


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One fetch as it came: what it says, how its client speaks, and its very bytes."""

    fetch: Fetch
    dialect: Dialect
    body: bytes
    headers: Mapping[str, str]


class Sending:
    """One answer from the log: its head, then its pack."""

    def __init__(self, asked: Asked, reply: Reply, *, cache: str, told: str = "") -> None:
        self._asked = asked
        self._reply = reply
        self._cache = cache
        self.told = told  # to the user, before the pack

    async def keep_alive(self) -> None:
        """Say that we are alive, if this client already knows what will come."""
        fetch = self._asked.fetch
        if fetch.done and not (fetch.has_depth or fetch.shallow or fetch.haves):
            if not self._reply.is_started:
                turn = negotiate(
                    fetch, self._asked.dialect, common=(), shallow=(), ready=lambda _: False
                )
                await self.begin(Selection(turn=turn))
            await self._reply.send(self._asked.dialect.keepalive)

    async def begin(self, found: Selection) -> None:
        """Send the head, if it was not sent yet."""
        if self._reply.is_started:
            return
        cache = self._cache if found.turn.has_pack else None
        await self._reply.start(200, [RESULT, *NOT_TO_BE_KEPT], cache=cache)
        head = self._asked.dialect.head(
            found.turn, shallow=found.shallow, unshallow=found.unshallow
        )
        await self._reply.send(head)

    async def send(self, found: Selection, slices: Iterator[bytes]) -> bytes | None:
        """Send all of an answer; return the pack's trailer, None if the turn has no pack."""
        dialect = self._asked.dialect
        if not found.turn.has_pack:
            await self.begin(found)
            return None
        # The first slice is read before the head is sent: a damaged log is still a status.
        data: bytes | None = next(slices) + await trio.to_thread.run_sync(next, slices)
        await self.begin(found)
        if self.told and not self._asked.fetch.no_progress:
            await self._reply.send(dialect.progress(self.told.encode()))
        last = b""
        while data is not None:
            await self._reply.send(dialect.pack(data))
            last, data = data, await trio.to_thread.run_sync(next, slices, None)
        await self._reply.send(dialect.end)
        return last[-20:]

"""One answer from the log, as it is made: its head, then its pack."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from goblet_node.serve.negotiate import foregone
from goblet_node.serve.reply import NOT_TO_BE_KEPT, RESULT, Reply
from goblet_node.serve.selection import Packed, Selection
from goblet_node.wire.answers import Dialect
from goblet_node.wire.requests import Fetch
from goblet_shared.parts import Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One fetch as it came: what it says, how its client speaks, and its very bytes."""

    fetch: Fetch
    dialect: Dialect
    body: bytes
    headers: Mapping[str, str]


class Sink(Protocol):
    """What takes an answer: a client, or a file that clients follow."""

    @property
    def is_started(self) -> bool:
        """Whether `start` was called."""

    async def start(self, *, cache: str | None, length: int | None = None) -> None:
        """Say that an answer comes, and how its pack came about if it carries one.

        `length` is how many bytes it will be, if that is known.
        """

    async def send(self, data: bytes) -> None:
        """Take the next bytes of the answer, whole packets."""


class FileSink(Sink, Protocol):
    """A sink that takes files without their being read for it."""

    async def send_parts(self, parts: Sequence[Part]) -> None:
        """Take the next bytes of the answer, whole packets, some of which lie in files."""


class Straight:
    """One client, who takes the answer while it is made."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    @property
    def is_started(self) -> bool:
        """Whether the client has received anything."""
        return self._reply.is_started

    async def start(self, *, cache: str | None, length: int | None = None) -> None:
        """Send the head of the answer."""
        await self._reply.start(200, [RESULT, *NOT_TO_BE_KEPT], cache=cache, length=length)

    async def send(self, data: bytes) -> None:
        """Send a piece of the body; returns when the connection took it."""
        await self._reply.send(data)

    async def send_parts(self, parts: Sequence[Part]) -> None:
        """Send pieces of the body, of which files are not read; else as `send`."""
        await self._reply.send_parts(parts)


class Sending:
    """One answer from the log: its head, then its pack."""

    def __init__(
        self, fetch: Fetch, dialect: Dialect, sink: Sink, *, cache: str, told: str = ""
    ) -> None:
        """Answer `fetch`, of whose haves and shallow commits the mirror holds all it can."""
        self._fetch = fetch
        self._dialect = dialect
        self._sink = sink
        self._cache = cache
        self.told = told  # to the user, before the pack

    async def keep_alive(self) -> None:
        """Say that we are alive, if what will come is known already to be a pack."""
        turn = foregone(self._fetch, self._dialect)
        if turn is not None and self._dialect.keepalive:
            await self.begin(Selection(turn=turn))
            await self._sink.send(self._dialect.keepalive)

    async def begin(self, found: Selection) -> None:
        """Send the head, if it was not sent yet."""
        if not self._sink.is_started:
            await self._sink.send(await self._started(found))

    async def send_packed(self, found: Selection, packed: Packed) -> None:
        """Send all of an answer that carries a pack which is at hand, as one."""
        dialect = self._dialect
        head = b"" if self._sink.is_started else await self._started(found)
        said = dialect.pack(packed.data) + dialect.end
        await self._sink.send(head + self._progress() + said)

    async def send(self, found: Selection, slices: Iterator[bytes]) -> None:
        """Send all of an answer that carries a pack."""
        dialect, sink = self._dialect, self._sink
        # The first slice is read before the head is sent: a damaged log is still a status.
        data: bytes | None = next(slices) + await trio.to_thread.run_sync(next, slices)
        await self.begin(found)
        if progress := self._progress():
            await sink.send(progress)
        while data is not None:
            await sink.send(dialect.pack(data))
            data = await trio.to_thread.run_sync(next, slices, None)
        await sink.send(dialect.end)

    async def _started(self, found: Selection) -> bytes:
        """Say that an answer comes; return the head of it, which is to be sent next."""
        await self._sink.start(cache=self._cache if found.turn.has_pack else None)
        return self._dialect.head(found.turn, shallow=found.shallow, unshallow=found.unshallow)

    def _progress(self) -> bytes:
        """Return what the user is told, as it is sent; nothing if the client asked for none."""
        is_told = self.told and not self._fetch.no_progress
        return self._dialect.progress(self.told.encode()) if is_told else b""

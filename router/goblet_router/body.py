"""A request's body: read from the client once, sent to as many nodes as memory allows."""

import trio

from goblet_router.errors import ClientGone, ClientTooSlow, NotRepeatable
from goblet_shared.asgi import Message, Receive

# What a repeated pass sends at a time; hypercorn reads from clients in the same size.
_REPLAY_CHUNK = 64 * 1024


class ReplayableBody:
    """What the client sends, as a stream that can be begun again while little of it was read.

    Each iteration is one pass from the first byte. Passes do not overlap: a new
    one begins after the attempt that held the last one has ended.

    Raises (from a pass):
        ClientGone: the client left before the end of its body.
        ClientTooSlow: the client paused longer than `idle` seconds.
    """

    def __init__(self, receive: Receive, *, keep: int, idle: float) -> None:
        self._receive = receive
        self._keep = keep
        self._idle = idle
        # All mutable state: the first bytes (None once they were too many), how
        # many were read, and whether the client's end was. Changed only by the
        # one pass that runs.
        self._kept: bytearray | None = bytearray()
        self._read = 0
        self._ended = False
        self._unwatched = trio.Event()

    @property
    def is_replayable(self) -> bool:
        """Whether a pass can begin: everything read so far is still here."""
        return self._kept is not None

    def __aiter__(self) -> "_Pass":
        """Begin a pass.

        Raises:
            NotRepeatable: more was read than is kept.
        """
        if not self.is_replayable:
            raise NotRepeatable("more of the request's body was sent than is kept for a retry")
        return _Pass(self)

    async def receive_rest(self) -> Message:
        """Receive what follows the body, for whoever waits for the client's leave.

        Waits until no pass can read any more: two readers of one channel would
        take each other's messages.
        """
        await self._unwatched.wait()
        return await self._receive()

    def let_go(self) -> None:
        """No pass will read on: an answer has begun. What the client still sends is discarded."""
        self._unwatched.set()

    async def chunk_at(self, position: int) -> bytes | None:
        """Return bytes from `position` on, of which there are some, or None at the end."""
        if position < self._read:
            if self._kept is None:
                raise NotRepeatable("more of the request's body was sent than is kept for a retry")
            return bytes(self._kept[position : position + _REPLAY_CHUNK])
        # h11 takes an empty Data event for the last chunk of a chunked body, so
        # an empty message is read over.
        while not self._ended:
            if chunk := await self._next():
                return chunk
        return None

    async def _next(self) -> bytes:
        try:
            with trio.fail_after(self._idle):
                message = await self._receive()
        except trio.TooSlowError:
            raise ClientTooSlow(
                f"the request's body stopped for {self._idle:g} s; send it again"
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientGone("the client left inside its request")
        chunk = bytes(message.get("body", b""))
        self._remember(chunk)
        if not message.get("more_body", False):
            self._ended = True
            self._unwatched.set()
        return chunk

    def _remember(self, chunk: bytes) -> None:
        self._read += len(chunk)
        if self._kept is not None:
            if self._read > self._keep:
                self._kept = None
            else:
                self._kept += chunk


class _Pass:
    # A class and not an async generator: httpcore drops a body's iterator half
    # way when an attempt fails, and trio warns of generators dropped like that.
    def __init__(self, body: ReplayableBody) -> None:
        self._body = body
        self._position = 0

    def __aiter__(self) -> "_Pass":
        return self

    async def __anext__(self) -> bytes:
        chunk = await self._body.chunk_at(self._position)
        if chunk is None:
            raise StopAsyncIteration
        self._position += len(chunk)
        return chunk

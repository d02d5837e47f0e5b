"""The answer to one request, as far as it has gone."""

from collections.abc import Sequence

from goblet_node.metrics import NodeMetrics
from goblet_shared import contract
from goblet_shared.asgi import Send
from goblet_shared.errors import GobletError
from goblet_shared.parts import ZEROCOPY, Part, cut, size_of
from goblet_shared.sendfile import send_copied

# As git http-backend says it: answers of a git server are never kept by caches between.
NOT_TO_BE_KEPT = (
    (b"cache-control", b"no-cache, max-age=0, must-revalidate"),
    (b"expires", b"Fri, 01 Jan 1980 00:00:00 GMT"),
    (b"pragma", b"no-cache"),
)
RESULT = (b"content-type", b"application/x-git-upload-pack-result")

# A message to the server costs some 50 us. What was sent is known to the message:
# a client that leaves half-way through a large file must not count for all of it.
_MESSAGE = 16 << 20
# What Goblet-Cache says of packs that upstream has just sent.
_FROM_UPSTREAM = frozenset({"forwarded", "cold"})


class Reply:
    """Sends one answer and remembers what of it was sent.

    Whoever owns the reply ends it, once all is well. What was started and not ended
    is an answer cut off: the server closes the connection without the end that a
    client would take for a whole answer.
    """

    def __init__(
        self,
        *,
        send: Send,
        node: str,
        request_id: bytes,
        metrics: NodeMetrics,
        takes_files: bool = False,
    ) -> None:
        """Answer through `send`, which takes ZEROCOPY messages if `takes_files`."""
        self._send = send
        self._takes_files = takes_files
        self._ours = (
            (contract.NODE_HEADER, node.encode()),
            (contract.REQUEST_ID_HEADER, request_id),
        )
        self._metrics = metrics
        # All mutable state; one task writes it.
        self.status: int | None = None
        self.cache: str | None = None
        self.sent = 0
        self._length: int | None = None  # that the client was told
        self.age: float | None = None  # in seconds, of what upstream said and is answered with
        self.note = ""  # for the log: why it was answered in this way

    @property
    def is_started(self) -> bool:
        """Whether the client has received anything."""
        return self.status is not None

    async def start(
        self,
        status: int,
        headers: Sequence[tuple[bytes, bytes]],
        *,
        cache: str | None = None,
        length: int | None = None,
    ) -> None:
        """Send the head.

        Args:
            status: The HTTP status.
            headers: What is to be said besides what is ours and the length.
            cache: How a pack came about, on answers that carry one.
            length: How many bytes the body will have, if that is known: it is told
                to the client, and an answer that ends with any other number of
                bytes is cut off.
        """
        self.status = status
        self.cache = cache
        self._length = length
        told: list[tuple[bytes, bytes]] = []
        if length is not None:
            told.append((b"content-length", b"%d" % length))
        if self.age is not None and status == 200 and cache not in _FROM_UPSTREAM:
            told.append((contract.AGE_HEADER, b"%d" % self.age))
        if cache is not None:
            self._metrics.packs.labels(cache).inc()
            told.append((contract.CACHE_HEADER, cache.encode()))
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [*headers, *told, *self._ours],
            }
        )

    async def send(self, data: bytes) -> None:
        """Send a piece of the body; returns when the connection took it."""
        self.sent += len(data)
        self._metrics.sent_bytes.inc(len(data))
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def send_parts(self, parts: Sequence[Part]) -> None:
        """Send pieces of the body that may lie in files; returns when the connection took them.

        Files are not read where the connection can do without: see `takes_files`.

        Raises:
            FileFailed: A file ended early, or cannot be read. The answer can only be
                cut off: part of this may have been sent.
        """
        for batch in cut(parts, _MESSAGE):
            size = size_of(batch)
            self.sent += size
            self._metrics.sent_bytes.inc(size)
            if self._takes_files:
                await self._send({"type": ZEROCOPY, "parts": batch, "more_body": True})
            else:
                await send_copied(self._send, batch)

    async def end(self) -> None:
        """End the answer: the client has all of it.

        Raises:
            GobletError: It has not as much as it was told that it would get. The
                connection can only be cut.
        """
        if self._length is not None and self.sent != self._length:
            raise GobletError("the answer was cut off before its end")
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def whole(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        """Send all of an answer that is at hand."""
        await self.start(status, headers, length=len(body))
        await self.send(body)

    async def sentence(
        self, status: int, sentence: str, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """Answer with one sentence: git shows a text/plain body to its user."""
        kind = (b"content-type", b"text/plain; charset=utf-8")
        await self.whole(status, [kind, *headers], sentence.encode() + b"\n")

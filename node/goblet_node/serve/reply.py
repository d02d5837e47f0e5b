"""The answer to one request, as far as it has gone."""

from collections.abc import Sequence

from goblet_node.metrics import NodeMetrics
from goblet_shared import contract
from goblet_shared.asgi import Send

# As git http-backend says it: answers of a git server are never kept by caches between.
NOT_TO_BE_KEPT = (
    (b"cache-control", b"no-cache, max-age=0, must-revalidate"),
    (b"expires", b"Fri, 01 Jan 1980 00:00:00 GMT"),
    (b"pragma", b"no-cache"),
)
RESULT = (b"content-type", b"application/x-git-upload-pack-result")


class Reply:
    """Sends one answer and remembers what of it was sent.

    Whoever owns the reply ends it, once all is well. What was started and not ended
    is an answer cut off: the server closes the connection without the end that a
    client would take for a whole answer.
    """

    def __init__(self, *, send: Send, node: str, request_id: bytes, metrics: NodeMetrics) -> None:
        self._send = send
        self._ours = (
            (contract.NODE_HEADER, node.encode()),
            (contract.REQUEST_ID_HEADER, request_id),
        )
        self._metrics = metrics
        # All mutable state; one task writes it.
        self.status: int | None = None
        self.cache: str | None = None
        self.sent = 0
        self.note = ""  # for the log: why it was answered in this way

    @property
    def is_started(self) -> bool:
        """Whether the client has received anything."""
        return self.status is not None

    async def start(
        self, status: int, headers: Sequence[tuple[bytes, bytes]], *, cache: str | None = None
    ) -> None:
        """Send the head. `cache` says how a pack came about, on answers that carry one."""
        self.status = status
        self.cache = cache
        told: tuple[tuple[bytes, bytes], ...] = ()
        if cache is not None:
            self._metrics.packs.labels(cache).inc()
            told = ((contract.CACHE_HEADER, cache.encode()),)
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

    async def end(self) -> None:
        """End the answer: the client has all of it."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def whole(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        """Send all of an answer that is at hand."""
        await self.start(status, [*headers, (b"content-length", b"%d" % len(body))])
        await self.send(body)

    async def sentence(
        self, status: int, sentence: str, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """Answer with one sentence: git shows a text/plain body to its user."""
        kind = (b"content-type", b"text/plain; charset=utf-8")
        await self.whole(status, [kind, *headers], sentence.encode() + b"\n")

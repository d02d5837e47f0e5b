"""What is read of an upstream's answer: headers that may be passed on, and its body."""

import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager, suppress

import httpx
import trio

from goblet_node.errors import UpstreamError

# Headers of an answer that say something about its bytes or to its client;
# all others belong to the connection between upstream and us.
PASSED_HEADERS = (
    "content-type",
    "content-encoding",
    "content-length",
    "cache-control",
    "expires",
    "pragma",
    "retry-after",
    "www-authenticate",
)
# What releasing a connection may take: it only closes a socket.
CLOSE_GRACE = 2.0


def passed(headers: httpx.Headers) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers of an answer that go on to a client."""
    return tuple(
        (name.lower(), value)
        for name, value in headers.raw
        if name.decode("ascii").lower() in PASSED_HEADERS
    )


def is_encoded(response: httpx.Response) -> bool:
    """Say whether the body would have to be decoded, though we ask for it as it is."""
    said = response.headers.get_list("content-encoding", split_commas=True)
    return any(coding.strip().lower() not in ("", "identity") for coding in said)


def as_sent(response: httpx.Response) -> AsyncIterator[bytes]:
    """Return the pieces of a body, each no larger than what was received at once.

    Raises UpstreamError if it is encoded: 661 bytes can be 300 MB that were
    compressed twice, and httpx decodes them before anybody can look.
    """
    if is_encoded(response):
        coding = response.headers["content-encoding"][:40]
        raise UpstreamError(
            f"{response.url.host} answered with content-encoding {coding!r}, "
            "which was not asked for"
        )
    return response.aiter_raw()


async def collect(response: httpx.Response, limit: int, *, or_cut: bool = False) -> bytes:
    """Read a body of at most `limit` bytes; cut it there, or raise UpstreamError."""
    body = bytearray()
    chunks = as_sent(response)
    try:
        async for chunk in chunks:
            room = limit - len(body)
            if len(chunk) > room and not or_cut:
                raise UpstreamError(f"{response.url.host} sent more than {limit} bytes of refs")
            body += chunk[:room]
            if len(chunk) > room:
                break
    finally:
        await let_go(response, chunks)
    return bytes(body)


async def let_go(response: httpx.Response, chunks: AsyncIterator[bytes]) -> None:
    """Release the connection: kept if the body was read to its end, else closed."""
    with trio.move_on_after(CLOSE_GRACE, shield=True):
        await response.aclose()
        # The body is several generators deep and we hold only the outermost. Dropped
        # half way, the inner ones are left to the garbage collector, of which trio
        # warns. Reading on from the closed connection ends them all.
        with suppress(httpx.HTTPError, httpx.StreamError):
            async for _ in chunks:
                pass


class Silence:
    """How long to wait for the next piece of an answer: measured in waiting, not in our own work.

    `of_pack` bounds the waiting since the last piece of the pack itself: an upstream
    that only ever tells of its progress would otherwise hold a repository's refresh.
    """

    def __init__(self, limit: float, *, of_pack: float = math.inf) -> None:
        self._limit = limit
        self._of_pack = of_pack
        self._waited = 0.0

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """Raise trio.TooSlowError where the block takes longer than may be waited now."""
        began = trio.current_time()
        with trio.fail_after(min(self._limit, max(0.0, self._of_pack - self._waited))):
            yield
        self._waited += trio.current_time() - began

    def is_broken(self) -> None:
        """Begin anew, since a piece of the pack has come."""
        self._waited = 0.0


async def in_time(
    response: httpx.Response, chunks: AsyncIterator[bytes], silence: Silence
) -> AsyncGenerator[bytes]:
    """Yield what comes, each piece in time; the connection is released in the end.

    Raises trio.TooSlowError.
    """
    try:
        while True:
            # No yield inside the deadline: it would bound our consumer too.
            with silence.bounded():
                chunk = await anext(chunks, None)
            if chunk is None:
                return
            yield chunk
    finally:
        await let_go(response, chunks)

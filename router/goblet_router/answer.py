"""A node's answer: its head, and its body chunk by chunk until its proper end, or none."""

from collections.abc import AsyncIterable, AsyncIterator, Awaitable
from contextlib import suppress
from http import HTTPStatus
from typing import Protocol

import httpcore
import trio

from goblet_router.errors import AnswerCut
from goblet_router.headers import Headers
from goblet_shared.contract import DECLINED_HEADER

# Everything that a connection may meet once it was asked for something.
BROKEN = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException)
# Closing a socket takes no time; what could is a TLS farewell to a dead node.
CLOSE_GRACE = 1.0
# Answers that say where they end, RFC 9112, section 6.3. Any other ends where its
# connection does, which may be half way: a node that is killed closes it as well.
_FRAMING = frozenset((b"content-length", b"transfer-encoding"))
_WITHOUT_BODY = frozenset((HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED))


class _Leave(Protocol):
    def __call__(self, *, is_whole: bool) -> Awaitable[None]: ...


class Answer:
    """The head of a node's answer, and its body chunk by chunk, undecoded."""

    def __init__(
        self,
        response: httpcore.Response,
        *,
        node: str,
        idle: float,
        leave: _Leave,
        may_end_by_close: bool,
    ) -> None:
        assert isinstance(response.stream, AsyncIterable)
        self.status = response.status
        self.headers: Headers = response.headers
        self._node = node
        self._idle = idle
        self._response = response
        self._chunks = aiter(response.stream)
        self._leave = leave
        self._begun = self._is_whole = False
        self._says_its_end = (
            may_end_by_close
            or response.status in _WITHOUT_BODY
            or any(name.lower() in _FRAMING for name, _ in response.headers)
        )

    @property
    def is_declined(self) -> bool:
        """Whether the node asks us to take another; any other answer stands."""
        return self.status == HTTPStatus.SERVICE_UNAVAILABLE and any(
            name.lower() == DECLINED_HEADER for name, _ in self.headers
        )

    async def next_chunk(self) -> bytes | None:
        """Return the next bytes of the body, or None at its proper end.

        Raises:
            AnswerCut: the node broke off, or paused for too long.
        """
        self._begun = True
        try:
            chunk = await anext(self._chunks, None)
        except httpcore.TimeoutException as exc:
            raise AnswerCut(f"{self._node}: its answer stopped for {self._idle:g} s") from exc
        except BROKEN as exc:
            raise AnswerCut(f"{self._node}: its answer broke off") from exc
        if chunk is None and not self._says_its_end:
            raise AnswerCut(f"{self._node}: its answer ended without saying that it was whole")
        self._is_whole = chunk is None
        return chunk

    async def aclose(self) -> None:
        """Release the connection; it is kept if the body was read to its end, else closed.

        Call it once.
        """
        with trio.move_on_after(CLOSE_GRACE, shield=True):
            await self._response.aclose()
            if self._begun and not self._is_whole:
                await run_out(self._chunks)
        await self._leave(is_whole=self._is_whole)


async def run_out(chunks: AsyncIterator[bytes]) -> None:
    """End the iteration of a body whose answer was closed.

    It is two generators deep and we hold only the outer one. Dropped half way, the
    inner one is left to the garbage collector, of which trio warns. Reading on from
    the closed connection ends both, after at most what was received already.
    """
    with suppress(*BROKEN):
        async for _ in chunks:
            pass

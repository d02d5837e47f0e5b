"""Answering a request whose body was not read to its end, without losing the answer.

Two things go wrong when an application answers early, as every refusal does. Closing
a connection on which the client still sends resets it, and the client may lose the
answer before it has read it. And hypercorn hands the body over through a short
queue: when nobody reads that queue any more, its own end of the connection waits for
room in it, for ever.
"""

from __future__ import annotations

from typing import Any

import trio

from goblet_shared.asgi import ASGIApp, Message, Receive, Scope, Send, header
from goblet_shared.parts import ZEROCOPY

# How much of the rest is read and dropped before the connection is closed, and for
# how long at most. git's own request bodies are hardly ever larger; and whoever
# sends more has had two seconds to see the answer.
LINGER_BYTES = 1024 * 1024
LINGER_SECONDS = 2.0

_BODY = frozenset({"http.response.body", ZEROCOPY})


def lingering(app: ASGIApp) -> ASGIApp:
    """Return `app`, free to answer, return or fail without having read the request's body.

    The answer's bytes are sent at once; only its end, and the closing of the
    connection, wait for the rest of the body within the two limits.
    """

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _Exchange(receive, send, has_body=_has_body(scope))
        try:
            await app(scope, exchange.receive, exchange.send)
        finally:
            if not exchange.is_over:
                await exchange.cut()

    return outer


class _Exchange:
    """One request and its answer, and how far each of them has come."""

    def __init__(self, receive: Receive, send: Send, *, has_body: bool) -> None:
        self._receive = receive
        self._send = send
        self._request_is_over = not has_body
        self._answer_is_over = False

    @property
    def is_over(self) -> bool:
        return self._request_is_over or self._answer_is_over

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._request_is_over = True
        return message

    async def send(self, message: Message) -> None:
        ends = message["type"] in _BODY and not message.get("more_body", False)
        if not ends or self._request_is_over:
            self._answer_is_over = self._answer_is_over or ends
            await self._send(message)
            return
        await self._send({**message, "more_body": True})
        with trio.move_on_after(LINGER_SECONDS):
            await self._drop(LINGER_BYTES)
        self._answer_is_over = True
        await self._send_while_dropping({"type": "http.response.body", "body": b""})

    async def cut(self) -> None:
        """End the connection as hypercorn does when an application has returned."""
        # None is what hypercorn's own task sends after the application; sent here,
        # where the queue is still being emptied, it cannot get stuck.
        await self._send_while_dropping(None)

    async def _send_while_dropping(self, message: Any) -> None:
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._drop, None)
            try:
                await self._send(message)
            except Exception as error:
                # Kept from the nursery, which would wrap it in a group.
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _drop(self, limit: int | None) -> None:
        dropped = 0
        while not self._request_is_over and (limit is None or dropped < limit):
            dropped += len((await self.receive()).get("body", b""))


def _has_body(scope: Scope) -> bool:
    # HTTP/2 frames a body without a header that says so.
    if not scope["http_version"].startswith("1"):
        return True
    return (
        header(scope, b"transfer-encoding") is not None
        or (header(scope, b"content-length") or b"0") != b"0"
    )

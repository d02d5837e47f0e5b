"""The few words of ASGI that router and node both speak."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import trio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = [
    "ASGIApp",
    "Headers",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "cancelled_on_disconnect",
    "header",
    "is_of_a_connection",
    "send_text",
]

Headers = Iterable[tuple[bytes, bytes]]
"""Header lines as ASGI has them: names in lower case."""


async def send_text(send: Send, status: int, sentence: str, headers: Headers = ()) -> None:
    """Answer with one sentence as text/plain, and end the answer."""
    body = sentence.encode() + b"\n"
    fixed = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
    ]
    await send(
        {"type": "http.response.start", "status": status, "headers": [*fixed, *headers]},
    )
    await send({"type": "http.response.body", "body": body, "more_body": False})


def header(scope: Scope, name: bytes) -> bytes | None:
    """Return the value of the first header `name` (in lower case) of a request, if it has one."""
    for found, value in scope["headers"]:
        if found == name:
            return bytes(value)
    return None


def is_of_a_connection(credential: bytes) -> bool:
    """Say whether an Authorization vouches for a connection and not for a request.

    As Negotiate and NTLM do (RFC 4559, section 6): sent over a connection that callers
    share, it may let the next one read as the last.
    """
    return credential.lstrip().lower().startswith((b"negotiate", b"ntlm"))


@asynccontextmanager
async def cancelled_on_disconnect(receive: Receive) -> AsyncIterator[None]:
    """Cancel the body when the client leaves; what follows the `with` block then runs as usual.

    Enter it only after the request's body was read to its end: until the client
    leaves, whatever else `receive` brings is dropped. Send the last of an answer outside
    of it: hypercorn reports the end of an exchange as a disconnect, too. An exception
    of the body leaves bare, never inside a group.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_when_gone, receive, nursery.cancel_scope)
        try:
            yield
        except Exception as error:
            # Kept from the nursery, which would wrap it in a group.
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _cancel_when_gone(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()

"""Read the bodies of requests, within limits."""

import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from goblet_shared.asgi import Receive
from goblet_shared.errors import BadRequest, GobletError


class BodyTooLarge(BadRequest):
    """The body is larger than this node takes, as sent or once decoded."""

    status = 413


class BadEncoding(BadRequest):
    """The body is encoded in a way that git does not use."""

    status = 415


class BodyTooSlow(BadRequest):
    """The client stopped sending its request."""

    status = 408


class TooManyBodies(GobletError):
    """The requests that are being answered hold all the memory that there is for them."""

    status = 503


class ClientGone(Exception):
    """The client left before its request was whole: there is nobody to answer."""


class Bodies:
    """Reads request bodies, which are kept in memory while their requests are answered.

    `limit` bounds one, decoded, `budget` all of them together, both in bytes; a
    client may pause for `idle` seconds.
    """

    def __init__(self, *, limit: int, budget: int, idle: float) -> None:
        self._limit = limit
        self._budget = budget
        self._idle = idle
        # All mutable state: what is held now. Changed only between awaits.
        self._held = 0

    @asynccontextmanager
    async def reading(self, receive: Receive, *, encoding: bytes | None) -> AsyncIterator[bytes]:
        """Give the decoded body: plain, or gzip as git sends it above 1,024 bytes.

        Raises BodyTooLarge as soon as more than the limit is certain, so a gzip bomb
        costs no more than that; BodyTooSlow, TooManyBodies, BadEncoding, ClientGone.
        """
        body = bytearray()
        try:
            await self._read(receive, _decoder(encoding), body)
            yield bytes(body)
        finally:
            self._held -= len(body)

    async def _read(
        self, receive: Receive, unzip: "zlib._Decompress | None", body: bytearray
    ) -> None:
        more = True
        while more:
            with trio.move_on_after(self._idle) as waiting:
                message = await receive()
            if waiting.cancelled_caught:
                raise BodyTooSlow(f"the request did not go on for {self._idle:g} s")
            if message["type"] == "http.disconnect":
                raise ClientGone
            data: bytes = message.get("body", b"")
            more = message.get("more_body", False)
            room = self._limit + 1 - len(body)
            piece = data if unzip is None else _inflate(unzip, data, room)
            if len(piece) >= room or (unzip is not None and unzip.unconsumed_tail):
                raise BodyTooLarge(
                    f"the request is larger than the {self._limit} bytes that this node takes"
                )
            if self._held + len(piece) > self._budget:
                raise TooManyBodies("this node is busy with other requests: try again")
            self._held += len(piece)
            body += piece
        if unzip is not None and (not unzip.eof or unzip.unused_data):
            raise BadRequest("the gzip data of the request does not end where its body does")


def _decoder(encoding: bytes | None) -> "zlib._Decompress | None":
    if encoding in (None, b"", b"identity"):
        return None
    if encoding in (b"gzip", b"x-gzip"):
        return zlib.decompressobj(wbits=31)
    raise BadEncoding(f"content-encoding {encoding!r} is not one that git sends: want gzip")


def _inflate(unzip: "zlib._Decompress", data: bytes, room: int) -> bytes:
    try:
        return unzip.decompress(data, room)
    except zlib.error as exc:
        raise BadRequest("the body says that it is gzip, and is not") from exc

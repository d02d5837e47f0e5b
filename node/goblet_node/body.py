"""Read the body of a request, within limits."""

import zlib

from goblet_shared.asgi import Receive
from goblet_shared.errors import BadRequest


class BodyTooLarge(BadRequest):
    """The body is larger than this node takes, as sent or once decoded."""

    status = 413


class BadEncoding(BadRequest):
    """The body is encoded in a way that git does not use."""

    status = 415


class ClientGone(Exception):
    """The client left before its request was whole: there is nobody to answer."""


async def read_body(receive: Receive, *, encoding: bytes | None, limit: int) -> bytes:
    """Return the decoded body: plain, or gzip as git sends it above 1,024 bytes.

    Raises BodyTooLarge as soon as more than `limit` decoded bytes are certain, so a
    gzip bomb costs no more than that; BadEncoding; ClientGone.
    """
    if encoding in (None, b"", b"identity"):
        unzip = None
    elif encoding in (b"gzip", b"x-gzip"):
        unzip = zlib.decompressobj(wbits=31)
    else:
        raise BadEncoding(f"content-encoding {encoding!r} is not one that git sends: want gzip")
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        data: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        body += data if unzip is None else _inflate(unzip, data, limit + 1 - len(body))
        if len(body) > limit or (unzip is not None and unzip.unconsumed_tail):
            raise BodyTooLarge(f"the request is larger than the {limit} bytes that this node takes")
    if unzip is not None and (not unzip.eof or unzip.unused_data):
        raise BadRequest("the gzip data of the request does not end where its body does")
    return bytes(body)


def _inflate(unzip: "zlib._Decompress", data: bytes, room: int) -> bytes:
    try:
        return unzip.decompress(data, room)
    except zlib.error as exc:
        raise BadRequest("the body says that it is gzip, and is not") from exc

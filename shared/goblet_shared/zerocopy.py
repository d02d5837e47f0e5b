"""`http.response.zerocopysend` for hypercorn on trio: files to HTTP/1.1 clients by sendfile.

The ASGI extension as its specification has it, one file a message, and with many
parts a message (see parts.py). It is offered on HTTP/1.1 without TLS alone: TLS and
HTTP/2 must touch every byte anyway.

A message travels as a body does: the application's `send` makes it an event of the
stream, h11 counts it and frames it without looking at it (it was made for this: see
`send_with_data_passthrough`), and the connection sends it. hypercorn has no place to
put in protocols of one's own, so a connection exchanges its HTTP/1.1 protocol before
the first byte arrives; no name in hypercorn is rebound.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from socket import SO_LINGER, SOL_SOCKET
from struct import pack
from typing import Any, cast

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.typing import AppWrapper, ASGIReceiveEvent, ASGISendEvent, Scope, TaskGroup
from hypercorn.utils import UnexpectedMessageError, suppress_body

from goblet_shared.parts import ZEROCOPY, FileSpan, Part, size_of
from goblet_shared.resident import Pages
from goblet_shared.sendfile import send_parts, take_files

_AppSend = Callable[[ASGISendEvent | None], Awaitable[None]]
_AppPut = Callable[[ASGIReceiveEvent], Awaitable[None]]


# A head is copied to stand before a body's first bytes if those are no more than this.
_JOINED = 64 * 1024


class Parts:
    """Parts as h11 wants its data: something that has a length, and is not looked into."""

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts
        self._size = size_of(parts)

    def __len__(self) -> int:
        return self._size


@dataclass(frozen=True)
class PartsBody(StreamEvent):
    """A piece of a body, whose bytes may lie in files."""

    data: Parts


@dataclass(frozen=True)
class RawParts(Event):
    """Bytes as they travel, some of which may lie in files."""

    parts: list[Part]


class ZeroCopyServer(TCPServer):
    """One connection, which takes files where nothing stands between them and the socket."""

    def __init__(self, *args: Any, pages: Pages) -> None:
        super().__init__(*args)
        self._pages = pages
        self._has_sent_files = False

    async def _read_data(self) -> None:
        plain = self.protocol.protocol
        if isinstance(plain, H11Protocol) and not plain.ssl:
            socket = cast(trio.SocketStream, self.stream).socket
            self.protocol.protocol = ZeroCopyH11(plain, socket)
        await super()._read_data()

    async def protocol_send(self, event: Event) -> None:
        """Send what the protocol has for the client; returns when the kernel took it."""
        if isinstance(event, RawParts):
            await self._send_parts(event.parts)
        else:
            await super().protocol_send(event)

    async def _close(self) -> None:
        plain = self.protocol.protocol
        if isinstance(plain, ZeroCopyH11) and plain.is_torn:
            # hypercorn says first that nothing more comes, which is what a whole answer's
            # end looks like.
            await self.stream.aclose()
        else:
            await super()._close()

    async def _send_parts(self, parts: list[Part]) -> None:
        # Not shielded, as hypercorn's own sends are: whoever is cancelled here has
        # torn the answer, so the connection ends at once.
        socket = cast(trio.SocketStream, self.stream).socket
        try:
            async with self.send_lock:
                if not self._has_sent_files:
                    take_files(socket)
                    self._has_sent_files = True
                await send_parts(socket, parts, pages=self._pages)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            # OSError of take_files alone: the connection was closed before.
            await self.protocol.handle(Closed())
        except BaseException:
            # The client was promised more than it got: nothing may follow it.
            socket.close()
            raise


class ZeroCopyH11(H11Protocol):
    """HTTP/1.1 that offers its applications to send files."""

    def __init__(self, plain: H11Protocol, socket: trio.socket.SocketType) -> None:
        """Take the place of `plain`, which has heard nothing yet, on the connection `socket`."""
        super().__init__(
            plain.app,
            plain.config,
            plain.context,
            cast(TaskGroup, _Offering(plain.task_group, self)),
            plain.connection_state,
            plain.ssl,
            plain.client,
            plain.server,
            plain.send,
        )
        self._socket = socket
        # All mutable state: the head of an answer, which goes with the first of its body,
        # and whether a close of the connection is a reset.
        self._head = b""
        self._is_armed = False

    async def _send_h11_event(self, event: Any) -> None:
        """As H11Protocol's, with fewer turns of the loop: two a small answer, 60 us each.

        A head waits for the first of its body, or the end if it has none.
        """
        try:
            data = self.connection.send(event)
        except h11.LocalProtocolError:
            if self.connection.their_state != h11.ERROR:
                raise
            return
        if isinstance(event, h11.Response):
            self._head = data
            if self._ends_by_close(event):
                self._arm(is_armed=True)
            return
        if self._head and len(data) > _JOINED:
            await self._send_head()
        data, self._head = self._head + data, b""
        if data:
            # h11 says nothing at the end of a body of known length: no turn of the loop for that.
            await self.send(RawData(data=data))
        if self._is_armed and isinstance(event, h11.EndOfMessage):
            self._arm(is_armed=False)

    @property
    def is_torn(self) -> bool:
        """Whether a close of the connection now would look like the end of an answer."""
        return self._is_armed

    def _ends_by_close(self, head: h11.Response) -> bool:
        # h11 frames an answer of unknown length to HTTP/1.0 by its connection's end.
        connection: object = self.connection
        if not isinstance(connection, h11.Connection) or connection.their_http_version != b"1.0":
            return False
        return all(name != b"content-length" for name, _ in head.headers)

    def _arm(self, *, is_armed: bool) -> None:
        """Have any close of the connection be a reset, or be none again.

        To HTTP/1.0 the end of the connection may be the end of the answer: one that is
        torn must not look like that, whoever tears it. A process that is killed is
        closed by the kernel, which goes by this as well.
        """
        self._is_armed = is_armed
        with suppress(OSError):  # it is closed already
            self._socket.setsockopt(SOL_SOCKET, SO_LINGER, pack("ii", is_armed, 0))

    async def _send_head(self) -> None:
        head, self._head = self._head, b""
        if head:
            await self.send(RawData(data=head))

    async def stream_send(self, event: StreamEvent) -> None:
        """Frame what a stream has for the client, and send it."""
        if not isinstance(event, PartsBody):
            await super().stream_send(event)
            return
        data = h11.Data(data=cast(bytes, event.data))
        pieces = cast(h11.Connection, self.connection).send_with_data_passthrough(data) or []
        parts: list[Part] = []
        for piece in pieces:
            parts += event.data.parts if cast(object, piece) is event.data else [piece]
        if self._head:
            parts.insert(0, self._head)
            self._head = b""
        await self.send(RawParts(parts))


class _Offering:
    """A connection's task group, which starts applications so that they may send files."""

    def __init__(self, group: TaskGroup, protocol: ZeroCopyH11) -> None:
        self._group = group
        self._protocol = protocol
        self.spawn = group.spawn  # for websockets

    async def spawn_app(
        self, app: AppWrapper, config: Config, scope: Scope, send: _AppSend
    ) -> _AppPut:
        stream = self._protocol.stream
        if scope["type"] == "http" and isinstance(stream, HTTPStream):
            scope["extensions"][ZEROCOPY] = {}
            send = partial(_app_send, stream)
        return await self._group.spawn_app(app, config, scope, send)


async def _app_send(stream: HTTPStream, message: Any) -> None:
    """Send what an application says; as HTTPStream.app_send, which knows no files."""
    if message is None or message["type"] != ZEROCOPY:
        await stream.app_send(message)
        return
    if stream.state is not ASGIHTTPState.RESPONSE:
        raise UnexpectedMessageError(stream.state, ZEROCOPY)
    parts = _parts_of(message)
    status = int(stream.response["status"])
    if not suppress_body(stream.scope["method"], status):
        await stream.send(PartsBody(stream.stream_id, Parts(parts)))
    if not message.get("more_body", False):
        end: ASGISendEvent = {"type": "http.response.body", "body": b"", "more_body": False}
        await stream.app_send(end)


def _parts_of(message: Mapping[str, Any]) -> list[Part]:
    if "parts" in message:
        return list(message["parts"])
    file = message["file"] if isinstance(message["file"], int) else message["file"].fileno()
    offset, count = message.get("offset"), message.get("count")
    start = os.lseek(file, 0, os.SEEK_CUR) if offset is None else offset
    if count is None:
        count = max(0, os.fstat(file).st_size - start)
    if offset is None:
        os.lseek(file, start + count, os.SEEK_SET)
    return [FileSpan(file=file, offset=start, count=count)]

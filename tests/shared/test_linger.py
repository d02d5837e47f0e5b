"""An early answer is never lost, and never waits for ever."""

import pytest
import trio
import trio.testing

from goblet_shared.asgi import ASGIApp, Message, Receive, Scope, Send, send_text
from goblet_shared.linger import LINGER_BYTES, LINGER_SECONDS, lingering
from goblet_shared.parts import ZEROCOPY, FileSpan

CHUNK = 64 * 1024
POST: Scope = {
    "type": "http",
    "http_version": "1.1",
    "headers": [(b"transfer-encoding", b"chunked")],
}
GET: Scope = {"type": "http", "http_version": "1.1", "headers": [(b"content-length", b"0")]}


class Wire:
    """A server's end of one request: hands the body over on demand, notes what is sent."""

    def __init__(self, chunks: int, *, stalls: bool = False) -> None:
        self._left = chunks
        self._stalls = stalls
        self.sent: list[Message | None] = []
        self.sent_at: list[float] = []

    async def receive(self) -> Message:
        await trio.lowlevel.checkpoint()
        if self._left == 0 and self._stalls:
            await trio.sleep_forever()
        if self._left < 0:
            return {"type": "http.disconnect"}
        self._left -= 1
        body = bytes(CHUNK) if self._left >= 0 else b""
        return {"type": "http.request", "body": body, "more_body": self._left >= 0}

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        self.sent.append(message)
        self.sent_at.append(trio.current_time())

    @property
    def unread(self) -> int:
        return self._left + 1


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer without a look at the request's body."""
    await send_text(send, 400, "no")


async def read_then_refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer after the request's body."""
    while (await receive()).get("more_body", False):
        pass
    await send_text(send, 400, "no")


async def run(app: ASGIApp, wire: Wire, scope: Scope) -> None:
    await lingering(app)(scope, wire.receive, wire.send)


@pytest.mark.parametrize(("app", "scope"), [(refuse, GET), (read_then_refuse, POST)])
async def test_an_answer_after_the_whole_request_passes_unchanged(
    app: ASGIApp, scope: Scope
) -> None:
    direct, wrapped = Wire(3), Wire(3)
    await app(scope, direct.receive, direct.send)
    await run(app, wrapped, scope)
    assert wrapped.sent == direct.sent


async def refuse_with_a_file(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer as `refuse` does, with a file whose message is the last."""
    await send({"type": "http.response.start", "status": 400, "headers": []})
    await send({"type": ZEROCOPY, "parts": [FileSpan(file=9, offset=0, count=9)]})


async def test_the_rest_of_a_short_body_is_read_before_an_answer_ends_with_a_file() -> None:
    wire = Wire(3)
    await run(refuse_with_a_file, wire, POST)
    _, body, end = wire.sent
    assert body == {
        "type": ZEROCOPY,
        "parts": [FileSpan(file=9, offset=0, count=9)],
        "more_body": True,
    }
    assert end == {"type": "http.response.body", "body": b""}
    assert wire.unread == 0


async def test_the_rest_of_a_short_body_is_read_before_the_answer_ends() -> None:
    wire = Wire(3)
    await run(refuse, wire, POST)
    _, body, end = wire.sent
    assert body == {"type": "http.response.body", "body": b"no\n", "more_body": True}
    assert end == {"type": "http.response.body", "body": b""}
    assert wire.unread == 0


async def test_of_a_long_body_only_so_much_is_read_first() -> None:
    wire = Wire(1_000_000)
    await run(refuse, wire, POST)
    read = 1_000_001 - wire.unread
    assert LINGER_BYTES / CHUNK <= read < 2 * LINGER_BYTES / CHUNK
    assert wire.sent[-1] == {"type": "http.response.body", "body": b""}


async def test_a_client_that_stalls_is_waited_for_only_so_long(
    autojump_clock: trio.testing.MockClock,
) -> None:
    wire = Wire(1, stalls=True)
    await run(refuse, wire, POST)
    assert wire.sent_at[-1] - wire.sent_at[-2] == pytest.approx(LINGER_SECONDS)


@pytest.mark.parametrize("is_begun", [False, True])
async def test_an_app_that_fails_cuts_the_connection_and_the_body_is_emptied_meanwhile(
    is_begun: bool,
) -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        if is_begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("torn")

    wire = Wire(30)
    with pytest.raises(RuntimeError, match="torn"):
        await run(fail, wire, POST)
    assert wire.sent[-1] is None


async def test_an_app_that_forgets_to_end_its_answer_cuts_the_connection() -> None:
    async def forget(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    wire = Wire(30)
    await run(forget, wire, POST)
    assert wire.sent[-1] is None


async def test_the_end_of_an_answer_is_sent_while_somebody_empties_the_queue() -> None:
    """hypercorn's own end waits inside `send` until the queue of body messages has room."""
    wire = Wire(1_000_000)

    async def send_once_the_body_moved(message: Message) -> None:
        if message == {"type": "http.response.body", "body": b""}:
            before = wire.unread
            while wire.unread > before - 20:
                await trio.lowlevel.checkpoint()
        await wire.send(message)

    with trio.fail_after(5):
        await lingering(refuse)(POST, wire.receive, send_once_the_body_moved)
    assert wire.sent[-1] == {"type": "http.response.body", "body": b""}


async def test_what_the_server_raises_on_the_last_message_reaches_the_app_bare() -> None:
    seen: list[Exception] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await refuse(scope, receive, send)
        except Exception as error:
            seen.append(error)

    async def send(message: Message) -> None:
        if message == {"type": "http.response.body", "body": b""}:
            raise OSError("too little data")

    await lingering(app)(POST, Wire(1).receive, send)
    assert [type(error) for error in seen] == [OSError]

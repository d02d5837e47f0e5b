"""Files through hypercorn: framed right, cut off right, and offered only where they can be sent.

Whatever name in hypercorn moves that zerocopy relies on, files are not offered any
more, or do not arrive: the tests here fail then.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
import trio
import trio.testing
from hypercorn.utils import UnexpectedMessageError

from goblet_shared.asgi import ASGIApp, Receive, Scope, Send, cancelled_on_disconnect
from goblet_shared.parts import ZEROCOPY, FileFailed, FileSpan, Part, size_of
from goblet_testing.serving import Server, read_all, read_answer, serving

SIZE = 200_000
CONTENT = Random(7).randbytes(SIZE)
# More than the kernel's buffers of both ends take: sending it to a client that does
# not read blocks for good.
FLOOD = 64 << 20

GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
CLOSE = b"GET /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """A descriptor of CONTENT."""
    (tmp_path / "file").write_bytes(CONTENT)
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def flood(tmp_path: Path) -> Iterator[int]:
    """A descriptor of FLOOD bytes, all of them holes."""
    path = tmp_path / "flood"
    path.touch()
    os.truncate(path, FLOOD)
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def span(file: int, offset: int = 0, count: int = SIZE) -> FileSpan:
    return FileSpan(file=file, offset=offset, count=count)


async def start(send: Send, *, length: int | None = None, status: int = 200) -> None:
    headers = [] if length is None else [(b"content-length", b"%d" % length)]
    await send({"type": "http.response.start", "status": status, "headers": headers})


def answering(parts: Sequence[Part], *, length: int | None = None, status: int = 200) -> ASGIApp:
    """Return an app that answers with these parts, in one message."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, length=length, status=status)
        await send({"type": ZEROCOPY, "parts": parts})

    return app


def body_of(answer: bytes) -> bytes:
    """Return the body of a whole answer, dechunked, and nothing of one that was cut off."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    found = b""
    while chunk := re.match(rb"([0-9a-f]+)\r\n", body):
        size = int(chunk[1], 16)
        assert body[chunk.end() + size :][:2] == b"\r\n"
        if not size:
            return found
        found += body[chunk.end() :][:size]
        body = body[chunk.end() + size + 2 :]
    raise AssertionError("the last chunk is missing")


@pytest.mark.parametrize("has_length", [True, False])
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_parts_are_a_body_however_it_is_framed(
    file: int, has_length: bool, version: bytes
) -> None:
    parts: list[Part] = [b"head", span(file), b"", span(file, 7, 0), span(file, 10, 20), b"tail"]
    length = size_of(parts) if has_length else None
    async with serving(answering(parts, length=length)) as server:
        answer = await read_all(await server.ask(CLOSE.replace(b"1.1", version)))
    assert answer.startswith(b"HTTP/1.1 200")
    assert body_of(answer) == b"head" + CONTENT + CONTENT[10:30] + b"tail"


@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize("kind", ["http.response.body", ZEROCOPY])
async def test_a_torn_answer_to_http_1_0_ends_in_a_reset_and_not_as_a_whole_one_does(
    file: int, kind: str, fails: bool
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        begun = {"parts": [span(file)]} if kind == ZEROCOPY else {"body": CONTENT}
        await send({"type": kind, **begun, "more_body": True})
        if fails:
            raise RuntimeError("torn")

    async with serving(app) as server:
        stream = await server.ask(CLOSE.replace(b"1.1", b"1.0"))
        with pytest.raises(trio.BrokenResourceError):
            await read_all(stream)


@pytest.mark.parametrize("has_length", [True, False])
async def test_files_and_ordinary_messages_take_turns_in_one_body(
    file: int, has_length: bool
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, length=SIZE + 2 if has_length else None)
        await send({"type": "http.response.body", "body": b"<", "more_body": True})
        await send({"type": ZEROCOPY, "parts": [span(file, 0, 99)], "more_body": True})
        await send({"type": ZEROCOPY, "parts": [], "more_body": True})
        await send({"type": ZEROCOPY, "parts": [span(file, 99, SIZE - 99)], "more_body": True})
        await send({"type": "http.response.body", "body": b">"})

    async with serving(app) as server:
        answer = await read_all(await server.ask(CLOSE))
    assert body_of(answer) == b"<" + CONTENT + b">"


@pytest.mark.parametrize(
    ("said", "sent"),
    [
        ({}, slice(100, None)),
        ({"count": 50}, slice(100, 150)),
        ({"offset": 5}, slice(5, None)),
        ({"offset": 5, "count": 7}, slice(5, 12)),
        ({"offset": SIZE + 5}, slice(0, 0)),
    ],
)
async def test_a_file_may_be_sent_as_the_extension_of_asgi_has_it(
    tmp_path: Path, said: dict[str, int], sent: slice
) -> None:
    """Without an offset from where the file stands, and it stands behind what was sent then."""
    (tmp_path / "f").write_bytes(CONTENT)
    with (tmp_path / "f").open("rb", buffering=0) as file:
        file.seek(100)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await start(send)
            given: Any = file if scope["path"] == "/object" else file.fileno()
            await send({"type": ZEROCOPY, "file": given, **said})

        async with serving(app) as server:
            first = await read_all(await server.ask(CLOSE.replace(b"/a", b"/object")))
            assert file.tell() == (100 if "offset" in said else (sent.stop or SIZE))
            file.seek(100)
            second = await read_all(await server.ask(CLOSE))
    assert body_of(first) == body_of(second) == CONTENT[sent]


@pytest.mark.parametrize("has_length", [True, False])
async def test_a_connection_is_kept_after_a_file_and_pipelined_requests_are_answered_in_turn(
    file: int, has_length: bool
) -> None:
    length = SIZE if has_length else None
    async with serving(answering([span(file)], length=length)) as server:
        stream = await server.ask(GET + GET + CLOSE)
        answers = await read_all(stream)
    assert [answers.count(CONTENT), answers.count(b"HTTP/1.1 200")] == [3, 3]


async def test_the_body_of_an_answer_to_head_is_left_out(file: int) -> None:
    async with serving(answering([span(file)], length=SIZE)) as server:
        stream = await server.ask(GET.replace(b"GET", b"HEAD"))
        await stream.send_all(CLOSE.replace(b"GET", b"HEAD"))
        answers = await read_all(stream)
    assert answers.count(b"content-length: %d\r\n" % SIZE) == 2
    assert len(answers) < 1000


async def test_an_answer_that_has_no_body_gets_none(file: int) -> None:
    async with serving(answering([span(file)], status=304)) as server:
        answer = await read_all(await server.ask(CLOSE))
    assert answer.startswith(b"HTTP/1.1 304")
    assert len(answer) < 1000


class Noted:
    """An app, and how it ended."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.ended = trio.Event()
        self.error: BaseException | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.ended.set()


@pytest.mark.parametrize("has_length", [True, False])
async def test_a_file_that_is_too_short_cuts_the_answer_though_its_app_ends_it(
    file: int, has_length: bool
) -> None:
    told = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, length=SIZE if has_length else None)
        try:
            await send({"type": ZEROCOPY, "parts": [span(file, 9)], "more_body": True})
        except FileFailed as error:
            told.append(error)
            await send({"type": "http.response.body"})

    async with serving(app) as server:
        answer = await read_all(await server.ask(GET))
    assert len(told) == 1
    assert answer.endswith(CONTENT[-100:])
    assert answer.count(b"HTTP/1.1") == 1


async def test_more_than_the_length_that_was_told_is_never_sent(
    file: int, caplog: pytest.LogCaptureFixture
) -> None:
    noted = Noted(answering([span(file)], length=SIZE - 1))
    async with serving(noted) as server:
        answer = await read_all(await server.ask(GET))
    assert "Too much data" in str(noted.error)
    assert body_of(answer) == b""


async def test_a_file_before_the_head_or_after_the_end_is_refused(
    file: int, caplog: pytest.LogCaptureFixture
) -> None:
    errors = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(2):
            try:
                await send({"type": ZEROCOPY, "parts": [span(file)], "more_body": True})
            except UnexpectedMessageError as error:
                errors.append(error)
            if len(errors) == 1:
                await start(send, length=0)
                await send({"type": "http.response.body"})

    async with serving(app) as server:
        answer = await read_all(await server.ask(CLOSE))
    assert len(errors) == 2
    assert body_of(answer) == b""


class Stalled:
    """An app that sends a flood to a client who does not read it."""

    def __init__(self, flood: int) -> None:
        self._flood = flood
        self.begun = trio.Event()
        self.ended = trio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await start(send, length=FLOOD)
            self.begun.set()
            async with cancelled_on_disconnect(receive):
                await send({"type": ZEROCOPY, "parts": [span(self._flood, 0, FLOOD)]})
        finally:
            self.ended.set()

    async def stalls(self, server: Server) -> trio.SocketStream:
        """Return a client when nothing more can be sent to it."""
        stream = await server.ask(GET)
        await self.begun.wait()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not self.ended.is_set()
        return stream


@pytest.mark.slow
async def test_a_reader_that_stops_reading_is_dropped(flood: int) -> None:
    app = Stalled(flood)
    async with serving(app, stalled_after=0.5) as server:
        await app.stalls(server)
        with trio.fail_after(10):
            await app.ended.wait()


async def test_a_client_that_leaves_ends_its_request(flood: int) -> None:
    app = Stalled(flood)
    async with serving(app) as server:
        stream = await app.stalls(server)
        await stream.aclose()
        with trio.fail_after(3):
            await app.ended.wait()


async def test_a_client_that_left_before_the_first_file_is_no_error_of_the_app(
    file: int,
) -> None:
    begun, left = trio.Event(), trio.Event()
    ended = []

    async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        begun.set()
        await left.wait()
        await send({"type": ZEROCOPY, "parts": [span(file)]})
        ended.append(scope)

    async with serving(deaf) as server:
        stream = await server.ask(GET)
        await begun.wait()
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.02)
        left.set()
    assert len(ended) == 1


async def test_what_outlasts_the_grace_is_cut_also_when_its_client_is_stalled(
    flood: int,
) -> None:
    app = Stalled(flood)
    async with serving(app, grace=0.05) as server:
        await app.stalls(server)
        server.stop.set()
        with trio.fail_after(3):
            await app.ended.wait()


@pytest.mark.parametrize("has_length", [True, False])
async def test_an_app_that_cancels_a_sending_has_cut_its_answer(
    flood: int, has_length: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing that it sends afterwards is taken for the rest, or for the next answer."""
    sent = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, length=FLOOD + 4 if has_length else None)
        with trio.move_on_after(0.05) as impatience:
            await send({"type": ZEROCOPY, "parts": [span(flood, 0, FLOOD)], "more_body": True})
        assert impatience.cancelled_caught
        await send({"type": "http.response.body", "body": b"tail"})
        sent.set()

    async with serving(app) as server:
        stream = await server.ask(GET)
        await sent.wait()
        answer = await read_all(stream)
    assert b"tail" not in answer
    assert len(answer) < FLOOD


async def test_two_stalled_clients_do_not_hold_a_third_up(flood: int, file: int) -> None:
    stalled = Stalled(flood)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        chosen = stalled if scope["path"] == "/a" else answering([span(file)], length=SIZE)
        await chosen(scope, receive, send)

    async with serving(app) as server:
        for _ in range(2):
            await stalled.stalls(server)
        third = await server.ask(CLOSE.replace(b"/a", b"/b"))
        assert (await read_answer(third)).endswith(CONTENT)


def noting(scopes: list[Scope]) -> ASGIApp:
    """Return an app that notes what it is offered."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await start(send, length=0)
        await send({"type": "http.response.body"})

    return app


async def test_http_1_offers_files() -> None:
    scopes: list[Scope] = []
    async with serving(noting(scopes)) as server:
        await read_all(await server.ask(CLOSE))
    assert ZEROCOPY in scopes[0]["extensions"]


async def test_http_2_does_not_offer_files() -> None:
    scopes: list[Scope] = []
    # Its client goes on listening, as those of HTTP/2 do.
    async with serving(noting(scopes), grace=0.1) as server:
        client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        client.initiate_connection()
        names = {":method": "GET", ":scheme": "http", ":authority": "h", ":path": "/a"}
        client.send_headers(1, list(names.items()), end_stream=True)
        stream = await server.ask(client.data_to_send())
        while not scopes:
            client.receive_data(await stream.receive_some())
            await stream.send_all(client.data_to_send() or b"")
    assert scopes[0]["http_version"] == "2"
    assert ZEROCOPY not in scopes[0]["extensions"]

"""hypercorn behind our limits, asked over real sockets by a raw client."""

import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from goblet_shared.asgi import Receive, Scope, Send, send_text
from goblet_shared.errors import GobletError
from goblet_shared.serve import listening_socket, serve, stop_on_signals
from goblet_testing.serving import read_all, read_answer, serving

CHUNK = bytes(64 * 1024)
# More than the kernel's buffers of both ends take: sending it to a client that does
# not read blocks for good.
FLOOD = bytes(16 * 2**20)


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await send_text(send, 200, f"hello {scope['method']} {scope['raw_path'].decode()}")


async def begin(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def send_chunk(send: Send, chunk: bytes = CHUNK) -> None:
    await send({"type": "http.response.body", "body": chunk, "more_body": True})


GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
CLOSE = b"GET /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


async def test_a_connection_is_kept_for_further_requests() -> None:
    async with serving(hello) as server:
        stream = await server.ask(GET)
        first = await read_answer(stream)
        await stream.send_all(GET)
        assert b"hello GET /a\n" in first
        assert b"hello GET /a\n" in await read_answer(stream)
        assert first.startswith(b"HTTP/1.1 200")


async def test_an_idle_connection_is_closed_after_keep_alive() -> None:
    async with serving(hello, keep_alive=0.1) as server:
        stream = await server.ask(GET)
        await read_answer(stream)
        assert await stream.receive_some() == b""


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def back_to(descriptors: int) -> None:
    """Wait until no more descriptors are open than these, for far less than any keep-alive."""
    with trio.fail_after(2):
        while open_descriptors() > descriptors:
            await trio.testing.wait_all_tasks_blocked(0.01)


async def test_a_connection_whose_client_left_after_its_answer_is_closed_at_once() -> None:
    async with serving(hello, keep_alive=60) as server:
        before = open_descriptors()
        streams = [await server.ask(GET) for _ in range(20)]
        for stream in streams:
            await read_answer(stream)
        assert open_descriptors() >= before + 40
        for stream in streams:
            await stream.aclose()
        await back_to(before)


@pytest.mark.parametrize("resets", [False, True])
async def test_a_client_that_left_early_keeps_nothing_open_once_the_app_has_ended(
    resets: bool,
) -> None:
    """The app answers to its end although nobody is there, as one that notices late does."""
    begun, left, ended = trio.Event(), trio.Event(), trio.Event()

    async def deaf(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        await left.wait()
        await hello(scope, receive, send)
        ended.set()

    async with serving(deaf, keep_alive=60) as server:
        before = open_descriptors()
        stream = await server.ask(GET)
        await begun.wait()
        if resets:
            linger = struct.pack("ii", 1, 0)
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.05)
        left.set()
        await ended.wait()
        await back_to(before)


async def test_no_header_tells_what_software_answers() -> None:
    async with serving(hello) as server:
        answer = await read_all(await server.ask(CLOSE))
    assert b"hypercorn" not in answer.lower()
    assert b"server:" not in answer.lower()


async def test_nothing_is_said_on_stderr_while_all_is_well(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with serving(hello) as server:
        await read_all(await server.ask(CLOSE))
    assert capfd.readouterr() == ("", "")


async def test_an_absolute_form_target_reaches_the_app_as_it_was_sent() -> None:
    target = b"http://u@github.com/%2e%2E/a"
    async with serving(hello) as server:
        stream = await server.ask(GET.replace(b"/a", target))
        assert b"hello GET " + target in await read_answer(stream)


async def test_connect_is_answered_and_not_held() -> None:
    connect = b"CONNECT github.com:443 HTTP/1.1\r\nHost: github.com:443\r\n\r\n"
    async with serving(refuse) as server:
        stream = await server.ask(connect)
        answer = await read_answer(stream)
        await stream.send_all(connect)
        assert await read_answer(stream)
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"too large" in answer


async def test_a_head_that_is_too_long_is_refused() -> None:
    async with serving(hello) as server:
        answer = await read_all(await server.ask(b"GET /" + b"a" * 40_000))
    assert answer.startswith(b"HTTP/1.1 431")


async def test_a_long_bearer_token_is_accepted() -> None:
    async with serving(hello) as server:
        token = b"Authorization: Bearer " + b"t" * 16_000 + b"\r\n\r\n"
        stream = await server.ask(GET[:-2] + token)
        assert b"hello" in await read_answer(stream)


async def test_a_websocket_is_refused_and_never_reaches_the_app() -> None:
    request = (
        GET[:-2] + b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    async with serving(hello) as server:
        stream = await server.ask(request)
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 403")


async def test_an_exception_mid_body_cuts_the_answer_before_its_last_chunk() -> None:
    async def torn(scope: Scope, receive: Receive, send: Send) -> None:
        await begin(send)
        await send_chunk(send)
        raise RuntimeError("torn on purpose")

    async with serving(torn) as server:
        answer = await read_all(await server.ask(GET))
    assert b"transfer-encoding: chunked" in answer.lower()
    assert len(answer) > len(CHUNK)
    assert not answer.endswith(b"0\r\n\r\n")


async def test_a_whole_answer_does_end_with_its_last_chunk() -> None:
    async def whole(scope: Scope, receive: Receive, send: Send) -> None:
        await begin(send)
        await send_chunk(send)
        await send({"type": "http.response.body"})

    async with serving(whole) as server:
        answer = await read_all(await server.ask(CLOSE))
    assert answer.endswith(b"0\r\n\r\n")


async def test_a_failing_app_leaves_the_server_serving() -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["raw_path"] == b"/a":
            raise ExceptionGroup("several", [RuntimeError("on purpose")])
        await hello(scope, receive, send)

    async with serving(fail) as server:
        assert (await read_all(await server.ask(CLOSE))).startswith(b"HTTP/1.1 500")
        answer = await read_all(await server.ask(CLOSE.replace(b"/a", b"/b")))
    assert answer.startswith(b"HTTP/1.1 200")


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse without having read the request's body, once no more of it fits in any queue."""
    await trio.testing.wait_all_tasks_blocked(0.01)
    await send_text(send, 400, "too large")


@pytest.mark.parametrize("megabytes", [0.1, 0.9, 64])
async def test_a_refusal_reaches_a_client_that_is_still_sending(megabytes: float) -> None:
    size = int(megabytes * 2**20)
    head = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % size
    async with serving(refuse) as server, trio.open_nursery() as nursery:
        stream = await server.ask(head)
        nursery.start_soon(send_until_refused, stream, size)
        answer = await read_answer(stream)
    assert answer.startswith(b"HTTP/1.1 400")
    assert answer.endswith(b"too large\n")


async def send_until_refused(stream: trio.SocketStream, size: int) -> None:
    try:
        while size > 0:
            await stream.send_all(CHUNK[:size])
            size -= len(CHUNK)
    except trio.BrokenResourceError:
        pass


async def test_a_connection_is_usable_again_after_a_short_body_was_refused() -> None:
    async with serving(refuse) as server:
        post = b"POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 200000\r\n\r\n" + bytes(200_000)
        stream = await server.ask(post)
        await read_answer(stream)
        await stream.send_all(GET)
        assert (await read_answer(stream)).startswith(b"HTTP/1.1 400")


class Endless:
    """An app that sends until it is stopped, and notes that it was."""

    def __init__(self) -> None:
        self.begun = trio.Event()
        self.ended = trio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await begin(send)
            self.begun.set()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_with_client, receive, nursery.cancel_scope)
                while True:
                    await send_chunk(send, FLOOD)
        finally:
            self.ended.set()

    async def _end_with_client(self, receive: Receive, scope: trio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()


@pytest.mark.slow
async def test_a_reader_that_stops_reading_is_dropped() -> None:
    app = Endless()
    async with serving(app, stalled_after=0.5) as server:
        await server.ask(GET)
        await app.begun.wait()
        await app.ended.wait()
        # Only now does `serving` close its client.


async def test_a_client_that_leaves_ends_its_request() -> None:
    app = Endless()
    async with serving(app) as server:
        stream = await server.ask(GET)
        await app.begun.wait()
        await stream.aclose()
        await app.ended.wait()


async def test_stop_lets_a_request_in_flight_end_and_takes_no_new_connection() -> None:
    begun, may_end = trio.Event(), trio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        await may_end.wait()
        await hello(scope, receive, send)

    async with serving(slow) as server:
        stream = await server.ask(GET)
        await begun.wait()
        idle = await server.connect()
        await trio.testing.wait_all_tasks_blocked(0.01)
        server.stop.set()
        assert await idle.receive_some() == b""
        with pytest.raises(OSError, match="connect"):
            await server.connect()
        may_end.set()
        assert b"hello GET /a\n" in await read_all(stream)


async def test_what_outlasts_the_grace_is_cut_also_when_its_client_is_stalled() -> None:
    app = Endless()
    async with serving(app, grace=0.1) as server:
        await server.ask(GET)
        await app.begun.wait()
        await trio.testing.wait_all_tasks_blocked(0.05)
        server.stop.set()
        start = trio.current_time()
        await app.ended.wait()
    assert trio.current_time() - start < 3


async def test_cancelling_serve_cuts_a_stalled_client_too() -> None:
    app = Endless()
    listener = listening_socket("127.0.0.1:0")
    serve_app = partial(serve, app, listener=listener, keep_alive=9, grace=9, stop=trio.Event())
    with closing(socket.create_connection(listener.getsockname())) as stalled, trio.fail_after(5):
        stalled.sendall(GET)
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_app)
            await app.begun.wait()
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()
    assert app.ended.is_set()


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
UPGRADE = GET[:-2] + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: "


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello",
        b"GET /\xff HTTP/1.1\r\nHost: h\r\n\r\n",
        b"\r\n" * 50_000,
        PREFACE + b"\xff" * 100,
        PREFACE + b"\x00\x00\x04\x01\x05\x00\x00\x00\x01\xff\xff\xff\xff",
        UPGRADE + b"!!!\r\n\r\n",
        UPGRADE + b"AAAA\r\n\r\n" + b"\xff" * 100,
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
    ],
)
async def test_garbage_on_one_connection_leaves_the_server_serving(garbage: bytes) -> None:
    async with serving(hello) as server:
        stream = await server.ask(garbage)
        await trio.testing.wait_all_tasks_blocked(0.02)
        await stream.aclose()
        assert b"hello" in await read_all(await server.ask(CLOSE))


async def test_a_dropped_connection_is_logged_once_without_its_credentials(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = UPGRADE + b"AAAA\r\nAuthorization: Basic aHVudGVyMg==\r\n\r\n" + b"\xff" * 100
    async with serving(hello) as server:
        assert await read_all(await server.ask(broken)) != b""
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "a connection was dropped: " in caplog.text
    assert "aHVudGVyMg" not in caplog.text


PROCESS = """
import functools, logging, sys, trio
from goblet_shared.serve import listening_socket, serve, stop_on_signals

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"begun", "more_body": True})
    await trio.sleep(float(sys.argv[2]))
    await send({"type": "http.response.body", "body": b"ended"})

async def main():
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(stop_on_signals, stop)
        listener = listening_socket(sys.argv[1])
        await serve(app, listener=listener, keep_alive=60, grace=30, stop=stop)
        nursery.cancel_scope.cancel()
    print("clean" if stop.is_set() else "torn")

trio.run(main)
"""


@pytest.fixture
def inherited() -> Iterator[socket.socket]:
    with closing(listening_socket("127.0.0.1:0")) as listener:
        yield listener


def start_process(listener: socket.socket, *, answer_takes: float) -> subprocess.Popen[bytes]:
    number = listener.fileno()
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, f"fd://{number}", str(answer_takes)],
        pass_fds=[number],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )


def begun_request(listener: socket.socket) -> socket.socket:
    """Return a client whose answer has begun."""
    client = socket.create_connection(listener.getsockname(), timeout=10)
    client.sendall(GET)
    got = b""
    while b"begun" not in got:
        got += client.recv(4096)
    return client


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_after_the_request_in_flight(
    inherited: socket.socket, number: signal.Signals
) -> None:
    with start_process(inherited, answer_takes=0.5) as process:
        with begun_request(inherited) as client:
            process.send_signal(number)
            rest = b"".join(iter(lambda: client.recv(4096), b""))
        out, err = process.communicate(timeout=10)
    assert b"ended" in rest
    assert rest.endswith(b"0\r\n\r\n")
    assert (process.returncode, out, err) == (0, b"clean\n", b"")


@pytest.mark.slow
def test_a_second_signal_does_not_wait_for_the_request_in_flight(
    inherited: socket.socket,
) -> None:
    with start_process(inherited, answer_takes=60) as process:
        with begun_request(inherited) as client:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            rest = b"".join(iter(lambda: client.recv(4096), b""))
        out, err = process.communicate(timeout=10)
    assert b"ended" not in rest
    assert (process.returncode, out, err) == (0, b"clean\n", b"")


async def test_the_first_signal_only_sets_stop() -> None:
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(stop_on_signals, stop)
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        assert not nursery.cancel_scope.cancel_called
        os.kill(os.getpid(), signal.SIGINT)
        await trio.sleep_forever()
    assert nursery.cancel_scope.cancel_called


async def test_the_first_sigterm_only_has_a_process_leave_and_the_next_ones_hasten_it() -> None:
    stop, left = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(stop_on_signals, stop, leave=left.set))
        os.kill(os.getpid(), signal.SIGTERM)
        await left.wait()
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
        assert not nursery.cancel_scope.cancel_called
        os.kill(os.getpid(), signal.SIGTERM)
        await trio.sleep_forever()
    assert nursery.cancel_scope.cancel_called


@pytest.mark.parametrize("is_leaving", [False, True])
async def test_sigint_stops_whether_or_not_a_process_leaves(is_leaving: bool) -> None:
    stop, left = trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(stop_on_signals, stop, leave=left.set))
        if is_leaving:
            os.kill(os.getpid(), signal.SIGTERM)
            await left.wait()
        os.kill(os.getpid(), signal.SIGINT)
        await stop.wait()
        assert left.is_set() == is_leaving
        assert not nursery.cancel_scope.cancel_called
        nursery.cancel_scope.cancel()


def test_a_socket_listens_where_it_was_told_to() -> None:
    with closing(listening_socket("127.0.0.1:0", stalled_after=1.5)) as listener:
        host, port = listener.getsockname()
        with closing(socket.create_connection((host, port))):
            accepted, _ = listener.accept()
        with closing(accepted):
            limit = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
    assert (host, limit) == ("127.0.0.1", 1500)


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
def test_ipv6_stands_in_brackets() -> None:
    with closing(listening_socket("[::1]:0")) as listener:
        assert listener.getsockname()[0] == "::1"


def test_an_address_in_use_is_explained() -> None:
    with closing(listening_socket("127.0.0.1:0")) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(
            GobletError, match=f"cannot listen at {address}: Address already in use"
        ):
            listening_socket(address)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("8080", "want HOST:PORT"),
        (":8080", "want HOST:PORT"),
        ("localhost:", "want HOST:PORT"),
        ("localhost:http", "want HOST:PORT"),
        ("localhost:65536", "want HOST:PORT"),
        ("::1:8080", "in brackets"),
        ("fd://x", "want fd://N"),
        ("fd://-1", "want fd://N"),
        ("fd://987654", "not an open socket"),
        ("fd://99999999999999999999", "want fd://N"),
        ("localhost:" + "9" * 5000, "want HOST:PORT"),
        ("fd://999999999", "not an open socket"),
        ("host.invalid:80", "cannot listen at host.invalid:80"),
        ("192.0.2.1:0", "cannot listen at 192.0.2.1:0"),
    ],
)
def test_an_address_that_cannot_be_listened_at_is_explained(address: str, said: str) -> None:
    with pytest.raises(GobletError, match=re.escape(said)):
        listening_socket(address)


def test_an_inherited_socket_is_taken_over_and_kept_from_grandchildren() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as inherited:
        number = os.dup(inherited.fileno())
        os.set_inheritable(number, True)
        with closing(listening_socket(f"fd://{number}")) as listener:
            assert listener.getsockname() == inherited.getsockname()
            assert not os.get_inheritable(number)


def test_an_inherited_socket_that_does_not_listen_is_refused_and_left_open() -> None:
    with closing(socket.socket()) as idle:
        with pytest.raises(GobletError, match="not a listening TCP socket"):
            listening_socket(f"fd://{idle.fileno()}")
        assert idle.getsockname() == ("0.0.0.0", 0)


def test_a_socket_that_is_not_tcp_is_refused(tmp_path: Path) -> None:
    with closing(socket.create_server(str(tmp_path / "s"), family=socket.AF_UNIX)) as other:
        with pytest.raises(GobletError, match="not a listening TCP socket"):
            listening_socket(f"fd://{other.fileno()}")
        assert other.getsockname() == str(tmp_path / "s")


def test_a_file_is_not_a_socket() -> None:
    with open(os.devnull) as file, pytest.raises(GobletError, match="not an open socket"):
        listening_socket(f"fd://{file.fileno()}")

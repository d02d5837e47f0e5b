"""One attempt at one node."""

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from goblet_router.answer import Answer
from goblet_router.body import ReplayableBody
from goblet_router.errors import AnswerCut, FailureKind, NodeFailed, StaleConnection
from goblet_router.lane import Ask, Lane, Limits
from goblet_shared.asgi import Message
from goblet_shared.contract import ROUTER_KEEPALIVE_EXPIRY, NodeName
from goblet_shared.members import Member, MemberState
from goblet_testing import unruly
from goblet_testing.router import until
from goblet_testing.unruly import (
    DRAINING,
    JOINING,
    READY,
    Line,
    Seen,
    UnrulyNode,
    answer,
    cut_after,
    head,
    unruly_node,
)

NODE = NodeName("goblet-1")


async def nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


def ask(target: bytes = b"/x", *, body: ReplayableBody | None = None) -> Ask:
    body = body or ReplayableBody(nothing, keep=10, idle=1)
    return Ask(method="GET", target=target, headers=[], body=body)


@asynccontextmanager
async def lane_to(url: str, may_end: bool = False, /, **limits: float) -> AsyncIterator[Lane]:
    chosen = {"connections": 10, "connect": 2.0, "first_byte": 5.0, "idle": 5.0, **limits}
    lane = Lane(
        Member(name=NODE, url=url),
        limits=Limits(**chosen),  # type: ignore[arg-type]
        tls=ssl.create_default_context,
        on_stale=lambda: None,
        may_end_by_close=may_end,
    )
    try:
        yield lane
    finally:
        await lane.aclose()


@asynccontextmanager
async def node_and_lane(**limits: float) -> AsyncIterator[tuple[UnrulyNode, Lane]]:
    async with unruly_node() as node, lane_to(node.url, **limits) as lane:
        yield node, lane


async def failure_of(lane: Lane) -> NodeFailed:
    with pytest.raises(NodeFailed) as caught:
        await lane.begin(ask())
    return caught.value


async def test_a_target_goes_out_byte_for_byte() -> None:
    async with node_and_lane() as (node, lane):
        target = b"/github.com/%7eorg/a%20b.git/info/refs?service=git-upload-pack&x=%41"
        await (await lane.begin(ask(target))).aclose()
        assert node.seen[0].target.encode() == target


async def test_an_answer_is_read_to_its_proper_end() -> None:
    async with node_and_lane() as (_, lane):
        got = await lane.begin(ask())
        assert (got.status, await got.next_chunk(), await got.next_chunk()) == (200, b"hello", None)
        await got.aclose()


async def test_a_refused_connection_says_so() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        async with lane_to(f"http://127.0.0.1:{bound.getsockname()[1]}") as lane:
            failure = await failure_of(lane)
    assert (failure.kind, failure.node) == (FailureKind.UNREACHABLE, NODE)
    assert str(failure) == "goblet-1: connection refused"
    assert failure.is_suspicious


async def test_a_certificate_that_nobody_vouches_for_gets_no_request(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-subj", "/CN=127.0.0.1", "-days", "1"]
    await trio.run_process(
        [*command, "-keyout", key, "-out", certificate], capture_stderr=True, check=True
    )
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(certificate, key)
    heard = []

    async def serve(stream: trio.SSLStream[trio.SocketStream]) -> None:
        with suppress(trio.BrokenResourceError):
            heard.append(await stream.receive_some())

    async with trio.open_nursery() as nursery:
        listening = partial(trio.serve_ssl_over_tcp, serve, 0, ours, host="127.0.0.1")
        (listener,) = await nursery.start(listening)
        port = listener.transport_listener.socket.getsockname()[1]
        async with lane_to(f"https://127.0.0.1:{port}") as lane:
            failure = await failure_of(lane)
        nursery.cancel_scope.cancel()
    assert (failure.kind, heard) == (FailureKind.UNREACHABLE, [])
    assert str(failure).startswith("goblet-1: its certificate is not valid (self-signed")


async def test_a_node_that_answers_tls_in_plain_text_is_told_from_one_that_is_down() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(head("400 Bad Request", {}))

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        async with lane_to(f"https://127.0.0.1:{listener.socket.getsockname()[1]}") as lane:
            failure = await failure_of(lane)
        nursery.cancel_scope.cancel()
    assert str(failure) == "goblet-1: it does not speak TLS as it should"


async def test_a_node_whose_accept_queue_is_full_is_unreachable() -> None:
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        async with lane_to(f"http://127.0.0.1:{full.getsockname()[1]}", connect=0.2) as lane:
            failure = await failure_of(lane)
    assert str(failure) == "goblet-1: no connection in 0.2 s"


async def test_a_reset_on_a_new_connection_is_no_stale_connection() -> None:
    async with node_and_lane() as (node, lane):
        node.conduct = unruly.reset
        failure = await failure_of(lane)
        assert failure.kind is FailureKind.RESET
        assert not isinstance(failure, StaleConnection)


async def test_a_body_that_may_outgrow_its_memory_never_takes_a_kept_connection() -> None:
    """On a stale one it would be lost: it can be sent only once."""
    async with node_and_lane() as (node, lane):
        for question in (ask(), ask(), replace(ask(), may_outgrow=True)):
            await finish(await lane.begin(question))
        assert [seen.nth_on_connection for seen in node.seen] == [1, 2, 1]


async def test_what_is_not_http_is_a_failure() -> None:
    async with node_and_lane() as (node, lane):

        async def babble(_: Seen, line: Line) -> None:
            await line.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")

        node.conduct = babble
        assert (await failure_of(lane)).kind is FailureKind.RESET


async def test_when_all_connections_are_in_use_the_node_is_busy_and_not_suspect() -> None:
    async with node_and_lane(connections=1, connect=0.5) as (_, lane):
        held = await lane.begin(ask())
        failure = await failure_of(lane)
        assert (failure.kind, failure.is_suspicious) == (FailureKind.BUSY, False)
        await held.aclose()
        await (await lane.begin(ask())).aclose()


async def test_a_broken_answer_is_cut_and_not_ended() -> None:
    async with node_and_lane() as (node, lane):
        node.conduct = cut_after(b"half", announced=10)
        got = await lane.begin(ask())
        assert await got.next_chunk() == b"half"
        with pytest.raises(AnswerCut, match="goblet-1: its answer broke off"):
            await got.next_chunk()
        await got.aclose()


async def test_an_answer_left_half_read_closes_its_connection_and_leaves_nothing_behind() -> None:
    """Trio would warn of generators that the garbage collector finds, and fail this test."""
    async with node_and_lane() as (node, lane):
        node.conduct = answer(b"x" * 10_000_000)
        got = await lane.begin(ask())
        assert await got.next_chunk()
        await got.aclose()
        await until(lambda: node.hang_ups)


async def test_a_probe_hears_what_a_node_says_of_itself() -> None:
    async with node_and_lane() as (node, lane):
        for node.state, state in (
            (READY, MemberState.READY),
            (JOINING, MemberState.JOINING),
            (DRAINING, MemberState.DRAINING),
            (("200 OK", b"<html>"), None),
            (("200 OK", b"ready" + b"x" * 100_000), None),
            (("500 Internal Server Error", b"ready"), None),
        ):
            assert await lane.probe() is state
    async with lane_to("http://127.0.0.1:1") as lane:
        assert await lane.probe() is None


@pytest.mark.parametrize("may_end_by_close", [False, True])
async def test_an_answer_that_only_ends_with_its_connection_is_whole_for_upstreams_alone(
    may_end_by_close: bool,
) -> None:
    """A node that is killed closes its connections too."""

    async def close_delimited(_: Seen, line: Line) -> None:
        await line.send(head("200 OK", {}) + b"pack")
        await line.stream.aclose()

    async with unruly_node() as node, lane_to(node.url, may_end_by_close) as lane:
        node.conduct = close_delimited
        got = await lane.begin(ask())
        assert await got.next_chunk() == b"pack"
        if may_end_by_close:
            assert await got.next_chunk() is None
        else:
            with pytest.raises(AnswerCut, match="without saying that it was whole"):
                await got.next_chunk()
        await got.aclose()


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_an_answer_that_has_no_body_needs_no_end(status: str) -> None:
    async def bare(_: Seen, line: Line) -> None:
        await line.send(head(status, {}))

    async with node_and_lane() as (node, lane):
        node.conduct = bare
        got = await lane.begin(ask())
        assert await got.next_chunk() is None
        await got.aclose()


async def test_a_lane_that_was_closed_serves_on_and_keeps_no_connection() -> None:
    async with node_and_lane() as (node, lane):
        under_way = await lane.begin(ask())
        await lane.aclose()
        await finish(under_way)
        await finish(await lane.begin(ask()))
        await until(lambda: node.hang_ups == 2)


async def test_a_503_is_declined_only_if_it_says_so() -> None:
    async with node_and_lane() as (node, lane):
        for conduct, is_declined in (
            (unruly.declined, True),
            (answer(status="503 Service Unavailable"), False),
            (answer(headers={"Goblet-Declined": "x"}), False),
        ):
            node.conduct = conduct
            got = await lane.begin(ask())
            assert got.is_declined is is_declined
            await got.aclose()


async def finish(got: Answer) -> None:
    """Read an answer to its end."""
    while await got.next_chunk():
        pass
    await got.aclose()


async def test_failures_do_not_use_up_the_room_for_connections() -> None:
    async with node_and_lane(connections=1) as (node, lane):
        node.conduct = unruly.reset
        for _ in range(3):
            assert (await failure_of(lane)).kind is FailureKind.RESET
        node.conduct = answer()
        await finish(await lane.begin(ask()))


async def test_an_answer_left_half_read_does_not_hide_a_connection_that_was_kept() -> None:
    async with node_and_lane() as (node, lane):
        node.conduct = answer(b"x" * 10_000_000)
        whole, half = await lane.begin(ask()), await lane.begin(ask())
        await finish(whole)
        await half.next_chunk()
        await half.aclose()
        await finish(await lane.begin(ask()))
        assert node.connections == 2


async def test_connections_that_a_rush_left_behind_are_closed(mock_clock: MockClock) -> None:
    async with node_and_lane() as (node, lane):
        rush = [await lane.begin(ask()) for _ in range(3)]
        for got in rush:
            await finish(got)
        assert (node.connections, node.hang_ups) == (3, 0)
        mock_clock.jump(ROUTER_KEEPALIVE_EXPIRY + 1)
        mock_clock.rate = 1
        await finish(await lane.begin(ask()))
        await until(lambda: node.hang_ups == 2)
        assert node.connections == 3

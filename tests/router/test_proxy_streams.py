"""Bodies through the router: streamed, slowed, cut, and dropped when a client leaves."""

import gzip
from collections.abc import AsyncIterator

import httpx
import pytest
import trio

from goblet_testing import unruly
from goblet_testing.router import (
    PACK,
    REFS,
    Stand,
    stand,
    until,
)
from goblet_testing.unruly import Line, Seen, answer, cut_after, head


async def test_an_encoded_body_passes_undecoded_in_both_directions() -> None:
    async with stand() as it:
        packed = gzip.compress(b"wants" * 100)
        it.nodes[0].conduct = answer(packed, headers={"Content-Encoding": "gzip"})
        headers = {"Content-Encoding": "gzip"}
        got = await it.router.client.post(PACK, content=packed, headers=headers)
        assert got.headers["content-encoding"] == "gzip"
        assert got.headers["content-length"] == str(len(packed))
        assert got.content == b"wants" * 100
        assert bytes(it.nodes[0].seen[0].body) == packed


async def test_a_body_with_a_length_keeps_it() -> None:
    async with stand() as it:
        await it.post(b"x" * 300_000)
        (seen,) = it.nodes[0].seen
        assert seen.header("content-length") == "300000"
        assert seen.header("transfer-encoding") is None
        assert bytes(seen.body) == b"x" * 300_000


async def test_a_chunked_body_arrives_chunked_while_the_client_still_sends() -> None:
    async with stand() as it:
        node, more = it.nodes[0], trio.Event()

        async def body() -> AsyncIterator[bytes]:
            yield b"first"
            await more.wait()
            yield b"second"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: it.router.client.post(PACK, content=body()))
            await until(lambda: node.seen and node.seen[0].body == b"first")
            more.set()
        assert node.seen[0].header("transfer-encoding") == "chunked"
        assert node.seen[0].header("content-length") is None
        assert (bytes(node.seen[0].body), node.seen[0].is_complete) == (b"firstsecond", True)


async def test_an_answer_arrives_while_the_node_still_sends() -> None:
    async with stand() as it:
        more = trio.Event()

        async def slowly(_: Seen, line: Line) -> None:
            await line.send(head("200 OK", {"Transfer-Encoding": "chunked"}) + b"5\r\nfirst\r\n")
            await more.wait()
            await line.send(b"6\r\nsecond\r\n0\r\n\r\n")

        it.nodes[0].conduct = slowly
        async with it.router.client.stream("POST", PACK, content=b"x") as got:
            chunks = got.aiter_raw()
            assert await anext(chunks) == b"first"
            more.set()
            assert [chunk async for chunk in chunks] == [b"second"]


@pytest.mark.parametrize("announced", [None, 100])
async def test_an_answer_that_breaks_off_is_cut_and_never_tried_again(
    announced: int | None,
) -> None:
    async with stand() as it:
        it.nodes[0].conduct = cut_after(b"half", announced=announced)
        request = f"GET {REFS} HTTP/1.1\r\nHost: goblet\r\n\r\n".encode()
        received = await it.router.exchange(request)
        assert received.startswith(b"HTTP/1.1 200")
        assert b"half" in received
        assert not received.endswith(b"0\r\n\r\n")
        with pytest.raises(httpx.RemoteProtocolError):
            await it.router.client.get(REFS)
        assert not it.nodes[1].seen
        assert it.router.metric("forwarded_total", node=it.names[0], outcome="cut") == 2


async def test_a_torn_answer_to_http_1_0_is_reset_and_does_not_end_as_a_whole_one() -> None:
    """Its end is the connection's end: nginx asks so unless it is told otherwise."""
    async with stand() as it:
        it.nodes[0].conduct = cut_after(b"half")
        with pytest.raises(trio.BrokenResourceError):
            await it.router.exchange(f"GET {REFS} HTTP/1.0\r\nHost: goblet\r\n\r\n".encode())
        it.nodes[0].conduct = answer_in_chunks(b"whole")
        got = await it.router.exchange(f"GET {REFS} HTTP/1.0\r\nHost: goblet\r\n\r\n".encode())
        assert got.endswith(b"\r\n\r\nwhole")


def answer_in_chunks(body: bytes) -> unruly.Conduct:
    """Answer in full, without a length."""

    async def conduct(_: Seen, line: Line) -> None:
        framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        await line.send(head("200 OK", {"Transfer-Encoding": "chunked"}) + framed)

    return conduct


async def test_an_answer_that_stops_in_the_middle_is_cut_after_the_idle_limit() -> None:
    async with stand(idle_seconds=0.1, first_byte_seconds=50) as it:

        async def half(_: Seen, line: Line) -> None:
            await line.send(head("200 OK", {"Content-Length": "10"}) + b"half")
            await line.hung_up()

        it.nodes[0].conduct = half
        with trio.fail_after(5), pytest.raises(httpx.RemoteProtocolError):
            await it.post()
        assert it.router.metric("forwarded_total", node=it.names[0], outcome="cut") == 1


async def test_a_slow_but_steady_answer_outlives_every_limit() -> None:
    async with stand(idle_seconds=0.1, first_byte_seconds=0.1) as it:

        async def drip(_: Seen, line: Line) -> None:
            await line.send(head("200 OK", {"Content-Length": "6"}))
            for _nth in range(6):
                await trio.sleep(0.04)
                await line.send(b"x")

        it.nodes[0].conduct = drip
        assert (await it.post()).content == b"xxxxxx"


async def leave_during(it: Stand, request: bytes, *, after: bytes = b"") -> None:
    """Send a request and hang up once the node has it, or once `after` was received."""
    async with await it.router.connect() as stream:
        await stream.send_all(request)
        await until(lambda: it.nodes[0].seen)
        received = b""
        while after not in received:
            received += await stream.receive_some(1024)


async def test_a_client_that_leaves_while_the_node_thinks_takes_its_request_along() -> None:
    async with stand() as it:
        it.nodes[0].conduct = unruly.hang_until_left(left := trio.Event())
        await leave_during(it, f"GET {REFS} HTTP/1.1\r\nHost: goblet\r\n\r\n".encode())
        await until(left.is_set)
        await until(lambda: it.router.metric("in_flight") == 0)
        labels = {"endpoint": "info/refs", "status": "499"}
        await until(lambda: it.router.metric("answers_total", **labels) == 1)
        assert not it.nodes[1].seen


async def test_a_client_that_leaves_inside_its_answer_ends_the_nodes_sending() -> None:
    async with stand() as it:

        async def endless(_: Seen, line: Line) -> None:
            await line.send(head("200 OK", {"Transfer-Encoding": "chunked"}))
            while True:
                await line.send(b"4\r\npack\r\n")
                await trio.sleep(0.001)

        it.nodes[0].conduct = endless
        request = f"GET {REFS} HTTP/1.1\r\nHost: goblet\r\n\r\n".encode()
        await leave_during(it, request, after=b"pack")
        await until(lambda: it.nodes[0].hang_ups == 1)
        labels = {"node": it.names[0], "outcome": "client-gone"}
        await until(lambda: it.router.metric("forwarded_total", **labels) == 1)


async def test_a_client_that_leaves_inside_its_request_ends_it_at_the_node() -> None:
    async with stand() as it:
        start = f"POST {PACK} HTTP/1.1\r\nHost: goblet\r\nContent-Length: 10\r\n\r\nhalf"
        await leave_during(it, start.encode())
        await until(lambda: it.nodes[0].hang_ups == 1)
        assert not it.nodes[0].seen[0].is_complete
        assert not it.nodes[1].seen


async def test_a_client_that_stops_inside_its_request_is_told() -> None:
    async with stand(idle_seconds=0.1) as it, await it.router.connect() as stream:
        start = f"POST {PACK} HTTP/1.1\r\nHost: goblet\r\nContent-Length: 10\r\n\r\nhalf"
        await stream.send_all(start.encode())
        received = await stream.receive_some(1024)
        assert received.startswith(b"HTTP/1.1 408")


async def test_an_answer_before_the_end_of_the_request_reaches_the_client() -> None:
    async with stand() as it:
        node = it.nodes[0]
        node.reads_bodies = False

        async def refuse(_: Seen, line: Line) -> None:
            await line.send(head("413 Content Too Large", {"Content-Length": "3"}) + b"no!")
            await line.hung_up()

        node.conduct = refuse
        got = await it.post(b"x" * 200_000)
        assert (got.status_code, got.content) == (413, b"no!")


async def test_a_slow_client_slows_the_node_down() -> None:
    """A node that can send 100 MB at once gets rid of a few while the client reads nothing."""
    async with stand() as it:
        taken = 0

        async def flood(_: Seen, line: Line) -> None:
            nonlocal taken
            await line.send(head("200 OK", {"Content-Length": str(100 * 2**20)}))
            for _nth in range(1600):
                await line.send(bytes(2**16))
                taken += 2**16

        it.nodes[0].conduct = flood
        async with await it.router.connect() as stream:
            await stream.send_all(f"GET {REFS} HTTP/1.1\r\nHost: goblet\r\n\r\n".encode())
            before = -1
            while taken != before:
                before = taken
                await trio.sleep(0.1)
            # What fits into the sockets' buffers of two connections on loopback.
            assert 0 < taken < 25 * 2**20

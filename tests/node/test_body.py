"""Request bodies: plain, gzip, cut anywhere, too large, lying."""

import gzip
import itertools
import tracemalloc
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.body import (
    BadEncoding,
    Bodies,
    BodyTooLarge,
    BodyTooSlow,
    ClientGone,
    TooManyBodies,
)
from goblet_shared.asgi import Message
from goblet_shared.errors import BadRequest


def receiving(pieces: list[bytes], *, gone: bool = False) -> Callable[[], Awaitable[Message]]:
    """Return an ASGI receive that gives the body in these pieces."""
    messages: list[Message] = [
        {"type": "http.request", "body": piece, "more_body": True} for piece in pieces
    ]
    end: Message = {"type": "http.request", "body": b"", "more_body": False}
    messages.append({"type": "http.disconnect"} if gone else end)
    coming = iter(messages)

    async def receive() -> Message:
        await trio.lowlevel.checkpoint()
        return next(coming)

    return receive


def read(pieces: list[bytes], encoding: bytes | None = None, limit: int = 1000) -> bytes:
    bodies = Bodies(limit=limit, budget=1 << 30, idle=10)

    async def main() -> bytes:
        async with bodies.reading(receiving(pieces), encoding=encoding) as body:
            return body

    return trio.run(main)


def cut(body: bytes, places: list[int]) -> list[bytes]:
    """Cut a body at these places, taken modulo its length."""
    at = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    return [body[a:b] for a, b in itertools.pairwise(at)]


@given(st.binary(max_size=900), st.lists(st.integers(0, 1000), max_size=5), st.booleans())
def test_where_a_body_is_cut_never_matters(body: bytes, places: list[int], zipped: bool) -> None:
    sent = gzip.compress(body) if zipped else body
    assert read(cut(sent, places), b"gzip" if zipped else None) == body


@pytest.mark.parametrize("encoding", [None, b"gzip"])
def test_exactly_the_limit_is_taken_and_one_more_is_not(encoding: bytes | None) -> None:
    def encoded(body: bytes) -> bytes:
        return gzip.compress(body) if encoding else body

    assert len(read([encoded(b"x" * 1000)], encoding)) == 1000
    with pytest.raises(BodyTooLarge):
        read([encoded(b"x" * 1001)], encoding)


def test_a_gzip_bomb_costs_no_more_than_the_limit() -> None:
    bomb = gzip.compress(bytes(200_000_000))
    tracemalloc.start()
    with pytest.raises(BodyTooLarge):
        read([bomb], b"gzip", limit=1_000_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8_000_000


@pytest.mark.parametrize(
    "body", [b"not gzip at all", gzip.compress(b"x" * 99)[:-5], gzip.compress(b"x") + b"more", b""]
)
def test_what_says_gzip_and_is_not_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest, match="gzip"):
        read([body], b"gzip")


def test_other_encodings_are_refused() -> None:
    with pytest.raises(BadEncoding):
        read([b"x"], b"br")


async def enter(bodies: Bodies, receive: Callable[[], Awaitable[Message]]) -> None:
    """Read a body and be done with it."""
    async with bodies.reading(receive, encoding=None):
        pass


async def test_a_client_that_leaves_is_noticed() -> None:
    bodies = Bodies(limit=100, budget=100, idle=10)
    with pytest.raises(ClientGone):
        await enter(bodies, receiving([b"half"], gone=True))


async def test_a_client_that_stops_sending_is_not_waited_for(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def receive() -> Message:
        await trio.sleep_forever()
        raise AssertionError

    with pytest.raises(BodyTooSlow):
        await enter(Bodies(limit=100, budget=100, idle=10), receive)


async def test_all_bodies_together_are_bounded_and_given_back() -> None:
    bodies = Bodies(limit=100, budget=150, idle=10)
    for _ in range(3):
        async with bodies.reading(receiving([b"x" * 80]), encoding=None):
            await enter(bodies, receiving([b"x" * 70]))
            for gone in (True, False):
                with pytest.raises(TooManyBodies):
                    await enter(bodies, receiving([b"x" * 40, b"x" * 31], gone=gone))

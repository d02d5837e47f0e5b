"""Request bodies that can be sent again."""

from collections.abc import Sequence

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from goblet_router.body import ReplayableBody
from goblet_router.errors import ClientGone, ClientTooSlow, NotRepeatable
from goblet_shared.asgi import Message


class Client:
    """Hands over messages as a server does, and then waits for ever."""

    def __init__(self, *messages: Message) -> None:
        self._messages = list(messages)
        self.taken = 0

    async def receive(self) -> Message:
        await trio.lowlevel.checkpoint()
        if not self._messages:
            await trio.sleep_forever()
        self.taken += 1
        return self._messages.pop(0)


def sends(*chunks: bytes) -> list[Message]:
    """Return the messages of a whole body."""
    parts = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    return [*parts, {"type": "http.request", "body": b"", "more_body": False}]


async def read(body: ReplayableBody, *, chunks: int | None = None) -> bytes:
    """Read a pass, or its first chunks."""
    read, passed = b"", aiter(body)
    while chunks is None or chunks > 0:
        try:
            read += await anext(passed)
        except StopAsyncIteration:
            break
        chunks = None if chunks is None else chunks - 1
    return read


@given(
    st.lists(st.binary(max_size=6), max_size=8),
    st.lists(st.integers(0, 9), max_size=4),
    st.integers(0, 60),
)
def test_every_pass_gives_the_same_bytes_or_is_refused(
    chunks: list[bytes], stops: Sequence[int], keep: int
) -> None:
    async def scenario() -> None:
        body = ReplayableBody(Client(*sends(*chunks)).receive, keep=keep, idle=1)
        whole = b"".join(chunks)
        for stop in stops:
            if not body.is_replayable:
                break
            assert whole.startswith(await read(body, chunks=stop))
        if len(whole) <= keep:
            assert body.is_replayable
        if body.is_replayable:
            assert await read(body) == whole

    trio.run(scenario, clock=MockClock(autojump_threshold=0))


async def test_a_body_within_the_limit_can_be_sent_again_and_again() -> None:
    client = Client(*sends(b"wants", b"haves"))
    body = ReplayableBody(client.receive, keep=10, idle=1)
    assert [await read(body) for _ in range(3)] == [b"wantshaves"] * 3
    assert client.taken == 3


async def test_one_byte_more_cannot() -> None:
    body = ReplayableBody(Client(*sends(b"wants", b"havesX")).receive, keep=10, idle=1)
    assert await read(body) == b"wantshavesX"
    assert not body.is_replayable
    with pytest.raises(NotRepeatable):
        aiter(body)


async def test_a_body_of_which_nothing_was_read_can_be_sent_whatever_its_size() -> None:
    body = ReplayableBody(Client(*sends(b"x" * 1000)).receive, keep=10, idle=1)
    aiter(body)
    assert body.is_replayable
    assert await read(body) == b"x" * 1000


async def test_a_second_pass_reads_on_where_the_first_stopped() -> None:
    client = Client(*sends(b"one", b"two"))
    body = ReplayableBody(client.receive, keep=10, idle=1)
    assert await read(body, chunks=1) == b"one"
    assert client.taken == 1
    assert await read(body) == b"onetwo"


async def test_a_client_that_leaves_inside_its_body_is_noticed() -> None:
    gone: Message = {"type": "http.disconnect"}
    body = ReplayableBody(Client(sends(b"one")[0], gone).receive, keep=10, idle=1)
    with pytest.raises(ClientGone):
        await read(body)


async def test_a_client_that_pauses_too_long_is_told(autojump_clock: MockClock) -> None:
    body = ReplayableBody(Client(sends(b"one")[0]).receive, keep=10, idle=30)
    with pytest.raises(ClientTooSlow, match="30 s"):
        await read(body)
    assert trio.current_time() == pytest.approx(30)


async def test_the_wait_for_the_clients_leave_takes_nothing_of_the_body() -> None:
    client = Client(*sends(b"one"), {"type": "http.disconnect"})
    body = ReplayableBody(client.receive, keep=10, idle=1)
    async with trio.open_nursery() as nursery:
        left: list[Message] = []

        async def wait() -> None:
            left.append(await body.receive_rest())

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert client.taken == 0
        assert await read(body) == b"one"
    assert left == [{"type": "http.disconnect"}]


async def test_after_an_early_answer_the_rest_may_be_received() -> None:
    client = Client({"type": "http.disconnect"})
    body = ReplayableBody(client.receive, keep=10, idle=1)
    body.let_go()
    assert (await body.receive_rest())["type"] == "http.disconnect"

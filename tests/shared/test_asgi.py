"""The ASGI words, spoken over trio's own channels."""

from typing import Any

import pytest
import trio
import trio.testing

from goblet_shared.asgi import (
    Message,
    Receive,
    cancelled_on_disconnect,
    header,
    is_of_a_connection,
    send_text,
)

DISCONNECT = {"type": "http.disconnect"}


def client() -> tuple[trio.MemorySendChannel[Message], Receive]:
    """Return where a client's messages go in, and the `receive` they come out of."""
    to_app, from_client = trio.open_memory_channel[Message](10)
    return to_app, from_client.receive


async def test_a_sentence_is_sent_as_one_whole_answer() -> None:
    sent: list[Any] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await send_text(send, 404, "no such r\u00e9po", [(b"goblet-node", b"goblet-0")])
    body = "no such r\u00e9po\n".encode()
    assert sent == [
        {
            "type": "http.response.start",
            "status": 404,
            "headers": [
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", str(len(body)).encode()),
                (b"goblet-node", b"goblet-0"),
            ],
        },
        {"type": "http.response.body", "body": body, "more_body": False},
    ]


def test_the_first_header_of_a_name_is_found() -> None:
    scope = {"headers": [(b"a", b"1"), (b"b", b"2"), (b"b", b"3")]}
    assert header(scope, b"b") == b"2"
    assert header(scope, b"c") is None


async def test_the_body_is_cancelled_when_the_client_leaves() -> None:
    to_app, receive = client()
    stages = ["before"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(to_app.send, {"type": "http.request", "body": b"", "more_body": False})
        nursery.start_soon(to_app.send, DISCONNECT)
        async with cancelled_on_disconnect(receive):
            stages.append("inside")
            await trio.sleep_forever()
            stages.append("never")
        stages.append("after")
    assert stages == ["before", "inside", "after"]


async def test_a_body_that_ends_leaves_nothing_listening() -> None:
    to_app, receive = client()
    async with cancelled_on_disconnect(receive):
        await trio.testing.wait_all_tasks_blocked()
    await to_app.send(DISCONNECT)
    assert await receive() == DISCONNECT


async def test_what_the_body_raises_leaves_bare() -> None:
    _, receive = client()
    with pytest.raises(KeyError, match="mine") as raised:
        async with cancelled_on_disconnect(receive):
            raise KeyError("mine")
    assert raised.value.__cause__ is None


async def test_cancelling_from_outside_is_not_swallowed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    _, receive = client()
    with trio.move_on_after(1) as outer:
        async with cancelled_on_disconnect(receive):
            await trio.sleep_forever()
        pytest.fail("the cancellation ended at the inner block")
    assert outer.cancelled_caught


async def test_what_a_body_raises_while_it_is_cancelled_is_not_lost() -> None:
    to_app, receive = client()
    await to_app.send(DISCONNECT)

    async def torn() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise OSError("while cleaning up")

    async def handle() -> None:
        async with cancelled_on_disconnect(receive):
            await torn()

    with pytest.raises(OSError, match="while cleaning up"):
        await handle()


@pytest.mark.parametrize(
    ("credential", "is_so"),
    [
        (b"Negotiate YII=", True),
        (b" NTLM TlR=", True),
        (b"negotiate", True),
        (b"Basic bmVnb3RpYXRl", False),
        (b"Bearer ntlm", False),
        (b"", False),
    ],
)
def test_some_credentials_vouch_for_a_connection(credential: bytes, *, is_so: bool) -> None:
    assert is_of_a_connection(credential) is is_so

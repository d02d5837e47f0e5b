"""One answer, as it leaves: what of it was sent, and in which messages."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from prometheus_client import CollectorRegistry

from goblet_node.metrics import NodeMetrics
from goblet_node.serve.reply import Reply
from goblet_shared.asgi import Message
from goblet_shared.errors import GobletError
from goblet_shared.parts import ZEROCOPY, FileFailed, FileSpan, size_of

SIZE = 40 << 20


class Wire:
    """What a server was told to send, and the metrics of the node that did."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.metrics = NodeMetrics(CollectorRegistry())

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        self.messages.append(message)

    def reply(self, *, takes_files: bool = False) -> Reply:
        return Reply(
            send=self.send,
            node="n",
            request_id=b"id",
            metrics=self.metrics,
            takes_files=takes_files,
        )

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.messages[0]["headers"])

    @property
    def counted(self) -> float | None:
        return self.metrics.registry.get_sample_value("goblet_node_sent_bytes_total")


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """A descriptor of SIZE bytes, all of them holes."""
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, SIZE)
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


async def test_a_length_that_is_known_is_told() -> None:
    wire = Wire()
    await wire.reply().start(200, [(b"x", b"y")], cache="whole", length=5)
    assert wire.headers[b"content-length"] == b"5"
    assert wire.headers[b"x"] == b"y"
    assert b"whole" in wire.headers.values()


async def test_a_length_that_is_not_known_is_not_told() -> None:
    wire = Wire()
    await wire.reply().start(200, [])
    assert b"content-length" not in wire.headers


async def test_an_answer_at_hand_tells_its_length() -> None:
    wire = Wire()
    await wire.reply().whole(200, [], b"12345")
    assert wire.headers[b"content-length"] == b"5"


async def test_where_files_are_taken_they_leave_unread_and_are_counted_as_they_leave(
    file: int,
) -> None:
    wire = Wire()
    reply = wire.reply(takes_files=True)
    await reply.send_parts([b"head", FileSpan(file=file, offset=0, count=SIZE)])
    assert {message["type"] for message in wire.messages} == {ZEROCOPY}
    assert all(message["more_body"] for message in wire.messages)
    sizes = [size_of(message["parts"]) for message in wire.messages]
    assert sum(sizes) == reply.sent == wire.counted == SIZE + 4
    assert len(sizes) > 1
    assert max(sizes) <= 16 << 20
    assert wire.messages[0]["parts"][0] == b"head"


async def test_where_files_are_not_taken_their_bytes_are_sent(file: int) -> None:
    wire = Wire()
    reply = wire.reply()
    await reply.send_parts([b"head", FileSpan(file=file, offset=0, count=1000)])
    assert [message["type"] for message in wire.messages] == ["http.response.body"]
    assert wire.messages[0]["body"] == b"head" + bytes(1000)
    assert reply.sent == wire.counted == 1004


async def test_a_file_that_became_shorter_is_an_error_where_it_is_read(file: int) -> None:
    with pytest.raises(FileFailed):
        await Wire().reply().send_parts([FileSpan(file=file, offset=SIZE, count=1)])


async def test_nothing_is_no_message() -> None:
    wire = Wire()
    await wire.reply(takes_files=True).send_parts([])
    assert wire.messages == []


async def test_an_answer_with_less_than_was_told_is_not_ended() -> None:
    wire = Wire()
    reply = wire.reply()
    await reply.start(200, [], length=5)
    await reply.send(b"1234")
    with pytest.raises(GobletError, match="cut off"):
        await reply.end()
    assert wire.messages[-1]["body"] == b"1234"


@pytest.mark.parametrize(
    ("status", "cache", "told"),
    [
        (200, None, b"7"),
        (200, "whole", b"7"),
        (200, "recorded", b"7"),
        (200, "forwarded", None),
        (200, "cold", None),
        (502, None, None),
        (401, None, None),
    ],
)
async def test_only_what_is_old_is_said_to_be(
    status: int, cache: str | None, told: bytes | None
) -> None:
    """The permission may be, and what upstream has just sent, or did not, is not."""
    wire = Wire()
    reply = wire.reply()
    reply.age = 7.9
    await reply.start(status, [], cache=cache)
    assert wire.headers.get(b"goblet-age") == told

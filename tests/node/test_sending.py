"""One answer as it is written: its head once, words before the pack, no silence."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import pytest

from goblet_node.errors import MirrorDamaged
from goblet_node.serve.selection import Packed, Selection
from goblet_node.serve.sending import Sending
from goblet_node.wire.answers import (
    AckMode,
    Dialect,
    SideBand,
    Turn,
    V0Dialect,
    V2Dialect,
)
from goblet_node.wire.pktline import KEEPALIVE, Band, Marker, encode, encode_band
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.requests import Fetch

A, B = (ObjectId(letter * 40) for letter in (b"a", b"b"))
V2 = V2Dialect()
V0 = V0Dialect(acks=AckMode.DETAILED, side_band=SideBand.LARGE)
PACKFILE = encode(b"packfile\n")
FLUSH = Marker.FLUSH.value
CLONE = Fetch(wants=(A,), done=True)
PACK = Selection(turn=Turn(has_pack=True))


@dataclass
class Taken:
    """Takes an answer and remembers it."""

    cache: str | None = "not started"
    data: bytes = b""
    pieces: list[bytes] = field(default_factory=list)

    @property
    def is_started(self) -> bool:
        return self.cache != "not started"

    async def start(self, *, cache: str | None, length: int | None = None) -> None:
        assert not self.is_started
        self.cache = cache

    async def send(self, data: bytes) -> None:
        assert self.is_started
        self.data += data
        self.pieces.append(data)


def slices() -> Iterator[bytes]:
    yield from (b"PACK", b"first", b"second", b"trailer")


def sending(sink: Taken, fetch: Fetch = CLONE, dialect: Dialect = V2, *, told: str = "") -> Sending:
    return Sending(fetch, dialect, sink, cache="selected", told=told)


async def test_an_answer_is_its_head_its_words_its_pack_and_its_end() -> None:
    sink = Taken()
    await sending(sink, told="5 objects\n").send(PACK, slices())
    assert sink.cache == "selected"
    assert sink.data == b"".join(
        [
            PACKFILE,
            encode_band(Band.PROGRESS, b"5 objects\n"),
            encode_band(Band.PACK, b"PACKfirst"),
            encode_band(Band.PACK, b"second"),
            encode_band(Band.PACK, b"trailer"),
            FLUSH,
        ]
    )


@pytest.mark.parametrize("dialect", [V2, V0, V0Dialect()], ids=["v2", "side-band", "plain"])
@pytest.mark.parametrize("fetch", [CLONE, replace(CLONE, no_progress=True)], ids=["words", "none"])
async def test_a_pack_at_hand_goes_with_all_else_as_one_piece(
    dialect: Dialect, fetch: Fetch
) -> None:
    packed, sliced = Taken(), Taken()
    await sending(sliced, fetch, dialect, told="5 objects\n").send(PACK, iter((b"PACK", b"all")))
    await sending(packed, fetch, dialect, told="5 objects\n").send_packed(
        PACK, Packed(data=b"PACKall", objects=5)
    )
    assert packed.cache == "selected"
    assert packed.pieces == [sliced.data]


async def test_a_pack_that_was_announced_already_goes_without_a_second_head() -> None:
    sink = Taken()
    answer = sending(sink)
    await answer.keep_alive()
    before = sink.data
    await answer.send_packed(PACK, Packed(data=b"PACKall", objects=5))
    assert before.startswith(PACKFILE)
    assert sink.data == before + encode_band(Band.PACK, b"PACKall") + FLUSH


async def test_who_wants_no_progress_hears_no_words() -> None:
    sink = Taken()
    fetch = replace(CLONE, no_progress=True)
    await sending(sink, fetch, told="5 objects\n").send(PACK, slices())
    assert b"objects" not in sink.data


async def test_an_answer_without_a_pack_does_not_say_how_one_came_about() -> None:
    sink = Taken()
    await sending(sink).begin(Selection(turn=Turn(acknowledgments=(b"NAK",))))
    assert sink.cache is None
    assert b"NAK" in sink.data


async def test_nothing_is_begun_when_the_log_cannot_be_read() -> None:
    def broken() -> Iterator[bytes]:
        yield b"PACK"
        raise MirrorDamaged("gone")

    sink = Taken()
    with pytest.raises(MirrorDamaged):
        await sending(sink).send(PACK, broken())
    assert not sink.is_started


@pytest.mark.parametrize(
    ("fetch", "dialect", "head"),
    [
        (CLONE, V2, PACKFILE),
        (replace(CLONE, filter_spec="blob:none"), V2, PACKFILE),
        (replace(CLONE, haves=(B,)), V2, PACKFILE),
        (CLONE, V0, encode(b"NAK\n")),
    ],
)
async def test_silence_is_broken_where_it_is_known_that_a_pack_comes(
    fetch: Fetch, dialect: Dialect, head: bytes
) -> None:
    sink = Taken()
    answer = sending(sink, fetch, dialect)
    await answer.keep_alive()
    await answer.keep_alive()
    assert (sink.cache, sink.data) == ("selected", head + KEEPALIVE * 2)
    found = Selection(
        turn=Turn(acknowledgments=(b"NAK",) if dialect is V0 else None, has_pack=True)
    )
    await answer.send(found, slices())
    assert sink.data.count(head) == 1
    assert sink.data.endswith(FLUSH)


@pytest.mark.parametrize(
    ("fetch", "dialect"),
    [
        (replace(CLONE, haves=(B,), done=False), V2),
        (replace(CLONE, deepen=1), V2),
        (replace(CLONE, haves=(B,)), V0),
        (CLONE, replace(V0, side_band=SideBand.NONE)),
    ],
)
async def test_nothing_is_said_before_it_is_known_what_comes(
    fetch: Fetch, dialect: Dialect
) -> None:
    """Or where nobody could hear it."""
    sink = Taken()
    await sending(sink, fetch, dialect).keep_alive()
    assert not sink.is_started

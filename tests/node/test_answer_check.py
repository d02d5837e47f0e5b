"""An upstream's answer is given on as it came, and known to be whole and sound or not."""

import hashlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.errors import ProtocolError
from goblet_node.wire.answer_check import AnswerCheck
from goblet_node.wire.answers import (
    NAK,
    AckMode,
    Dialect,
    SideBand,
    Turn,
    V0Dialect,
    V2Dialect,
)
from goblet_node.wire.pktline import Band, Marker, encode, encode_band, encode_error, packets_of
from goblet_node.wire.refs import ObjectId
from goblet_testing.strategies import cuts, mutations

V2 = V2Dialect()
V0 = V0Dialect(acks=AckMode.DETAILED, side_band=SideBand.LARGE)
SMALL = V0Dialect(side_band=SideBand.SMALL)
DIALECTS: list[Dialect] = [V2, V0, SMALL]
OID = ObjectId(b"a" * 40)
BODY = b"PACK" + b"entries, as many as there are" * 90
PACK = BODY + hashlib.sha1(BODY).digest()


def answer(dialect: Dialect, *, pack: bytes = PACK, tells_boundary: bool = False) -> bytes:
    """Return what an upstream says to a shallow clone, or to one that is not."""
    turn = Turn(
        acknowledgments=(NAK,) if isinstance(dialect, V0Dialect) else None,
        tells_boundary=tells_boundary,
        has_pack=True,
    )
    return b"".join(
        [
            dialect.head(turn, shallow=[OID], unshallow=[]),
            dialect.progress(b"Counting\n"),
            dialect.pack(pack[:999]),
            dialect.keepalive,
            dialect.pack(pack[999:]),
            dialect.end,
        ]
    )


def checked(check: AnswerCheck, pieces: list[bytes]) -> bytes:
    """Return what is given on of an answer that comes in these pieces."""
    given_on = b"".join([check.take(piece) for piece in pieces])
    check.end()
    return given_on


@given(st.sampled_from(DIALECTS), st.booleans(), st.data())
def test_wherever_it_is_cut_a_sound_answer_is_given_on_as_it_came(
    dialect: Dialect, tells_boundary: bool, data: st.DataObject
) -> None:
    wire = answer(dialect, tells_boundary=tells_boundary)
    check = AnswerCheck(dialect, tells_boundary=tells_boundary)
    assert checked(check, data.draw(cuts(wire))) == wire
    assert check.is_good


@pytest.mark.parametrize("dialect", DIALECTS)
def test_what_was_given_on_is_whole_packets_at_every_byte(dialect: Dialect) -> None:
    wire = answer(dialect, tells_boundary=True)
    check = AnswerCheck(dialect, tells_boundary=True)
    given_on = b""
    for at in range(len(wire)):
        given_on += check.take(wire[at : at + 1])
        whole = AnswerCheck(dialect, tells_boundary=True)
        assert whole.take(given_on) == given_on
    assert given_on == wire


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_answer_that_ends_early_is_none(dialect: Dialect) -> None:
    """Also between two packets, where a connection that was cut looks like an end."""
    wire = answer(dialect)
    for end in [0, 1, 10, len(wire) // 2, len(wire) - 4, len(wire) - 1]:
        check = AnswerCheck(dialect, tells_boundary=False)
        with pytest.raises(ProtocolError, match="was due"):
            checked(check, [wire[:end]])
        assert not check.is_good


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_answer_that_goes_on_after_its_end_is_none(dialect: Dialect) -> None:
    check = AnswerCheck(dialect, tells_boundary=False)
    with pytest.raises(ProtocolError, match="nothing more was due"):
        check.take(answer(dialect) + encode(b"more"))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda pack: pack[:-1] + bytes([pack[-1] ^ 1]),
        lambda pack: bytes([pack[0] ^ 1]) + pack[1:],
        lambda pack: pack[:1500] + bytes([pack[1500] ^ 1]) + pack[1501:],
        lambda pack: pack[:-1],
        lambda pack: pack + b"x",
        lambda pack: pack[:10],
        lambda pack: b"",
    ],
)
def test_a_pack_that_is_not_what_its_trailer_says_is_given_on_and_is_not_good(
    dialect: Dialect, spoil: Callable[[bytes], bytes]
) -> None:
    """The client finds that out for itself; nobody else should have to."""
    wire = answer(dialect, pack=spoil(PACK))
    check = AnswerCheck(dialect, tells_boundary=False)
    assert checked(check, [wire]) == wire
    assert not check.is_good


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_error_among_the_pack_reaches_the_client_and_is_not_good(dialect: Dialect) -> None:
    head = answer(dialect)[: -len(dialect.end)]
    wire = head + encode_band(Band.ERROR, b"out of memory") + b"\nwhatever follows"
    for step in (1, 7, len(wire)):
        check = AnswerCheck(dialect, tells_boundary=False)
        assert checked(check, [wire[at : at + step] for at in range(0, len(wire), step)]) == wire
        assert not check.is_good


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_refusal_instead_of_an_answer_reaches_the_client_and_is_not_good(
    dialect: Dialect,
) -> None:
    wire = encode_error("upload-pack: not our ref")
    check = AnswerCheck(dialect, tells_boundary=True)
    assert checked(check, [wire[:3], wire[3:]]) == wire
    assert not check.is_good


@pytest.mark.parametrize(
    "wire",
    [
        b"<html>",
        encode(b"wanted-refs\n"),
        encode(b"packfile\n") + Marker.DELIM.value,
        encode(b"packfile\n") + encode(b"\x04x"),
        encode(b"shallow-info\n") + Marker.FLUSH.value,
        Marker.FLUSH.value,
    ],
)
def test_what_is_no_answer_is_refused(wire: bytes) -> None:
    for dialect in DIALECTS:
        with pytest.raises(ProtocolError):
            checked(AnswerCheck(dialect, tells_boundary=True), [wire])


@given(st.sampled_from(DIALECTS), st.data())
def test_bytes_that_were_spoilt_are_refused_or_given_on(
    dialect: Dialect, data: st.DataObject
) -> None:
    """Never another error; and of a pack that was changed never that it is good."""
    wire = data.draw(mutations(answer(dialect)))
    check = AnswerCheck(dialect, tells_boundary=False)
    try:
        given_on = checked(check, [wire])
    except ProtocolError:
        return
    assert given_on == wire
    if check.is_good:
        packets = [packet for packet in packets_of(wire) if isinstance(packet, bytes)]
        assert b"".join(p[1:] for p in packets if p.startswith(b"\x01")) == PACK

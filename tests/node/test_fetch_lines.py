"""fetch_lines: a fetch's lines become one value, or one sentence about the line that is wrong."""

import pytest

from goblet_node.errors import ProtocolError
from goblet_node.wire.fetch_lines import MAX_DEPTH, FetchLines, client_line
from goblet_node.wire.pktline import Marker, Packet
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.requests import Fetch, Limits

A, B = ObjectId(b"a" * 40), ObjectId(b"b" * 40)


def read(*lines: bytes, limits: Limits | None = None, object_format: str = "sha1") -> Fetch:
    collected = FetchLines(object_format=object_format, limits=limits or Limits())
    for line in lines:
        collected.take(line)
    return collected.fetch(agent=b"git/2.39.5")


@pytest.mark.parametrize("packet", [b"done", b"done\n"])
def test_a_line_ends_with_at_most_one_newline(packet: bytes) -> None:
    assert client_line(packet) == b"done"


@pytest.mark.parametrize(
    ("packet", "sentence"),
    [
        (Marker.RESPONSE_END, "unexpected response_end packet in a request"),
        (b"done\n\n", "NUL or newline inside the line"),
        (b"do\nne", "NUL or newline inside the line"),
        (b"done\0", "NUL or newline inside the line"),
    ],
)
def test_a_packet_that_is_no_line_is_refused(packet: Packet, sentence: str) -> None:
    with pytest.raises(ProtocolError, match=sentence):
        client_line(packet)


def test_every_line_has_its_place_in_the_value() -> None:
    assert read(
        b"want " + A,
        b"have " + B,
        b"shallow " + A,
        b"want-ref refs/heads/main",
        b"deepen-not v1.0",
        b"deepen-since 1700000000",
        b"filter blob:limit=1k",
        b"packfile-uris https",
        b"thin-pack",
        b"ofs-delta",
        b"no-progress",
        b"include-tag",
        b"wait-for-done",
        b"sideband-all",
        b"deepen-relative",
        b"done",
    ) == Fetch(
        wants=(A,),
        haves=(B,),
        shallow=(A,),
        want_refs=(b"refs/heads/main",),
        deepen_not=(b"v1.0",),
        deepen_since=1_700_000_000,
        filter_spec="blob:limit=1k",
        packfile_uris="https",
        thin_pack=True,
        ofs_delta=True,
        no_progress=True,
        include_tag=True,
        wait_for_done=True,
        sideband_all=True,
        deepen_relative=True,
        done=True,
        agent=b"git/2.39.5",
    )


def test_nothing_is_assumed_that_was_not_said() -> None:
    assert read(b"want " + A) == Fetch(wants=(A,), agent=b"git/2.39.5")


def test_repeated_ids_stand_once_in_the_order_of_their_first_time() -> None:
    """git sends one want for each ref, so a clone repeats the tip of its default branch."""
    fetch = read(b"want " + B, b"want " + A, b"want " + B.upper(), b"have " + A, b"have " + A)
    assert fetch.wants == (B, A)
    assert fetch.haves == (A,)


def test_the_last_deepen_counts_as_in_upload_pack() -> None:
    assert read(b"deepen 1", b"deepen %d" % MAX_DEPTH).deepen == MAX_DEPTH


def test_ids_have_the_length_of_the_format() -> None:
    assert read(b"want " + b"c" * 64, object_format="sha256").wants == (b"c" * 64,)
    with pytest.raises(ProtocolError, match="expected a sha256 object id in 'want aaaa"):
        read(b"want " + A, object_format="sha256")


def test_the_format_may_become_known_before_the_ids_that_have_it() -> None:
    collected = FetchLines(object_format="sha1", limits=Limits())
    collected.object_format = "sha256"
    collected.take(b"want " + b"c" * 64)
    assert collected.fetch(agent=None) == Fetch(
        wants=(ObjectId(b"c" * 64),), object_format="sha256"
    )


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"want",
        b"want ",
        b"want zz",
        b"want  " + A,
        b"want " + A + b" thin-pack",
        b"want " + b"c" * 64,
        b"have zz",
        b"shallow zz",
        b"Done",
        b"done ",
        b"done now",
        b"deepen",
        b"deepen 0",
        b"deepen -1",
        b"deepen +1",
        b"deepen 1x",
        b"deepen 01",
        b"deepen 0x10",
        b"deepen 2147483648",
        b"deepen " + b"9" * 5000,
        b"deepen-since 0",
        b"deepen-since yesterday",
        b"deepen-since 9223372036854775808",
        b"deepen-not ",
        b"want-ref ",
        b"want-ref main",
        b"want-ref refs/../x",
        b"filter",
        b"filter ",
        b"filter \xff",
        b"packfile-uris ",
        b"bogus",
        b"wants " + A,
    ],
)
def test_a_malformed_line_is_refused_in_one_sentence(line: bytes) -> None:
    with pytest.raises(ProtocolError) as raised:
        read(line)
    assert len(str(raised.value)) < 200
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "lines",
    [
        (b"deepen 1", b"deepen-since 5"),
        (b"deepen-not v1", b"deepen 1"),
        (b"filter blob:none", b"filter tree:0"),
        (b"packfile-uris https", b"packfile-uris https"),
        (b"want-ref refs/heads/main", b"want-ref refs/heads/main"),
    ],
)
def test_lines_that_exclude_each_other_are_refused(lines: tuple[bytes, ...]) -> None:
    for line in lines:
        assert read(line)
    with pytest.raises(ProtocolError, match=r"cannot be used together|more than one|duplicate"):
        read(*lines)


@pytest.mark.parametrize(
    ("word", "values"),
    [
        (b"want", (A, B)),
        (b"have", (A, B)),
        (b"shallow", (A, B)),
        (b"want-ref", (b"refs/a", b"refs/b")),
        (b"deepen-not", (b"a", b"b")),
    ],
)
def test_no_kind_of_line_may_grow_without_bound(word: bytes, values: tuple[bytes, ...]) -> None:
    """Repeating one is free, the limit itself is allowed, one more is not."""
    limits = Limits(wants=1, haves=1, shallow=1, refs=1)
    first, second = (word + b" " + value for value in values)
    assert read(first, limits=limits)
    if word != b"want-ref":
        assert read(first, first, limits=limits)
    with pytest.raises(ProtocolError, match=f"more than 1 {word.decode()} lines in one request"):
        read(first, second, limits=limits)

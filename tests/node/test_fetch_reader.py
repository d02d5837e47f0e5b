"""fetch_reader: an upstream's pack in whatever pieces it comes, whole, refused or spoiled."""

import itertools
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.errors import ProtocolError
from goblet_node.wire.fetch_reader import Batch, FetchEvent, FetchReader, PackData, Progress
from goblet_node.wire.pktline import (
    KEEPALIVE,
    Band,
    Marker,
    Packet,
    encode,
    encode_band,
    encode_error,
)
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.v2 import PACKFILE_SECTION
from goblet_node.wire.v2_client import RemoteError, encode_fetch_request
from goblet_testing.gitcli import git, hermetic_env
from goblet_testing.repos import commit, make_repo
from goblet_testing.strategies import cuts, mutations
from goblet_testing.upload_pack import answer, refs_of_git

FLUSH = encode(Marker.FLUSH)
events = st.lists(
    st.one_of(
        st.binary(min_size=1, max_size=200).map(PackData),
        st.binary(min_size=1, max_size=50).map(Progress),
    ),
    max_size=8,
)


def wire_of(sent: list[FetchEvent]) -> bytes:
    bands = {PackData: Band.PACK, Progress: Band.PROGRESS}
    bodies = [encode_band(bands[type(event)], event.data) for event in sent]
    return PACKFILE_SECTION + KEEPALIVE.join([b"", *bodies, b""]) + FLUSH


def read(*pieces: bytes) -> list[FetchEvent]:
    reader = FetchReader()
    got: list[FetchEvent] = []
    for piece in pieces:
        reader.feed(piece)
        got += reader.events()
    reader.end()
    assert reader.finished
    return got


@given(events, st.data())
def test_where_the_bytes_are_cut_never_matters(sent: list[FetchEvent], data: st.DataObject) -> None:
    """Keepalives between the packets are no events."""
    assert read(*data.draw(cuts(wire_of(sent)))) == sent


@pytest.mark.slow
@given(events, st.data())
def test_mutated_bytes_raise_protocol_or_remote_error_or_nothing(
    sent: list[FetchEvent], data: st.DataObject
) -> None:
    with suppress(ProtocolError, RemoteError):
        read(*data.draw(cuts(data.draw(mutations(wire_of(sent))))))


@given(events, st.data())
def test_no_beginning_of_an_answer_passes_for_the_whole(
    sent: list[FetchEvent], data: st.DataObject
) -> None:
    wire = wire_of(sent)
    with pytest.raises(ProtocolError):
        read(wire[: data.draw(st.integers(0, len(wire) - 1))])


def test_events_may_be_left_and_taken_up_again() -> None:
    sent: list[FetchEvent] = [PackData(b"a"), Progress(b"b"), PackData(b"c")]
    reader = FetchReader()
    reader.feed(wire_of(sent))
    assert next(reader.events()) == sent[0]
    assert not reader.finished
    assert list(reader.events()) == sent[1:]
    assert reader.finished


def test_acknowledgments_before_the_pack_are_skipped() -> None:
    acks: list[Packet] = [b"acknowledgments\n", b"ACK " + b"a" * 40 + b"\n", b"ready\n"]
    before = b"".join(map(encode, [*acks, Marker.DELIM]))
    assert read(before + wire_of([PackData(b"x")])) == [PackData(b"x")]


@pytest.mark.parametrize(
    ("answered", "sentence"),
    [
        (b"", "ends where the first section was due"),
        (FLUSH, "flush in the answer to fetch: the first section was due"),
        (b"<!DOCTYPE html>", "want 4 hex digits"),
        (encode(b"shallow-info\n"), "b'shallow-info' in the answer"),
        (encode(b"wanted-refs\n"), "b'wanted-refs' in the answer"),
        (encode(b"packfile-uris\n"), "b'packfile-uris' in the answer"),
        (encode(b"\x1b[2J" * 50), r"b'\x1b[2J"),
        (encode(b"acknowledgments\n") + FLUSH, "flush in the answer to fetch: acknowledgments"),
        (encode(b"acknowledgments\n"), "ends where acknowledgments was due"),
        (PACKFILE_SECTION, "ends where the pack was due"),
        (PACKFILE_SECTION + encode(Marker.DELIM), "delim in the answer to fetch: the pack"),
        (PACKFILE_SECTION + encode(b"PACK"), "side-band 80"),
        (PACKFILE_SECTION + encode(b""), "without a band"),
        (wire_of([]) + FLUSH, "flush in the answer to fetch: nothing more was due"),
        (wire_of([]) + encode(b"more"), "b'more' in the answer to fetch: nothing more was due"),
        (wire_of([]) + b"00", "goes on after its flush"),
    ],
)
def test_what_is_no_answer_to_us_is_refused_in_one_sentence(answered: bytes, sentence: str) -> None:
    with pytest.raises(ProtocolError) as raised:
        read(answered)
    assert sentence in str(raised.value)
    assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize(
    "refused",
    [
        encode_error("not our ref"),
        PACKFILE_SECTION + encode_error("not our ref"),
        PACKFILE_SECTION
        + encode_band(Band.PACK, b"PACK")
        + encode_band(Band.ERROR, b"not our ref\n"),
        encode(b"acknowledgments\n") + encode_error("not our ref"),
    ],
)
def test_a_refusal_is_heard_wherever_it_comes(refused: bytes) -> None:
    with pytest.raises(RemoteError, match=r"^not our ref$"):
        read(refused)


# Real git


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repo(tmp_path_factory.mktemp("fetch_reader") / "repo.git")


def tips_of(repo: Path) -> list[ObjectId]:
    return sorted({ref.oid for ref in refs_of_git(repo) if ref.oid is not None})


def index_pack(repo: Path, got: list[FetchEvent], *flags: str) -> None:
    """Let git judge a pack inside a repository."""
    subprocess.run(
        ["git", "index-pack", "--stdin", "--strict", *flags],
        cwd=repo,
        env=hermetic_env(),
        input=b"".join(event.data for event in got if isinstance(event, PackData)),
        capture_output=True,
        check=True,
        timeout=60,
    )


@pytest.mark.system
@pytest.mark.slow
def test_what_real_git_sends_first_and_then_thin_is_the_whole_repository(
    repo: Path, tmp_path: Path
) -> None:
    """Our two questions, git's two answers, and fsck of what came out."""
    git("init", "--quiet", "--bare", tmp_path)
    old = tips_of(repo)
    first = read(answer(repo, encode_fetch_request(wants=old, haves=[], agent="goblet/0.1")))
    assert any(isinstance(event, Progress) for event in first)
    index_pack(tmp_path, first)

    tip = commit(repo, files={"part0/area0/file0.txt": "changed\n"})
    wants = [oid for oid in tips_of(repo) if oid not in old]
    assert wants == [tip.encode()]
    thin = read(answer(repo, encode_fetch_request(wants=wants, haves=old, agent="goblet/0.1")))
    index_pack(tmp_path, thin, "--fix-thin")
    for oid in [*old, *wants]:
        git("update-ref", f"refs/tags/{oid.decode()}", oid.decode(), cwd=tmp_path)
    git("fsck", "--full", "--strict", cwd=tmp_path)


@pytest.mark.system
def test_the_refusal_of_real_git_is_heard(repo: Path) -> None:
    wants = [ObjectId(b"1" * 40)]
    with pytest.raises(subprocess.CalledProcessError) as raised:
        answer(repo, encode_fetch_request(wants=wants, haves=[], agent="goblet/0.1"))
    with pytest.raises(RemoteError, match="not our ref 1111"):
        read(raised.value.stdout)


@given(events, st.data())
def test_a_batch_says_what_its_reader_says_with_the_packs_pieces_joined(
    sent: list[FetchEvent], data: st.DataObject
) -> None:
    reader = FetchReader()
    batch = Batch(reader)
    joined: list[FetchEvent] = []
    for piece in data.draw(cuts(wire_of(sent))):
        assert batch.take(piece) is None
        if data.draw(st.booleans()):
            joined += batch.events()
            assert batch.size == 0
    got = list(batch.events())
    assert not any(type(a) is type(b) is PackData for a, b in itertools.pairwise(got))
    for kind in (PackData, Progress):
        said = [event.data for event in sent if type(event) is kind]
        assert b"".join(said) == b"".join(e.data for e in joined + got if type(e) is kind)
    assert list(batch.events()) == []


def test_what_came_before_an_error_is_not_lost_with_it() -> None:
    batch = Batch(FetchReader())
    before = wire_of([PackData(b"x"), Progress(b"Counting")]).removesuffix(FLUSH)
    failure = batch.take(before + encode_band(Band.ERROR, b"out of memory"))
    assert isinstance(failure, RemoteError)
    assert list(batch.events()) == [PackData(b"x"), Progress(b"Counting")]

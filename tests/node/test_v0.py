"""v0: the older dialect's advertisement and requests, compared with real git."""

import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.errors import ProtocolError
from goblet_node.wire.answers import AckMode, SideBand, V0Dialect
from goblet_node.wire.pktline import Marker, Packet, decode_all, encode
from goblet_node.wire.refs import ObjectId, Ref
from goblet_node.wire.requests import Fetch, Limits
from goblet_node.wire.v0 import CAPABILITIES, encode_advertisement, parse_request
from goblet_testing.backend import backend_program
from goblet_testing.dialects import encode_v0_request, speak
from goblet_testing.gitcli import git, hermetic_env, refs_of
from goblet_testing.repos import add_tag, make_repo
from goblet_testing.strategies import mutations, object_ids
from goblet_testing.upload_pack import refs_of_git

A, B = ObjectId(b"a" * 40), ObjectId(b"b" * 40)
WANT = b"want " + A
FLUSH = Marker.FLUSH

words = st.text("abc/2.=-", min_size=1, max_size=8).map(str.encode)
numbers = st.integers(1, 2**31 - 1)
ids = st.lists(object_ids, unique=True, max_size=4).map(tuple)


@st.composite
def requests(draw: st.DrawFn) -> tuple[Fetch, V0Dialect]:
    """Draw what a client of version 0 can ask: something, and `done` only after haves."""
    by_depth = draw(st.booleans())
    negotiates = draw(st.booleans())
    names = st.lists(words, unique=True, max_size=3).map(tuple)
    fetch = draw(
        st.builds(
            Fetch,
            wants=st.lists(object_ids, unique=True, min_size=1, max_size=4).map(tuple),
            haves=ids if negotiates else st.just(()),
            done=st.booleans() if negotiates else st.just(False),
            shallow=ids,
            deepen=numbers if by_depth else st.none(),
            deepen_since=st.none() if by_depth else st.none() | numbers,
            deepen_not=st.just(()) if by_depth else names,
            deepen_relative=st.booleans(),
            thin_pack=st.booleans(),
            ofs_delta=st.booleans(),
            no_progress=st.booleans(),
            include_tag=st.booleans(),
            filter_spec=st.none() | words.map(bytes.decode),
            agent=st.none() | words,
            session_id=st.none() | words,
        )
    )
    dialect = draw(
        st.builds(
            V0Dialect,
            acks=st.sampled_from(AckMode),
            no_done=st.booleans(),
            side_band=st.sampled_from(SideBand),
            negotiates=st.just(negotiates),
        )
    )
    return fetch, dialect


def body(*packets: Packet) -> bytes:
    return b"".join(map(encode, packets))


def advertised(*refs: Ref, version: int = 0) -> list[Packet]:
    return decode_all(b"".join(encode_advertisement(refs, agent="goblet/0.1", version=version)))


# Requests


@pytest.mark.slow
@given(requests())
def test_what_a_client_says_is_what_is_read(asked: tuple[Fetch, V0Dialect]) -> None:
    assert parse_request(encode_v0_request(*asked)) == asked


@pytest.mark.slow
@given(requests())
def test_newlines_at_the_ends_of_lines_are_optional(asked: tuple[Fetch, V0Dialect]) -> None:
    bare = [
        packet.removesuffix(b"\n") if isinstance(packet, bytes) else packet
        for packet in decode_all(encode_v0_request(*asked))
    ]
    assert parse_request(body(*bare)) == asked


@pytest.mark.slow
@given(requests(), st.data())
def test_mutated_requests_raise_protocol_error_or_nothing(
    asked: tuple[Fetch, V0Dialect], data: st.DataObject
) -> None:
    with suppress(ProtocolError):
        parse_request(data.draw(mutations(encode_v0_request(*asked))))


@pytest.mark.slow
@given(requests(), st.data())
def test_only_a_request_without_haves_is_the_beginning_of_another(
    asked: tuple[Fetch, V0Dialect], data: st.DataObject
) -> None:
    """A client that asks for depth ends its first body before the haves: git accepts that."""
    wire = encode_v0_request(*asked)
    cut = wire[: data.draw(st.integers(0, len(wire) - 1))]
    try:
        _, dialect = parse_request(cut)
    except ProtocolError:
        return
    assert asked[1].negotiates
    assert not dialect.negotiates
    assert cut == wire[: wire.index(b"0000") + 4]


def test_the_request_of_a_git_clone_is_read() -> None:
    """The packets that git 2.39 sent under protocol.version=0, from its GIT_TRACE_PACKET."""
    chosen = b" multi_ack_detailed no-done side-band-64k thin-pack include-tag ofs-delta"
    first = WANT + chosen + b" deepen-since deepen-not agent=git/2.39.5\n"
    assert parse_request(body(first, WANT + b"\n", FLUSH, b"done\n")) == (
        Fetch(
            wants=(A,),
            done=True,
            thin_pack=True,
            include_tag=True,
            ofs_delta=True,
            agent=b"git/2.39.5",
        ),
        V0Dialect(acks=AckMode.DETAILED, no_done=True, side_band=SideBand.LARGE),
    )


def test_the_larger_of_two_offers_is_taken_as_git_takes_it() -> None:
    said = b" side-band side-band-64k multi_ack multi_ack_detailed"
    _, dialect = parse_request(body(WANT + said, FLUSH, FLUSH))
    assert dialect == V0Dialect(acks=AckMode.DETAILED, side_band=SideBand.LARGE)


def test_capabilities_count_on_every_want_and_unknown_ones_mean_nothing() -> None:
    fetch, _ = parse_request(body(WANT + b" frotz", b"want " + B + b" ofs-delta x=y", FLUSH))
    assert fetch == Fetch(wants=(A, B), ofs_delta=True)


@pytest.mark.parametrize("rest", [(), (FLUSH,), (b"done",), (b"want " + A,)])
def test_a_client_that_wants_nothing_is_not_read_further(rest: tuple[Packet, ...]) -> None:
    assert parse_request(body(FLUSH, *rest)) == (Fetch(), V0Dialect(negotiates=False))


@pytest.mark.parametrize("end", [FLUSH, b"done"])
def test_what_follows_the_end_of_the_haves_is_not_read(end: Packet) -> None:
    fetch, _ = parse_request(body(WANT, FLUSH, b"have " + A, end, b"have " + B, b"what?"))
    assert fetch.haves == (A,)


def test_another_object_format_is_read_for_the_caller_to_refuse() -> None:
    fetch, _ = parse_request(body(b"want " + b"c" * 64 + b" object-format=sha256", FLUSH))
    assert fetch.object_format == "sha256"


def test_the_format_counts_for_the_want_that_names_it_and_what_follows() -> None:
    """What a sha256 client may say besides its wants it says after the first of them."""
    ids = [b"%064x" % number for number in range(1, 4)]
    first = b"want " + ids[0] + b" frotz object-format=sha256"
    fetch, _ = parse_request(body(first, b"want " + ids[1], b"shallow " + ids[2], FLUSH))
    assert fetch == Fetch(
        wants=(ObjectId(ids[0]), ObjectId(ids[1])),
        shallow=(ObjectId(ids[2]),),
        object_format="sha256",
    )


@pytest.mark.parametrize(
    "packets",
    [
        (b"",),
        (b"frotz",),
        (WANT, b""),
        (WANT + b" object-format=md5",),
        (b"want zz",),
        (WANT, b"want " + B),
        (WANT, FLUSH, b""),
        (WANT, FLUSH, b"have zz"),
    ],
)
def test_nothing_is_read_behind_what_is_refused(packets: tuple[Packet, ...]) -> None:
    """Bytes that are no packet follow, so reading on would be another error."""
    with pytest.raises(ProtocolError) as raised:
        parse_request(body(*packets) + b"<html>", limits=Limits(wants=1))
    assert "pkt-line" not in str(raised.value)


@pytest.mark.parametrize("packets", [(FLUSH,), (WANT, FLUSH, b"done"), (WANT, FLUSH, FLUSH)])
def test_nothing_is_read_behind_what_is_enough(packets: tuple[Packet, ...]) -> None:
    assert parse_request(body(*packets) + b"<html>") == parse_request(body(*packets))


def test_capabilities_are_bounded_and_repeating_them_on_other_wants_is_free() -> None:
    limits = Limits(capabilities=3)
    three = b"  ofs-delta  x=y  thin-pack"
    again = [b"want %040x" % number + three for number in range(9)]
    assert parse_request(body(WANT + three, *again, FLUSH), limits=limits)[0].thin_pack
    for wants in ((WANT + b" x" * 4,), (WANT + three, b"want " + B + b" z")):
        with pytest.raises(ProtocolError, match="more than 3 capabilities in one request"):
            parse_request(body(*wants, FLUSH), limits=limits)


def test_repeated_lines_are_bounded_too() -> None:
    limits = Limits(packets=4)
    assert parse_request(body(WANT, WANT, WANT, FLUSH), limits=limits)[0].wants == (A,)
    with pytest.raises(ProtocolError, match="more than 4 packets in one body"):
        parse_request(body(WANT, WANT, WANT, WANT, FLUSH), limits=limits)


def test_limits_are_the_callers() -> None:
    two = body(WANT, b"want " + B, FLUSH)
    assert parse_request(two)[0].wants == (A, B)
    with pytest.raises(ProtocolError, match="more than 1 want lines in one request"):
        parse_request(two, limits=Limits(wants=1))


@pytest.mark.parametrize(
    ("packets", "sentence"),
    [
        ((), "does not reach the flush packet"),
        ((WANT,), "does not reach the flush packet"),
        ((WANT, Marker.DELIM, FLUSH), "unexpected delim packet"),
        ((b"want zz", FLUSH), "expected a sha1 object id in 'want zz'"),
        ((b"want", FLUSH), "expected a sha1 object id"),
        ((WANT + b"multi_ack", FLUSH), "expected a sha1 object id"),
        ((b"have " + A, FLUSH), "among the wants"),
        ((b"thin-pack", FLUSH), "unexpected line 'thin-pack' among the wants"),
        ((b"want-ref refs/heads/main", FLUSH), "among the wants"),
        ((b"", FLUSH), "unexpected line '' among the wants"),
        ((WANT + b"\0multi_ack", FLUSH), "NUL or newline"),
        ((WANT, b"deepen 0", FLUSH), "invalid number"),
        ((WANT, b"deepen 1", b"deepen-since 1", FLUSH), "cannot be used together"),
        ((WANT, b"filter blob:none", FLUSH), "did not choose the filter capability"),
        ((WANT + b" object-format=md5", FLUSH), "unknown object format 'md5'"),
        ((WANT, FLUSH, b"have " + B), "ends among its haves"),
        ((WANT, FLUSH, b"have zz", FLUSH), "expected a sha1 object id"),
        ((WANT, FLUSH, b"deepen 1", FLUSH), "unexpected line 'deepen 1' among the haves"),
        ((WANT, FLUSH, Marker.RESPONSE_END), "unexpected response_end packet"),
    ],
)
def test_what_is_no_request_is_refused_in_one_sentence(
    packets: tuple[Packet, ...], sentence: str
) -> None:
    with pytest.raises(ProtocolError) as raised:
        parse_request(body(*packets))
    assert sentence in str(raised.value)


# Advertisements


def test_head_comes_first_and_carries_the_capabilities() -> None:
    main = Ref(name=b"refs/heads/main", oid=A)
    head = Ref(name=b"HEAD", oid=A, symref_target=b"refs/heads/main")
    said = advertised(main, head, version=1)
    words = " ".join([*CAPABILITIES, "symref=HEAD:refs/heads/main", "object-format=sha1"])
    assert said == [
        b"# service=git-upload-pack\n",
        FLUSH,
        b"version 1\n",
        A + b" HEAD\0" + words.encode() + b" agent=goblet/0.1\n",
        A + b" refs/heads/main\n",
        FLUSH,
    ]


@pytest.mark.parametrize(
    "refs", [(), (Ref(name=b"HEAD", oid=None, symref_target=b"refs/heads/main"),)]
)
def test_a_repository_without_refs_hangs_its_capabilities_on_none(refs: tuple[Ref, ...]) -> None:
    line = advertised(*refs)[2]
    assert isinstance(line, bytes)
    assert line.startswith(b"0" * 40 + b" capabilities^{}\0multi_ack ")
    assert b"symref=" not in line


def test_a_detached_head_names_no_branch() -> None:
    line = advertised(Ref(name=b"HEAD", oid=A))[2]
    assert isinstance(line, bytes)
    assert b"symref=" not in line


def test_a_long_advertisement_comes_in_bounded_pieces() -> None:
    many = [Ref(name=b"refs/heads/%d" % n, oid=A) for n in range(5000)]
    pieces = list(encode_advertisement(many, agent="goblet/0.1", version=0))
    assert 64 * 1024 <= max(map(len, pieces)) < 64 * 1024 + 500
    assert len(decode_all(b"".join(pieces))) == 5003


# Real git


def http_backend(repo: Path, *, protocol: str | None) -> bytes:
    """Return the body of git http-backend's answer to `GET info/refs`."""
    env = {
        "GIT_PROJECT_ROOT": str(repo.parent),
        "GIT_HTTP_EXPORT_ALL": "1",
        "REQUEST_METHOD": "GET",
        "PATH_INFO": f"/{repo.name}/info/refs",
        "QUERY_STRING": "service=git-upload-pack",
    }
    if protocol is not None:
        env["GIT_PROTOCOL"] = protocol
    said = subprocess.run(
        [backend_program()], env=hermetic_env(env), capture_output=True, check=True, timeout=60
    ).stdout
    return said.partition(b"\r\n\r\n")[2]


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_repo(tmp_path_factory.mktemp("v0") / "repo.git", commits=12)
    for key in ("allowFilter", "allowTipSHA1InWant", "allowReachableSHA1InWant"):
        git("config", f"uploadpack.{key}", "true", cwd=path)
    add_tag(path, "of-a-tag", "v0.0")
    git("update-ref", "refs/pull/1/head", "main", cwd=path)
    return path


@pytest.mark.system
@pytest.mark.parametrize(
    ("protocol", "version"), [(None, 0), ("version=1", 1), ("version=0", 0), ("version=7", 0)]
)
def test_the_advertisement_is_that_of_real_git(
    repo: Path, protocol: str | None, version: int
) -> None:
    """Byte for byte, but that git names its symref before its filter."""
    said = http_backend(repo, protocol=protocol)
    agent = git("version").stdout.split()[-1]
    ours = b"".join(encode_advertisement(refs_of_git(repo), agent=f"git/{agent}", version=version))
    symref = b"symref=HEAD:refs/heads/main"
    assert symref + b" filter" in said
    assert ours == said.replace(symref + b" filter", b"filter " + symref)


@pytest.mark.system
def test_a_detached_head_is_advertised_as_real_git_does(repo: Path, tmp_path: Path) -> None:
    git("clone", "--quiet", "--mirror", repo, tmp_path / "detached.git")
    git("update-ref", "--no-deref", "HEAD", "main~1", cwd=tmp_path / "detached.git")
    said = decode_all(http_backend(tmp_path / "detached.git", protocol=None))
    ours = advertised(*refs_of_git(tmp_path / "detached.git"))
    assert [line.partition(b"\0")[0].strip() for line in said if isinstance(line, bytes)] == [
        line.partition(b"\0")[0].strip() for line in ours if isinstance(line, bytes)
    ]
    assert refs_of(tmp_path / "detached.git")["HEAD"].encode() in said[2]  # type: ignore[operator]


@pytest.mark.system
@pytest.mark.parametrize("packets", [(FLUSH,), (FLUSH, FLUSH), (FLUSH, b"done\n")])
def test_real_git_says_nothing_to_a_client_that_wants_nothing(
    repo: Path, packets: tuple[Packet, ...]
) -> None:
    assert speak(repo, body(*packets), version=0) == b""
    assert parse_request(body(*packets))[0].wants_nothing


@pytest.mark.system
@pytest.mark.parametrize("wire", [b"", body(b"what?"), body(FLUSH)[:3]])
def test_real_git_refuses_what_is_refused_here(repo: Path, wire: bytes) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        speak(repo, wire, version=0)
    with pytest.raises(ProtocolError):
        parse_request(wire)

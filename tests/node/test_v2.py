"""v2: what a server reads and says, held against its own client side and against real git."""

import time
import tracemalloc
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.errors import ProtocolError
from goblet_node.wire.pktline import MAX_DATA, Marker, Packet, decode_all, encode
from goblet_node.wire.refs import ObjectId, Ref
from goblet_node.wire.requests import TOO_MANY_PREFIXES, Fetch, Limits, LsRefs
from goblet_node.wire.v2 import (
    PACKFILE_SECTION,
    Advertised,
    encode_advertisement,
    encode_ls_refs,
    parse_request,
)
from goblet_node.wire.v2_client import encode_ls_refs_request, encode_request
from goblet_testing.gitcli import clone, fsck, git, refs_of
from goblet_testing.repos import commit, make_repo
from goblet_testing.strategies import fetch_requests, ls_refs_requests, mutations, refs
from goblet_testing.upload_pack import Front, advertise, answer, refs_of_git

A, B = ObjectId(b"a" * 40), ObjectId(b"b" * 40)
DELIM, FLUSH = Marker.DELIM, Marker.FLUSH
LS_REFS = b"command=ls-refs"


def body(*packets: Packet) -> bytes:
    return b"".join(map(encode, packets))


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_repo(tmp_path_factory.mktemp("v2") / "repo.git")
    git("config", "uploadpack.allowFilter", "true", cwd=path)
    return path


# Requests


@pytest.mark.slow
@given(st.one_of(ls_refs_requests, fetch_requests()))
def test_newlines_at_the_ends_of_lines_are_optional(request: LsRefs | Fetch) -> None:
    bare = [
        packet.removesuffix(b"\n") if isinstance(packet, bytes) else packet
        for packet in decode_all(encode_request(request))
    ]
    assert parse_request(body(*bare)) == request


@pytest.mark.slow
@given(st.one_of(ls_refs_requests, fetch_requests()), st.data())
def test_mutated_requests_raise_protocol_error_or_nothing(
    request: LsRefs | Fetch, data: st.DataObject
) -> None:
    with suppress(ProtocolError):
        parse_request(data.draw(mutations(encode_request(request))))


@given(st.one_of(ls_refs_requests, fetch_requests()), st.data())
def test_no_beginning_of_a_request_passes_for_the_whole(
    request: LsRefs | Fetch, data: st.DataObject
) -> None:
    wire = encode_request(request)
    with pytest.raises(ProtocolError):
        parse_request(wire[: data.draw(st.integers(0, len(wire) - 1))])


def test_the_requests_of_a_git_clone_are_read() -> None:
    """The packets that git 2.39 sent, from its GIT_TRACE_PACKET."""
    preamble = (b"agent=git/2.39.5", b"object-format=sha1", DELIM)
    assert parse_request(
        body(
            LS_REFS,
            *preamble,
            b"peel\n",
            b"symrefs\n",
            b"unborn\n",
            b"ref-prefix HEAD\n",
            b"ref-prefix refs/heads/\n",
            FLUSH,
        )
    ) == LsRefs(
        peel=True,
        symrefs=True,
        unborn=True,
        prefixes=(b"HEAD", b"refs/heads/"),
        agent=b"git/2.39.5",
    )
    want = b"want " + A + b"\n"
    assert parse_request(
        body(b"command=fetch", *preamble, b"thin-pack", b"ofs-delta", want, want, b"done\n", FLUSH)
    ) == Fetch(wants=(A,), thin_pack=True, ofs_delta=True, done=True, agent=b"git/2.39.5")


def test_capabilities_come_in_any_order_and_the_delim_may_be_missing() -> None:
    parsed = parse_request(
        body(b"server-option=x", b"session-id=7", LS_REFS, b"server-option=y=z", FLUSH)
    )
    assert parsed == LsRefs(server_options=(b"x", b"y=z"), session_id=b"7")


def test_so_many_prefixes_ask_for_everything_as_in_git() -> None:
    lines = [b"ref-prefix %d" % n for n in range(TOO_MANY_PREFIXES)]
    few = parse_request(body(LS_REFS, DELIM, *lines[1:], FLUSH))
    assert isinstance(few, LsRefs)
    assert len(few.prefixes) == TOO_MANY_PREFIXES - 1
    assert parse_request(body(LS_REFS, DELIM, *lines, FLUSH)) == LsRefs()


@pytest.mark.slow
def test_prefixes_that_are_too_many_are_not_kept() -> None:
    """What 200,000 prefixes leave behind is what the first 65,536 of them take."""
    wire = body(LS_REFS, DELIM, *[b"ref-prefix %d" % n for n in range(200_000)], FLUSH)
    tracemalloc.start()
    try:
        assert parse_request(wire) == LsRefs()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # 5.5 MB where this was written; kept, they would take 17 MB, and as lines 41 MB.
    assert peak < 10_000_000


@pytest.mark.parametrize("newline", [b"", b"\n"])
def test_a_prefix_is_no_longer_than_a_name_that_a_packet_can_tell(newline: bytes) -> None:
    """So each that is read can be asked of an upstream, where a newline must fit as well."""
    longest = (b"refs/pull/" + b"x" * MAX_DATA)[: MAX_DATA - len(b"%s %s\n" % (A, b""))]
    asked = parse_request(body(LS_REFS, DELIM, b"ref-prefix " + longest + newline, FLUSH))
    assert isinstance(asked, LsRefs)
    wire = encode_ls_refs_request(prefixes=asked.prefixes, unborn=False, agent="goblet/0.1")
    assert longest in wire
    for line in (b"ref-prefix " + longest + b"x", (b"ref-prefix " + longest * 2)[:MAX_DATA]):
        with pytest.raises(ProtocolError, match="no ref's name is so long"):
            parse_request(body(LS_REFS, DELIM, line[: MAX_DATA - len(newline)] + newline, FLUSH))


@pytest.mark.parametrize(
    "packets",
    [
        (b"",),
        (b"frotz",),
        (LS_REFS, DELIM, b""),
        (LS_REFS, DELIM, DELIM),
        (LS_REFS, FLUSH, FLUSH),
        (b"command=fetch", DELIM, b""),
        (b"command=fetch", DELIM, b"want zz"),
        (b"command=fetch", DELIM, b"want " + A, b"want " + B),
    ],
)
def test_nothing_is_read_behind_what_is_refused(packets: tuple[Packet, ...]) -> None:
    """Bytes that are no packet follow, so reading on would be another error."""
    with pytest.raises(ProtocolError) as raised:
        parse_request(body(*packets) + b"<html>", limits=Limits(wants=1))
    assert "pkt-line" not in str(raised.value)


@pytest.mark.parametrize("head", [b"", body(LS_REFS, DELIM), body(b"command=fetch", DELIM)])
def test_millions_of_empty_lines_cost_no_more_than_one(head: bytes) -> None:
    wire = head + b"0004" * 2_000_000 + b"0000"
    begun = time.thread_time()
    with pytest.raises(ProtocolError, match=r"unexpected line ''|unknown capability ''"):
        parse_request(wire)
    # 0.1 ms where this was written; reading all of them first took 2 s.
    assert time.thread_time() - begun < 0.1


def test_capabilities_are_counted_with_the_server_options() -> None:
    limits = Limits(capabilities=3)
    three = (b"command=fetch", b"server-option=a", b"server-option=b")
    asked = parse_request(body(*three, FLUSH), limits=limits)
    assert asked.server_options == (b"a", b"b")
    for more in (b"server-option=c", b"agent=x"):
        with pytest.raises(ProtocolError, match="more than 3 capabilities in one request"):
            parse_request(body(*three, more, FLUSH), limits=limits)


@pytest.mark.parametrize("line", [b"peel", b"ref-prefix a"])
def test_repeated_lines_are_bounded_too(line: bytes) -> None:
    limits = Limits(packets=6)
    assert parse_request(body(LS_REFS, DELIM, line, line, line, FLUSH), limits=limits)
    with pytest.raises(ProtocolError, match="more than 6 packets in one body"):
        parse_request(body(LS_REFS, DELIM, line, line, line, line, FLUSH), limits=limits)


def test_limits_are_the_callers() -> None:
    two = body(b"command=fetch", DELIM, b"want " + A, b"want " + B, FLUSH)
    assert parse_request(two) == Fetch(wants=(A, B))
    with pytest.raises(ProtocolError, match="more than 1 want lines in one request"):
        parse_request(two, limits=Limits(wants=1))


@pytest.mark.parametrize(
    ("packets", "sentence"),
    [
        ((), "does not end with a flush"),
        ((FLUSH,), "no command requested"),
        ((b"agent=x", FLUSH), "no command requested"),
        ((b"command=", FLUSH), "no command requested"),
        ((LS_REFS,), "does not end with a flush"),
        ((LS_REFS, DELIM, b"peel"), "does not end with a flush"),
        ((LS_REFS, FLUSH, FLUSH), "goes on after its flush"),
        ((LS_REFS, DELIM, FLUSH, b"peel"), "goes on after its flush"),
        ((LS_REFS, DELIM, DELIM, FLUSH), "unexpected delim packet"),
        ((LS_REFS, Marker.RESPONSE_END), "unexpected response_end packet"),
        ((LS_REFS, b"command=fetch", FLUSH), "'fetch' requested after already requesting"),
        ((b"command=nope", FLUSH), "unknown command 'nope'"),
        ((b"command=object-info", FLUSH), "unknown command 'object-info'"),
        ((b"command=bundle-uri", FLUSH), "unknown command 'bundle-uri'"),
        ((LS_REFS, b"foo=bar", FLUSH), "unknown capability 'foo=bar'"),
        ((LS_REFS, b"agent", FLUSH), "unknown capability 'agent'"),
        ((LS_REFS, b"", FLUSH), "unknown capability ''"),
        ((LS_REFS, b"object-format=md5", FLUSH), "unknown object format 'md5'"),
        ((LS_REFS, b"object-format=\xff", FLUSH), "unknown object format '�'"),
        ((LS_REFS, DELIM, b"bogus", FLUSH), "unexpected line 'bogus'"),
        ((LS_REFS, DELIM, b"peel ", FLUSH), "unexpected line 'peel '"),
        ((LS_REFS, DELIM, b"ref-prefix", FLUSH), "unexpected line 'ref-prefix'"),
        ((LS_REFS, DELIM, b"want " + A, FLUSH), "unexpected line 'want aaa"),
        ((LS_REFS, DELIM, b"peel\n\n", FLUSH), "NUL or newline inside the line"),
        ((LS_REFS, b"agent=a\0b", FLUSH), "NUL or newline inside the line"),
        ((b"command=fetch", DELIM, b"want zz", FLUSH), "expected a sha1 object id"),
    ],
)
def test_what_is_no_request_is_refused_in_one_sentence(
    packets: tuple[Packet, ...], sentence: str
) -> None:
    with pytest.raises(ProtocolError) as raised:
        parse_request(body(*packets))
    assert sentence in str(raised.value)


@pytest.mark.parametrize("bytes_", [b"<html>", b"GET / HTTP/1.1\r\n", b"\x1f\x8b\x08\0", b"0"])
def test_bytes_that_are_no_pkt_lines_are_refused(bytes_: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_request(bytes_)


# Answers


def test_the_pack_section_begins_with_its_name() -> None:
    assert PACKFILE_SECTION == b"000dpackfile\n"


@pytest.mark.parametrize(
    ("features", "lines"),
    [
        (Advertised(fetch=()), ["ls-refs=unborn", "fetch", "object-format=sha1"]),
        (
            Advertised(
                fetch=("shallow", "filter"),
                unborn=False,
                server_option=True,
                object_format="sha256",
            ),
            ["ls-refs", "fetch=shallow filter", "server-option", "object-format=sha256"],
        ),
    ],
)
def test_an_advertisement_names_each_feature_on_its_line(
    features: Advertised, lines: list[str]
) -> None:
    said = decode_all(encode_advertisement(agent="goblet/0.1", features=features))
    assert said == [
        *[f"{line}\n".encode() for line in ["version 2", "agent=goblet/0.1", *lines]],
        FLUSH,
    ]


MAIN = Ref(name=b"refs/heads/main", oid=A)
TAG = Ref(name=b"refs/tags/v1", oid=A, peeled=B)
HEAD = Ref(name=b"HEAD", oid=A, symref_target=b"refs/heads/main")
UNBORN = replace(HEAD, oid=None)


@pytest.mark.parametrize(
    ("ref", "request_", "line"),
    [
        (MAIN, LsRefs(), A + b" refs/heads/main\n"),
        (TAG, LsRefs(), A + b" refs/tags/v1\n"),
        (TAG, LsRefs(peel=True), A + b" refs/tags/v1 peeled:" + B + b"\n"),
        (HEAD, LsRefs(), A + b" HEAD\n"),
        (HEAD, LsRefs(symrefs=True), A + b" HEAD symref-target:refs/heads/main\n"),
        (UNBORN, LsRefs(unborn=True, symrefs=True), b"unborn HEAD symref-target:refs/heads/main\n"),
        (UNBORN, LsRefs(unborn=True), None),
        (UNBORN, LsRefs(symrefs=True), None),
        (UNBORN, LsRefs(unborn=True, symrefs=True, prefixes=(b"refs/",)), None),
        (MAIN, LsRefs(prefixes=(b"HEAD", b"refs/tags/")), None),
        (MAIN, LsRefs(prefixes=(b"HEAD", b"refs/heads/")), A + b" refs/heads/main\n"),
    ],
)
def test_a_ref_is_told_as_it_was_asked_for(ref: Ref, request_: LsRefs, line: bytes | None) -> None:
    expected: list[Packet] = [FLUSH] if line is None else [line, FLUSH]
    assert decode_all(b"".join(encode_ls_refs([ref], request_))) == expected


@pytest.mark.slow
@given(refs(), ls_refs_requests)
def test_an_answer_keeps_the_order_and_ends_once(told: tuple[Ref, ...], request: LsRefs) -> None:
    packets = decode_all(b"".join(encode_ls_refs(told, request)))
    assert packets.pop() is FLUSH
    names = [packet.split()[1] for packet in packets if isinstance(packet, bytes)]
    assert len(names) == len(packets)
    assert names == [
        ref.name
        for ref in told
        if request.matches(ref.name)
        and (ref.oid is not None or (request.unborn and request.symrefs))
    ]


def test_a_long_answer_comes_in_bounded_pieces() -> None:
    many = [Ref(name=b"refs/heads/%d" % n, oid=A) for n in range(5000)]
    pieces = list(encode_ls_refs(many, LsRefs()))
    assert 64 * 1024 <= max(map(len, pieces)) < 64 * 1024 + 100
    assert len(decode_all(b"".join(pieces))) == 5001


# Real git


@pytest.mark.system
def test_the_advertisement_is_that_of_real_git(repo: Path) -> None:
    """Byte for byte, but for the agent, its filter order and object-info, which we do not serve."""
    said = advertise(repo, version=2)
    agent = next(
        packet.removeprefix(b"agent=").strip().decode()
        for packet in decode_all(said)
        if isinstance(packet, bytes) and packet.startswith(b"agent=")
    )
    features = Advertised(fetch=("shallow", "wait-for-done", "filter"), server_option=True)
    ours = encode_advertisement(agent=agent, features=features)
    assert ours == said.replace(encode(b"object-info\n"), b"")


@pytest.mark.system
@pytest.mark.parametrize(
    "request_",
    [
        LsRefs(),
        LsRefs(peel=True, symrefs=True, unborn=True),
        LsRefs(peel=True, prefixes=(b"refs/tags/", b"refs/heads/m", b"HEA")),
        LsRefs(prefixes=(b"nothing/like/this",)),
    ],
)
def test_real_git_answers_ls_refs_with_the_same_bytes(repo: Path, request_: LsRefs) -> None:
    ours = b"".join(encode_ls_refs(refs_of_git(repo), request_))
    assert ours == answer(repo, encode_request(request_))


@pytest.mark.system
@pytest.mark.parametrize("unborn", [True, False])
@pytest.mark.parametrize("symrefs", [True, False])
def test_real_git_tells_an_unborn_head_to_the_same_clients(
    tmp_path: Path, unborn: bool, symrefs: bool
) -> None:
    git("init", "--quiet", "--bare", tmp_path)
    request = LsRefs(unborn=unborn, symrefs=symrefs)
    ours = b"".join(encode_ls_refs(refs_of_git(tmp_path), request))
    assert ours == answer(tmp_path, encode_request(request))


@pytest.mark.system
@pytest.mark.slow
def test_real_git_works_with_what_we_say_and_we_read_all_that_it_asks(
    repo: Path, tmp_path: Path
) -> None:
    """A clone, then every kind of fetch, through our refs and our reading of requests."""
    features = Advertised(fetch=("shallow", "wait-for-done", "filter"), server_option=True)
    with Front(repo, features=features) as front:
        assert refs_of(front.url) == refs_of(repo)

        whole = clone(front.url, tmp_path / "whole")
        (plain,) = front.fetches()
        assert plain.is_plain
        assert plain.done
        assert plain.agent is not None
        assert set(plain.wants) == {
            ref.oid for ref in refs_of_git(repo) if not ref.name.startswith(b"refs/pull/")
        }
        fsck(whole)

        # git may fetch tags in a second request, so these look at all of them.
        shallow = clone(front.url, tmp_path / "shallow", "--depth=2", "--server-option=go")
        assert (2, (b"go",)) in {(cut.deepen, cut.server_options) for cut in front.fetches()}
        git("fetch", "--quiet", "--deepen=3", cwd=shallow)
        assert any(
            deeper.deepen == 3 and deeper.deepen_relative and deeper.shallow
            for deeper in front.fetches()
        )
        git("fetch", "--quiet", "--shallow-since=1999-01-01T00:00:00Z", cwd=shallow)
        assert 915_148_800 in {since.deepen_since for since in front.fetches()}
        git("fetch", "--quiet", "--depth=1", cwd=shallow)
        git("fetch", "--quiet", "--unshallow", cwd=shallow)
        assert 2**31 - 1 in {all_.deepen for all_ in front.fetches()}
        fsck(shallow)
        clone(front.url, tmp_path / "not", "--shallow-exclude=v0.0")
        assert (b"v0.0",) in {cut.deepen_not for cut in front.fetches()}

        clone(front.url, tmp_path / "partial", "--bare", "--filter=blob:limit=1k")
        assert "blob:limit=1024" in {partial.filter_spec for partial in front.fetches()}

        tip = commit(repo, files={"new.txt": "new"})
        git("fetch", "--quiet", cwd=whole)
        newer = front.fetches()
        assert all(fetch.haves and not fetch.is_plain for fetch in newer)
        assert tip.encode() in newer[-1].wants
        assert refs_of(whole)["refs/remotes/origin/main"] == tip

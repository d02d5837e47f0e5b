"""v2_client: what a node says to an upstream and hears from it, held against real git."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.errors import ProtocolError
from goblet_node.wire.pktline import Marker, Packet, encode, encode_error
from goblet_node.wire.refs import ObjectId, Ref
from goblet_node.wire.requests import Fetch, LsRefs
from goblet_node.wire.v2 import Advertised, encode_advertisement, encode_ls_refs, parse_request
from goblet_node.wire.v2_client import (
    Advertisement,
    RemoteError,
    encode_fetch_request,
    encode_ls_refs_request,
    encode_request,
    line_of,
    parse_advertisement,
    parse_ls_refs,
)
from goblet_testing.gitcli import git, refs_of
from goblet_testing.repos import make_repo
from goblet_testing.strategies import fetch_requests, ls_refs_requests, mutations, refs
from goblet_testing.upload_pack import advertise, answer, refs_of_git

A, B = ObjectId(b"a" * 40), ObjectId(b"b" * 40)
FLUSH = Marker.FLUSH
SERVICE = (b"# service=git-upload-pack\n", FLUSH)
ALL = LsRefs(peel=True, symrefs=True, unborn=True)


def body(*packets: Packet) -> bytes:
    return b"".join(map(encode, packets))


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repo(tmp_path_factory.mktemp("v2_client") / "repo.git")


# Advertisements


def test_features_are_asked_by_name_and_by_the_words_of_their_value() -> None:
    said = Advertisement(version=2, features={"fetch": "shallow filter", "ls-refs": None})
    assert said.speaks_v2
    assert said.has("fetch")
    assert said.has("ls-refs")
    assert said.has("fetch", "filter")
    assert not said.has("fetch", "filt")
    assert not said.has("ls-refs", "unborn")
    assert not said.has("server-option")
    assert not said.has("server-option", "x")
    assert said.object_format == "sha1"


@given(st.booleans(), st.sampled_from(["sha1", "sha256"]), st.booleans())
def test_our_own_advertisement_is_understood(
    unborn: bool, object_format: str, with_service: bool
) -> None:
    features = Advertised(fetch=("shallow",), unborn=unborn, object_format=object_format)
    wire = encode_advertisement(agent="goblet/0.1", features=features)
    said = parse_advertisement((body(*SERVICE) if with_service else b"") + wire)
    assert said == Advertisement(
        version=2,
        features={
            "agent": "goblet/0.1",
            "ls-refs": "unborn" if unborn else None,
            "fetch": "shallow",
            "object-format": object_format,
        },
    )
    assert said.object_format == object_format


@pytest.mark.parametrize(
    ("packets", "version"),
    [
        ((A + b" HEAD\0multi_ack symref=HEAD:refs/heads/main object-format=sha1\n",), 0),
        ((*SERVICE, A + b" HEAD\0multi_ack symref=HEAD:refs/heads/main object-format=sha1"), 0),
        ((*SERVICE, b"version 1\n", A + b" HEAD\0multi_ack object-format=sha1\n", FLUSH), 1),
        ((b"0" * 40 + b" capabilities^{}\0multi_ack object-format=sha1", FLUSH), 0),
    ],
)
def test_of_versions_0_and_1_only_the_capabilities_are_read(
    packets: tuple[Packet, ...], version: int
) -> None:
    said = parse_advertisement(body(*packets))
    assert (said.version, said.speaks_v2) == (version, False)
    assert said.has("multi_ack")
    assert said.features["object-format"] == "sha1"


def test_a_sha256_upstream_is_recognised_in_either_version() -> None:
    said = parse_advertisement(body(b"c" * 64 + b" HEAD\0object-format=sha256\n"))
    assert said.object_format == "sha256"


@pytest.mark.parametrize("packets", [(FLUSH,), (*SERVICE, FLUSH), (b"version 1", FLUSH)])
def test_an_upstream_without_refs_may_say_nothing(packets: tuple[Packet, ...]) -> None:
    said = parse_advertisement(body(*packets))
    assert not said.features
    assert not said.speaks_v2


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"<!DOCTYPE html><title>Sign in</title>",
        b"0000000000000000000000000000000000000000\trefs/heads/main\n",
        b"fe5825b3846709dfab52e69351c4785e8191f224\trefs/heads/main\n",
        body(b"version 2"),
        body(b"version 2", FLUSH, FLUSH),
        body(b"version 2", FLUSH) + b"00",
        body(b"version 2", Marker.DELIM, FLUSH),
        body(b"version 3", FLUSH),
        body(Marker.DELIM),
        body(b"version 1"),
        body(b"version 1", b"version 1", FLUSH),
        body(b"# service=git-receive-pack\n", FLUSH, b"version 2", FLUSH),
        body(b"# service=git-upload-pack\n", b"version 2", FLUSH),
        body(A + b" HEAD", FLUSH),
        body(A + b"\0multi_ack", FLUSH),
        body(b"xyz HEAD\0multi_ack", FLUSH),
    ],
)
def test_what_is_no_advertisement_is_refused(said: bytes) -> None:
    with pytest.raises(ProtocolError) as raised:
        parse_advertisement(said)
    assert "\n" not in str(raised.value)


def test_garbage_is_named_as_what_it_is_not() -> None:
    with pytest.raises(ProtocolError, match="info/refs is not in the git protocol: pkt-line"):
        parse_advertisement(b"<html>")


@pytest.mark.system
@pytest.mark.parametrize("version", [0, 1, 2])
def test_the_advertisement_of_real_git_is_read(repo: Path, version: int) -> None:
    said = parse_advertisement(body(*SERVICE) + advertise(repo, version=version))
    assert said.version == version
    assert said.object_format == "sha1"
    assert (said.features["agent"] or "").startswith("git/")
    assert said.has("fetch", "shallow") == (version == 2)
    assert said.has("multi_ack") == (version < 2)


@pytest.mark.system
@pytest.mark.parametrize("version", [0, 2])
def test_the_object_format_of_real_git_is_read(tmp_path: Path, version: int) -> None:
    git("init", "--quiet", "--bare", "--object-format=sha256", "--initial-branch=main", tmp_path)
    tree = git("hash-object", "-w", "-t", "tree", "--stdin", cwd=tmp_path).stdout.strip()
    commit = git("commit-tree", "-m", "first", tree, cwd=tmp_path).stdout.strip()
    git("update-ref", "refs/heads/main", commit, cwd=tmp_path)
    assert parse_advertisement(advertise(tmp_path, version=version)).object_format == "sha256"


# Requests


@given(st.one_of(ls_refs_requests, fetch_requests()))
def test_every_request_is_read_back_as_it_was_meant(request: LsRefs | Fetch) -> None:
    assert parse_request(encode_request(request)) == request


def test_a_question_for_refs_asks_for_all_that_is_known_of_them() -> None:
    asked = parse_request(
        encode_ls_refs_request(prefixes=[b"refs/heads/", b"HEAD"], unborn=True, agent="goblet/0.1")
    )
    assert asked == LsRefs(
        peel=True,
        symrefs=True,
        unborn=True,
        prefixes=(b"refs/heads/", b"HEAD"),
        agent=b"goblet/0.1",
    )
    everything = encode_ls_refs_request(prefixes=None, unborn=False, agent="goblet/0.1")
    assert parse_request(everything) == LsRefs(peel=True, symrefs=True, agent=b"goblet/0.1")


@pytest.mark.parametrize("thin_pack", [True, False])
def test_a_question_for_a_pack_leaves_nothing_to_negotiate(thin_pack: bool) -> None:
    wire = encode_fetch_request(wants=[A], haves=[B], agent="goblet/0.1", thin_pack=thin_pack)
    assert parse_request(wire) == Fetch(
        wants=(A,),
        haves=(B,),
        done=True,
        thin_pack=thin_pack,
        ofs_delta=True,
        agent=b"goblet/0.1",
    )


def test_sha1_is_not_named_since_old_servers_die_of_the_word() -> None:
    assert b"object-format" not in encode_request(Fetch(wants=(A,)))
    assert b"object-format=sha256" in encode_request(Fetch(object_format="sha256"))


# Refs


@given(refs())
def test_refs_are_read_back_as_they_were_told(told: tuple[Ref, ...]) -> None:
    assert parse_ls_refs(b"".join(encode_ls_refs(told, ALL))) == told


@pytest.mark.slow
@given(refs(), st.data())
def test_mutated_refs_raise_protocol_or_remote_error_or_nothing(
    told: tuple[Ref, ...], data: st.DataObject
) -> None:
    with suppress(ProtocolError, RemoteError):
        parse_ls_refs(data.draw(mutations(b"".join(encode_ls_refs(told, ALL)))))


@pytest.mark.slow
@given(refs(), st.data())
def test_no_beginning_of_an_answer_passes_for_the_whole(
    told: tuple[Ref, ...], data: st.DataObject
) -> None:
    wire = b"".join(encode_ls_refs(told, ALL))
    with pytest.raises(ProtocolError):
        parse_ls_refs(wire[: data.draw(st.integers(0, len(wire) - 1))])


def test_attributes_that_are_not_known_yet_are_skipped() -> None:
    (ref,) = parse_ls_refs(body(A + b" refs/heads/main colour:red x\n", FLUSH))
    assert ref == Ref(name=b"refs/heads/main", oid=A)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b"", "no valid ref name"),
        (A, "no valid ref name"),
        (A + b" ", "no valid ref name"),
        (A + b"  refs/heads/main", "no valid ref name"),
        (A + b" main", "no valid ref name"),
        (A + b" refs/heads/../../x", "no valid ref name"),
        (A + b" refs/heads/\x1b[2J", "no valid ref name"),
        (b"zz refs/heads/main", "object id b'zz'"),
        (b"0" * 40 + b" refs/heads/main", "object id b'0000"),
        (b"c" * 64 + b" refs/heads/main", "object id b'cccc"),
        (A + b" refs/tags/v1 peeled:zz", "object id b'zz'"),
        (A + b" HEAD symref-target:main", "that is no ref name"),
        (A + b" HEAD symref-target:", "that is no ref name"),
        (b"unborn HEAD", "only a HEAD with a symref target"),
        (b"unborn refs/heads/x symref-target:refs/heads/y", "only a HEAD with a symref target"),
        (b"unborn HEAD symref-target:refs/heads/y peeled:" + A, "only a HEAD"),
    ],
)
def test_a_ref_that_no_repository_has_is_refused(line: bytes, sentence: str) -> None:
    with pytest.raises(ProtocolError) as raised:
        parse_ls_refs(body(line + b"\n", FLUSH))
    assert sentence in str(raised.value)
    assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize(
    "answered",
    [
        b"",
        b"<html>",
        body(A + b" refs/heads/main\n"),
        body(A + b" refs/heads/main\n", Marker.DELIM),
        body(A + b" refs/heads/main\n", Marker.DELIM, FLUSH),
        body(FLUSH, FLUSH),
        body(A + b" refs/heads/main\n", B + b" refs/heads/main\n", FLUSH),
    ],
)
def test_an_answer_must_be_refs_each_once_and_a_flush(answered: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_ls_refs(answered)


@pytest.mark.parametrize("packets", [(b"",), (b"zz refs/heads/main",), (FLUSH, FLUSH)])
def test_nothing_is_read_behind_what_is_no_answer(packets: tuple[Packet, ...]) -> None:
    """Bytes that are no packet follow, so reading on would be another error."""
    with pytest.raises(ProtocolError) as raised:
        parse_ls_refs(body(*packets) + b"<html>")
    assert "pkt-line" not in str(raised.value)


@pytest.mark.parametrize("tail", [b"", b"0000"])
def test_what_the_upstream_refuses_with_is_its_sentence(tail: bytes) -> None:
    refused = body(A + b" refs/heads/main\n") + encode_error("access denied\r\n") + tail
    with pytest.raises(RemoteError, match=r"^access denied$") as raised:
        parse_ls_refs(refused)
    assert raised.value.status == 502
    with pytest.raises(RemoteError, match=r"^access denied$"):
        parse_advertisement(encode_error("access denied") + tail)


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        ("\x1b[31mred\x00\x9b\n\n  spaced", "[31mred spaced"),
        ("\x1b\n", "the upstream refused without saying why"),
        ("x" * 5000, "x" * 1000),
    ],
)
def test_an_upstreams_sentence_cannot_harm_a_terminal(said: str, heard: str) -> None:
    with pytest.raises(RemoteError) as raised:
        line_of(b"ERR " + said.encode())
    assert str(raised.value) == heard


@pytest.mark.system
def test_the_refs_of_real_git_are_read(repo: Path) -> None:
    said = refs_of_git(repo)
    told = {ref.name.decode(): ref.oid.decode() for ref in said if ref.oid is not None}
    told |= {f"{ref.name.decode()}^{{}}": ref.peeled.decode() for ref in said if ref.peeled}
    assert told == refs_of(repo)
    assert next(ref for ref in said if ref.name == b"HEAD").symref_target == b"refs/heads/main"
    assert any(ref.peeled for ref in said)


@pytest.mark.system
def test_real_git_takes_prefixes_and_an_unborn_head(repo: Path, tmp_path: Path) -> None:
    tags = encode_ls_refs_request(prefixes=[b"refs/tags/"], unborn=True, agent="goblet/0.1")
    named = {ref.name for ref in parse_ls_refs(answer(repo, tags))}
    assert named == {name.encode() for name in refs_of(repo) if name.startswith("refs/tags/")} - {
        name.encode() for name in refs_of(repo) if name.endswith("^{}")
    }
    git("init", "--quiet", "--bare", "--initial-branch=trunk", tmp_path)
    assert refs_of_git(tmp_path) == (
        Ref(name=b"HEAD", oid=None, symref_target=b"refs/heads/trunk"),
    )

"""negotiate: turn by turn what real upload-pack says, in every dialect."""

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from goblet_node.serve.negotiate import foregone, negotiate
from goblet_node.wire.answers import (
    NAK,
    READY,
    AckMode,
    Dialect,
    SideBand,
    Status,
    Turn,
    V0Dialect,
    V2Dialect,
    ack,
)
from goblet_node.wire.pktline import Band, Marker, decode_all, split_band
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.requests import Fetch
from goblet_node.wire.v0 import CAPABILITIES, parse_request
from goblet_node.wire.v2 import parse_request as parse_v2_request
from goblet_node.wire.v2_client import encode_request
from goblet_testing.ancestry import Cut, History, cut_by_git, make_graph
from goblet_testing.dialects import encode_v0_request, speak
from goblet_testing.gitcli import GitFailed, fsck, git, refs_of
from goblet_testing.host import Host
from goblet_testing.repos import commit, make_repo

A, B, C, D = (ObjectId(letter * 40) for letter in (b"a", b"b", b"c", b"d"))
V2 = V2Dialect()
DETAILED = V0Dialect(acks=AckMode.DETAILED, side_band=SideBand.LARGE)
NO_DONE = V0Dialect(acks=AckMode.DETAILED, no_done=True, side_band=SideBand.LARGE)
MULTI = V0Dialect(acks=AckMode.MULTI_ACK)
PLAIN = V0Dialect()


def turn(fetch: Fetch, dialect: Dialect, *common: ObjectId, ready_from: int | None = None) -> Turn:
    """Negotiate where so many of the common haves make ready, or none ever do."""

    def ready(haves: Sequence[ObjectId]) -> bool:
        assert haves, "no haves are never enough: nobody should ask"
        return ready_from is not None and len(haves) >= ready_from

    return negotiate(fetch, dialect, common=common, shallow=(), ready=ready)


def asks_nobody(haves: Sequence[ObjectId]) -> bool:
    raise AssertionError(f"asked whether {haves} suffice")


# The rules, one by one


@pytest.mark.parametrize("dialect", [V2, DETAILED, PLAIN], ids=repr)
def test_a_client_that_wants_nothing_hears_nothing(dialect: Dialect) -> None:
    assert turn(Fetch(haves=(A,), done=True), dialect, A) == Turn()


def test_version_2_sends_the_pack_at_once_to_who_is_done_or_has_nothing() -> None:
    for fetch in (Fetch(wants=(A,)), Fetch(wants=(A,), haves=(B,), done=True)):
        answer = negotiate(fetch, V2, common=fetch.haves, shallow=(), ready=asks_nobody)
        assert answer == Turn(has_pack=True)


def test_version_2_says_ready_and_sends_the_pack_in_the_same_answer() -> None:
    fetch = Fetch(wants=(A,), haves=(B, C, D))
    assert turn(fetch, V2, B, D, ready_from=2) == Turn(
        acknowledgments=(ack(B), ack(D), READY), has_pack=True
    )
    assert turn(fetch, V2, B, ready_from=2) == Turn(acknowledgments=(ack(B),))
    assert turn(fetch, V2) == Turn(acknowledgments=(NAK,))


def test_version_2_never_says_ready_to_who_waits_for_done() -> None:
    """What `git fetch --negotiate-only` relies on: it names no wants at all."""
    fetch = Fetch(haves=(B, C), wait_for_done=True)
    answer = negotiate(fetch, V2, common=(C,), shallow=(), ready=asks_nobody)
    assert answer == Turn(acknowledgments=(ack(C),))


@pytest.mark.parametrize(
    ("fetch", "shallow", "tells"),
    [
        (Fetch(wants=(A,)), (), False),
        (Fetch(wants=(A,), shallow=(B,)), (), False),
        (Fetch(wants=(A,), shallow=(B,)), (B,), True),
        (Fetch(wants=(A,), deepen=1), (), True),
        (Fetch(wants=(A,), deepen_since=1), (), True),
        (Fetch(wants=(A,), deepen_not=(b"v1",)), (), True),
    ],
)
def test_version_2_tells_a_boundary_to_who_asks_for_depth_or_is_shallow(
    fetch: Fetch, shallow: tuple[ObjectId, ...], tells: bool
) -> None:
    answer = negotiate(fetch, V2, common=(), shallow=shallow, ready=asks_nobody)
    assert answer == Turn(tells_boundary=tells, has_pack=True)


@pytest.mark.parametrize("dialect", [V2, DETAILED, NO_DONE, MULTI, PLAIN], ids=repr)
@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("haves", [(), (B,), (B, C)])
@pytest.mark.parametrize("shallow", [(), (D,)])
@pytest.mark.parametrize("deepen", [None, 1])
@pytest.mark.parametrize("waits", [False, True])
def test_a_turn_that_is_foregone_is_the_turn_whatever_is_found(
    dialect: Dialect,
    done: bool,
    haves: tuple[ObjectId, ...],
    shallow: tuple[ObjectId, ...],
    deepen: int | None,
    waits: bool,
) -> None:
    """Its head is sent before anybody looked, so it must be right in every case."""
    fetch = Fetch(
        wants=(A,), haves=haves, done=done, shallow=shallow, deepen=deepen, wait_for_done=waits
    )
    known = foregone(fetch, dialect)
    turns = {
        negotiate(fetch, dialect, common=haves[:held], shallow=shallow, ready=ready)
        for held in range(len(haves) + 1)
        for ready in (lambda _: False, lambda _: True)
    }
    is_certain = turns == {next(iter(turns))} and next(iter(turns)).has_pack and deepen is None
    assert known == (next(iter(turns)) if is_certain else None)


def test_who_is_done_in_version_2_need_not_wait_in_silence_for_its_pack() -> None:
    assert foregone(Fetch(wants=(A,), haves=(B,), done=True), V2) == Turn(has_pack=True)


def test_version_0_tells_the_boundary_in_every_answer_but_only_for_depth() -> None:
    for dialect in (V0Dialect(negotiates=False), DETAILED):
        assert turn(Fetch(wants=(A,), deepen=1), dialect).tells_boundary
        assert not turn(Fetch(wants=(A,), shallow=(B,)), dialect).tells_boundary


def test_version_0_has_no_more_to_say_to_a_request_that_ends_after_its_wants() -> None:
    fetch = Fetch(wants=(A,), deepen=1)
    assert turn(fetch, V0Dialect(negotiates=False)) == Turn(tells_boundary=True)


@pytest.mark.parametrize(
    ("dialect", "done", "lines"),
    [
        (PLAIN, False, [ack(B)]),
        (PLAIN, True, [ack(B)]),
        (MULTI, False, [ack(B, Status.CONTINUE), ack(D, Status.CONTINUE), NAK]),
        (MULTI, True, [ack(B, Status.CONTINUE), ack(D, Status.CONTINUE), ack(D)]),
        (DETAILED, False, [ack(B, Status.COMMON), ack(D, Status.COMMON), NAK]),
        (DETAILED, True, [ack(B, Status.COMMON), ack(D, Status.COMMON), ack(D)]),
    ],
)
def test_version_0_acknowledges_as_the_client_chose(
    dialect: V0Dialect, done: bool, lines: list[bytes]
) -> None:
    answer = turn(Fetch(wants=(A,), haves=(B, C, D), done=done), dialect, B, D)
    assert answer == Turn(acknowledgments=tuple(lines), has_pack=done)


@pytest.mark.parametrize("dialect", [PLAIN, MULTI, DETAILED, NO_DONE], ids=repr)
@pytest.mark.parametrize("done", [True, False])
def test_version_0_denies_once_where_nothing_is_common(dialect: V0Dialect, done: bool) -> None:
    answer = turn(Fetch(wants=(A,), haves=(B, C), done=done), dialect)
    assert answer == Turn(acknowledgments=(NAK,), has_pack=done)


def test_version_0_is_ready_at_the_first_unknown_have_that_no_longer_matters() -> None:
    fetch = Fetch(wants=(A,), haves=(C, B, D))
    common, ready = ack(B, Status.COMMON), ack(D, Status.READY)
    assert turn(fetch, DETAILED, B, ready_from=1) == Turn(acknowledgments=(common, ready, NAK))
    assert turn(fetch, NO_DONE, B, ready_from=1) == Turn(
        acknowledgments=(common, ready, NAK, ack(B)), has_pack=True
    )
    assert turn(fetch, MULTI, B, ready_from=1) == Turn(
        acknowledgments=(ack(B, Status.CONTINUE), ack(D, Status.CONTINUE), NAK)
    )


def test_version_0_is_ready_at_the_end_of_haves_that_were_all_common() -> None:
    fetch = Fetch(wants=(A,), haves=(B, C))
    told = (ack(B, Status.COMMON), ack(C, Status.COMMON), ack(C, Status.READY), NAK)
    assert turn(fetch, DETAILED, B, C, ready_from=2) == Turn(acknowledgments=told)
    assert turn(fetch, NO_DONE, B, C, ready_from=2) == Turn(
        acknowledgments=(*told, ack(C)), has_pack=True
    )


def test_many_haves_ask_a_bounded_number_of_times_whether_they_suffice() -> None:
    known = [ObjectId(b"%040x" % n) for n in range(1, 2001, 2)]
    haves = tuple(ObjectId(b"%040x" % n) for n in range(1, 2001))
    asked = []

    def ready(some: Sequence[ObjectId]) -> bool:
        asked.append(len(some))
        return len(some) >= 700

    answer = negotiate(
        Fetch(wants=(A,), haves=haves), DETAILED, common=known, shallow=(), ready=ready
    )
    assert answer.acknowledgments is not None
    assert sum(line.endswith(b" ready") for line in answer.acknowledgments) == 301
    assert len(asked) <= 12


# Real git, the same requests


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, History]]:
    directory = tmp_path_factory.mktemp("graphs")
    repos = [make_graph(directory / f"{seed}.git", seed=seed) for seed in range(4)]
    return [(repo, History(repo)) for repo in repos]


@st.composite
def fetches(draw: st.DrawFn, history: History) -> Fetch:
    """Draw what a client may ask of a repository, lines of other histories among its haves."""
    commits = st.sampled_from(sorted(history.dates))
    objects = st.sampled_from(sorted(history.objects))
    unknown = st.integers(1, 9).map(lambda number: ObjectId(b"%040x" % number))
    wants = tuple(draw(st.lists(commits | objects, unique=True, max_size=4)))
    # Without wants git takes the parents of what it unshallows for wants; no client asks so.
    depth = draw(
        st.just({})
        if not wants
        else st.just({})
        | st.fixed_dictionaries(
            {"deepen": st.sampled_from([1, 2, 3, 2**31 - 1]), "deepen_relative": st.booleans()}
        )
        | st.fixed_dictionaries({"deepen_since": st.sampled_from(sorted(history.dates.values()))})
        | st.just({"deepen_not": (b"c3",)})
    )
    return Fetch(
        wants=wants,
        haves=tuple(draw(st.lists(commits | unknown | objects, unique=True, max_size=8))),
        shallow=tuple(draw(st.lists(commits | unknown, unique=True, max_size=2))),
        done=draw(st.booleans()),
        thin_pack=draw(st.booleans()),
        no_progress=draw(st.booleans()),
        wait_for_done=draw(st.booleans()),
        **depth,
    )


def ask_git(repo: Path, body: bytes, fetch: Fetch, *, version: int) -> tuple[bytes, Cut]:
    """Return what git answers; let hypothesis draw anew where git cannot cut the history there."""
    try:
        return speak(repo, body, version=version), cut_by_git(repo, fetch)
    except subprocess.CalledProcessError as exc:
        if fetch.has_depth and b"no commits selected for shallow requests" in exc.stderr:
            reject()
        raise


def is_one_pack(answer: bytes, dialect: Dialect) -> bool:
    """Whether these are the bytes of a whole pack as they travel in this dialect, and no more."""
    if dialect.side_band is not SideBand.NONE:
        *packets, end = decode_all(answer)
        assert end is Marker.FLUSH
        bands = [split_band(packet) for packet in packets if isinstance(packet, bytes)]
        assert len(bands) == len(packets)
        assert max(len(data) for _, data in bands) <= dialect.side_band
        answer = b"".join(data for band, data in bands if band is Band.PACK)
    return answer[:4] == b"PACK" and answer[-20:] == hashlib.sha1(answer[:-20]).digest()


def check(
    repo: Path, history: History, fetch: Fetch, dialect: Dialect, said: bytes, cut: Cut
) -> None:
    answer = negotiate(
        fetch,
        dialect,
        common=history.held(fetch.haves),
        shallow=history.held(fetch.shallow),
        ready=history.ready(fetch, dialect, cut),
    )
    head = dialect.head(answer, shallow=cut.shallow, unshallow=cut.unshallow)
    if answer.has_pack:
        assert head == said[: len(head)]
        assert is_one_pack(said[len(head) :], dialect)
    else:
        assert head == said


@pytest.mark.system
@pytest.mark.slow
@given(data=st.data())
def test_version_2_answers_as_real_git(
    graphs: list[tuple[Path, History]], data: st.DataObject
) -> None:
    """Byte for byte up to the pack, and a pack exactly where git sends one."""
    repo, history = data.draw(st.sampled_from(graphs), label="repo")
    fetch = data.draw(fetches(history))
    body = encode_request(fetch)
    assert parse_v2_request(body) == fetch
    said, cut = ask_git(repo, body, fetch, version=2)
    check(repo, history, fetch, V2, said, cut)


@pytest.mark.system
@pytest.mark.slow
@given(data=st.data())
def test_versions_0_and_1_answer_as_real_git(
    graphs: list[tuple[Path, History]], data: st.DataObject
) -> None:
    """The same; a plain client hears its one ACK once, see negotiate's docstring."""
    repo, history = data.draw(st.sampled_from(graphs), label="repo")
    dialect = data.draw(
        st.builds(
            V0Dialect,
            acks=st.sampled_from(AckMode),
            no_done=st.booleans(),
            side_band=st.sampled_from(SideBand),
            negotiates=st.sampled_from([True, True, True, False]),
        )
    )
    drawn = data.draw(fetches(history))
    body = encode_v0_request(drawn, dialect)
    fetch, read = parse_request(body)
    if fetch.wants:
        assert read == dialect
    said, cut = ask_git(repo, body, fetch, version=data.draw(st.sampled_from([0, 1])))
    if read.acks is AckMode.NONE:
        said = with_one_ack(said)
    check(repo, history, fetch, read, said, cut)


def with_one_ack(said: bytes) -> bytes:
    start = said.find(b"0031ACK ")
    end = start + 0x31
    while start >= 0 and said[end : end + 8] == b"0031ACK ":
        said = said[:end] + said[end + 0x31 :]
    return said


# Real git, as the client


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_repo(tmp_path_factory.mktemp("negotiate") / "repo.git", commits=40)
    for key in ("allowFilter", "allowAnySHA1InWant"):
        git("config", f"uploadpack.{key}", "true", cwd=path)
    return path


def without(*capabilities: str) -> tuple[str, ...]:
    return tuple(word for word in CAPABILITIES if word not in capabilities)


CLIENTS = {
    "version 2": (2, CAPABILITIES),
    "version 1": (1, CAPABILITIES),
    "version 0": (0, CAPABILITIES),
    "small side-band": (0, without("side-band-64k")),
    "no side-band": (0, without("side-band-64k", "side-band")),
    "no no-done": (0, without("no-done")),
    "no multi_ack": (0, without("multi_ack", "multi_ack_detailed", "no-done")),
}


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.parametrize("client", CLIENTS)
def test_real_git_works_with_our_answers(repo: Path, tmp_path: Path, client: str) -> None:
    """A clone, a long negotiation, every kind of depth, a filter: each repository is sound."""
    version, capabilities = CLIENTS[client]
    ask = ("-c", f"protocol.version={version}")
    with Host(repo, capabilities=capabilities) as host:
        assert refs_of(host.url, env=version_env(version)) == refs_of(repo)
        whole = tmp_path / "whole"
        git(*ask, "clone", "--quiet", host.url, whole)
        fsck(whole)

        # So much of its own that several POSTs pass before a have is known.
        git("fast-import", "--quiet", cwd=whole, stdin=own_commits(40))
        host.taken()
        tip = commit(repo, files={f"{client}.txt": "new"})
        git(*ask, "fetch", "--quiet", "origin", cwd=whole)
        turns = host.taken()
        assert len(turns) > 1
        assert any(fetch.haves and not fetch.done for fetch, _, _ in turns)
        assert refs_of(whole)["refs/remotes/origin/main"] == tip
        fsck(whole)

        cut, model = tmp_path / "cut", tmp_path / "model"
        git(*ask, "clone", "--quiet", "--depth=2", host.url, cut)
        git("clone", "--quiet", "--depth=2", f"file://{repo}", model)
        assert cut_commits(cut) == cut_commits(model) != set()
        date = git("log", "-1", "--format=%ct", f"{tip}~9", cwd=repo).stdout.strip()
        since = f"--shallow-since={date} +0000"
        for flag in ("--deepen=3", "--depth=1", since, "--shallow-exclude=v0.0", "--unshallow"):
            # Else git of version 0 may want just the tag that it excludes, to follow it,
            # which upload-pack refuses: "no commits selected for shallow requests".
            git(*ask, "fetch", "--quiet", "--no-tags", "origin", flag, cwd=cut)
            git("fetch", "--quiet", "--no-tags", "origin", flag, cwd=model)
            fsck(cut)
            assert cut_commits(cut) == cut_commits(model), flag
        assert cut_commits(cut) == set()

        partial = tmp_path / "partial"
        git(*ask, "clone", "--quiet", "--filter=blob:none", host.url, partial)
        assert "blob:none" in {fetch.filter_spec for fetch, _, _ in host.taken()}
        assert git("rev-list", "--all", "--objects", "--missing=print", cwd=partial).stdout


def own_commits(count: int) -> str:
    """Return a fast-import stream that adds empty commits to main."""
    who = "committer C O Mitter <committer@example.test> 1700000000 +0000"
    first = f"commit refs/heads/main\n{who}\ndata 0\nfrom refs/heads/main^0\n"
    return first + (count - 1) * f"commit refs/heads/main\n{who}\ndata 0\n"


def version_env(version: int) -> dict[str, str]:
    return {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "protocol.version",
        "GIT_CONFIG_VALUE_0": str(version),
    }


def cut_commits(clone: Path) -> set[str]:
    """Return the commits where a clone's history ends though theirs does not."""
    file = clone / ".git/shallow"
    return set(file.read_text().split()) if file.exists() else set()


@pytest.mark.system
@pytest.mark.slow
def test_real_git_negotiates_only(repo: Path, tmp_path: Path) -> None:
    """`--negotiate-only` sends haves without wants and prints what we acknowledge."""
    whole = tmp_path / "whole"
    with Host(repo) as host:
        git("clone", "--quiet", host.url, whole)
        tip = refs_of(whole)["HEAD"]
        git("commit", "--quiet", "--allow-empty", "-m", "own", cwd=whole)
        said = git("fetch", "--negotiate-only", "--negotiation-tip=HEAD", host.url, cwd=whole)
        straight = git(
            "fetch", "--negotiate-only", "--negotiation-tip=HEAD", f"file://{repo}", cwd=whole
        )
        assert said.stdout == straight.stdout
        assert tip in said.stdout.split()
        assert {fetch.wants_nothing for fetch, _, _ in host.taken()} == {False, True}


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.parametrize("client", CLIENTS)
def test_real_git_shows_its_user_why_it_was_refused(
    repo: Path, tmp_path: Path, client: str
) -> None:
    version, capabilities = CLIENTS[client]
    with Host(repo, capabilities=capabilities) as host:
        host.refusal = "upload-pack: not our ref " + "d" * 40
        with pytest.raises(GitFailed) as failed:
            git("-c", f"protocol.version={version}", "clone", host.url, tmp_path / "clone")
        assert f"remote error: {host.refusal}" in failed.value.stderr


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.parametrize("client", CLIENTS)
def test_real_git_fails_where_a_pack_breaks_off(repo: Path, tmp_path: Path, client: str) -> None:
    """With our sentence where there is a band for it, by the missing bytes where there is none."""
    version, capabilities = CLIENTS[client]
    with Host(repo, capabilities=capabilities) as host:
        host.breakage = "the disk of this node is gone"
        with pytest.raises(GitFailed) as failed:
            git("-c", f"protocol.version={version}", "clone", host.url, tmp_path / "clone")
        ((_, dialect, _),) = host.taken()
        is_told = f"\nremote: {host.breakage}\nfatal: " in failed.value.stderr
        assert is_told == (dialect.side_band is not SideBand.NONE)

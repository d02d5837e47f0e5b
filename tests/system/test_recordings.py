"""Recordings, as clients see them: real git before a real node before a real origin."""

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import pytest
import trio

from goblet_node.mirror.layout import CacheRoot
from goblet_shared.repo_key import RepoKey
from goblet_testing import asks, repos
from goblet_testing.asks import Answer
from goblet_testing.faults_on_cue import Fault
from goblet_testing.gitcli import GitFailed, clone, fsck, git, refs_of, storm
from goblet_testing.origin import Origin
from goblet_testing.processes import Service, start_node
from goblet_testing.stand import HOST, MIRRORED, Stand, start_stand

pytestmark = [pytest.mark.system, pytest.mark.slow]

USERS = {"alice": "wonder", "bob": "builder"}
ALICE, BOB = ("alice", "wonder"), ("bob", "builder")
SHALLOW = ("thin-pack", "ofs-delta", "deepen 1")
BLOBLESS = ("thin-pack", "ofs-delta", "filter blob:none")
# One repository must not be mirrored for the sake of those who clone a part of it.
FLAGS = ("--mirror-after", "0")


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """An origin with alice and bob and a node; each test has repositories of its own."""
    directory = tmp_path_factory.mktemp("recordings")
    repos.make_repo(directory / "root/org/template.git")
    repos.make_blobs(directory / "root/org/blobs.git", megabytes=24)
    with start_stand(directory, users=USERS, flags=FLAGS) as stand:
        yield stand


@pytest.fixture
def name(request: pytest.FixtureRequest, stand: Stand) -> Iterator[str]:
    """A repository of the test's own on the origin, which behaves again afterwards."""
    name = "org/" + re.sub("[^a-z0-9_]+", "-", request.node.name)
    stand.copy(name, "org/template")
    yield name
    stand.origin.behave()
    stand.origin.release()
    stand.origin.private.pop(name, None)


def main_of(stand: Stand, name: str) -> str:
    """Return where the main branch is."""
    return repos.oid_of(stand.repo(name), "main")


def tips_of(stand: Stand, name: str, user: tuple[str, str] | None = None) -> list[str]:
    """Return what a clone wants."""
    refs = asks.ls_refs(stand.url(name), "HEAD", "refs/heads/", "refs/tags/", user=user).refs
    return sorted(set(refs.values()))


def made(node: Service, outcome: str = "kept") -> int:
    """Return how many answers were made for all who ask and ended so."""
    return int(node.metrics().get(f'goblet_node_recorded_answers_total{{outcome="{outcome}"}}', 0))


def wait_for(fact: Callable[[], bool], what: str) -> None:
    """Return when `fact()` is true."""
    deadline = time.monotonic() + 30
    while not fact():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come")
        time.sleep(0.02)


def recorded_of(stand: Stand, name: str) -> list[Path]:
    """Return every recording of a repository that lies on the node's disk."""
    root = CacheRoot(stand.directory / "goblet-1")
    return files_below(root.recordings_of(RepoKey(f"{HOST}/{name}")))


def files_below(directory: Path) -> list[Path]:
    """Return every file below a directory."""
    return [path for path in directory.rglob("*") if path.is_file()]


def twice(ask: Callable[[], Answer], node: Service) -> list[Answer]:
    """Ask the same a second time once the first answer is recorded."""
    before = made(node)
    first = ask()
    wait_for(lambda: made(node) > before, "a recording")
    return [first, ask()]


@pytest.mark.parametrize("arguments", [SHALLOW, BLOBLESS, ("ofs-delta", "include-tag", "deepen 2")])
@pytest.mark.parametrize("is_warm", [True, False], ids=["warm", "cold"])
def test_the_same_question_has_the_same_bytes_the_second_time(
    stand: Stand, name: str, arguments: Sequence[str], is_warm: bool
) -> None:
    if is_warm:
        stand.warm(name)
    asked = len(stand.packs(name))
    url, wants = stand.url(name), [main_of(stand, name)]
    first, second = twice(lambda: asks.fetch(url, wants, arguments=arguments), stand.node)
    assert (first.cache, second.cache) == ("selected" if is_warm else "forwarded", "recorded")
    assert first.body == second.body
    assert second.headers["content-length"] == str(len(first.body))
    assert len(stand.packs(name)) - asked == (0 if is_warm else 1)


@pytest.mark.parametrize("flags", [["--depth=1"], ["--filter=blob:none"], ["--depth=3", "--bare"]])
@pytest.mark.parametrize("version", ["0", "2"])
@pytest.mark.parametrize("is_warm", [True, False], ids=["warm", "cold"])
def test_git_takes_a_recorded_clone(
    stand: Stand, name: str, tmp_path: Path, flags: list[str], version: str, is_warm: bool
) -> None:
    if is_warm:
        stand.warm(name)
    speaking = ["-c", f"protocol.version={version}"]
    for number in range(3):
        dest = tmp_path / f"clone-{number}"
        git(*speaking, "clone", "--quiet", *flags, stand.url(name), dest)
        git("fsck", "--strict", "--connectivity-only", cwd=dest)
        assert git("rev-parse", "main", cwd=dest).stdout.strip() == main_of(stand, name)
    log = stand.node.log
    assert f"{name} endpoint=git-upload-pack status=200" in log
    assert re.search(rf"key={HOST}/{name} .*cache=recorded", log)


def test_a_clone_of_a_log_with_orphans_is_recorded(stand: Stand, name: str, tmp_path: Path) -> None:
    """Once a generation: what it wants is what it is found by."""
    repos.commit(stand.repo(name), "gone", files={"gone": "gone\n"}, parent="main")
    stand.warm(name)
    repos.delete_branch(stand.repo(name), "gone")
    asks.ls_refs(stand.url(name))  # has the mirror brought up to date
    wants = tips_of(stand, name)
    wait_for(lambda: asks.fetch(stand.url(name), wants).cache == "recorded", "a recording")
    fsck(clone(stand.url(name), tmp_path / "clone"))
    repos.commit(stand.repo(name), files={"new": "new\n"})
    fresh = clone(stand.url(name), tmp_path / "fresh", "--mirror")
    fsck(fresh)
    assert refs_of(fresh) == refs_of(stand.direct(name))


def test_a_whole_clone_needs_no_recording(stand: Stand, name: str) -> None:
    stand.warm(name)
    wants = tips_of(stand, name)
    answers = [asks.fetch(stand.url(name), wants) for _ in range(3)]
    assert [answer.cache for answer in answers] == ["whole"] * 3
    assert len({answer.body for answer in answers}) == 1
    assert recorded_of(stand, name) == []


def test_a_fetch_from_what_one_has_is_recorded_from_the_second_time_on(
    stand: Stand, name: str
) -> None:
    stand.warm(name)
    have = main_of(stand, name)
    want = repos.commit(stand.repo(name), files={"new": "new\n"})
    stand.warm(name)
    before = made(stand.node)
    stranger = "f" * 40

    def ask(*haves: str) -> Answer:
        return asks.fetch(stand.url(name), [want], haves=haves)

    first, second = ask(have), ask(have, stranger)
    wait_for(lambda: made(stand.node) > before, "a recording")
    third = ask(stranger, have)
    assert [answer.cache for answer in (first, second, third)] == [
        "selected",
        "selected",
        "recorded",
    ]
    assert first.body == second.body == third.body


def test_who_negotiates_is_never_told_of_what_it_did_not_name(stand: Stand, name: str) -> None:
    """An ACK for an object that the client does not have makes it die."""
    stand.warm(name)
    older = repos.oid_of(stand.repo(name), "main~3")
    have = main_of(stand, name)
    want = repos.commit(stand.repo(name), files={"new": "new\n"})
    stand.warm(name)
    for haves in ([have], [older], [have, older], [older, have]):
        for _ in range(3):
            answer = asks.fetch(stand.url(name), [want], haves=haves, is_done=False)
            acked = re.findall(rb"ACK ([0-9a-f]{40})", answer.body)
            assert acked
            assert {oid.decode() for oid in acked} <= set(haves)


def test_a_repository_never_gets_another_ones_answer(stand: Stand, name: str) -> None:
    """The same wants, of a repository that does not have them, are upstream's to refuse."""
    stand.warm(name)
    want = repos.commit(stand.repo(name), files={"new": "new\n"})
    stand.warm(name)
    twice(lambda: asks.fetch(stand.url(name), [want], arguments=SHALLOW), stand.node)
    answer = asks.fetch(stand.url("org/template"), [want], arguments=SHALLOW)
    assert answer.cache != "recorded"
    assert b"not our ref" in answer.body


@pytest.mark.parametrize("is_warm", [True, False], ids=["warm", "cold"])
def test_a_tag_that_came_since_is_in_the_next_answer(
    stand: Stand, name: str, is_warm: bool
) -> None:
    """A recording with the tags that came along is for those who would get the same tags."""
    if is_warm:
        stand.warm(name)
    url, want = stand.url(name), main_of(stand, name)

    def objects() -> int:
        asks.ls_refs(url)  # as every client does
        answer = asks.fetch(url, [want], arguments=("ofs-delta", "include-tag", "deepen 1"))
        assert answer.pack[:4] == b"PACK", answer.body[:200]
        return int.from_bytes(answer.pack[8:12], "big")

    before = objects()
    repos.add_tag(stand.repo(name), "since")
    wait_for(lambda: objects() == before + 1, "the tag")


def test_eight_at_once_are_one_making(stand: Stand, name: str, tmp_path: Path) -> None:
    stand.warm(name)
    before = [made(stand.node), made(stand.node, "failed"), made(stand.node, "abandoned")]
    clones = trio.run(storm, 8, stand.url(name), tmp_path, "--depth=1")
    for cloned in clones:
        fsck(cloned.dest)
    wait_for(lambda: made(stand.node) > before[0], "a recording")
    after = [made(stand.node), made(stand.node, "failed"), made(stand.node, "abandoned")]
    assert after == [before[0] + 1, *before[1:]]


def test_cold_clones_of_a_part_share_one_request(stand: Stand, name: str, tmp_path: Path) -> None:
    stand.origin.hold_fetches(repo=name)
    dests: list[Path] = []
    thread = threading.Thread(
        target=lambda: dests.extend(
            cloned.dest for cloned in trio.run(storm, 8, stand.url(name), tmp_path, "--depth=1")
        )
    )
    thread.start()
    stand.origin.wait_until_held(1)
    time.sleep(0.5)  # let the others come while the first is held
    stand.origin.release()
    thread.join(60)
    assert len(dests) == 8
    for dest in dests:
        fsck(dest)
    assert len(stand.packs(name)) == 1


class Slow:
    """A client that asks and then reads nothing until it is told to. A context manager."""

    def __init__(self, url: str, body: bytes) -> None:
        parts = urllib.parse.urlsplit(url)
        self.socket = socket.create_connection((parts.hostname or "", parts.port or 80))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        self.socket.sendall(
            f"POST {parts.path}/git-upload-pack HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            "Git-Protocol: version=2\r\nContent-Type: application/x-git-upload-pack-request\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def first(self) -> bytes:
        """Return the first bytes of the answer."""
        return self.socket.recv(1000)

    def rest(self) -> bytes:
        """Return all that is left of the answer."""
        pieces = []
        while piece := self.socket.recv(1 << 16):
            pieces.append(piece)
        return b"".join(pieces)


def question(wants: Sequence[str], arguments: Sequence[str]) -> bytes:
    """Return the body of a request for a pack."""
    lines = [*arguments, *(f"want {oid}" for oid in wants), "done"]
    return asks.command_body("fetch", lines)


def test_a_slow_reader_holds_up_nobody_and_gets_all(stand: Stand, name: str) -> None:
    shutil.rmtree(stand.repo(name))
    stand.copy(name, "org/blobs")
    stand.warm(name)
    url, wants = stand.url(name), [main_of(stand, name)]
    before = made(stand.node)
    with Slow(url, question(wants, SHALLOW)) as slow:
        first = slow.first()
        wait_for(lambda: made(stand.node) > before, "a recording, whoever reads")
        quick = asks.fetch(url, wants, arguments=SHALLOW)
        assert quick.cache == "recorded"
        assert len(quick.body) > 24 << 20
        late = first + slow.rest()
    assert quick.pack[-20:] in late
    assert len(late) > len(quick.body)


def test_who_came_first_may_leave(stand: Stand, name: str, tmp_path: Path) -> None:
    stand.origin.misbehave(Fault(stall_after=5_000), kind="fetch", repo=name)
    first = subprocess.Popen(
        ["git", "clone", "--quiet", "--depth=1", stand.url(name), str(tmp_path / "first")],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    stand.origin.wait_until_held(1)
    second = subprocess.Popen(
        ["git", "clone", "--quiet", "--depth=1", stand.url(name), str(tmp_path / "second")]
    )
    wait_for(
        lambda: stand.node.log.count(f"key={HOST}/{name} endpoint=git-upload-pack") >= 2,
        "two ls-refs",
    )
    time.sleep(0.3)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    stand.origin.release()
    assert second.wait(30) == 0
    fsck(tmp_path / "second")
    assert len(stand.packs(name)) == 1


def test_when_all_have_left_nothing_is_made_and_nothing_is_found(stand: Stand, name: str) -> None:
    stand.origin.misbehave(Fault(stall_after=5_000), kind="fetch", repo=name, times=1)
    before = made(stand.node, "abandoned")
    url, wants = stand.url(name), [main_of(stand, name)]
    with Slow(url, question(wants, SHALLOW)) as client:
        client.first()
    wait_for(lambda: made(stand.node, "abandoned") > before, "an abandoned making")
    assert recorded_of(stand, name) == []
    assert asks.fetch(url, wants, arguments=SHALLOW).cache == "forwarded"


def test_an_upstream_that_breaks_off_fails_its_followers_clearly_and_nothing_is_kept(
    stand: Stand, name: str, tmp_path: Path
) -> None:
    stand.origin.misbehave(Fault(cut_after=5_000), kind="fetch", repo=name, times=1)
    with pytest.raises(GitFailed) as failed:
        clone(stand.url(name), tmp_path / "broken", "--depth=1")
    assert "127.0.0.1 could not be asked" in failed.value.stderr
    assert "try again" in failed.value.stderr
    assert recorded_of(stand, name) == []
    fsck(clone(stand.url(name), tmp_path / "again", "--depth=1"))


def test_what_upstream_damaged_is_not_kept(stand: Stand, name: str, tmp_path: Path) -> None:
    stand.origin.misbehave(Fault(corrupt_pack_at=3_000), kind="fetch", repo=name, times=1)
    before = made(stand.node, "not-kept")
    with pytest.raises(GitFailed):
        clone(stand.url(name), tmp_path / "broken", "--depth=1")
    wait_for(lambda: made(stand.node, "not-kept") > before, "an answer that is not kept")
    fsck(clone(stand.url(name), tmp_path / "again", "--depth=1"))


@pytest.mark.parametrize(
    ("fault", "status"), [(Fault(status=500), 502), (Fault(status=429, retry_after=7), 429)]
)
def test_what_upstream_refuses_is_told_and_not_kept(
    stand: Stand, name: str, fault: Fault, status: int
) -> None:
    url, wants = stand.url(name), [main_of(stand, name)]
    stand.origin.misbehave(fault, kind="fetch", repo=name, times=1)
    answer = asks.fetch(url, wants, arguments=SHALLOW)
    assert answer.status == status
    assert answer.headers.get("retry-after") == ("7" if fault.retry_after else "5")
    assert asks.fetch(url, wants, arguments=SHALLOW).cache == "forwarded"


def test_a_whole_clone_that_is_asked_for_often_is_recorded(
    stand: Stand, name: str, tmp_path: Path
) -> None:
    """The same bytes as before, from a file of its own; what asks for a new commit is not that."""
    stand.warm(name)
    url = stand.url(name)
    wants = sorted(set(asks.ls_refs(url, *MIRRORED).refs.values()))
    answers = [asks.fetch(url, wants) for _ in range(12)]
    assert {answer.body for answer in answers} == {answers[0].body}
    assert [answer.cache for answer in answers[:3]] == ["whole"] * 3
    assert [answer.cache for answer in answers[-3:]] == ["recorded"] * 3
    assert all("content-length" in answer.headers for answer in answers)
    fsck(clone(url, tmp_path / "clone"))
    repos.commit(stand.repo(name), files={"new": "new\n"})
    stand.warm(name)
    dest = clone(url, tmp_path / "later")
    fsck(dest)
    assert refs_of(dest)["HEAD"] == refs_of(stand.direct(name))["HEAD"]


def test_an_object_that_nobody_has_is_refused_and_not_recorded(stand: Stand, name: str) -> None:
    url, wants = stand.url(name), ["1" * 40]
    for _ in range(3):
        answer = asks.fetch(url, wants, arguments=SHALLOW)
        assert b"not our ref" in answer.body
        assert answer.cache != "recorded"


@pytest.mark.parametrize("is_warm", [True, False], ids=["warm", "cold"])
def test_a_private_repositorys_recording_is_refused_to_others(
    stand: Stand, name: str, is_warm: bool
) -> None:
    stand.origin.private[name] = {"alice"}
    url, wants = stand.url(name), [main_of(stand, name)]
    if is_warm:
        asks.fetch(url, tips_of(stand, name, ALICE), user=ALICE)
        full = tips_of(stand, name, ALICE)
        wait_for(lambda: asks.fetch(url, full, user=ALICE).cache == "whole", "a mirror")
    answers = twice(lambda: asks.fetch(url, wants, arguments=SHALLOW, user=ALICE), stand.node)
    assert answers[1].cache == "recorded"
    for user, status in [(BOB, 403), (None, 401), (("alice", "wrong"), 401)]:
        for answer in (
            asks.info_refs(url, user=user),
            asks.fetch(url, wants, arguments=SHALLOW, user=user),
        ):
            assert answer.status == status
            assert b"PACK" not in answer.body


def test_a_mirror_that_is_dropped_takes_its_recordings_along(stand: Stand, name: str) -> None:
    stand.warm(name)
    url, wants, tips = stand.url(name), [main_of(stand, name)], tips_of(stand, name)
    twice(lambda: asks.fetch(url, wants, arguments=SHALLOW), stand.node)
    (recording,) = recorded_of(stand, name)
    mirrors = stand.directory / "goblet-1" / "mirrors"
    (mirror,) = [path for path in mirrors.glob("*/*") if path.name == recording.parent.name]
    for pack in mirror.glob("*.pack"):
        os.truncate(pack, 100)
    since = len(stand.node.log)
    assert asks.fetch(url, tips).status == 200
    assert "is dropped" in stand.node.log[since:]
    assert recorded_of(stand, name) == []
    assert asks.fetch(url, wants, arguments=SHALLOW).cache != "recorded"


def test_a_restart_keeps_recordings_and_a_kill_leaves_no_half_one(
    tmp_path: Path, origin: Origin
) -> None:
    """What was recorded is served without upstream; what was being made is gone."""
    upstreams = {HOST: origin.url}
    with start_node("goblet-2", directory=tmp_path, upstreams=upstreams, flags=FLAGS) as node:
        url = node.url(f"{HOST}/org/small")
        want = asks.ls_refs(url).refs["refs/heads/main"]
        whole = twice(lambda: asks.fetch(url, [want], arguments=SHALLOW), node)[1]
        origin.misbehave(Fault(stall_after=5_000), kind="fetch", times=1)
        with Slow(url, question([want], BLOBLESS)) as half:
            half.first()
            assert files_below(tmp_path / "goblet-2" / "scratch")
            os.kill(node.pid, signal.SIGKILL)
            node.process.wait()
    origin.release()
    origin.wait_for_log(lambda log: any(seen.aborted for seen in log))
    origin.clear_log()
    with start_node("goblet-2", directory=tmp_path, upstreams=upstreams, flags=FLAGS) as node:
        assert files_below(tmp_path / "goblet-2" / "scratch") == []
        url = node.url(f"{HOST}/org/small")
        again = asks.fetch(url, [want], arguments=SHALLOW)
        assert (again.cache, again.body) == ("recorded", whole.body)
        assert origin.packs() == []
        assert asks.fetch(url, [want], arguments=BLOBLESS).cache == "forwarded"


def test_a_cache_without_room_still_answers(tmp_path: Path, origin: Origin) -> None:
    """What cannot be kept passes, to all who came together."""
    flags = [*FLAGS, "--cache-bytes", "8192"]
    with start_node(
        "goblet-3", directory=tmp_path, upstreams={HOST: origin.url}, flags=flags
    ) as node:
        for number in range(2):
            dest = clone(node.url(f"{HOST}/org/small"), tmp_path / f"c{number}", "--depth=1")
            fsck(dest)
        assert made(node) == 0
        assert made(node, "not-kept") == 2
        assert files_below(tmp_path / "goblet-3" / "recordings") == []
        assert "Traceback" not in node.log


def test_without_a_budget_nothing_is_recorded(tmp_path: Path, origin: Origin) -> None:
    flags = [*FLAGS, "--recordings-bytes", "0"]
    with start_node(
        "goblet-4", directory=tmp_path, upstreams={HOST: origin.url}, flags=flags
    ) as node:
        url = node.url(f"{HOST}/org/small")
        want = asks.ls_refs(url).refs["refs/heads/main"]
        answers = [asks.fetch(url, [want], arguments=SHALLOW) for _ in range(3)]
        assert [answer.cache for answer in answers] == ["forwarded"] * 3
        assert files_below(tmp_path / "goblet-4" / "recordings") == []

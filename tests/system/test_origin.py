"""The origin of the tests is what it claims to be, judged by real git."""

import gzip
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import trio

from goblet_testing import asks
from goblet_testing.faults_on_cue import Fault
from goblet_testing.gitcli import GitFailed, clone, fsck, git, refs_of, storm
from goblet_testing.origin import Origin
from goblet_testing.processes import clean_env, descendants
from goblet_testing.repos import commit, count_objects, oid_of
from goblet_testing.seen import Seen

pytestmark = pytest.mark.system
TESTS = Path(__file__).parents[1]


def in_background(pool: ThreadPoolExecutor, url: str, dest: Path) -> Future[Path]:
    return pool.submit(clone, url, dest)


def commands(log: list[Seen]) -> list[str | None]:
    return [seen.command for seen in log]


def test_a_clone_is_the_repository_on_disk(
    origin: Origin, shared_root: Path, tmp_path: Path
) -> None:
    cloned = clone(origin.url_of("org/small"), tmp_path / "clone", "--mirror")
    fsck(cloned)
    assert refs_of(shared_root / "org/small.git") == refs_of(cloned)


@pytest.mark.parametrize("version", ["0", "1", "2"])
def test_every_dialect_lists_the_same_refs(origin: Origin, shared_root: Path, version: str) -> None:
    env = {"GIT_PROTOCOL_VERSION": version}
    listed = git("-c", f"protocol.version={version}", "ls-remote", origin.url_of("org/small"))
    assert listed.stdout == git("ls-remote", shared_root / "org/small.git", env=env).stdout


@pytest.mark.parametrize("version", ["0", "2"])
def test_both_dialects_clone_and_show_their_wants_in_the_log(
    origin: Origin, tmp_path: Path, version: str
) -> None:
    git("-c", f"protocol.version={version}", "clone", origin.url_of("org/small"), tmp_path / "c")
    assert {"0": [None, "v0"], "2": [None, "ls-refs", "fetch"]}[version] == commands(origin.log)
    (pack,) = origin.packs()
    assert pack.packed
    assert pack.done
    assert pack.wants > 1
    assert pack.haves == 0
    assert pack.response_bytes > 10_000
    assert pack.agent is not None
    assert pack.agent.startswith("git/")


def test_a_repository_answers_with_and_without_dot_git(origin: Origin) -> None:
    assert refs_of(f"{origin.url}/org/small") == refs_of(f"{origin.url}/org/small.git")


def test_a_repository_that_is_not_there_is_not_found(origin: Origin) -> None:
    assert asks.info_refs(f"{origin.url}/org/nothing").status == 404


def test_a_fetch_brings_what_is_new_and_says_what_it_has(own_root: Path, tmp_path: Path) -> None:
    with Origin(own_root) as origin:
        cloned = clone(origin.url_of("org/small"), tmp_path / "clone")
        origin.clear_log()
        new = commit(own_root / "org/small.git", files={"new.txt": "new\n"})
        git("fetch", "--quiet", cwd=cloned)
        assert new == oid_of(cloned, "origin/main")
        assert origin.packs()[-1].haves > 0


def test_a_round_of_negotiation_without_a_pack_is_not_counted_as_one(
    origin: Origin, shared_root: Path
) -> None:
    url, repo = origin.url_of("org/small"), shared_root / "org/small.git"
    wants, haves = [oid_of(repo, "main")], [oid_of(repo, "main~40")]
    answer = asks.fetch(url, wants, haves=haves, is_done=False, arguments=["wait-for-done"])
    assert b"ACK" in answer.body
    assert commands(origin.log) == ["fetch"]
    assert origin.packs() == []


def test_partial_and_shallow_clones_and_any_object_are_served(
    origin: Origin, shared_root: Path, tmp_path: Path
) -> None:
    url = origin.url_of("org/small")
    shallow = clone(url, tmp_path / "shallow", "--depth=1", "--bare")
    blobless = clone(url, tmp_path / "blobless", "--filter=blob:none", "--bare")
    whole = count_objects(shared_root / "org/small.git")
    assert count_objects(shallow) < count_objects(blobless) < whole
    inside = oid_of(shared_root / "org/small.git", "main~30^{tree}")
    git("fetch", url, inside, cwd=shallow)
    assert git("cat-file", "-t", inside, cwd=shallow).stdout.strip() == "tree"


@pytest.mark.parametrize("is_gzipped", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
def test_a_body_is_understood_however_it_is_sent(
    origin: Origin, shared_root: Path, is_gzipped: bool, is_chunked: bool
) -> None:
    want = oid_of(shared_root / "org/small.git", "main")
    body = asks.command_body("fetch", [f"want {want}", "done"])
    headers = {"Git-Protocol": "version=2"}
    if is_gzipped:
        body = gzip.compress(body)
        headers["Content-Encoding"] = "gzip"
    sent = [body[:7], body[7:]] if is_chunked else body
    answer = asks.post(origin.url_of("org/small"), sent, headers=headers)
    assert answer.pack.startswith(b"PACK")
    assert (1, len(body)) == (origin.log[0].wants, origin.log[0].request_bytes)


def test_the_probe_before_a_long_body_is_answered_with_nothing(origin: Origin) -> None:
    answer = asks.post(origin.url_of("org/small"), b"0000", headers={})
    assert (answer.status, answer.body) == (200, b"")
    assert commands(origin.log) == ["probe"]


# Users


@pytest.mark.parametrize(
    ("user", "status"),
    [
        (None, 401),
        (("alice", "wonder"), 200),
        (("alice", "wrong"), 401),
        (("alice", ""), 401),
        (("nobody", ""), 401),
        (("bob", "builder"), 403),
    ],
)
def test_a_private_repository_is_for_its_readers_only(
    origin: Origin, shared_root: Path, user: tuple[str, str] | None, status: int
) -> None:
    url = f"{origin.url}/secret/repo.git"
    want = oid_of(shared_root / "secret/repo.git", "main")
    refs, pack = asks.ls_refs(url, user=user), asks.fetch(url, [want], user=user)
    answers = [asks.info_refs(url, user=user), refs, pack]
    assert [status] * 3 == [answer.status for answer in answers]
    for answer in answers:
        assert ("www-authenticate" in answer.headers) is (status == 401)
        assert (want.encode() in answer.body or b"PACK" in answer.body) <= (status == 200)


def test_git_clones_a_private_repository_with_its_reader_s_credential(
    origin: Origin, tmp_path: Path
) -> None:
    fsck(clone(origin.url_of("secret/repo", user="alice"), tmp_path / "alice"))
    assert origin.packs()[0].user == "alice"
    with pytest.raises(GitFailed, match="403"):
        clone(origin.url_of("secret/repo", user="bob"), tmp_path / "bob")


def test_a_wrong_password_is_refused_where_everyone_may_read(origin: Origin) -> None:
    assert asks.info_refs(origin.url_of("org/small"), user=("alice", "x")).status == 401


def test_what_may_be_read_changes_at_once(origin: Origin) -> None:
    url, alice = origin.url_of("org/small"), ("alice", "wonder")
    assert asks.info_refs(url).status == 200
    origin.private["org/small"] = {"alice"}
    assert asks.info_refs(url).status == 401
    assert asks.info_refs(url, user=alice).status == 200
    origin.refusal = 404
    assert asks.info_refs(url, user=("bob", "builder")).status == 404
    del origin.users["alice"]
    assert asks.info_refs(url, user=alice).status == 401


# Faults


def test_a_cut_answer_fails_the_clone_and_is_logged_at_its_byte(
    origin: Origin, tmp_path: Path
) -> None:
    origin.misbehave(Fault(cut_after=5000), kind="fetch")
    with pytest.raises(GitFailed):
        clone(origin.url_of("org/small"), tmp_path / "clone")
    seen = origin.wait_for_log(lambda log: len(log) == 3)[2]
    assert (seen.aborted, seen.response_bytes, seen.packed) == (True, 5000, True)


def test_a_fault_meets_only_the_requests_it_was_meant_for(origin: Origin) -> None:
    origin.misbehave(Fault(status=503), kind="ls-refs", repo="org/small", times=2)
    small, other = origin.url_of("org/small"), origin.url_of("org/other")
    assert asks.info_refs(small).status == 200
    statuses = [asks.ls_refs(url).status for url in (small, other, small, small)]
    assert statuses == [503, 200, 503, 200]


def test_a_host_that_limits_says_when_to_come_again(origin: Origin) -> None:
    origin.misbehave(Fault(status=429, retry_after=7))
    answer = asks.info_refs(origin.url_of("org/small"))
    assert (answer.status, answer.headers["retry-after"]) == (429, "7")
    origin.behave()
    assert asks.info_refs(origin.url_of("org/small")).status == 200


@pytest.mark.parametrize("status", [301, 302, 307])
def test_git_follows_a_repository_that_moved(origin: Origin, tmp_path: Path, status: int) -> None:
    fault = Fault(redirect_to="/org/other.git", redirect_status=status)
    origin.misbehave(fault, repo="org/gone", kind="info-refs")
    clone(origin.url_of("org/gone"), tmp_path / "clone")
    assert [("org/gone", status), ("org/other", 200)] == [
        (seen.repo, seen.status) for seen in origin.log[:2]
    ]


def test_git_follows_a_repository_to_another_host(
    origin: Origin, shared_root: Path, tmp_path: Path
) -> None:
    with Origin(shared_root) as elsewhere:
        origin.misbehave(Fault(redirect_to=elsewhere.url_of("org/small")))
        clone(origin.url_of("org/small"), tmp_path / "clone")
        assert len(elsewhere.packs()) == 1
    assert len(origin.log) == 1


def test_a_login_page_fails_the_clone(origin: Origin, tmp_path: Path) -> None:
    origin.misbehave(Fault(html=True))
    with pytest.raises(GitFailed, match=r"not found|not valid"):
        clone(origin.url_of("org/small"), tmp_path / "clone")


def test_a_corrupt_pack_differs_in_one_byte_and_fails_the_clone(
    origin: Origin, shared_root: Path, tmp_path: Path
) -> None:
    url, want = origin.url_of("org/small"), oid_of(shared_root / "org/small.git", "main")
    right = asks.fetch(url, [want]).pack
    origin.misbehave(Fault(corrupt_pack_at=70_000), kind="fetch")
    wrong = asks.fetch(url, [want]).pack
    assert len(right) == len(wrong)
    assert [at for at, (a, b) in enumerate(zip(right, wrong, strict=True)) if a != b] == [70_000]
    with pytest.raises(GitFailed):
        clone(url, tmp_path / "clone")


def test_a_delay_comes_before_the_first_byte(origin: Origin) -> None:
    origin.misbehave(Fault(delay=0.15))
    begun = time.perf_counter()
    assert asks.info_refs(origin.url_of("org/small")).status == 200
    assert time.perf_counter() - begun >= 0.15


@pytest.mark.slow
def test_a_rate_limit_is_kept(origin: Origin, shared_root: Path) -> None:
    origin.misbehave(Fault(rate=400_000), kind="fetch")
    begun = time.perf_counter()
    answer = asks.fetch(origin.url_of("org/small"), [oid_of(shared_root / "org/small.git", "main")])
    assert time.perf_counter() - begun >= len(answer.body) / 400_000 * 0.9


def test_a_stalled_answer_goes_on_when_released(origin: Origin, tmp_path: Path) -> None:
    origin.misbehave(Fault(stall_after=3000), kind="fetch")
    with ThreadPoolExecutor() as pool:
        cloned = in_background(pool, origin.url_of("org/small"), tmp_path / "clone")
        origin.wait_until_held()
        assert not cloned.done()
        origin.release()
        fsck(cloned.result())
    assert not origin.packs()[0].aborted


async def test_a_client_that_leaves_a_stalled_answer_is_noticed(
    origin: Origin, tmp_path: Path
) -> None:
    origin.misbehave(Fault(stall_after=3000), kind="fetch")
    with trio.move_on_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(storm, 1, origin.url_of("org/small"), tmp_path)
            await origin.until_held()
            nursery.cancel_scope.cancel()
    seen = origin.wait_for_log(lambda log: any(line.aborted for line in log))[-1]
    assert (seen.command, seen.response_bytes) == ("fetch", 3000)


@pytest.mark.slow
async def test_the_gate_lines_up_a_race_and_lets_all_go_at_once(
    origin: Origin, tmp_path: Path
) -> None:
    origin.hold_fetches()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(storm, 4, origin.url_of("org/small"), tmp_path)
        await origin.until_held(4)
        assert origin.packs() == []
        origin.release()
    assert [seen.haves for seen in origin.packs()] == [0] * 4


def test_a_gate_that_nobody_reaches_is_an_error(
    origin: Origin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("goblet_testing.origin.PATIENCE", 0.05)
    origin.hold_fetches()
    with pytest.raises(TimeoutError, match="2 held requests"):
        origin.wait_until_held(2)


# The end


def test_the_end_of_an_origin_ends_its_git_processes_threads_and_connections(
    shared_root: Path, tmp_path: Path
) -> None:
    threads = threading.active_count()
    with ThreadPoolExecutor() as pool:
        with Origin(shared_root) as origin:
            origin.misbehave(Fault(stall_after=100), kind="fetch")
            cloned = in_background(pool, origin.url_of("org/small"), tmp_path / "clone")
            origin.wait_until_held()
            assert any("http-backend" in live.argv[0] for live in descendants(os.getpid()))
        with pytest.raises(GitFailed):
            cloned.result()
    assert threads == threading.active_count()
    assert [live for live in descendants(os.getpid()) if "http-backend" in live.argv[0]] == []
    assert origin.log[-1].aborted


@pytest.mark.slow
def test_an_origin_in_its_own_process_says_its_url_logs_to_a_file_and_ends_when_told(
    shared_root: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    command = [sys.executable, "-W", "error", "-m", "goblet_testing.origin"]
    command += ["--root", str(shared_root), "--log", str(log)]
    env = {**clean_env(), "PYTHONPATH": str(TESTS)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        clone(f"{process.stdout.readline().strip()}/org/small", tmp_path / "clone")
        process.terminate()
        assert process.wait(10) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["command"] for line in lines] == [None, "ls-refs", "fetch"]
    assert [line["wants_pack"] for line in lines] == [False, False, True]

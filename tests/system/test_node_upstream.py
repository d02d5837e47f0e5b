"""What a node makes of an upstream that refuses, fails, moves or is asked by many at once."""

import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import trio

from goblet_testing import asks
from goblet_testing.faults_on_cue import Fault
from goblet_testing.fleet import until
from goblet_testing.gitcli import Cloned, GitFailed, clone, fsck, refs_of, storm
from goblet_testing.origin import Origin
from goblet_testing.processes import start_node
from goblet_testing.stand import HOST, Stand

pytestmark = [pytest.mark.system, pytest.mark.slow]


def test_a_follower_is_not_failed_by_who_came_first(
    stand: Stand, name: str, tmp_path: Path
) -> None:
    """Upstream refuses the pack to the first client alone, after it let both see the refs."""
    stand.origin.misbehave(Fault(status=401), kind="fetch", repo=name, times=1)
    for number in range(2):
        fsck(clone(stand.url(name), tmp_path / f"clone-{number}"))


def test_who_is_refused_later_is_asked_about_again(stand: Stand, name: str) -> None:
    """What was remembered of a credential is forgotten when upstream refuses it."""
    url = stand.url(name)
    assert asks.ls_refs(url).status == 200
    stand.origin.private[name] = {"alice"}
    assert asks.ls_refs(url).status == 401
    assert asks.info_refs(url).status == 401


def test_a_storm_on_a_cold_repository_is_one_pack_request(
    stand: Stand, name: str, tmp_path: Path
) -> None:
    stand.origin.hold_fetches(repo=name)

    clones: list[Cloned] = []
    thread = threading.Thread(
        target=lambda: clones.extend(trio.run(storm, 16, stand.url(name), tmp_path))
    )
    thread.start()
    stand.origin.wait_until_held(1)
    time.sleep(0.5)  # let the other fifteen come while the first is held
    stand.origin.release()
    thread.join(60)
    assert len(clones) == 16
    for cloned in clones:
        fsck(cloned.dest)
    assert len(stand.packs(name)) == 1


def test_the_first_client_of_a_cold_clone_may_leave(
    stand: Stand, name: str, tmp_path: Path
) -> None:
    stand.origin.misbehave(Fault(stall_after=30_000), kind="fetch", repo=name)
    first = subprocess.Popen(
        ["git", "clone", "--quiet", stand.url(name), str(tmp_path / "first")],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    stand.origin.wait_until_held(1)
    second = subprocess.Popen(
        ["git", "clone", "--quiet", stand.url(name), str(tmp_path / "second")]
    )
    until(
        lambda: stand.node.log.count(f"key={HOST}/{name} endpoint=git-upload-pack") >= 2,
        what="two ls-refs",
    )
    time.sleep(0.3)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    stand.origin.release()
    assert second.wait(30) == 0
    fsck(tmp_path / "second")
    assert len(stand.packs(name)) == 1


def test_an_upstream_that_breaks_off_fails_its_followers_clearly_and_nothing_else(
    stand: Stand, name: str, tmp_path: Path
) -> None:
    """Once an answer has begun: a fetch that fails before that is asked of upstream again."""
    fault = Fault(stall_after=20_000, cut_after=30_000)
    stand.origin.misbehave(fault, kind="fetch", repo=name, times=1)
    begun = 'goblet_node_packs_total{cache="cold"}'
    before = stand.node.metrics().get(begun, 0)
    first = subprocess.Popen(
        ["git", "clone", "--quiet", stand.url(name), str(tmp_path / "broken")],
        stderr=subprocess.PIPE,
        text=True,
    )
    stand.origin.wait_until_held(1)
    until(lambda: stand.node.metrics().get(begun, 0) > before, what="an answer that has begun")
    stand.origin.release()
    told = first.communicate(timeout=30)[1]
    assert first.returncode != 0
    assert "127.0.0.1" in told
    assert "try again" in told
    fsck(clone(stand.url(name), tmp_path / "forwarded"))


def test_a_pack_that_upstream_damaged_never_becomes_a_mirror(
    stand: Stand, name: str, tmp_path: Path
) -> None:
    stand.origin.misbehave(Fault(corrupt_pack_at=20_000), kind="fetch", repo=name, times=1)
    with pytest.raises(GitFailed):
        clone(stand.url(name), tmp_path / "broken")
    until(lambda: f"refresh of {HOST}/{name} failed" in stand.node.log, what="a failed refresh")
    fsck(clone(stand.url(name), tmp_path / "forwarded"))


def test_a_private_repository_warmed_by_one_is_refused_to_others(
    stand: Stand, name: str, tmp_path: Path
) -> None:
    stand.origin.private[name] = {"alice"}
    stand.warm(name, user="alice")
    url = stand.url(name)
    alice, bob = ("alice", "wonder"), ("bob", "builder")
    wants = sorted(set(asks.ls_refs(url, user=alice).refs.values()))
    assert asks.fetch(url, wants, user=alice).cache == "whole"
    for user, status in [(bob, 403), (None, 401), (("alice", "wrong"), 401), (("eve", "x"), 401)]:
        for answer in (
            asks.info_refs(url, user=user),
            asks.ls_refs(url, user=user),
            asks.fetch(url, wants, user=user),
            asks.post(url, b"0000", user=user, headers={}),
        ):
            assert answer.status == status
            assert (answer.headers.get("www-authenticate") is not None) == (status == 401)
            assert b"PACK" not in answer.body


def test_a_repository_that_turns_private_is_refused_within_the_window(
    tmp_path: Path, origin: Origin
) -> None:
    flags = ["--access-seconds", "0.5"]
    with start_node(
        "goblet-6", directory=tmp_path, upstreams={HOST: origin.url}, flags=flags
    ) as node:
        url = node.url(f"{HOST}/org/small")
        Stand(origin, node, tmp_path).warm("org/small")
        wants = sorted(set(asks.ls_refs(url).refs.values()))
        origin.private["org/small"] = {"alice"}
        time.sleep(0.6)
        assert asks.fetch(url, wants).status == 401
        assert asks.ls_refs(url).status == 401
        assert asks.fetch(url, wants, user=("alice", "wonder")).cache == "whole"


def test_what_upstream_does_not_have_is_not_found(stand: Stand) -> None:
    answer = asks.info_refs(stand.node.url(f"{HOST}/org/nowhere"))
    assert answer.status == 404


def test_hosts_beside_the_list_are_refused(stand: Stand) -> None:
    answer = asks.info_refs(stand.node.url("evil.test/org/repo"))
    assert answer.status == 403
    assert "--upstream evil.test=" in answer.text


def test_a_redirect_to_another_host_carries_no_credential(
    stand: Stand, name: str, tmp_path: Path
) -> None:
    """The new host is on the list, but the credential was meant for the old one."""
    other_root = tmp_path / "other"
    shutil.copytree(stand.repo(name), other_root / "new/home.git")
    with Origin(other_root, users={"alice": "wonder"}) as other:
        upstreams = {HOST: stand.origin.url, "new.test": other.url}
        with start_node("goblet-2", directory=tmp_path, upstreams=upstreams) as node:
            moved = Fault(redirect_to=f"{other.url}/new/home.git")
            stand.origin.misbehave(moved, repo=name)
            url = node.url(f"{HOST}/{name}").replace("://", "://alice:wonder@", 1)
            for number in range(2):
                fsck(clone(url, tmp_path / f"clone-{number}"))
            assert other.packs()
            assert {seen.user for seen in other.log} == {None}


def test_a_redirect_off_the_list_is_not_followed(stand: Stand, name: str, tmp_path: Path) -> None:
    with Origin(tmp_path) as elsewhere:
        stand.origin.misbehave(Fault(redirect_to=f"{elsewhere.url}/x.git"), repo=name)
        answer = asks.info_refs(stand.url(name))
        assert answer.status == 502
        assert "not among the upstreams" in answer.text
        assert elsewhere.log == []


@pytest.mark.parametrize(
    ("fault", "status", "sentence"),
    [
        (Fault(status=500), 502, "answered 500"),
        (Fault(status=429, retry_after=700), 429, ""),
        (Fault(html=True), 502, "answers what git would not"),
        (Fault(cut_after=10), 502, "could not be asked"),
    ],
)
def test_an_upstream_that_fails_is_told_as_it_is(
    stand: Stand, name: str, fault: Fault, status: int, sentence: str
) -> None:
    stand.origin.misbehave(fault, kind="info-refs", repo=name)
    answer = asks.info_refs(stand.url(name))
    assert answer.status == status
    assert sentence in answer.text
    if fault.retry_after is not None:
        assert answer.headers["retry-after"] == "700"


def test_a_node_reaches_its_upstream_through_another_as_its_proxy(
    stand: Stand, name: str, tmp_path: Path
) -> None:
    """One Goblet behind another, and the proxy option, which alone decides."""
    flags = ["--upstream-proxy", stand.node.base]
    upstreams = {HOST: f"http://{HOST}"}  # which no resolver knows
    with start_node("goblet-7", directory=tmp_path, upstreams=upstreams, flags=flags) as node:
        for number in range(2):
            dest = clone(node.url(f"{HOST}/{name}"), tmp_path / f"clone-{number}")
            fsck(dest)
    assert refs_of(dest)["HEAD"] == refs_of(stand.direct(name))["HEAD"]

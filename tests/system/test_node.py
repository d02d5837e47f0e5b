"""One node before a real origin, asked by real git and by hand."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from goblet_testing import asks, repos
from goblet_testing.faults_on_cue import Fault
from goblet_testing.gitcli import Cloned, GitFailed, clone, fsck, git, refs_of, storm
from goblet_testing.origin import Origin
from goblet_testing.processes import Service, start_node

pytestmark = [pytest.mark.system, pytest.mark.slow]

HOST = "origin.test"
CLONE_PREFIXES = ("HEAD", "refs/heads/", "refs/tags/")


class Bench:
    """An origin whose repositories may be changed, and a node in front of it."""

    def __init__(self, origin: Origin, node: Service, directory: Path) -> None:
        self.origin = origin
        self.node = node
        self.directory = directory

    def repo(self, name: str) -> Path:
        """Make a repository of this name on the origin, the test's own."""
        return Path(
            shutil.copytree(self.directory / "template.git", self.origin.root / f"{name}.git")
        )

    def url(self, name: str, *, user: str | None = None) -> str:
        """Return the clone URL at the node, with a user's credential if given."""
        url = self.node.url(f"{HOST}/{name}")
        if user is not None:
            password = self.origin.users[user]
            url = url.replace("://", f"://{user}:{password}@", 1)
        return url

    def packs(self, name: str) -> int:
        """Return how many packs of a repository the origin was asked for."""
        return sum(1 for seen in self.origin.packs() if seen.repo == name)

    def warm(self, name: str, tmp_path: Path, *, user: str | None = None) -> None:
        """Return when the node has a mirror of the repository, and forget what that took."""
        clone(self.url(name, user=user), tmp_path / f"warming-{name.replace('/', '-')}")
        self.wait_mirrored(name, user=user)

    def wait_mirrored(self, name: str, *, user: str | None = None) -> None:
        """Return when a clone of the repository, as it is now, is answered from the mirror."""
        credential = (user, self.origin.users[user]) if user else None
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            refs = asks.ls_refs(self.url(name), *CLONE_PREFIXES, user=credential).refs
            wants = sorted(set(refs.values()))
            if asks.fetch(self.url(name), wants, user=credential).cache == "whole":
                return
            time.sleep(0.05)
        raise TimeoutError(f"{name} is not served whole\n{self.node.log[-3000:]}")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """An origin with alice and bob and a node; each test has repositories of its own."""
    directory = tmp_path_factory.mktemp("bench")
    repos.make_repo(directory / "template.git")
    (directory / "root").mkdir()
    users = {"alice": "wonder", "bob": "builder"}
    with (
        Origin(directory / "root", users=users) as origin,
        start_node("goblet-1", directory=directory, upstreams={HOST: origin.url}) as node,
    ):
        yield Bench(origin, node, directory)
        assert "Traceback" not in node.log


@pytest.fixture
def name(request: pytest.FixtureRequest, bench: Bench) -> Iterator[str]:
    """A repository of the test's own on the origin, which behaves again afterwards."""
    name = "org/" + re.sub("[^a-z0-9_]+", "-", request.node.name)
    bench.repo(name)
    yield name
    bench.origin.behave()
    bench.origin.private.pop(name, None)


def test_a_cold_clone_and_a_warm_one_are_the_origins(
    bench: Bench, name: str, tmp_path: Path
) -> None:
    for number, packs in enumerate([1, 1]):
        dest = clone(bench.url(name), tmp_path / f"clone-{number}", "--mirror")
        fsck(dest)
        assert refs_of(dest) == refs_of(bench.origin.url_of(name))
        bench.wait_mirrored(name)
        assert bench.packs(name) == packs


def test_an_export_is_an_ordinary_repository(bench: Bench, name: str, tmp_path: Path) -> None:
    bench.warm(name, tmp_path)
    dest = tmp_path / "exported"
    root = bench.directory / "goblet-1"
    command = [sys.executable, "-m", "goblet_node", "export", "--cache-root", str(root)]
    done = subprocess.run(
        [*command, f"https://{HOST}/{name}.git", str(dest)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    fsck(dest)
    assert refs_of(dest) == refs_of(bench.origin.url_of(name))
    again = subprocess.run([*command, f"{HOST}/{name}", str(dest)], capture_output=True, text=True)
    assert again.returncode != 0
    assert again.stderr.count("\n") == 1
    assert "Traceback" not in again.stderr


def test_what_changes_at_the_origin_is_seen_by_the_next_fetch(
    bench: Bench, name: str, tmp_path: Path
) -> None:
    repo = bench.origin.root / f"{name}.git"
    dest = clone(bench.url(name), tmp_path / "clone", "--mirror")
    changes: list[Callable[[], object]] = [
        lambda: repos.commit(repo, files={"new": "new\n"}),
        lambda: repos.add_tag(repo, "v9"),
        lambda: repos.add_tag(repo, "light", annotated=False),
        lambda: repos.force_push(repo),
        lambda: repos.delete_branch(repo, "side/0"),
        lambda: repos.squash(repo, "side/1"),
    ]
    for change in changes:
        change()
        git("fetch", "--quiet", "--prune", cwd=dest)
        assert refs_of(dest) == refs_of(bench.origin.url_of(name))
        fsck(dest)
        fresh = clone(bench.url(name), tmp_path / "fresh", "--mirror")
        assert refs_of(fresh) == refs_of(bench.origin.url_of(name))
        fsck(fresh)
        shutil.rmtree(fresh)


def test_commits_pushed_after_warming_are_served_whole(
    bench: Bench, name: str, tmp_path: Path
) -> None:
    bench.warm(name, tmp_path)
    for number in range(3):
        repos.commit(bench.origin.root / f"{name}.git", files={"new": f"{number}\n"})
        bench.wait_mirrored(name)
    before = bench.packs(name)
    fsck(clone(bench.url(name), tmp_path / "clone"))
    assert bench.packs(name) == before


def test_who_holds_all_tips_gets_the_segments_that_came_since(bench: Bench, tmp_path: Path) -> None:
    name = "org/untagged"
    repo = repos.make_repo(bench.origin.root / f"{name}.git", tags=0)
    dest = clone(bench.url(name), tmp_path / "clone")
    bench.wait_mirrored(name)
    for number in range(3):
        repos.commit(repo, files={"new": f"{number}\n"})
        bench.wait_mirrored(name)
    git("fetch", "--quiet", cwd=dest)
    assert bench.node.metrics()['goblet_node_packs_total{cache="suffix"}'] == 1
    fsck(dest)
    assert git("rev-parse", "origin/main", cwd=dest).stdout == f"{repos.oid_of(repo, 'main')}\n"


def test_a_tag_on_a_commit_that_the_client_has_is_fetched(bench: Bench, tmp_path: Path) -> None:
    """The client holds all that the tag reaches, and not the tag."""
    name = "org/tagged-later"
    repo = repos.make_repo(bench.origin.root / f"{name}.git", tags=0)
    dest = clone(bench.url(name), tmp_path / "clone")
    bare = clone(bench.url(name), tmp_path / "bare", "--no-tags")
    bench.wait_mirrored(name)
    repos.add_tag(repo, "v1")
    bench.wait_mirrored(name)
    git("fetch", "--quiet", cwd=dest)
    repos.commit(repo, files={"new": "new\n"})
    repos.add_tag(repo, "v2")
    bench.wait_mirrored(name)
    git("fetch", "--quiet", cwd=dest)
    git("fetch", "--quiet", "--tags", cwd=bare)
    for repository in (dest, bare):
        fsck(repository)
        assert git("tag", cwd=repository).stdout == "v1\nv2\n"


def test_a_follower_is_not_failed_by_who_came_first(
    bench: Bench, name: str, tmp_path: Path
) -> None:
    """Upstream refuses the pack to the first client alone, after it let both see the refs."""
    bench.origin.misbehave(Fault(status=401), kind="fetch", repo=name, times=1)
    for number in range(2):
        fsck(clone(bench.url(name), tmp_path / f"clone-{number}"))


def test_a_mirror_clone_with_many_pull_requests_is_answered(
    bench: Bench, name: str, tmp_path: Path
) -> None:
    repo = bench.origin.root / f"{name}.git"
    tree = git("rev-parse", "main^{tree}", cwd=repo).stdout.strip()
    commits = "".join(
        f"commit refs/pull/{number}/head\ncommitter A <a@example.test> {number} +0000\n"
        f"data 1\nx\nM 040000 {tree} \n\n"
        for number in range(300)
    )
    git("fast-import", "--quiet", cwd=repo, stdin=commits)
    bench.warm(name, tmp_path)
    dest = clone(bench.url(name), tmp_path / "mirror", "--mirror")
    fsck(dest)
    assert refs_of(dest) == refs_of(bench.origin.url_of(name))


def test_who_is_refused_later_is_asked_about_again(bench: Bench, name: str) -> None:
    """What was remembered of a credential is forgotten when upstream refuses it."""
    url = bench.url(name)
    assert asks.ls_refs(url).status == 200
    bench.origin.private[name] = {"alice"}
    assert asks.ls_refs(url).status == 401
    assert asks.info_refs(url).status == 401


def test_a_repository_name_cannot_forge_a_field_of_the_log(bench: Bench) -> None:
    asks.ask(bench.node.url(f"{HOST}/org/zz%20status=200%20x/info/refs?service=git-upload-pack"))
    wait_for(lambda: "zz%20status%3D200%20x" in bench.node.log, "a line in the log")
    assert "zz status=200" not in bench.node.log


def test_a_commit_that_no_mirrored_ref_reaches_is_fetched_by_its_name_once(
    bench: Bench, name: str, tmp_path: Path
) -> None:
    repo = bench.origin.root / f"{name}.git"
    dest = clone(bench.url(name), tmp_path / "clone")
    bench.wait_mirrored(name)
    oid = repos.commit(repo, "pull", files={"new": "new\n"}, parent="main")
    git("update-ref", "refs/pull/7/head", oid, cwd=repo)
    repos.delete_branch(repo, "pull")
    before = bench.packs(name)
    for number in range(2):
        git("fetch", "--quiet", "origin", oid, cwd=dest)
        assert bench.packs(name) == before + 1
        fresh = clone(bench.url(name), tmp_path / f"fresh-{number}", "--mirror")
        fsck(fresh)  # with refs/pull/7/head


def test_an_object_that_nobody_has_is_refused_as_git_does(
    bench: Bench, name: str, tmp_path: Path
) -> None:
    dest = clone(bench.url(name), tmp_path / "clone")
    bench.wait_mirrored(name)
    with pytest.raises(GitFailed, match=f"not our ref {'1' * 40}"):
        git("fetch", "--quiet", "origin", "1" * 40, cwd=dest)
    repos.commit(bench.origin.root / f"{name}.git", files={"new": "new\n"})
    bench.wait_mirrored(name)  # what one client asked for does not keep the mirror back


def test_a_clone_of_a_log_with_orphans_holds_none_of_them(
    bench: Bench, name: str, tmp_path: Path
) -> None:
    repo = bench.origin.root / f"{name}.git"
    lost = repos.commit(repo, "secret", files={"password": "hunter2\n"}, parent="main")
    bench.warm(name, tmp_path)
    repos.delete_branch(repo, "secret")
    before = bench.packs(name)
    for number in range(2):
        fresh = clone(bench.url(name), tmp_path / f"fresh-{number}")
        fsck(fresh)
        assert git("cat-file", "-e", lost, cwd=fresh, check=False).returncode != 0
    assert bench.packs(name) == before


def test_a_storm_on_a_cold_repository_is_one_pack_request(
    bench: Bench, name: str, tmp_path: Path
) -> None:
    bench.origin.hold_fetches(repo=name)

    clones: list[Cloned] = []
    thread = threading.Thread(
        target=lambda: clones.extend(trio.run(storm, 16, bench.url(name), tmp_path))
    )
    thread.start()
    bench.origin.wait_until_held(1)
    time.sleep(0.5)  # let the other fifteen come while the first is held
    bench.origin.release()
    thread.join(60)
    assert len(clones) == 16
    for cloned in clones:
        fsck(cloned.dest)
    assert bench.packs(name) == 1


def test_the_first_client_of_a_cold_clone_may_leave(
    bench: Bench, name: str, tmp_path: Path
) -> None:
    bench.origin.misbehave(Fault(stall_after=30_000), kind="fetch", repo=name)
    first = subprocess.Popen(
        ["git", "clone", "--quiet", bench.url(name), str(tmp_path / "first")],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    bench.origin.wait_until_held(1)
    second = subprocess.Popen(
        ["git", "clone", "--quiet", bench.url(name), str(tmp_path / "second")]
    )
    wait_for(
        lambda: bench.node.log.count(f"key={HOST}/{name} endpoint=git-upload-pack") >= 2,
        "two ls-refs",
    )
    time.sleep(0.3)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    bench.origin.release()
    assert second.wait(30) == 0
    fsck(tmp_path / "second")
    assert bench.packs(name) == 1


def test_an_upstream_that_breaks_off_fails_its_followers_clearly_and_nothing_else(
    bench: Bench, name: str, tmp_path: Path
) -> None:
    bench.origin.misbehave(Fault(cut_after=30_000), kind="fetch", repo=name, times=1)
    with pytest.raises(GitFailed) as failed:
        clone(bench.url(name), tmp_path / "broken")
    assert "127.0.0.1" in failed.value.stderr
    assert "try again" in failed.value.stderr
    fsck(clone(bench.url(name), tmp_path / "forwarded"))


def test_a_pack_that_upstream_damaged_never_becomes_a_mirror(
    bench: Bench, name: str, tmp_path: Path
) -> None:
    bench.origin.misbehave(Fault(corrupt_pack_at=20_000), kind="fetch", repo=name, times=1)
    with pytest.raises(GitFailed):
        clone(bench.url(name), tmp_path / "broken")
    wait_for(lambda: f"refresh of {HOST}/{name} failed" in bench.node.log, "a failed refresh")
    fsck(clone(bench.url(name), tmp_path / "forwarded"))


def test_a_private_repository_warmed_by_one_is_refused_to_others(
    bench: Bench, name: str, tmp_path: Path
) -> None:
    bench.origin.private[name] = {"alice"}
    bench.warm(name, tmp_path, user="alice")
    url = bench.url(name)
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
        Bench(origin, node, tmp_path).warm("org/small", tmp_path)
        wants = sorted(set(asks.ls_refs(url).refs.values()))
        origin.private["org/small"] = {"alice"}
        time.sleep(0.6)
        assert asks.fetch(url, wants).status == 401
        assert asks.ls_refs(url).status == 401
        assert asks.fetch(url, wants, user=("alice", "wonder")).cache == "whole"


def test_what_upstream_does_not_have_is_not_found(bench: Bench) -> None:
    answer = asks.info_refs(bench.node.url(f"{HOST}/org/nowhere"))
    assert answer.status == 404


def test_hosts_beside_the_list_are_refused(bench: Bench) -> None:
    answer = asks.info_refs(bench.node.url("evil.test/org/repo"))
    assert answer.status == 403
    assert "--upstream evil.test=" in answer.text


@pytest.mark.parametrize("version", ["0", "1", "2"])
@pytest.mark.parametrize("is_warm", [False, True])
def test_every_protocol_version_is_answered(
    bench: Bench, name: str, tmp_path: Path, version: str, is_warm: bool
) -> None:
    if is_warm:
        bench.warm(name, tmp_path)
    dest = tmp_path / "clone"
    git("-c", f"protocol.version={version}", "clone", "--quiet", bench.url(name), dest)
    fsck(dest)


@pytest.mark.parametrize(
    "flags",
    [
        ["--depth=1"],
        ["--filter=blob:none"],
        ["--filter=tree:0", "--no-checkout"],
        ["--single-branch"],
        ["--no-tags"],
        ["--branch=v0.1"],
        ["--shallow-since=2020-09-15T00:00:00Z"],
    ],
)
@pytest.mark.parametrize("is_warm", [False, True])
def test_every_kind_of_clone_is_answered(
    bench: Bench, name: str, tmp_path: Path, flags: list[str], is_warm: bool
) -> None:
    if is_warm:
        bench.warm(name, tmp_path)
    dest = clone(bench.url(name), tmp_path / "clone", *flags)
    direct = clone(bench.origin.url_of(name), tmp_path / "direct", *flags)
    counted = [git("rev-list", "--count", "--all", cwd=repo).stdout for repo in (dest, direct)]
    assert counted[0] == counted[1]


def test_a_shallow_clone_of_a_cold_repository_does_not_fetch_all_of_it(
    bench: Bench, name: str, tmp_path: Path
) -> None:
    clone(bench.url(name), tmp_path / "clone", "--depth=1")
    assert [seen.repo for seen in bench.origin.packs()].count(name) == 1
    assert f"refresh of {HOST}/{name}" not in bench.node.log


def test_pull_requests_are_listed_and_fetched(bench: Bench, name: str, tmp_path: Path) -> None:
    repo = bench.origin.root / f"{name}.git"
    oid = repos.commit(repo, "side/0", files={"new": "new\n"})
    git("update-ref", "refs/pull/7/head", oid, cwd=repo)
    repos.delete_branch(repo, "side/0")
    bench.warm(name, tmp_path)
    assert refs_of(bench.url(name))["refs/pull/7/head"] == oid
    dest = clone(bench.url(name), tmp_path / "clone")
    git("fetch", "--quiet", "origin", "refs/pull/7/head", cwd=dest)
    assert git("rev-parse", "FETCH_HEAD", cwd=dest).stdout.strip() == oid


def test_sha256_repositories_are_forwarded(bench: Bench, tmp_path: Path) -> None:
    repo = bench.origin.root / "org/sha256.git"
    git("init", "--quiet", "--bare", "--object-format=sha256", repo)
    tree = git("mktree", cwd=repo).stdout.strip()
    oid = git("commit-tree", "-m", "first", tree, cwd=repo).stdout.strip()
    git("update-ref", "refs/heads/main", oid, cwd=repo)
    for number in range(2):
        dest = clone(bench.url("org/sha256"), tmp_path / f"clone-{number}")
        fsck(dest)
    assert bench.packs("org/sha256") == 2


def test_an_empty_repository_is_cloned_empty(bench: Bench, tmp_path: Path) -> None:
    repo = bench.origin.root / "org/empty.git"
    git("init", "--quiet", "--bare", "--initial-branch=trunk", repo)
    for number in range(2):
        dest = clone(bench.url("org/empty"), tmp_path / f"clone-{number}")
        assert git("symbolic-ref", "HEAD", cwd=dest).stdout.strip() == "refs/heads/trunk"


def test_a_detached_head_is_followed(bench: Bench, name: str, tmp_path: Path) -> None:
    repo = bench.origin.root / f"{name}.git"
    oid = repos.commit(repo, "side/0", files={"new": "new\n"})
    git("update-ref", "--no-deref", "HEAD", oid, cwd=repo)
    repos.delete_branch(repo, "side/0")
    bench.warm(name, tmp_path)
    dest = clone(bench.url(name), tmp_path / "clone")
    assert git("rev-parse", "HEAD", cwd=dest).stdout.strip() == oid


def test_a_chunked_negotiation_with_its_probe_is_answered(
    bench: Bench, name: str, tmp_path: Path
) -> None:
    """More wants than http.postBuffer holds: git probes with 0000 and then sends chunks."""
    repo = bench.origin.root / f"{name}.git"
    tree = git("rev-parse", "main^{tree}", cwd=repo).stdout.strip()
    lines = []
    for number in range(1500):
        lines.append(
            f"commit refs/heads/many/{number}\ncommitter A <a@example.test> {number} +0000\n"
            f"data 1\nx\nM 040000 {tree} \n\n"
        )
    git("fast-import", "--quiet", cwd=repo, stdin="".join(lines))
    for number, buffer in enumerate(["65536", "1048576"]):  # chunked; then gzip
        dest = tmp_path / f"clone-{number}"
        git("-c", f"http.postBuffer={buffer}", "clone", "--quiet", bench.url(name), dest)
        fsck(dest)
        bench.wait_mirrored(name)
    assert bench.packs(name) == 1


def test_a_redirect_to_another_host_carries_no_credential(
    bench: Bench, name: str, tmp_path: Path
) -> None:
    """The new host is on the list, but the credential was meant for the old one."""
    other_root = tmp_path / "other"
    shutil.copytree(bench.origin.root / f"{name}.git", other_root / "new/home.git")
    with Origin(other_root, users={"alice": "wonder"}) as other:
        upstreams = {HOST: bench.origin.url, "new.test": other.url}
        with start_node("goblet-2", directory=tmp_path, upstreams=upstreams) as node:
            moved = Fault(redirect_to=f"{other.url}/new/home.git")
            bench.origin.misbehave(moved, repo=name)
            url = node.url(f"{HOST}/{name}").replace("://", "://alice:wonder@", 1)
            for number in range(2):
                fsck(clone(url, tmp_path / f"clone-{number}"))
            assert other.packs()
            assert {seen.user for seen in other.log} == {None}


def test_a_redirect_off_the_list_is_not_followed(bench: Bench, name: str, tmp_path: Path) -> None:
    with Origin(tmp_path) as elsewhere:
        bench.origin.misbehave(Fault(redirect_to=f"{elsewhere.url}/x.git"), repo=name)
        answer = asks.info_refs(bench.url(name))
        assert answer.status == 502
        assert "not among the upstreams" in answer.text
        assert elsewhere.log == []


@pytest.mark.parametrize(
    ("fault", "status", "sentence"),
    [
        (Fault(status=500), 502, "answered 500"),
        (Fault(status=429, retry_after=7), 429, ""),
        (Fault(html=True), 502, "answers what git would not"),
        (Fault(cut_after=10), 502, "could not be asked"),
    ],
)
def test_an_upstream_that_fails_is_told_as_it_is(
    bench: Bench, name: str, fault: Fault, status: int, sentence: str
) -> None:
    bench.origin.misbehave(fault, kind="info-refs", repo=name)
    answer = asks.info_refs(bench.url(name))
    assert answer.status == status
    assert sentence in answer.text
    if fault.retry_after is not None:
        assert answer.headers["retry-after"] == "7"


def test_what_is_not_git_is_refused_with_a_sentence(bench: Bench, name: str) -> None:
    url = bench.url(name)
    for body in (
        b"",
        b"garbage",
        b"0004",
        b"fff0",
        b"0009done\n0000",
        b"0014command=nonsense\n0000",
    ):
        answer = asks.post(url, body)
        assert answer.status == 200
        assert b"ERR " in answer.body
        assert answer.is_complete
    wrong_type = asks.ask(f"{url}/git-upload-pack", method="POST", body=b"0000")
    assert wrong_type.status == 415
    assert asks.ask(f"{url}/info/refs").status == 400
    assert asks.ask(f"{url}/HEAD").status == 400
    push = asks.ask(f"{url}/info/refs?service=git-receive-pack")
    assert push.status == 403
    assert "pushInsteadOf" in push.text


def test_server_options_are_taken(bench: Bench, name: str, tmp_path: Path) -> None:
    """They mean something to some hosts; a mirror has no use for them."""
    bench.warm(name, tmp_path)
    option = "--server-option=trace=1"
    git("ls-remote", "--quiet", option, bench.url(name))
    dest = clone(bench.url(name), tmp_path / "clone", option)
    git("fetch", "--quiet", option, cwd=dest)
    fsck(dest)


def test_a_forward_proxy_request_is_served(bench: Bench, name: str, tmp_path: Path) -> None:
    """A client with http.proxy sends the absolute form."""
    proxy = bench.node.base
    git("-c", f"http.proxy={proxy}", "clone", "--quiet", f"http://{HOST}/{name}", tmp_path / "c")
    fsck(tmp_path / "c")


def test_a_node_reaches_its_upstream_through_another_as_its_proxy(
    bench: Bench, name: str, tmp_path: Path
) -> None:
    """One Goblet behind another, and the proxy option, which alone decides."""
    flags = ["--upstream-proxy", bench.node.base]
    upstreams = {HOST: f"http://{HOST}"}  # which no resolver knows
    with start_node("goblet-7", directory=tmp_path, upstreams=upstreams, flags=flags) as node:
        for number in range(2):
            dest = clone(node.url(f"{HOST}/{name}"), tmp_path / f"clone-{number}")
            fsck(dest)
    assert refs_of(dest)["HEAD"] == refs_of(bench.origin.url_of(name))["HEAD"]


def test_a_restarted_node_serves_what_it_had(tmp_path: Path, origin: Origin) -> None:
    upstreams = {HOST: origin.url}
    with start_node("goblet-3", directory=tmp_path, upstreams=upstreams) as node:
        bench = Bench(origin, node, tmp_path)
        bench.warm("org/small", tmp_path)
        os.kill(node.pid, signal.SIGKILL)
        node.process.wait()
    origin.clear_log()
    with start_node("goblet-3", directory=tmp_path, upstreams=upstreams) as node:
        fsck(clone(node.url(f"{HOST}/org/small"), tmp_path / "again"))
        assert origin.packs() == []
        command = [sys.executable, "-m", "goblet_node", "--name", "goblet-3"]
        second = subprocess.run(
            [*command, "--listen", "127.0.0.1:0", "--cache-root", str(tmp_path / "goblet-3")],
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert second.returncode != 0
        assert "goblet-3" in second.stderr
        assert "Traceback" not in second.stderr


def test_a_credential_is_written_nowhere(tmp_path: Path, origin: Origin) -> None:
    canary = "canary-7f3a9c"
    origin.users["alice"] = canary
    upstreams = {HOST: origin.url}
    with start_node("goblet-4", directory=tmp_path, upstreams=upstreams) as node:
        url = node.url(f"{HOST}/secret/repo").replace("://", f"://alice:{canary}@", 1)
        fsck(clone(url, tmp_path / "clone"))
        wait_for(lambda: node.metrics()["goblet_node_mirrors"] == 1, "a mirror")
        origin.misbehave(Fault(status=500), kind="info-refs")
        asks.info_refs(node.url(f"{HOST}/org/small"), user=("alice", canary))
        argv = Path(f"/proc/{node.pid}/cmdline").read_bytes()
        metrics = asks.ask(f"{node.base}/metrics").body
        written = [path for path in (tmp_path / "goblet-4").rglob("*") if path.is_file()]
        for text in [argv, metrics, node.log.encode(), *(path.read_bytes() for path in written)]:
            assert canary.encode() not in text
            assert b"YWxpY2U6Y2FuYXJ5" not in text  # base64 of alice:canary
    assert written


def test_a_node_that_is_stopped_ends_soon_and_cleanly(tmp_path: Path, origin: Origin) -> None:
    with start_node("goblet-5", directory=tmp_path, upstreams={HOST: origin.url}) as node:
        port = int(node.base.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)):  # an idle client does not hold it up
            started = time.monotonic()
            assert node.stop() == 0
            assert time.monotonic() - started < 5
        assert "Traceback" not in node.log


def wait_for(fact: Callable[[], bool], what: str) -> None:
    """Return when `fact()` is true."""
    deadline = time.monotonic() + 20
    while not fact():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come")
        time.sleep(0.02)

"""One node before a real origin answers whatever real git, and who asks by hand, may want."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from goblet_testing import asks, repos
from goblet_testing.fleet import until
from goblet_testing.gitcli import GitFailed, clone, fsck, git, refs_of
from goblet_testing.stand import HOST, Stand

pytestmark = [pytest.mark.system, pytest.mark.slow]

SUFFIXES = 'goblet_node_packs_total{cache="suffix"}'


def test_a_cold_clone_and_a_warm_one_are_the_origins(
    stand: Stand, name: str, tmp_path: Path
) -> None:
    for number, packs in enumerate([1, 1]):
        dest = clone(stand.url(name), tmp_path / f"clone-{number}", "--mirror")
        fsck(dest)
        assert refs_of(dest) == refs_of(stand.direct(name))
        stand.warm(name)
        assert len(stand.packs(name)) == packs


def test_an_export_is_an_ordinary_repository(stand: Stand, name: str, tmp_path: Path) -> None:
    stand.warm(name)
    dest = tmp_path / "exported"
    root = stand.directory / "goblet-1"
    command = [sys.executable, "-m", "goblet_node", "export", "--cache-root", str(root)]
    done = subprocess.run(
        [*command, f"https://{HOST}/{name}.git", str(dest)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    fsck(dest)
    assert refs_of(dest) == refs_of(stand.direct(name))
    again = subprocess.run([*command, f"{HOST}/{name}", str(dest)], capture_output=True, text=True)
    assert again.returncode != 0
    assert again.stderr.count("\n") == 1
    assert "Traceback" not in again.stderr


def test_what_changes_at_the_origin_is_seen_by_the_next_fetch(
    stand: Stand, name: str, tmp_path: Path
) -> None:
    repo = stand.repo(name)
    dest = clone(stand.url(name), tmp_path / "clone", "--mirror")
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
        assert refs_of(dest) == refs_of(stand.direct(name))
        fsck(dest)
        fresh = clone(stand.url(name), tmp_path / "fresh", "--mirror")
        assert refs_of(fresh) == refs_of(stand.direct(name))
        fsck(fresh)
        shutil.rmtree(fresh)


def test_commits_pushed_after_warming_are_served_whole(
    stand: Stand, name: str, tmp_path: Path
) -> None:
    stand.warm(name)
    for number in range(3):
        repos.commit(stand.repo(name), files={"new": f"{number}\n"})
        stand.warm(name)
    before = len(stand.packs(name))
    fsck(clone(stand.url(name), tmp_path / "clone"))
    assert len(stand.packs(name)) == before


def test_who_holds_all_tips_gets_the_segments_that_came_since(stand: Stand, tmp_path: Path) -> None:
    name = "org/untagged"
    repo = repos.make_repo(stand.repo(name), tags=0)
    dest = clone(stand.url(name), tmp_path / "clone")
    stand.warm(name)
    for number in range(3):
        repos.commit(repo, files={"new": f"{number}\n"})
        stand.warm(name)
    sent = stand.node.metrics().get(SUFFIXES, 0)
    git("fetch", "--quiet", cwd=dest)
    assert stand.node.metrics()[SUFFIXES] == sent + 1
    fsck(dest)
    assert git("rev-parse", "origin/main", cwd=dest).stdout == f"{repos.oid_of(repo, 'main')}\n"


def test_a_tag_on_a_commit_that_the_client_has_is_fetched(stand: Stand, tmp_path: Path) -> None:
    """The client holds all that the tag reaches, and not the tag."""
    name = "org/tagged-later"
    repo = repos.make_repo(stand.repo(name), tags=0)
    dest = clone(stand.url(name), tmp_path / "clone")
    bare = clone(stand.url(name), tmp_path / "bare", "--no-tags")
    stand.warm(name)
    repos.add_tag(repo, "v1")
    stand.warm(name)
    git("fetch", "--quiet", cwd=dest)
    repos.commit(repo, files={"new": "new\n"})
    repos.add_tag(repo, "v2")
    stand.warm(name)
    git("fetch", "--quiet", cwd=dest)
    git("fetch", "--quiet", "--tags", cwd=bare)
    for repository in (dest, bare):
        fsck(repository)
        assert git("tag", cwd=repository).stdout == "v1\nv2\n"


def test_a_mirror_clone_with_many_pull_requests_is_answered(
    stand: Stand, name: str, tmp_path: Path
) -> None:
    repo = stand.repo(name)
    tree = git("rev-parse", "main^{tree}", cwd=repo).stdout.strip()
    commits = "".join(
        f"commit refs/pull/{number}/head\ncommitter A <a@example.test> {number} +0000\n"
        f"data 1\nx\nM 040000 {tree} \n\n"
        for number in range(300)
    )
    git("fast-import", "--quiet", cwd=repo, stdin=commits)
    stand.warm(name)
    dest = clone(stand.url(name), tmp_path / "mirror", "--mirror")
    fsck(dest)
    assert refs_of(dest) == refs_of(stand.direct(name))


def test_a_repository_name_cannot_forge_a_field_of_the_log(stand: Stand) -> None:
    asks.ask(stand.node.url(f"{HOST}/org/zz%20status=200%20x/info/refs?service=git-upload-pack"))
    until(lambda: "zz%20status%3D200%20x" in stand.node.log, what="a line in the log")
    assert "zz status=200" not in stand.node.log


def test_a_commit_that_no_mirrored_ref_reaches_is_fetched_by_its_name_once(
    stand: Stand, name: str, tmp_path: Path
) -> None:
    repo = stand.repo(name)
    dest = clone(stand.url(name), tmp_path / "clone")
    stand.warm(name)
    oid = repos.commit(repo, "pull", files={"new": "new\n"}, parent="main")
    git("update-ref", "refs/pull/7/head", oid, cwd=repo)
    repos.delete_branch(repo, "pull")
    before = len(stand.packs(name))
    for number in range(2):
        git("fetch", "--quiet", "origin", oid, cwd=dest)
        assert len(stand.packs(name)) == before + 1
        fresh = clone(stand.url(name), tmp_path / f"fresh-{number}", "--mirror")
        fsck(fresh)  # with refs/pull/7/head


def test_an_object_that_nobody_has_is_refused_as_git_does(
    stand: Stand, name: str, tmp_path: Path
) -> None:
    dest = clone(stand.url(name), tmp_path / "clone")
    stand.warm(name)
    with pytest.raises(GitFailed, match=f"not our ref {'1' * 40}"):
        git("fetch", "--quiet", "origin", "1" * 40, cwd=dest)
    repos.commit(stand.repo(name), files={"new": "new\n"})
    stand.warm(name)  # what one client asked for does not keep the mirror back


def test_a_clone_of_a_log_with_orphans_holds_none_of_them(
    stand: Stand, name: str, tmp_path: Path
) -> None:
    repo = stand.repo(name)
    lost = repos.commit(repo, "secret", files={"password": "hunter2\n"}, parent="main")
    stand.warm(name)
    repos.delete_branch(repo, "secret")
    before = len(stand.packs(name))
    for number in range(2):
        fresh = clone(stand.url(name), tmp_path / f"fresh-{number}")
        fsck(fresh)
        assert git("cat-file", "-e", lost, cwd=fresh, check=False).returncode != 0
    assert len(stand.packs(name)) == before


@pytest.mark.parametrize("version", ["0", "1", "2"])
@pytest.mark.parametrize("is_warm", [False, True])
def test_every_protocol_version_is_answered(
    stand: Stand, name: str, tmp_path: Path, version: str, is_warm: bool
) -> None:
    if is_warm:
        stand.warm(name)
    dest = tmp_path / "clone"
    git("-c", f"protocol.version={version}", "clone", "--quiet", stand.url(name), dest)
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
    stand: Stand, name: str, tmp_path: Path, flags: list[str], is_warm: bool
) -> None:
    if is_warm:
        stand.warm(name)
    dest = clone(stand.url(name), tmp_path / "clone", *flags)
    direct = clone(stand.direct(name), tmp_path / "direct", *flags)
    counted = [git("rev-list", "--count", "--all", cwd=repo).stdout for repo in (dest, direct)]
    assert counted[0] == counted[1]


def test_a_shallow_clone_of_a_cold_repository_does_not_fetch_all_of_it(
    stand: Stand, name: str, tmp_path: Path
) -> None:
    clone(stand.url(name), tmp_path / "clone", "--depth=1")
    assert [seen.repo for seen in stand.origin.packs()].count(name) == 1
    assert f"refresh of {HOST}/{name}" not in stand.node.log


def test_pull_requests_are_listed_and_fetched(stand: Stand, name: str, tmp_path: Path) -> None:
    repo = stand.repo(name)
    oid = repos.commit(repo, "side/0", files={"new": "new\n"})
    git("update-ref", "refs/pull/7/head", oid, cwd=repo)
    repos.delete_branch(repo, "side/0")
    stand.warm(name)
    assert refs_of(stand.url(name))["refs/pull/7/head"] == oid
    dest = clone(stand.url(name), tmp_path / "clone")
    git("fetch", "--quiet", "origin", "refs/pull/7/head", cwd=dest)
    assert git("rev-parse", "FETCH_HEAD", cwd=dest).stdout.strip() == oid


def test_sha256_repositories_are_forwarded(stand: Stand, tmp_path: Path) -> None:
    repo = stand.repo("org/sha256")
    git("init", "--quiet", "--bare", "--object-format=sha256", repo)
    tree = git("mktree", cwd=repo).stdout.strip()
    oid = git("commit-tree", "-m", "first", tree, cwd=repo).stdout.strip()
    git("update-ref", "refs/heads/main", oid, cwd=repo)
    for number in range(2):
        dest = clone(stand.url("org/sha256"), tmp_path / f"clone-{number}")
        fsck(dest)
    assert len(stand.packs("org/sha256")) == 2


def test_an_empty_repository_is_cloned_empty(stand: Stand, tmp_path: Path) -> None:
    repo = stand.repo("org/empty")
    git("init", "--quiet", "--bare", "--initial-branch=trunk", repo)
    for number in range(2):
        dest = clone(stand.url("org/empty"), tmp_path / f"clone-{number}")
        assert git("symbolic-ref", "HEAD", cwd=dest).stdout.strip() == "refs/heads/trunk"


def test_a_detached_head_is_followed(stand: Stand, name: str, tmp_path: Path) -> None:
    repo = stand.repo(name)
    oid = repos.commit(repo, "side/0", files={"new": "new\n"})
    git("update-ref", "--no-deref", "HEAD", oid, cwd=repo)
    repos.delete_branch(repo, "side/0")
    stand.warm(name)
    dest = clone(stand.url(name), tmp_path / "clone")
    assert git("rev-parse", "HEAD", cwd=dest).stdout.strip() == oid


def test_a_chunked_negotiation_with_its_probe_is_answered(
    stand: Stand, name: str, tmp_path: Path
) -> None:
    """More wants than http.postBuffer holds: git probes with 0000 and then sends chunks."""
    repo = stand.repo(name)
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
        git("-c", f"http.postBuffer={buffer}", "clone", "--quiet", stand.url(name), dest)
        fsck(dest)
        stand.warm(name)
    assert len(stand.packs(name)) == 1


def test_what_is_not_git_is_refused_with_a_sentence(stand: Stand, name: str) -> None:
    url = stand.url(name)
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


def test_server_options_are_taken(stand: Stand, name: str, tmp_path: Path) -> None:
    """They mean something to some hosts; a mirror has no use for them."""
    stand.warm(name)
    option = "--server-option=trace=1"
    git("ls-remote", "--quiet", option, stand.url(name))
    dest = clone(stand.url(name), tmp_path / "clone", option)
    git("fetch", "--quiet", option, cwd=dest)
    fsck(dest)


def test_a_forward_proxy_request_is_served(stand: Stand, name: str, tmp_path: Path) -> None:
    """A client with http.proxy sends the absolute form."""
    proxy = stand.node.base
    git("-c", f"http.proxy={proxy}", "clone", "--quiet", f"http://{HOST}/{name}", tmp_path / "c")
    fsck(tmp_path / "c")

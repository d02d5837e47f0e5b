"""Repositories at the edge, and repositories that change, seen by git through a warm mirror."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from goblet_testing import asks, repos
from goblet_testing.compare import assert_same, assert_sound, shown
from goblet_testing.gitcli import clone, git, refs_of
from goblet_testing.stand import Stand, start_stand

pytestmark = [pytest.mark.system, pytest.mark.slow]

TEMPLATE = "org/template"
# Version 1 is 0 with one more line: test_clients asks in it each time.
EVERY_VERSION = pytest.mark.parametrize(
    "version", ["0", "2", pytest.param("1", marks=pytest.mark.soak)]
)


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """An origin and a node; each test has repositories of its own."""
    directory = tmp_path_factory.mktemp("repos")
    repo = repos.make_repo(directory / f"root/{TEMPLATE}.git", commits=25, files=12)
    for number in range(2):
        repos.commit(repo, "topic", files={f"topic/{number}": "new\n"}, parent="main~5")
    with start_stand(directory) as stand:
        yield stand


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Return a repository name of the test's own."""
    return "org/" + re.sub("[^a-z0-9_]+", "-", request.node.name)


def speak(version: str) -> dict[str, str]:
    """Return the environment in which git speaks this protocol version."""
    return {"GIT_CONFIG_PARAMETERS": f"'protocol.version'='{version}'"}


def assert_clones_alike(
    stand: Stand, name: str, tmp_path: Path, version: str, *flags: str
) -> tuple[Path, str]:
    """Return a clone through the node and what git said, both as they are from the origin."""
    env, said = speak(version), []
    for url, dest in ((stand.direct(name), "direct"), (stand.url(name), "c")):
        done = git("clone", *flags, url, tmp_path / dest, env=env)
        # Not what the server says: that is its own business, and how much it sends too.
        lines = re.split("[\r\n]", done.stderr.replace(str(tmp_path / dest), ""))
        said.append([line for line in lines if line.startswith(("warning", "error", "fatal"))])
    assert said[0] == said[1]
    assert_same(tmp_path / "c", shown(tmp_path / "direct"))
    return tmp_path / "c", "\n".join(said[1])


# Repositories at the edge


@EVERY_VERSION
def test_an_empty_repository(stand: Stand, name: str, tmp_path: Path, version: str) -> None:
    git("init", "--quiet", "--bare", "--initial-branch=trunk", stand.repo(name))
    with stand.answers_alone(name):
        dest, said = assert_clones_alike(stand, name, tmp_path, version)
    assert "empty repository" in said
    assert (shown(dest).head == "ref: refs/heads/trunk") == (version == "2")


@EVERY_VERSION
def test_an_empty_repository_that_gets_its_first_commit(
    stand: Stand, name: str, tmp_path: Path, version: str
) -> None:
    git("init", "--quiet", "--bare", stand.repo(name))
    clone(stand.url(name), tmp_path / "early")
    git("fetch", "--quiet", stand.repo(TEMPLATE), "main:refs/heads/main", cwd=stand.repo(name))
    git("fetch", "--quiet", "origin", cwd=tmp_path / "early", env=speak(version))
    assert_sound(tmp_path / "early")
    stand.warm(name)
    with stand.answers_alone(name):
        clone(stand.url(name), tmp_path / "late", "--mirror")
    assert refs_of(tmp_path / "late") == refs_of(stand.direct(name))


@EVERY_VERSION
def test_a_head_that_is_unborn(stand: Stand, name: str, tmp_path: Path, version: str) -> None:
    repo = stand.copy(name, TEMPLATE)
    git("symbolic-ref", "HEAD", "refs/heads/not-yet", cwd=repo)
    stand.warm(name)
    with stand.answers_alone(name):
        dest, said = assert_clones_alike(stand, name, tmp_path, version)
    # Versions 0 and 1 have no words for where an unborn HEAD points.
    assert ("unable to checkout" in said) == (version == "2")
    assert (dest / "part0").exists() == (version != "2")


@EVERY_VERSION
def test_a_head_that_is_detached(stand: Stand, name: str, tmp_path: Path, version: str) -> None:
    repo = stand.copy(name, TEMPLATE)
    oid = repos.commit(repo, "side/0", files={"only": "here\n"})
    git("update-ref", "--no-deref", "HEAD", oid, cwd=repo)
    repos.delete_branch(repo, "side/0")
    stand.warm(name)
    with stand.answers_alone(name):
        dest, _ = assert_clones_alike(stand, name, tmp_path, version)
    assert shown(dest).head == oid
    assert (dest / "only").read_text() == "here\n"


@EVERY_VERSION
def test_tags_of_tags(stand: Stand, name: str, tmp_path: Path, version: str) -> None:
    """A branch's fetch brings the tags that end on it, each with its whole chain."""
    repo = stand.copy(name, TEMPLATE)
    start = clone(stand.direct(name), tmp_path / "start")
    repos.commit(repo, files={"new": "new\n"})
    for tag, target in (("one", "main"), ("two", "one"), ("three", "two")):
        repos.add_tag(repo, tag, target)
    repos.add_tag(repo, "tree", "main^{tree}")
    repos.add_tag(repo, "tag-of-a-tree", "tree")
    stand.warm(name)
    for flags in ([], ["--tags"], ["refs/tags/three"], ["refs/tags/tag-of-a-tree:refs/tags/x"]):
        for dest, url in (("direct", stand.direct(name)), ("c", stand.url(name))):
            client = Path(shutil.copytree(start, tmp_path / dest, symlinks=True))
            git("config", "remote.origin.url", url, cwd=client)
            with stand.answers_alone(name):
                git("fetch", "--quiet", "origin", *flags, cwd=client, env=speak(version))
        assert_same(client, shown(tmp_path / "direct"))
        shutil.rmtree(client)
        shutil.rmtree(tmp_path / "direct")


@EVERY_VERSION
@pytest.mark.parametrize("flags", [["--tags"], ["refs/tags/second:refs/tags/second"]])
def test_tags_that_a_client_left_out_at_first(
    stand: Stand, name: str, tmp_path: Path, version: str, flags: list[str]
) -> None:
    """Having what a tag ends at is not having the tag."""
    repo = stand.repo(name)
    git("init", "--quiet", "--bare", repo)
    git("fetch", "--quiet", "--no-tags", stand.repo(TEMPLATE), "main:refs/heads/main", cwd=repo)
    repos.add_tag(repo, "first")
    dest = clone(stand.direct(name), tmp_path / "c", "--no-tags")
    git("config", "remote.origin.url", stand.url(name), cwd=dest)
    stand.warm(name)
    repos.add_tag(repo, "second", "first")
    stand.warm(name)
    with stand.answers_alone(name):
        git("fetch", "--quiet", "origin", *flags, cwd=dest, env=speak(version))
    assert_sound(dest)
    assert repos.oid_of(dest, "refs/tags/second") == repos.oid_of(repo, "refs/tags/second")


@pytest.mark.parametrize(
    ("count", "version"),
    [
        (2_000, "0"),
        (2_000, "2"),
        pytest.param(100_000, "0", marks=pytest.mark.soak),
        pytest.param(100_000, "2", marks=pytest.mark.soak),
    ],
)
def test_many_refs(stand: Stand, name: str, tmp_path: Path, version: str, count: int) -> None:
    """A third are branches with commits of their own, a third tags, a third somebody's own refs."""
    repo = stand.copy(name, TEMPLATE)
    add_refs(repo, count)
    stand.warm(name)
    with stand.answers_alone(name):
        dest, _ = assert_clones_alike(stand, name, tmp_path, version, "--no-checkout")
    assert len(shown(dest).refs) > count * 2 // 3
    oid = repos.commit(repo, "many/7", files={"new": "new\n"})
    stand.warm(name)
    with stand.answers_alone(name):
        git("fetch", "--quiet", "origin", cwd=dest, env=speak(version))
    assert git("rev-parse", "origin/many/7", cwd=dest).stdout.strip() == oid
    assert_sound(dest)


def add_refs(repo: Path, count: int) -> None:
    """Add so many refs in one go."""
    tree, main = repos.oid_of(repo, "main^{tree}"), repos.oid_of(repo, "main")
    stream = [
        f"commit refs/heads/many/{number}\n"
        f"committer A <a@example.test> {1_600_000_000 + number} +0000\n"
        f"data 1\nx\nfrom {main}\nM 040000 {tree} \n\n"
        for number in range(count // 3)
    ]
    git("fast-import", "--quiet", cwd=repo, stdin="".join(stream), timeout=300)
    more = [f"create refs/tags/many/{number} {main}\n" for number in range(count // 3)]
    more += [f"create refs/own/{number} {main}\n" for number in range(count // 3)]
    git("update-ref", "--stdin", cwd=repo, stdin="".join(more), timeout=300)
    git("pack-refs", "--all", cwd=repo, timeout=300)


@EVERY_VERSION
def test_submodules(stand: Stand, name: str, tmp_path: Path, version: str) -> None:
    """A relative URL leads to the other repository through the node, and to its pinned commit."""
    repo, sub = stand.copy(name, TEMPLATE), stand.copy(f"{name}-sub", TEMPLATE)
    pinned = repos.oid_of(sub, "main~3")
    add_submodule(repo, pinned, f"../{name.removeprefix('org/')}-sub")
    stand.warm(name)
    stand.warm(f"{name}-sub")
    with stand.answers_alone(name), stand.answers_alone(f"{name}-sub"):
        flags = ["--quiet", "--recurse-submodules", "--shallow-submodules"]
        git("clone", *flags, stand.url(name), tmp_path / "c", env=speak(version))
    assert_sound(tmp_path / "c")
    assert_sound(tmp_path / "c/vendored")
    assert git("rev-parse", "HEAD", cwd=tmp_path / "c/vendored").stdout.strip() == pinned
    with stand.answers_alone(name):
        clone(stand.url(name), tmp_path / "shallow", "--depth=1")
        clone(stand.url(name), tmp_path / "partial", "--filter=blob:none")
    for dest in ("shallow", "partial"):
        assert_sound(tmp_path / dest)


def add_submodule(repo: Path, oid: str, url: str) -> None:
    """Commit to `main` a submodule `vendored` at `oid`, from `url`."""
    text = f'[submodule "vendored"]\n\tpath = vendored\n\turl = {url}\n'
    stream = (
        f"commit refs/heads/main\ncommitter A <a@example.test> 1700000000 +0000\ndata 1\nx\n"
        f"from refs/heads/main^0\nM 160000 {oid} vendored\n"
        f"M 100644 inline .gitmodules\ndata {len(text)}\n{text}\n"
    )
    git("fast-import", "--quiet", cwd=repo, stdin=stream)


# Repositories that change

CHANGES: dict[str, Callable[[Path], object]] = {
    "a-commit": lambda repo: repos.commit(repo, files={"new": "new\n"}),
    "a-force-push": lambda repo: repos.force_push(repo, back=4),
    "a-force-push-to-an-old-commit": lambda repo: git(
        "update-ref", "refs/heads/main", "main~6", cwd=repo
    ),
    "a-deleted-branch": lambda repo: repos.delete_branch(repo, "side/0"),
    "a-squash-and-its-branch-deleted": lambda repo: squash_and_delete(repo, "topic"),
    "a-cherry-pick": lambda repo: repos.cherry_pick(repo, "topic"),
    "a-revert": lambda repo: repos.revert(repo, "main"),
    "a-moved-tag": lambda repo: repos.add_tag(repo, "v0.1", "main~2"),
    "a-branch-in-the-place-of-a-folder-of-branches": lambda repo: replace_folder(repo, "side"),
}


def squash_and_delete(repo: Path, branch: str) -> None:
    """Do with a branch what hosts do with a pull request."""
    repos.squash(repo, branch)
    repos.delete_branch(repo, branch)


def replace_folder(repo: Path, name: str) -> None:
    """Delete the branches `name`/0 to 2, and make a branch `name`."""
    for number in range(3):
        repos.delete_branch(repo, f"{name}/{number}")
    git("update-ref", f"refs/heads/{name}", "main~1", cwd=repo)


@pytest.mark.parametrize("version", ["0", "2"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_in_the_next_fetch_and_the_next_clone(
    stand: Stand, name: str, tmp_path: Path, change: str, version: str
) -> None:
    repo = stand.copy(name, TEMPLATE)
    stand.warm(name)
    mirror = clone(stand.url(name), tmp_path / "mirror", "--mirror")
    one = clone(stand.url(name), tmp_path / "one", "--single-branch", "--branch=side/2")
    CHANGES[change](repo)
    stand.warm(name)
    with stand.answers_alone(name):
        git("fetch", "--quiet", "--prune", "--tags", "--force", cwd=mirror, env=speak(version))
        every = ["origin", "+refs/heads/*:refs/remotes/all/*"]
        git("fetch", "--quiet", *every, cwd=one, env=speak(version))
        git("clone", "--quiet", "--mirror", stand.url(name), tmp_path / "c", env=speak(version))
        git("clone", "--quiet", "--depth=1", stand.url(name), tmp_path / "d", env=speak(version))
    for dest in (mirror, tmp_path / "c"):
        assert_sound(dest)
        assert refs_of(dest) == refs_of(stand.direct(name))
    for dest in (one, tmp_path / "d"):
        assert_sound(dest)


@EVERY_VERSION
def test_a_commit_that_was_just_pushed_is_fetched_by_its_id(
    stand: Stand, name: str, tmp_path: Path, version: str
) -> None:
    """The one pack request is the mirror's own refresh."""
    repo = stand.copy(name, TEMPLATE)
    stand.warm(name)
    git("init", "--quiet", tmp_path / "c")
    before = len(stand.packs(name))
    oid = repos.commit(repo, files={"new": "new\n"})
    git("fetch", "--quiet", stand.url(name), oid, cwd=tmp_path / "c", env=speak(version))
    git("checkout", "--quiet", oid, cwd=tmp_path / "c")
    assert_sound(tmp_path / "c")
    assert len(stand.packs(name)) == before + 1
    git("init", "--quiet", tmp_path / "next")
    with stand.answers_alone(name):
        fetched = ["fetch", "--quiet", "--depth=1", stand.url(name), oid]
        git(*fetched, cwd=tmp_path / "next", env=speak(version))


def test_a_commit_that_was_just_pushed_is_fetched_without_asking_for_refs(
    stand: Stand, name: str
) -> None:
    """The POST may be the first that the node hears of it."""
    repo = stand.copy(name, TEMPLATE)
    stand.warm(name)
    before = len(stand.packs(name))
    oid = repos.commit(repo, files={"new": "new\n"})
    answer = asks.fetch(stand.url(name), [oid], haves=[repos.oid_of(repo, "main~1")])
    assert answer.pack.startswith(b"PACK")
    assert answer.cache not in ("forwarded", None)
    assert len(stand.packs(name)) == before + 1


@EVERY_VERSION
def test_what_a_force_push_replaced_is_still_fetched_by_its_id(
    stand: Stand, name: str, tmp_path: Path, version: str
) -> None:
    """As from the origin, which has it until it cleans up: a CI run may have begun before."""
    repo = stand.copy(name, TEMPLATE)
    stand.warm(name)
    replaced = repos.oid_of(repo, "main")
    repos.force_push(repo, back=3)
    stand.warm(name)
    git("init", "--quiet", tmp_path / "c")
    with stand.answers_alone(name):
        fetched = ["fetch", "--quiet", "--depth=2", stand.url(name), replaced]
        git(*fetched, cwd=tmp_path / "c", env=speak(version))
    assert_sound(tmp_path / "c")
    assert git("rev-parse", "FETCH_HEAD", cwd=tmp_path / "c").stdout.strip() == replaced


@EVERY_VERSION
def test_pull_requests_are_listed_and_fetched(
    stand: Stand, name: str, tmp_path: Path, version: str
) -> None:
    """They are no part of the mirror, and no part of a clone."""
    repo = stand.copy(name, TEMPLATE)
    oid = repos.commit(repo, "side/0", files={"new": "new\n"})
    git("update-ref", "refs/pull/7/head", oid, cwd=repo)
    git("update-ref", "refs/merge-requests/1/head", "main~2", cwd=repo)
    git("update-ref", "refs/heads/side/0", "side/0~1", cwd=repo)
    stand.warm(name)
    env = speak(version)
    assert refs_of(stand.url(name), env=env) == refs_of(stand.direct(name), env=env)
    with stand.answers_alone(name):
        dest = clone(stand.url(name), tmp_path / "c")
        git("fetch", "--quiet", "origin", "refs/merge-requests/1/head", cwd=dest, env=env)
    assert git("cat-file", "-t", oid, cwd=dest, check=False).returncode != 0
    git("fetch", "--quiet", "origin", "refs/pull/7/head:refs/heads/pull", cwd=dest, env=env)
    assert git("rev-parse", "pull", cwd=dest).stdout.strip() == oid
    assert_sound(dest)

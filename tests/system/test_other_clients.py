"""dulwich, libgit2 and isomorphic-git before a warm mirror that answers alone.

Each is held against what the same client makes of the same words at the origin.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from goblet_testing import repos
from goblet_testing.clients import (
    CLIENTS,
    INFINITE,
    Client,
    IsomorphicGit,
    Wish,
    is_able,
    keep_apart_from_this_machine,
    set_url,
    why_absent,
)
from goblet_testing.compare import Shown, assert_same, shown
from goblet_testing.gitcli import git
from goblet_testing.rich import make_rich
from goblet_testing.stand import Stand, start_stand

pytestmark = [pytest.mark.system, pytest.mark.slow]

RICH = "org/rich"
MIDDLE = 1_600_080_000
"""Seconds since the epoch: about half of `main` is younger."""
ODD_TAGS = ("of-a-tree", "of-a-blob", "light-of-a-blob", "of-a-tag", "of-a-tag-of-a-tag")

CLONES = {
    "full": Wish(),
    "bare": Wish(bare=True),
    "depth-1": Wish(depth=1),
    "depth-3": Wish(depth=3),
    "one-branch": Wish(branch="side/0", single=True),
    "checked-out-branch": Wish(branch="side/0"),
    "no-tags": Wish(tags=False),
    "since": Wish(since=MIDDLE),
    "exclude": Wish(exclude="v0.1"),
}
FETCHES = {
    "nothing-new": (Wish(), Wish()),
    "deeper": (Wish(depth=1), Wish(depth=4)),
    "deeper-than-before": (Wish(depth=2), Wish(depth=2, relative=True)),
    "unshallow": (Wish(depth=2), Wish(depth=INFINITE)),
    "shallow-since": (Wish(depth=1), Wish(since=MIDDLE)),
    "shallow-exclude": (Wish(depth=1), Wish(exclude="v0.1")),
    "from-one-branch-to-all": (Wish(branch="side/0", single=True), Wish()),
}
ALL_CLONES = [
    pytest.param(client, name, id=f"{client.name}-{name}")
    for client in CLIENTS
    for name, wish in CLONES.items()
    if is_able(client, wish)
]
TAKERS = [
    pytest.param(client, id=client.name)
    for client in CLIENTS
    if is_able(client, Wish(depth=1), Wish(oid="0" * 40))
]
FOLLOWERS = [
    pytest.param(client, is_thin, id=f"{client.name}-{'thin' if is_thin else 'whole'}")
    for client in CLIENTS
    for is_thin in (True, False)
    if is_able(client, Wish(), Wish(thin=is_thin, prune=True))
]
ALL_FETCHES = [
    pytest.param(client, name, id=f"{client.name}-{name}")
    for client in CLIENTS
    for name, wishes in FETCHES.items()
    if is_able(client, *wishes)
]


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """An origin with one rich repository, and a node whose mirror of it is warm."""
    directory = tmp_path_factory.mktemp("others")
    repo = make_rich(directory / f"root/{RICH}.git", commits=50)
    # dulwich's own walk of what it has falls over tags of what is not a commit.
    git("tag", "--delete", *ODD_TAGS, cwd=repo)
    with start_stand(directory) as stand:
        stand.warm(RICH)
        yield stand


@pytest.fixture(autouse=True)
def _hermetic(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clients that run in this process read no configuration of this machine."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.delenv("http_proxy", raising=False)
    keep_apart_from_this_machine()


@pytest.fixture(scope="module", autouse=True)
def _ended() -> Iterator[None]:
    """Let no client outlive the tests."""
    yield
    for client in CLIENTS:
        if isinstance(client, IsomorphicGit):
            client.close()


def must_be_there(client: Client) -> None:
    """Skip the test if the client is not installed; in CI, where it must be, fail it."""
    why = why_absent(client)
    if why is not None and os.environ.get("CI") == "true":
        pytest.fail(why)
    if why is not None:
        pytest.skip(why)


@pytest.mark.parametrize(("client", "name"), ALL_CLONES)
def test_every_clone_is_the_origins(
    stand: Stand, tmp_path: Path, client: Client, name: str
) -> None:
    must_be_there(client)
    client.clone(stand.direct(RICH), tmp_path / "direct", CLONES[name])
    with stand.answers_alone(RICH):
        client.clone(stand.url(RICH), tmp_path / "c", CLONES[name])
    assert_same(tmp_path / "c", shown(tmp_path / "direct"))


@pytest.mark.parametrize(("client", "name"), ALL_FETCHES)
def test_every_fetch_is_the_origins(
    stand: Stand, tmp_path: Path, client: Client, name: str
) -> None:
    must_be_there(client)
    cloning, fetching = FETCHES[name]
    expected = twin(client, stand.direct(RICH), tmp_path / "c", cloning)
    client.fetch(tmp_path / "direct", fetching)
    set_url(tmp_path / "c", stand.url(RICH))
    with stand.answers_alone(RICH):
        client.fetch(tmp_path / "c", fetching)
    ours = shown(tmp_path / "c")
    assert (ours != expected) == (name != "nothing-new")
    assert_same(tmp_path / "c", shown(tmp_path / "direct"))


@pytest.mark.parametrize("client", TAKERS)
@pytest.mark.parametrize("kind", ["main~30", "v0.0", "main~20:part0/area0/file0.txt"])
@pytest.mark.parametrize("cloning", [Wish(depth=1), Wish()], ids=["shallow", "full"])
def test_any_object_is_fetched_by_its_id(
    stand: Stand, tmp_path: Path, client: Client, kind: str, cloning: Wish
) -> None:
    oid = repos.oid_of(stand.repo(RICH), kind)
    twin(client, stand.direct(RICH), tmp_path / "c", cloning)
    client.fetch(tmp_path / "direct", Wish(oid=oid))
    set_url(tmp_path / "c", stand.url(RICH))
    with stand.answers_alone(RICH):
        client.fetch(tmp_path / "c", Wish(oid=oid))
    assert git("cat-file", "-t", oid, cwd=tmp_path / "c").returncode == 0
    assert_same(tmp_path / "c", shown(tmp_path / "direct"))


@pytest.mark.parametrize(("client", "is_thin"), FOLLOWERS)
def test_what_changed_meanwhile_is_fetched(
    stand: Stand, tmp_path: Path, client: Client, is_thin: bool
) -> None:
    """New commits, a force-push, a deleted branch, a new tag, all at once."""
    must_be_there(client)
    fetching = Wish(thin=is_thin, prune=True)
    name = f"org/changes-{client.name}-{is_thin}".lower()
    repo = stand.copy(name, RICH)
    twin(client, stand.direct(name), tmp_path / "c", Wish())
    set_url(tmp_path / "c", stand.url(name))
    stand.warm(name)
    for number in range(3):
        repos.commit(repo, files={"part0/area0/file0.txt": f"{number}\n" * 30})
    repos.force_push(repo, "side/0")
    repos.delete_branch(repo, "side/1")
    repos.add_tag(repo, "new")
    stand.warm(name)
    client.fetch(tmp_path / "direct", fetching)
    with stand.answers_alone(name):
        client.fetch(tmp_path / "c", fetching)
    assert git("tag", "--list", "new", cwd=tmp_path / "c").stdout == "new\n"
    assert_same(tmp_path / "c", shown(tmp_path / "direct"))


def twin(client: Client, url: str, dest: Path, wish: Wish) -> Shown:
    """Clone to `dest` and copy it to `direct` beside it; return what both show."""
    client.clone(url, dest, wish)
    shutil.copytree(dest, dest.parent / "direct", symlinks=True)
    return shown(dest)

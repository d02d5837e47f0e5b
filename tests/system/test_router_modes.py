"""Real git through a router that redirects, one that has no node left, and one of two processes."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from goblet_testing.asks import ask
from goblet_testing.fleet import Fleet, until
from goblet_testing.gitcli import GitFailed, git
from goblet_testing.repos import oid_of

pytestmark = [pytest.mark.system, pytest.mark.slow]

REPO = "org/small"


@pytest.fixture(scope="module")
def fleet(shared_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    users = {"alice": "secret"}
    directory = tmp_path_factory.mktemp("modes")
    with Fleet(directory, root=shared_root, nodes=2, users=users) as fleet:
        fleet.origin.private["secret/repo"] = {"alice"}
        yield fleet


def cloned(fleet: Fleet, url: str, dest: Path, *settings: str) -> str:
    """Clone, hold the clone to being whole, and return what git said."""
    said = git(*settings, "clone", "--bare", url, dest).stderr
    git("fsck", "--strict", cwd=dest)
    assert oid_of(dest, "main") == oid_of(fleet.origin.root / f"{REPO}.git", "main")
    return said


def test_git_follows_a_redirect_to_the_owner_and_asks_for_its_pack_there(
    fleet: Fleet, tmp_path: Path
) -> None:
    router = fleet.add_router(["--mode", "redirect"])
    owner = fleet.owners(REPO)[0]
    url = router.url(f"origin.test/{REPO}")
    until(lambda: ask(f"{url}/info/refs?service=git-upload-pack").status == 307)
    said = cloned(fleet, url, tmp_path / "clone")
    assert f"redirecting to {fleet.node_url(owner)}/origin.test/{REPO}/" in said
    # A fetch begins at the router again: git keeps the address that it was given.
    git("fetch", "origin", cwd=tmp_path / "clone")
    names = [name for name in router.metrics() if "answers_total" in name]
    assert names == ['goblet_router_answers_total{endpoint="info/refs",status="307"}']
    credential = "http.extraHeader=Authorization: Basic eA=="
    with pytest.raises(GitFailed, match="403"):
        git("-c", credential, "ls-remote", url)


def test_workers_serve_real_clones_and_end_with_their_parent(fleet: Fleet, tmp_path: Path) -> None:
    router = fleet.add_router(["--workers", "2"])
    for number in range(3):
        cloned(fleet, router.url(f"origin.test/{REPO}"), tmp_path / f"clone{number}")
    posts = 'goblet_router_answers_total{endpoint="git-upload-pack",status="200"}'
    assert router.metrics()[posts] == 6
    router.stop(number=signal.SIGTERM)
    assert "worker-1 | " in router.log
    assert "worker-2 | " in router.log


def test_with_every_node_down_the_router_asks_upstream_itself_unless_told_not_to(
    fleet: Fleet, tmp_path: Path
) -> None:
    """Last: it ends the nodes."""
    strict = fleet.add_router(["--no-bypass"])
    for name in fleet.names:
        fleet.kill(name)
    cloned(fleet, fleet.url(REPO), tmp_path / "clone")
    got = ask(f"{fleet.url(REPO)}/info/refs?service=git-upload-pack")
    assert (got.status, got.cache, got.node) == (200, "bypass", "none")
    passed = 'goblet_router_forwarded_total{node="none",outcome="ok"}'
    assert fleet.router.metrics()[passed] == 4
    secret = fleet.url("secret/repo")
    with pytest.raises(GitFailed, match="could not read Username"):
        git("ls-remote", secret)
    owned = secret.replace("://", "://alice:secret@")
    assert "refs/heads/main" in git("ls-remote", owned).stdout
    begun = time.monotonic()
    with pytest.raises(GitFailed, match="503"):
        git("ls-remote", strict.url(f"origin.test/{REPO}"))
    assert time.monotonic() - begun < 5

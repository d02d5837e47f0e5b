"""A node that dies costs nobody a clone; whose answer had begun on it learns that loudly."""

import http.client
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from goblet_testing import asks, repos
from goblet_testing.faults_on_cue import Fault
from goblet_testing.fleet import Fleet, until
from goblet_testing.gitcli import GitFailed, clone, fsck, hermetic_env, refs_of
from goblet_testing.stand import HOST

pytestmark = [pytest.mark.system, pytest.mark.slow]

FIRST_BYTE = 2.0
"""Seconds after which the routers give up a node that says nothing."""
STALL_AFTER, BEGUN = 20_000, 4_000
"""Bytes of a cold pack that the origin sends before the node dies, and of an answer with
some of them: refs are less, and all of the pack is more."""
MEBIBYTE = 1 << 20
MEGABYTES = 24
"""An answer's size: more than all the sockets between node and client hold."""


@pytest.fixture(scope="module")
def shared_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three nodes behind a router that only failed requests make suspicious."""
    directory = tmp_path_factory.mktemp("deaths")
    repos.make_repo(directory / "template.git", commits=30)
    # A probe that comes first would leave nothing to find out for the request.
    flags = ["--probe-fall", "1000", "--first-byte-seconds", str(FIRST_BYTE)]
    with Fleet(directory, router_flags=flags) as fleet:
        yield fleet


@pytest.fixture
def fleet(shared_fleet: Fleet) -> Fleet:
    """The fleet, made whole again after the test before."""
    shared_fleet.origin.behave()
    for name in shared_fleet.names:
        shared_fleet.node(name).tell(signal.SIGCONT)
        if shared_fleet.node(name).process.poll() is not None:
            shared_fleet.restart(name)
    shared_fleet.wait_settled()
    return shared_fleet


@pytest.fixture
def name(request: pytest.FixtureRequest, fleet: Fleet) -> str:
    """A repository of the test's own, which no node knows."""
    name = f"org/{request.node.name}"
    shutil.copytree(fleet.directory / "template.git", fleet.origin.root / f"{name}.git")
    return name


def failed_attempts(fleet: Fleet, node: str) -> dict[str, float]:
    """Return how often the router failed at a node, by kind."""
    label = f'node="{node}"'
    return {
        sample: count
        for sample, count in fleet.router.metrics().items()
        if sample.startswith("goblet_router_failed_attempts_total{") and label in sample
    }


def check_clone(fleet: Fleet, name: str, dest: Path) -> None:
    """Hold a clone through the router to being sound and the origin's."""
    fsck(clone(fleet.url(name), dest, "--mirror"))
    assert refs_of(dest) == refs_of(fleet.origin.url_of(name))


def start_clone(fleet: Fleet, name: str, dest: Path) -> subprocess.Popen[str]:
    """Start a clone through the router."""
    return subprocess.Popen(
        ["git", "clone", "--quiet", fleet.url(name), str(dest)],
        env=hermetic_env(),
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_node_that_refuses_connections_is_passed_over_in_the_same_request(
    fleet: Fleet, name: str, tmp_path: Path
) -> None:
    first, second, _ = fleet.owners(name)
    before = failed_attempts(fleet, first)
    fleet.kill(first)
    answer = asks.info_refs(fleet.url(name))
    assert (answer.status, answer.node) == (200, second)
    assert fleet.states()[first] == "suspect"
    check_clone(fleet, name, tmp_path / "clone")
    assert sum(failed_attempts(fleet, first).values()) == sum(before.values()) + 1


def test_a_node_that_dies_before_its_answer_began_is_replaced_in_the_same_request(
    fleet: Fleet, name: str, tmp_path: Path
) -> None:
    first = fleet.owners(name)[0]
    fleet.origin.hold_fetches(repo=name)
    with start_clone(fleet, name, tmp_path / "clone") as cloning:
        fleet.origin.wait_until_held()
        fleet.kill(first)
        fleet.origin.release()
        _, stderr = cloning.communicate(timeout=30)
    assert (cloning.returncode, stderr) == (0, "")
    fsck(tmp_path / "clone")


def test_a_node_that_says_nothing_is_passed_over_in_the_same_request(
    fleet: Fleet, name: str, tmp_path: Path
) -> None:
    first = fleet.owners(name)[0]
    fleet.node(first).tell(signal.SIGSTOP)
    check_clone(fleet, name, tmp_path / "clone")
    assert fleet.states()[first] == "suspect"


@pytest.mark.soak
def test_a_clone_whose_node_dies_amid_a_cold_pack_fails_loudly_and_works_the_next_time(
    fleet: Fleet, name: str, tmp_path: Path
) -> None:
    first = fleet.owners(name)[0]
    fleet.origin.misbehave(Fault(stall_after=STALL_AFTER), repo=name, kind="fetch")
    sent = f'goblet_router_response_bytes_total{{node="{first}"}}'
    before = fleet.router.metrics().get(sent, 0)
    with start_clone(fleet, name, tmp_path / "clone") as cloning:
        until(lambda: fleet.router.metrics().get(sent, 0) > before + BEGUN)
        fleet.kill(first)
        _, stderr = cloning.communicate(timeout=30)
    assert cloning.returncode != 0
    assert "fatal: " in stderr
    assert not (tmp_path / "clone").exists()
    fleet.origin.behave()
    check_clone(fleet, name, tmp_path / "again")


def test_a_whole_answer_from_a_mirror_that_breaks_off_never_looks_complete(
    fleet: Fleet, name: str, tmp_path: Path
) -> None:
    shutil.rmtree(fleet.origin.root / f"{name}.git")
    repos.make_blobs(fleet.origin.root / f"{name}.git", megabytes=MEGABYTES)
    first, second, _ = fleet.owners(name)
    wants = [asks.ls_refs(fleet.url(name)).refs["HEAD"]]
    held = fleet.node(first).metrics()["goblet_node_mirrors"]
    assert asks.fetch(fleet.url(name), wants).is_complete
    until(lambda: fleet.node(first).metrics()["goblet_node_mirrors"] > held)
    line = http.client.HTTPConnection(fleet.router.base.removeprefix("http://"))
    line.request(
        "POST",
        f"/{HOST}/{name}/git-upload-pack",
        asks.command_body("fetch", [f"want {wants[0]}", "done"]),
        {"Content-Type": "application/x-git-upload-pack-request", "Git-Protocol": "version=2"},
    )
    response = line.getresponse()
    assert response.headers["Goblet-Node"] == first
    assert response.read(MEBIBYTE).count(b"PACK")
    fleet.kill(first)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        response.read()
    line.close()
    answer = asks.fetch(fleet.url(name), wants)
    assert (answer.status, answer.is_complete, answer.node) == (200, True, second)
    assert len(answer.body) > MEGABYTES * MEBIBYTE


def test_when_all_owners_are_gone_the_router_asks_upstream_itself(
    fleet: Fleet, name: str, tmp_path: Path
) -> None:
    strict = fleet.add_router(["--no-bypass"])
    for owner in fleet.owners(name):
        fleet.kill(owner)
    answer = asks.info_refs(fleet.url(name))
    assert (answer.status, answer.cache, answer.node) == (200, "bypass", "none")
    check_clone(fleet, name, tmp_path / "clone")
    with pytest.raises(GitFailed) as failed:
        clone(strict.url(f"{HOST}/{name}"), tmp_path / "refused")
    assert "no cache node answered" in failed.value.stderr
    assert asks.info_refs(strict.url(f"{HOST}/{name}")).status == 503

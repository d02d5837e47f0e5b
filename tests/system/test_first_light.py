"""The main job: real clones of a real repository through `goblet up`."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from goblet_testing import asks, repos
from goblet_testing.cluster import HOST, Cluster
from goblet_testing.gitcli import clone, fsck, git, refs_of, storm
from goblet_testing.origin import Origin

pytestmark = [pytest.mark.system, pytest.mark.slow]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the cluster's data and log lie."""
    return tmp_path_factory.mktemp("lit")


@pytest.fixture(scope="module")
def lit(large_root: Path, directory: Path) -> Iterator[tuple[Origin, Cluster]]:
    """A cluster of three nodes before an origin with a large repository and small ones."""
    root = Path(shutil.copytree(large_root, directory / "root"))
    for number in range(6):
        repos.make_repo(root / f"org/small{number}.git", seed=number, commits=20)
    with Origin(root) as origin, Cluster(origin.url, directory) as cluster:
        yield origin, cluster
        assert "Traceback" not in cluster.log


def test_a_large_repository_clones_cold_and_warm(
    lit: tuple[Origin, Cluster], tmp_path: Path
) -> None:
    """50,000 objects: the same refs as from the origin, and every object sound."""
    origin, cluster = lit
    truth = refs_of(origin.url_of("org/large"))
    for number in range(2):
        dest = clone(cluster.url("org/large"), tmp_path / f"clone-{number}", "--mirror")
        assert refs_of(dest) == truth
        assert repos.count_objects(dest) >= 50_000
        if number == 0:
            fsck(dest)
            cluster.wait_until_mirrored(cluster.owners("org/large")[0])
    fsck(tmp_path / "clone-1")
    assert len(origin.packs()) == 1


def test_an_export_of_a_large_mirror_is_sound(
    lit: tuple[Origin, Cluster], directory: Path, tmp_path: Path
) -> None:
    origin, cluster = lit
    clone(cluster.url("org/large"), tmp_path / "clone", "--mirror")
    cluster.wait_until_mirrored(cluster.owners("org/large")[0])
    owner = cluster.owners("org/large")[0]
    command = [sys.executable, "-m", "goblet_node", "export", f"{HOST}/org/large"]
    root = directory / "data" / owner
    subprocess.run([*command, str(tmp_path / "export"), "--cache-root", str(root)], check=True)
    fsck(tmp_path / "export")
    assert refs_of(tmp_path / "export") == refs_of(origin.url_of("org/large"))


def test_a_storm_on_a_cold_repository_is_one_pack_request(
    lit: tuple[Origin, Cluster], tmp_path: Path
) -> None:
    origin, cluster = lit
    clones = trio.run(storm, 16, cluster.url("org/small5"), tmp_path)
    for cloned in clones:
        fsck(cloned.dest)
    assert [seen.repo for seen in origin.packs()].count("org/small5") == 1


def test_changes_at_the_origin_are_seen_through_the_cluster(
    lit: tuple[Origin, Cluster], tmp_path: Path
) -> None:
    origin, cluster = lit
    repo = origin.root / "org/small0.git"
    dest = clone(cluster.url("org/small0"), tmp_path / "clone", "--mirror")
    repos.commit(repo, files={"new": "new\n"})
    repos.force_push(repo, "side/0", back=1)
    repos.delete_branch(repo, "side/1")
    repos.add_tag(repo, "v9")
    git("fetch", "--quiet", "--prune", cwd=dest)
    assert refs_of(dest) == refs_of(origin.url_of("org/small0"))
    fsck(dest)


def test_the_owners_death_fails_no_clone(lit: tuple[Origin, Cluster], tmp_path: Path) -> None:
    """No probe has noticed yet and the client does not try again: its successor answers."""
    _, cluster = lit
    names = [f"org/small{number}" for number in range(6)]
    for name in names:
        clone(cluster.url(name), tmp_path / name)
    owner, successor, *_ = cluster.owners("org/small1")
    cluster.kill_node(owner)
    answer = asks.info_refs(cluster.url("org/small1"))
    assert (answer.status, answer.node) == (200, successor)
    for name in names:
        fsck(clone(cluster.url(name), tmp_path / f"again-{name}"))


def test_every_answer_names_its_node_and_request(lit: tuple[Origin, Cluster]) -> None:
    _, cluster = lit
    url = cluster.url("org/small2")
    for answer in (asks.info_refs(url), asks.ls_refs(url), asks.ask(f"{url}/HEAD")):
        assert answer.headers["x-request-id"]
    assert asks.info_refs(url).node in {"goblet-1", "goblet-2", "goblet-3"}

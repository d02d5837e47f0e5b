"""A mirror on disk is what its manifest says, or it is removed."""

import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from goblet_node.errors import DiskFailed
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.layout import MANIFEST, CacheRoot
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.recovery import Repair, recover
from goblet_node.mirror.store import MirrorStore
from goblet_node.mirror.view import manifest_of
from goblet_shared.repo_key import RepoKey
from goblet_testing.mirrors import grow, heads

KEY = RepoKey("example.org/one")


@pytest.fixture
def root(tmp_path: Path) -> CacheRoot:
    return CacheRoot(tmp_path / "root")


@pytest.fixture
def mirror(root: CacheRoot) -> Mirror:
    """A mirror of two segments and three generations, whose store is closed."""
    store = MirrorStore(root.path, disk=Disk())
    store.open()
    grow(store, KEY, heads(main=b"a"), [b"a"])
    grow(store, KEY, heads(main=b"a", side=b"a"))
    mirror = grow(store, KEY, heads(main=b"b"), [b"b"])
    store.close()
    return mirror


def recovered(mirror: Mirror, root: CacheRoot) -> Repair | None:
    """Recover the mirror and check that it is there whole, or not at all."""
    manifest, repair = recover(mirror.directory, root=root, disk=Disk())
    if manifest is None:
        assert not mirror.directory.exists()
        assert list(root.scratch.iterdir()) == []
    else:
        assert manifest == manifest_of(mirror)
        names = {path.name for path in mirror.directory.iterdir()}
        assert names <= manifest.file_names()
    return repair


def test_a_good_mirror_needs_no_repair(mirror: Mirror, root: CacheRoot) -> None:
    assert recovered(mirror, root) is None
    assert mirror.directory.exists()


def test_files_that_the_manifest_does_not_name_are_removed(mirror: Mirror, root: CacheRoot) -> None:
    for name in ("seg-000003-0123456789ab.pack", "refs-000009-0123456789ab", "manifest.json.new"):
        (mirror.directory / name).write_bytes(b"left over")
    (mirror.directory / "directory").mkdir()
    repair = recovered(mirror, root)
    assert repair is not None
    assert repair.sentence == "4 files that its manifest does not name; removed"
    assert repair.place == KEY


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def spoil_the_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"\0")


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


DAMAGE: list[Callable[[Path], None]] = [Path.unlink, shorten, lengthen, spoil_the_end, zero]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("number", [0, 1])
def test_a_segment_that_is_not_what_the_manifest_says_costs_the_mirror(
    mirror: Mirror, root: CacheRoot, damage: Callable[[Path], None], number: int
) -> None:
    damage(mirror.segments[number].pack)
    repair = recovered(mirror, root)
    assert repair is not None
    assert repair.sentence.endswith("the mirror must be filled again; removed")
    assert mirror.segments[number].pack.name in repair.sentence


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damaged_refs_cost_the_mirror(
    mirror: Mirror, root: CacheRoot, damage: Callable[[Path], None]
) -> None:
    damage(mirror.directory / mirror.current.refs_file)
    assert recovered(mirror, root) is not None
    assert not mirror.directory.exists()


def test_tables_and_links_may_be_missing(mirror: Mirror, root: CacheRoot) -> None:
    """They can be made again from their segments."""
    mirror.segments[0].table.unlink()
    mirror.segments[1].links.unlink()
    assert recovered(mirror, root) is None
    assert mirror.directory.exists()


@pytest.mark.parametrize("damage", [shorten, zero], ids=lambda damage: damage.__name__)
def test_a_damaged_manifest_costs_the_mirror(
    mirror: Mirror, root: CacheRoot, damage: Callable[[Path], None]
) -> None:
    path = mirror.directory / MANIFEST
    path.write_bytes(path.read_bytes().rstrip())
    damage(path)
    repair = recovered(mirror, root)
    assert not mirror.directory.exists()
    assert repair is not None
    assert repair.place == str(mirror.directory.relative_to(root.path))


def test_a_first_commit_that_did_not_come_to_its_manifest_is_removed(
    mirror: Mirror, root: CacheRoot
) -> None:
    (mirror.directory / MANIFEST).rename(mirror.directory / "manifest.json.new")
    repair = recovered(mirror, root)
    assert repair is not None
    assert repair.sentence == "a first commit was never finished; removed"


def test_a_mirror_of_another_version_is_removed(mirror: Mirror, root: CacheRoot) -> None:
    """Kept, it would fill a disk that no one counts it on."""
    path = mirror.directory / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"version":2', b'"version":1'))
    repair = recovered(mirror, root)
    assert repair is not None
    assert "of version 1 and this Goblet reads version 2" in repair.sentence


def test_a_mirror_in_the_place_of_another_is_removed(mirror: Mirror, root: CacheRoot) -> None:
    """A copy gone wrong must not answer for a repository that it is not."""
    place = root.directory_of(RepoKey("example.org/two"))
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(mirror.directory, place)
    manifest, repair = recover(place, root=root, disk=Disk())
    assert manifest is None
    assert repair is not None
    assert "lies where another repository's belongs" in repair.sentence
    assert not place.exists()
    assert mirror.directory.exists()


def test_a_mirror_that_may_not_be_read_is_not_taken_for_damaged(
    mirror: Mirror, root: CacheRoot
) -> None:
    """Too many open files here; a wrong owner is the same to it. Nothing is removed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(DiskFailed, match="Too many open files"):
            recover(mirror.directory, root=root, disk=Disk())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert recovered(mirror, root) is None
    assert mirror.directory.exists()

"""A commit's steps: all that the manifest names is durable before the manifest is there."""

import dataclasses
from pathlib import Path

import pytest

from goblet_node.errors import DiskFailed
from goblet_node.mirror.commit import Commit, plan_commit
from goblet_node.mirror.durable import clear_leftovers, make_durable
from goblet_node.mirror.intake import Intake
from goblet_node.mirror.recovery import read_manifest
from goblet_shared.repo_key import RepoKey
from goblet_testing.faults import FaultDisk
from goblet_testing.mirrors import heads, take_blobs

KEY = RepoKey("example.org/one")


@pytest.fixture
def disk(tmp_path: Path) -> FaultDisk:
    (tmp_path / "limbo").mkdir()
    return FaultDisk(tmp_path / "limbo")


@pytest.fixture
def commit(tmp_path: Path) -> Commit:
    (tmp_path / "scratch").mkdir()
    refs = heads(main=b"a")
    intake = take_blobs(tmp_path / "scratch", base=None, refs=refs, contents=[b"a"])
    directory = tmp_path / "mirror"
    return plan_commit(key=KEY, directory=directory, base=None, refs=refs, intake=intake)


def test_the_manifest_comes_last_and_after_a_sync(commit: Commit, disk: FaultDisk) -> None:
    make_durable(commit, disk=disk, used_at=None)
    assert read_manifest(commit.directory) == commit.manifest
    renamed = disk.steps.index("rename manifest.json.new to manifest.json")
    assert disk.steps[renamed - 1] == "sync directory mirror"
    assert disk.steps[renamed + 1 :] == ["sync directory mirror"]
    for source, target in commit.moves:
        synced = disk.steps.index(f"sync {source.name}")
        assert synced < disk.steps.index(f"rename {source.name} to {target.name}") < renamed


def test_a_change_that_is_no_use_tells_when_the_last_one_was(
    commit: Commit, disk: FaultDisk
) -> None:
    make_durable(commit, disk=disk, used_at=1000.0)
    assert (commit.directory / "manifest.json").stat().st_mtime == 1000.0


def test_a_commit_that_leaves_the_refs_writes_none(commit: Commit, disk: FaultDisk) -> None:
    make_durable(dataclasses.replace(commit, refs_file=None), disk=disk, used_at=None)
    assert not any("refs-" in step for step in disk.steps)


def test_nothing_is_left_of_a_first_commit_that_failed(commit: Commit, disk: FaultDisk) -> None:
    disk.refuse(lambda step: step == "write manifest.json.new")
    with pytest.raises(DiskFailed):
        make_durable(commit, disk=disk, used_at=None)
    clear_leftovers(commit.directory, None, (), disk=disk)
    assert not commit.directory.exists()
    clear_leftovers(commit.directory, None, (), disk=disk)


def test_what_somebody_reads_is_not_cleared_away(commit: Commit, disk: FaultDisk) -> None:
    make_durable(commit, disk=disk, used_at=None)
    (segment,) = commit.manifest.segments
    (commit.directory / "left-over").write_bytes(b"x")
    empty = plan_commit(
        key=KEY, directory=commit.directory, base=None, refs=heads(main=b"a"), intake=Intake()
    )
    make_durable(empty, disk=disk, used_at=None)
    clear_leftovers(commit.directory, None, [segment], disk=disk)
    assert all(path.exists() for path in segment.files)
    assert not (commit.directory / "left-over").exists()
    clear_leftovers(commit.directory, None, (), disk=disk)
    assert not any(path.exists() for path in segment.files)


def test_a_disk_that_refuses_to_clear_is_only_logged(
    commit: Commit, disk: FaultDisk, caplog: pytest.LogCaptureFixture
) -> None:
    make_durable(commit, disk=disk, used_at=None)
    (commit.directory / "left-over").write_bytes(b"x")
    disk.refuse(lambda step: step.startswith("remove"))
    clear_leftovers(commit.directory, None, (), disk=disk)
    assert "stay until the next" in caplog.text

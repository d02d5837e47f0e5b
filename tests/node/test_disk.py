"""Disk on a real file system; what a power cut would do to it is test_mirror_crash.py's."""

from collections.abc import Callable
from pathlib import Path

import pytest

from goblet_node.errors import DiskFailed, MirrorDamaged
from goblet_node.mirror.disk import Disk, read_file
from goblet_testing.faults import FaultDisk


def test_what_was_written_new_can_be_read(tmp_path: Path) -> None:
    """Empty content included, and what was there before is replaced."""
    disk = Disk()
    for content in (b"much", b""):
        disk.write_new(tmp_path / "file", content)
        assert read_file(tmp_path / "file") == content


def test_publish_moves_and_replaces(tmp_path: Path) -> None:
    disk = Disk()
    (tmp_path / "elsewhere").mkdir()
    disk.write_new(tmp_path / "elsewhere" / "new", b"new")
    disk.write_new(tmp_path / "file", b"old")
    disk.publish(tmp_path / "elsewhere" / "new", tmp_path / "file")
    assert read_file(tmp_path / "file") == b"new"
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_file_is_dated(tmp_path: Path) -> None:
    Disk().write(tmp_path / "file", b"")
    Disk().date(tmp_path / "file", 1000.5)
    assert (tmp_path / "file").stat().st_mtime == 1000.5
    with pytest.raises(DiskFailed, match="refused to date 'nothing'"):
        Disk().date(tmp_path / "nothing", 0.0)


def test_directories_are_made_with_all_above_them_and_removed_with_all_below(
    tmp_path: Path,
) -> None:
    disk = Disk()
    disk.make_directory(tmp_path / "a" / "b" / "c")
    disk.make_directory(tmp_path / "a" / "b" / "c")
    disk.write(tmp_path / "a" / "b" / "file", b"")
    disk.remove_tree(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_removing_a_file_that_is_not_there_is_no_failure(tmp_path: Path) -> None:
    Disk().remove_file(tmp_path / "nothing")


def test_the_syncs_reach_the_kernel() -> None:
    """fsync of a device or of a directory of /proc fails: whoever sees that has called it."""
    with pytest.raises(DiskFailed, match="refused to sync 'null'"):
        Disk().sync_file(Path("/dev/null"))
    with pytest.raises(DiskFailed, match="refused to sync 'proc'"):
        Disk().sync_directory(Path("/proc"))


def test_what_the_operating_system_refuses_is_one_sentence_without_the_place(
    tmp_path: Path,
) -> None:
    """Among them a disk that is really full."""
    disk, nowhere = Disk(), tmp_path / "nowhere" / "file"
    with pytest.raises(DiskFailed, match="No space left on device") as full:
        disk.write(Path("/dev/full"), b"content")
    assert full.value.status == 507
    acts: list[Callable[[], None]] = [
        lambda: disk.write_new(nowhere, b""),
        lambda: disk.sync_file(nowhere),
        lambda: disk.sync_directory(nowhere),
        lambda: disk.rename(nowhere, tmp_path / "file"),
        lambda: disk.create_directory(nowhere),
        lambda: disk.remove_tree(nowhere),
        lambda: disk.remove_file(tmp_path),
    ]
    for act in acts:
        with pytest.raises(DiskFailed, match="try again") as refused:
            act()
        assert str(tmp_path) not in str(refused.value)


def test_the_order_of_steps_is_what_a_power_cut_demands(tmp_path: Path) -> None:
    """Content before its name; the new name before the old one is durably gone; parents too."""
    root, limbo = tmp_path / "root", tmp_path / "limbo"
    (limbo).mkdir()
    root.mkdir()
    disk = FaultDisk(limbo)
    disk.make_directory(root / "a" / "b")
    disk.write_new(root / "a" / "new", b"")
    disk.publish(root / "a" / "new", root / "a" / "b" / "file")
    disk.publish(root / "a" / "b" / "file", root / "a" / "b" / "final")
    assert disk.steps == [
        *("create a", "sync directory root", "create b", "sync directory a"),
        *("write new", "sync new"),
        *("rename new to file", "sync directory b", "sync directory a"),
        *("rename file to final", "sync directory b"),
    ]


def test_a_file_that_is_missing_is_damage_and_one_that_may_not_be_read_is_not(
    tmp_path: Path,
) -> None:
    """A wrong owner of the cache directory must not make a node drop every mirror."""
    with pytest.raises(MirrorDamaged, match="'nothing' is missing"):
        read_file(tmp_path / "nothing")
    with pytest.raises(DiskFailed, match="cannot be read"):
        read_file(tmp_path)


def test_sectors_that_cannot_be_read_are_damage() -> None:
    """This process's memory at address 0 answers a read with EIO, as a bad sector does."""
    with pytest.raises(MirrorDamaged, match="cannot be read"):
        read_file(Path("/proc/self/mem"))

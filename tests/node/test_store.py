"""The store of mirrors: values that are swapped, on a root that is one process's own."""

import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from goblet_node.errors import DiskFailed, MirrorDamaged
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.intake import Intake
from goblet_node.mirror.layout import CacheRoot
from goblet_node.mirror.lock import CacheRootInUse
from goblet_node.mirror.manifest import decode_manifest, encode_manifest
from goblet_node.mirror.store import MirrorMoved, MirrorStore, NoSuchMirror, read_mirror
from goblet_shared.repo_key import RepoKey
from goblet_testing.mirrors import blob_id, grow, heads, take_blobs

ONE = RepoKey("example.org/one")
TWO = RepoKey("example.org/two")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def store(root: Path) -> Iterator[MirrorStore]:
    store = MirrorStore(root, disk=Disk())
    assert store.open() == ()
    yield store
    store.close()


def reopened(store: MirrorStore, root: Path) -> MirrorStore:
    store.close()
    again = MirrorStore(root, disk=Disk())
    assert again.open() == ()
    return again


def test_a_store_begins_empty(store: MirrorStore) -> None:
    assert store.get(ONE) is None
    assert store.keys() == ()


def test_what_was_committed_is_there_at_once_and_after_a_restart(
    store: MirrorStore, root: Path
) -> None:
    """The same, field by field, though the second is read from the disk."""
    grow(store, ONE, heads(main=b"a"), [b"a"])
    grow(store, TWO, heads(main=b"z"), [b"z"])
    second = grow(store, ONE, heads(main=b"b"), [b"b"])
    assert store.get(ONE) is second
    assert set(store.keys()) == {ONE, TWO}
    again = reopened(store, root)
    assert set(again.keys()) == {ONE, TWO}
    found = again.get(ONE)
    assert found is not None
    assert found is not second
    assert not found.is_loaded
    assert (found.segments, found.generations) == (second.segments, second.generations)
    assert found.refs == second.refs == heads(main=b"b")
    assert found.missing([blob_id(b"a"), blob_id(b"b")]) == []
    assert found.is_loaded
    again.close()


def test_a_reader_keeps_the_mirror_it_had(store: MirrorStore) -> None:
    """Commits make new values: nothing changes under an answer that is being sent."""
    old = grow(store, ONE, heads(main=b"a"), [b"a"])
    grow(store, ONE, heads(main=b"b"), [b"b"])
    assert old.refs == heads(main=b"a")
    assert len(old.segments) == len(old.generations) == 1
    assert not old.holds(blob_id(b"b"))


def test_a_log_that_did_not_grow_keeps_its_table(store: MirrorStore) -> None:
    first = grow(store, ONE, heads(main=b"a", side=b"b"), [b"a", b"b"])
    table = first.table
    assert grow(store, ONE, heads(main=b"a")).table is table
    assert grow(store, ONE, heads(main=b"c"), [b"c"]).table is not table


def test_a_commit_that_changes_nothing_is_none(store: MirrorStore) -> None:
    first = grow(store, ONE, heads(main=b"a"), [b"a"])
    manifest = (first.directory / "manifest.json").stat()
    assert grow(store, ONE, heads(main=b"a"), [b"a"]) is first
    assert (first.directory / "manifest.json").stat() == manifest


def test_a_pack_made_for_another_log_is_refused(store: MirrorStore, tmp_path: Path) -> None:
    """It would repeat objects, or its bases would be missing: both break every clone."""
    old = grow(store, ONE, heads(main=b"a"), [b"a"])
    intake = take_blobs(tmp_path, base=old, refs=heads(main=b"b"), contents=[b"b"])
    new = grow(store, ONE, heads(main=b"b"), [b"b"])
    for base in (old, None):
        with pytest.raises(MirrorMoved, match="has changed meanwhile"):
            store.commit(ONE, base=base, refs=heads(main=b"b"), intake=intake)
    store.drop(ONE)
    with pytest.raises(MirrorMoved):
        store.commit(ONE, base=new, refs=heads(main=b"b"), intake=intake)


class SlowDisk(Disk):
    """A disk whose first rename waits until it is let go."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def rename(self, source: Path, target: Path) -> None:
        self.reached.set()
        assert self.go_on.wait(10)
        super().rename(source, target)


def test_two_changes_of_one_mirror_never_overlap_but_others_go_on(root: Path) -> None:
    disk = SlowDisk()
    store = MirrorStore(root, disk=disk)
    store.open()
    thread = threading.Thread(target=grow, args=(store, ONE, heads(main=b"a"), [b"a"]))
    thread.start()
    try:
        assert disk.reached.wait(10)
        with pytest.raises(MirrorMoved, match="is being changed"):
            store.drop(ONE)
        with pytest.raises(MirrorMoved, match="is being changed"):
            store.commit(ONE, base=None, refs=(), intake=Intake())
        assert store.get(ONE) is None
        store.drop(TWO)
    finally:
        disk.go_on.set()
        thread.join()
    assert store.keys() == (ONE,)
    store.drop(ONE)
    store.close()


def test_a_dropped_mirror_is_gone_with_its_files_and_may_come_again(
    store: MirrorStore, root: Path
) -> None:
    mirror = grow(store, ONE, heads(main=b"a"), [b"a"])
    store.drop(ONE)
    store.drop(ONE)
    store.drop(TWO)
    assert store.get(ONE) is None
    assert not mirror.directory.exists()
    assert list(CacheRoot(root).scratch.iterdir()) == []
    assert grow(store, ONE, heads(main=b"b"), [b"b"]).current.number == 1


def test_an_open_file_of_a_dropped_mirror_is_read_to_its_end(store: MirrorStore) -> None:
    """A clone that is being answered is not cut."""
    mirror = grow(store, ONE, heads(main=b"a"), [b"a"])
    with mirror.segments[0].pack.open("rb") as pack:
        store.drop(ONE)
        assert len(pack.read()) == mirror.segments[0].bytes


def test_scratch_directories_are_apart_and_do_not_outlive_the_process(
    store: MirrorStore, root: Path
) -> None:
    one, other = store.new_scratch(), store.new_scratch()
    assert one != other
    (one / "received.pack").write_bytes(b"half a pack")
    store.discard_scratch(one)
    store.discard_scratch(one)
    assert not one.exists()
    assert other.exists()
    assert list(CacheRoot(root).scratch.iterdir()) == [other]
    reopened(store, root).close()
    assert not other.exists()


def test_a_lost_table_is_made_again_from_its_segment(
    store: MirrorStore, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """When it is asked for: a start does not wait for it."""
    grow(store, ONE, heads(main=b"a"), [b"a"])
    mirror = grow(store, ONE, heads(main=b"b"), [b"b", b"c"])
    tables = [segment.table.read_bytes() for segment in mirror.segments]
    mirror.segments[0].table.unlink()
    mirror.segments[1].table.write_bytes(b"damage")
    again = reopened(store, root)
    found = again.get(ONE)
    assert found is not None
    with caplog.at_level(logging.WARNING):
        assert found.missing([blob_id(b"a"), blob_id(b"b"), blob_id(b"c")]) == []
    assert [segment.table.read_bytes() for segment in mirror.segments] == tables
    assert len(caplog.messages) == 2
    assert list(CacheRoot(root).scratch.iterdir()) == []
    again.close()


def test_a_table_whose_segment_is_damaged_inside_is_damage(store: MirrorStore, root: Path) -> None:
    """Size and trailer are right, so a start does not see it; the table's making does."""
    mirror = grow(store, ONE, heads(main=b"a"), [b"a"])
    pack = mirror.segments[0].pack
    content = bytearray(pack.read_bytes())
    content[15] ^= 1
    pack.write_bytes(content)
    mirror.segments[0].table.unlink()
    again = reopened(store, root)
    found = again.get(ONE)
    assert found is not None
    with pytest.raises(MirrorDamaged):
        found.holds(blob_id(b"a"))
    assert list(CacheRoot(root).scratch.iterdir()) == []
    again.close()


def test_what_was_put_right_at_the_start_is_told_and_logged_once(
    store: MirrorStore, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = grow(store, ONE, heads(main=b"a"), [b"a"])
    grow(store, TWO, heads(main=b"z"), [b"z"])
    mirror.segments[0].pack.unlink()
    store.close()
    again = MirrorStore(root, disk=Disk())
    with caplog.at_level(logging.WARNING):
        (repair,) = again.open()
    assert again.keys() == (TWO,)
    assert len(caplog.messages) == 1
    assert repair.sentence in caplog.messages[0]
    again.close()


def test_what_is_not_ours_stays(store: MirrorStore, root: Path) -> None:
    """An operator's note, or `lost+found`: a cache root may be a disk of its own."""
    stranger = root / "mirrors" / "lost+found" / "note"
    stranger.parent.mkdir()
    stranger.write_text("mine")
    (root / "mirrors" / "file").write_text("mine")
    reopened(store, root).close()
    assert stranger.read_text() == "mine"


def test_a_root_that_cannot_be_made_is_one_sentence_and_leaves_no_lock(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskFailed):
        MirrorStore(tmp_path / "file" / "root", disk=Disk()).open()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "mirrors").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(DiskFailed, match="mirrors"):
            MirrorStore(tmp_path / "root", disk=Disk()).open()


def test_a_second_process_may_read_but_not_open(store: MirrorStore, root: Path) -> None:
    mirror = grow(store, ONE, heads(main=b"a"), [b"a"])
    with pytest.raises(CacheRootInUse):
        MirrorStore(root, disk=Disk()).open()
    seen = read_mirror(root, ONE)
    assert (seen.segments, seen.refs) == (mirror.segments, mirror.refs)
    assert seen.holds(blob_id(b"a"))
    with pytest.raises(NoSuchMirror, match=r"holds no mirror of 'example\.org/two'"):
        read_mirror(root, TWO)


def test_a_reader_meets_damage_and_mends_nothing(store: MirrorStore, root: Path) -> None:
    mirror = grow(store, ONE, heads(main=b"a"), [b"a"])
    mirror.segments[0].table.unlink()
    seen = read_mirror(root, ONE)
    with pytest.raises(MirrorDamaged):
        seen.holds(blob_id(b"a"))
    assert not mirror.segments[0].table.exists()
    mirror.segments[0].pack.write_bytes(b"")
    with pytest.raises(MirrorDamaged):
        read_mirror(root, ONE)
    assert mirror.directory.exists()


@pytest.mark.slow
def test_a_thousand_mirrors_open_without_tables_or_open_files(
    store: MirrorStore, root: Path
) -> None:
    """Measured 0.26 s; the bound leaves room for a busy machine."""
    place = CacheRoot(root)
    mirror = grow(store, ONE, heads(main=b"a"), [b"a"])
    for number in range(1000):
        key = RepoKey(f"example.org/{number}")
        copied = Path(shutil.copytree(mirror.directory, place.directory_of(key)))
        manifest = copied / "manifest.json"
        manifest.write_bytes(renamed(manifest.read_bytes(), key))
    store.close()
    before = len(os.listdir("/proc/self/fd"))
    started = time.process_time()
    again = MirrorStore(root, disk=Disk())
    again.open()
    print(f"opened in {time.process_time() - started:.3f} s")
    assert time.process_time() - started < 3
    assert len(again.keys()) == 1001
    assert len(os.listdir("/proc/self/fd")) == before + 1
    mirrors = [again.get(key) for key in again.keys()]  # noqa: SIM118
    assert not any(found is None or found.lazy_table.is_loaded for found in mirrors)
    again.close()


def renamed(content: bytes, key: RepoKey) -> bytes:
    """Return the manifest of an equal mirror of another repository."""
    return encode_manifest(replace(decode_manifest(content, Path("unused")), key=key))

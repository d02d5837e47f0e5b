"""The store of mirrors: values that are swapped, on a root that is one process's own."""

import logging
import os
import shutil
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from goblet_node.errors import DiskFailed, MirrorDamaged
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.intake import Intake
from goblet_node.mirror.layout import CacheRoot
from goblet_node.mirror.lock import CacheRootInUse
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.manifest import decode_manifest, encode_manifest
from goblet_node.mirror.merge import JoinJob, join_segments
from goblet_node.mirror.store import MirrorMoved, MirrorStore
from goblet_shared.repo_key import RepoKey
from goblet_testing.faults import FaultDisk, Kind
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
    assert not found.lazy_refs.is_loaded
    assert not found.lazy_table.is_loaded
    assert (found.segments, found.generations) == (second.segments, second.generations)
    assert found.refs == second.refs == heads(main=b"b")
    assert found.missing([blob_id(b"a"), blob_id(b"b")]) == []
    again.close()


def test_a_reader_keeps_the_mirror_it_had(store: MirrorStore) -> None:
    """Commits make new values: nothing changes under an answer that is being sent."""
    old = grow(store, ONE, heads(main=b"a"), [b"a"])
    grow(store, ONE, heads(main=b"b"), [b"b"])
    assert old.refs == heads(main=b"a")
    assert len(old.segments) == len(old.generations) == 1
    assert old.missing([blob_id(b"b")]) == [blob_id(b"b")]


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
    refused: list[MirrorMoved] = []

    def commit_too() -> None:
        try:
            store.commit(ONE, base=None, refs=(), intake=Intake())
        except MirrorMoved as exc:
            refused.append(exc)

    first = threading.Thread(target=grow, args=(store, ONE, heads(main=b"a"), [b"a"]))
    second = threading.Thread(target=commit_too)
    first.start()
    try:
        assert disk.reached.wait(10)
        second.start()
        assert store.get(ONE) is None
        assert store.is_in_use(ONE)
        assert not store.is_in_use(TWO)
        store.drop(TWO)
        assert not refused
    finally:
        disk.go_on.set()
        first.join()
        second.join()
    assert store.keys() == (ONE,)
    assert len(refused) == 1
    assert not store.is_in_use(ONE)
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
        found.missing([blob_id(b"a")])
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


def test_a_second_process_may_not_open(store: MirrorStore, root: Path) -> None:
    with pytest.raises(CacheRootInUse):
        MirrorStore(root, disk=Disk()).open()


def three_segments(store: MirrorStore) -> Mirror:
    for content in (b"a", b"b", b"c"):
        mirror = grow(store, ONE, heads(main=content), [content])
    return mirror


def join(store: MirrorStore, mirror: Mirror, first: int, last: int) -> Mirror:
    """Join segments as a worker does, and put the new one in their place."""
    scratch = store.new_scratch()
    joined = join_segments(JoinJob(segments=mirror.files[first:last], scratch=scratch))
    try:
        return store.replace(mirror, first, last, joined)
    finally:
        store.discard_scratch(scratch)


def renew(store: MirrorStore, mirror: Mirror, contents: Sequence[bytes]) -> Mirror:
    """Put a log of these blobs in the place of a mirror's."""
    scratch = store.new_scratch()
    renewed = take_blobs(scratch, base=None, refs=(), contents=contents)
    try:
        return store.renew(mirror, renewed)
    finally:
        store.discard_scratch(scratch)


def files_of(mirror: Mirror) -> set[Path]:
    return {path for files in mirror.files for path in files}


def on_disk(mirror: Mirror) -> set[Path]:
    return {path for path in mirror.directory.iterdir() if path.name.startswith("seg-")}


def test_joined_segments_are_the_same_log(store: MirrorStore, root: Path) -> None:
    mirror = three_segments(store)
    places = [mirror.table.row(blob_id(content)) for content in (b"a", b"b", b"c")]
    joined = join(store, mirror, 0, 2)
    assert store.get(ONE) is joined
    assert joined.generations == mirror.generations
    assert joined.refs == mirror.refs
    assert [segment.number for segment in joined.segments] == [1, 3]
    assert [joined.table.row(blob_id(content)) for content in (b"a", b"b", b"c")] == places
    assert on_disk(joined) == files_of(joined)
    grown = grow(store, ONE, heads(main=b"d"), [b"d"])
    assert [segment.number for segment in grown.segments] == [1, 3, 4]
    again = reopened(store, root)
    found = again.get(ONE)
    assert found is not None
    assert found.segments == grown.segments
    again.close()


def test_segments_are_joined_though_the_log_grew_meanwhile(store: MirrorStore) -> None:
    mirror = three_segments(store)
    grow(store, ONE, heads(main=b"d"), [b"d"])
    joined = join(store, mirror, 1, 3)
    assert [segment.objects for segment in joined.segments] == [1, 2, 1]
    assert joined.refs == heads(main=b"d")
    assert joined.missing([blob_id(content) for content in (b"a", b"b", b"c", b"d")]) == []


def test_a_pack_is_taken_in_though_the_segments_were_joined_meanwhile(
    store: MirrorStore, tmp_path: Path
) -> None:
    """A push must not fail because the node was tidying up."""
    mirror = three_segments(store)
    intake = take_blobs(tmp_path, base=mirror, refs=heads(main=b"d"), contents=[b"d"])
    join(store, mirror, 0, 3)
    grown = store.commit(ONE, base=mirror, refs=heads(main=b"d"), intake=intake)
    assert [segment.objects for segment in grown.segments] == [3, 1]
    assert grown.missing([blob_id(content) for content in (b"a", b"b", b"c", b"d")]) == []


def test_what_was_made_for_a_log_that_is_gone_is_refused(
    store: MirrorStore, tmp_path: Path
) -> None:
    """The log that came next may have the same objects, in another order."""
    mirror = three_segments(store)
    scratch = tmp_path / "joined"
    scratch.mkdir()
    joined = join_segments(JoinJob(segments=mirror.files, scratch=scratch))
    intake = take_blobs(tmp_path, base=mirror, refs=heads(main=b"d"), contents=[b"d"])
    renewed = renew(store, mirror, [b"c"])
    with pytest.raises(MirrorMoved):
        store.replace(mirror, 0, 3, joined)
    with pytest.raises(MirrorMoved):
        store.commit(ONE, base=mirror, refs=heads(main=b"d"), intake=intake)
    with pytest.raises(MirrorMoved):
        store.renew(mirror, intake)
    assert store.get(ONE) is renewed
    store.drop(ONE)
    with pytest.raises(MirrorMoved):
        store.replace(renewed, 0, 1, joined)


def test_a_renewed_log_is_clean_and_forgets_what_came_before(
    store: MirrorStore, root: Path
) -> None:
    mirror = three_segments(store)
    assert not mirror.current.is_clean
    renewed = renew(store, mirror, [b"c"])
    assert renewed.refs == mirror.refs
    assert renewed.missing([blob_id(b"a"), blob_id(b"c")]) == [blob_id(b"a")]
    (generation,) = renewed.generations
    assert generation.is_clean
    assert generation.number == mirror.current.number + 1
    assert not renewed.grew_from(mirror)
    assert on_disk(renewed) == files_of(renewed)
    again = reopened(store, root)
    found = again.get(ONE)
    assert found is not None
    assert found.generations == renewed.generations
    again.close()


def test_a_damaged_log_does_not_take_its_renewal_with_it(store: MirrorStore) -> None:
    mirror = three_segments(store)
    renewed = renew(store, mirror, [b"c"])
    store.drop(ONE, only=mirror)
    assert store.get(ONE) is renewed
    store.drop(ONE, only=renewed)
    assert store.get(ONE) is None


def test_joined_segments_stay_until_nobody_reads_them(store: MirrorStore) -> None:
    """And are counted until then."""
    mirror = three_segments(store)
    before = store.total_bytes
    with store.reading(mirror):
        joined = join(store, mirror, 0, 3)
        assert files_of(mirror) | files_of(joined) == on_disk(joined)
        store.sweep()
        grown = grow(store, ONE, heads(main=b"d"), [b"d"])
        assert files_of(mirror) <= on_disk(grown)
        assert store.total_bytes > 2 * mirror.bytes
        with store.reading(mirror):
            pass
    store.sweep()
    assert on_disk(grown) == files_of(grown)
    assert before < store.total_bytes < 2 * before
    with pytest.raises(MirrorMoved), store.reading(mirror):
        pytest.fail("its files are gone")


def test_what_a_restart_would_find_is_not_swept_away(root: Path, tmp_path: Path) -> None:
    """A commit failed in its last step: memory has the old mirror, and the disk the new one."""
    (tmp_path / "limbo").mkdir()
    disk = FaultDisk(tmp_path / "limbo")
    store = MirrorStore(root, disk=disk)
    store.open()
    mirror = three_segments(store)
    with store.reading(mirror):
        join(store, mirror, 0, 3)
        disk.fail_next("rename manifest.json.new to manifest.json", Kind.REFUSED_AFTER)
        with pytest.raises(DiskFailed):
            grow(store, ONE, heads(main=b"d"), [b"d"])
    store.sweep()
    assert not any(path.exists() for path in files_of(mirror))
    store.close()
    again = MirrorStore(root, disk=Disk())
    again.open()
    found = again.get(ONE)
    assert found is not None
    assert found.refs == heads(main=b"d")
    again.close()


def test_sweeping_what_somebody_has_deleted_is_no_error(store: MirrorStore) -> None:
    """It is done by nobody's request: what it raised would end the node."""
    mirror = three_segments(store)
    with store.reading(mirror):
        join(store, mirror, 0, 3)
    shutil.rmtree(mirror.directory)
    store.sweep()
    assert store.total_bytes == store.sizes()[ONE]


def test_of_a_log_that_grows_only_the_newest_table_is_in_memory(store: MirrorStore) -> None:
    old = grow(store, ONE, heads(main=b"a"), [b"a"])
    table = weakref.ref(old.table)
    new = grow(store, ONE, heads(main=b"b"), [b"b"])
    del old
    assert new.missing([blob_id(b"a"), blob_id(b"b")]) == []
    assert table() is None


def test_an_old_mirror_whose_segments_are_still_there_is_read(store: MirrorStore) -> None:
    """Growth takes nothing away."""
    first = grow(store, ONE, heads(main=b"a"), [b"a"])
    grow(store, ONE, heads(main=b"b"), [b"b"])
    with store.reading(first) as found:
        assert found is first
        assert store.is_in_use(ONE)
        assert not store.is_in_use(TWO)
    assert not store.is_in_use(ONE)


def test_a_mirror_is_evicted_unless_somebody_uses_it_or_it_changed(
    store: MirrorStore, root: Path
) -> None:
    grow(store, TWO, heads(main=b"z"), [b"z"])
    old = grow(store, ONE, heads(main=b"a"), [b"a"])
    mirror = grow(store, ONE, heads(main=b"b"), [b"b"])
    with store.reading(old):
        assert store.evict(ONE, only=mirror) == 0
    assert store.evict(ONE, only=old) == 0
    assert store.get(ONE) is mirror
    size = store.sizes()[ONE]
    assert size == sum(path.stat().st_size for path in mirror.directory.iterdir())
    assert store.evict(ONE, only=mirror) == size
    assert store.get(ONE) is None
    assert not mirror.directory.exists()
    assert list(CacheRoot(root).scratch.iterdir()) == []
    assert store.total_bytes == store.sizes()[TWO]
    assert store.evict(ONE, only=mirror) == 0
    with pytest.raises(MirrorMoved), store.reading(mirror):
        pytest.fail("it is gone")
    with store.reading(grow(store, ONE, heads(main=b"a"), [b"a"])):
        pass


def test_a_mirror_that_the_disk_does_not_let_go_of_stays(root: Path, tmp_path: Path) -> None:
    (tmp_path / "limbo").mkdir()
    disk = FaultDisk(tmp_path / "limbo")
    store = MirrorStore(root, disk=disk)
    store.open()
    mirror = grow(store, ONE, heads(main=b"a"), [b"a"])
    size = store.sizes()[ONE]
    scratch = CacheRoot(root).scratch
    disk.refuse(lambda step: step.startswith(f"rename {mirror.directory.name} to dropped-"))
    with pytest.raises(DiskFailed):
        store.evict(ONE, only=mirror)
    assert store.get(ONE) is mirror
    assert store.sizes() == {ONE: size}
    assert list(scratch.iterdir()) == []
    with store.reading(mirror):
        pass
    store.close()


def test_uses_are_known_after_a_restart(store: MirrorStore, root: Path) -> None:
    """Not to the second; and what the node does to a mirror by itself is no use of it."""
    first = three_segments(store)
    grow(store, TWO, heads(main=b"z"), [b"z"])
    manifest = first.directory / "manifest.json"
    os.utime(manifest, (1000.0, 1000.0))
    store = reopened(store, root)
    assert store.used_at(ONE) == 1000.0
    found = store.get(ONE)
    assert found is not None
    renew(store, join(store, found, 0, 2), [b"c"])
    assert store.used_at(ONE) == 1000.0
    store.note_uses()
    assert manifest.stat().st_mtime == 1000.0
    store.touch(ONE)
    used_at = store.used_at(ONE)
    assert abs(used_at - time.time()) < 60
    store.note_uses()
    store = reopened(store, root)
    assert store.used_at(ONE) == pytest.approx(used_at)
    assert store.used_at(RepoKey("example.org/three")) == 0
    store.close()


def test_sizes_are_right_again_after_a_restart(store: MirrorStore, root: Path) -> None:
    join(store, three_segments(store), 0, 2)
    grow(store, TWO, heads(main=b"z"), [b"z"])
    sizes, total = store.sizes(), store.total_bytes
    assert set(sizes) == {ONE, TWO}
    assert total == sum(sizes.values())
    again = reopened(store, root)
    assert again.sizes() == sizes
    assert again.total_bytes == total
    again.close()


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

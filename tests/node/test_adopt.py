"""A mirror that was copied from another node is checked byte for byte, and appears whole."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from goblet_node.errors import DiskFailed, MirrorDamaged
from goblet_node.mirror.adopt import check_log, check_pack, described
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.links import Links, write_part
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.manifest import Manifest, encode_manifest
from goblet_node.mirror.store import MirrorMoved, MirrorStore
from goblet_node.mirror.table import ENTRY, Table, write_table
from goblet_node.mirror.view import manifest_of
from goblet_node.wire.refs import ObjectId
from goblet_shared.repo_key import RepoKey
from goblet_testing.faults import Fault, FaultDisk, Kind, PowerCut
from goblet_testing.mirrors import grow, heads

KEY = RepoKey("origin.test/org/repo")
PADDING = range(52, 64)
"""Bytes of a links file that mean nothing, and that nobody reads."""
KINDS = [Kind.REFUSED, Kind.REFUSED_AFTER, Kind.CUT_BEFORE, Kind.CUT_AFTER]


class Parcel:
    """What is copied of a mirror: its manifest, its refs file, and the files of its log."""

    def __init__(self, source: Mirror, directory: Path) -> None:
        self.directory = directory
        self.manifest = encode_manifest(manifest_of(source))
        self.refs = (source.directory / source.current.refs_file).read_bytes()
        directory.mkdir()
        for files in source.files:
            for path in files:
                shutil.copy(path, directory)

    def checked(self) -> Manifest:
        """Check all of it, as whoever copied it does."""
        manifest = described(self.manifest, self.refs, key=KEY, directory=self.directory)
        for segment in manifest.segments:
            check_pack(segment)
        return check_log(manifest, self.refs)


@pytest.fixture
def source(tmp_path: Path) -> Mirror:
    """A mirror of two segments and three generations, the last of which has an orphan."""
    store = MirrorStore(tmp_path / "source", disk=Disk())
    store.open()
    grow(store, KEY, heads(main=b"a", side=b"b"), [b"a", b"b"])
    grow(store, KEY, heads(main=b"c", side=b"b"), [b"c"])
    mirror = grow(store, KEY, heads(main=b"c"))
    store.close()
    return mirror


@pytest.fixture
def parcel(source: Mirror, tmp_path: Path) -> Parcel:
    return Parcel(source, tmp_path / "parcel")


def own_store(tmp_path: Path, disk: Disk | None = None) -> MirrorStore:
    store = MirrorStore(tmp_path / "own", disk=disk or Disk())
    store.open()
    return store


def test_what_was_copied_well_is_the_mirror_that_it_was(
    source: Mirror, parcel: Parcel, tmp_path: Path
) -> None:
    store = own_store(tmp_path)
    mirror = store.adopt(parcel.checked(), parcel.refs)
    assert store.get(KEY) is mirror
    assert mirror.generations == source.generations
    assert mirror.refs == source.refs
    assert [path.name for path in mirror.files[1]] == [path.name for path in source.files[1]]
    assert {path.parent for files in mirror.files for path in files} == {mirror.directory}
    assert mirror.missing([ref.oid for ref in source.refs if ref.oid]) == []
    assert store.sizes()[KEY] >= mirror.bytes
    assert list(parcel.directory.iterdir()) == []
    grown = grow(store, KEY, heads(main=b"d"), [b"d"])
    assert grown.grew_from(mirror)
    assert grown.current.number == source.current.number + 1
    store.close()


def test_any_byte_that_is_not_what_was_written_is_found(parcel: Parcel) -> None:
    assert parcel.checked().key == KEY
    for path in sorted(parcel.directory.iterdir()):
        content = path.read_bytes()
        for at in range(0, len(content), max(1, len(content) // 40)):
            if path.suffix == ".links" and at in PADDING:
                continue
            path.write_bytes(content[:at] + bytes([content[at] ^ 0x20]) + content[at + 1 :])
            with pytest.raises(MirrorDamaged):
                parcel.checked()
        for length in (0, 10, len(content) - 1, len(content) + 1):
            path.write_bytes((content + b"\0")[:length])
            with pytest.raises(MirrorDamaged):
                parcel.checked()
        path.write_bytes(content)
    for name in ("manifest", "refs"):
        content = getattr(parcel, name)
        for at in range(0, len(content) - 1, 7):
            setattr(parcel, name, content[:at] + bytes([content[at] ^ 0x20]) + content[at + 1 :])
            with pytest.raises(MirrorDamaged):
                parcel.checked()
        setattr(parcel, name, content)
    parcel.checked()


def _of_another(manifest: Manifest) -> Manifest:
    return replace(manifest, key=RepoKey("origin.test/org/other"))


def _out_of_order(manifest: Manifest) -> Manifest:
    return replace(manifest, generations=(manifest.generations[1], *manifest.generations[1:]))


def _negative(manifest: Manifest) -> Manifest:
    first, *others = manifest.segments
    return replace(manifest, segments=(replace(first, number=-1), *others))


def _within_an_object(manifest: Manifest) -> Manifest:
    first, *others = manifest.generations
    return replace(manifest, generations=(replace(first, bytes=first.bytes - 1), *others))


def _beyond_its_end(manifest: Manifest) -> Manifest:
    first, *others = manifest.generations
    return replace(manifest, generations=(replace(first, objects=10), *others))


def _strange_orphan(manifest: Manifest) -> Manifest:
    last = replace(manifest.generations[-1], orphans=(ObjectId(b"0" * 39 + b"1"),))
    return replace(manifest, generations=(*manifest.generations[:-1], last))


def _no_id(manifest: Manifest) -> Manifest:
    last = replace(manifest.generations[-1], orphans=(ObjectId(b"main"),))
    return replace(manifest, generations=(*manifest.generations[:-1], last))


def _more_objects(manifest: Manifest) -> Manifest:
    """Move an object from one segment to the other, so that the sums are right still."""
    first, second = manifest.segments
    moved = (
        replace(first, objects=first.objects + 1),
        replace(second, objects=second.objects - 1),
    )
    return replace(manifest, segments=moved)


@pytest.mark.parametrize(
    "lie",
    [
        _of_another,
        _out_of_order,
        _negative,
        _within_an_object,
        _beyond_its_end,
        _strange_orphan,
        _no_id,
        _more_objects,
    ],
)
def test_a_manifest_that_is_sealed_and_makes_no_sense_is_refused(
    lie: Callable[[Manifest], Manifest], source: Mirror, parcel: Parcel
) -> None:
    parcel.manifest = encode_manifest(lie(manifest_of(source)))
    with pytest.raises(MirrorDamaged):
        parcel.checked()


def test_a_manifest_that_is_sealed_and_has_numbers_for_ids_is_refused(
    source: Mirror, parcel: Parcel
) -> None:
    sealed = json.loads(encode_manifest(manifest_of(source)))
    sealed["mirror"]["generations"][-1]["orphans"] = [5]
    as_written = json.dumps(sealed["mirror"], sort_keys=True, separators=(",", ":")).encode()
    sealed["checksum"] = hashlib.sha256(as_written).hexdigest()
    parcel.manifest = json.dumps(sealed).encode()
    with pytest.raises(MirrorDamaged, match="cannot be understood"):
        parcel.checked()


def test_refs_that_name_what_the_log_lacks_are_refused(tmp_path: Path, parcel: Parcel) -> None:
    store = MirrorStore(tmp_path / "other", disk=Disk())
    store.open()
    other = Parcel(grow(store, KEY, heads(main=b"z"), [b"z"]), tmp_path / "z")
    store.close()
    manifest = described(parcel.manifest, parcel.refs, key=KEY, directory=parcel.directory)
    with pytest.raises(MirrorDamaged, match="which its refs name"):
        check_log(manifest, other.refs)
    parcel.refs = other.refs
    with pytest.raises(MirrorDamaged, match="not those of the current generation"):
        parcel.checked()


def test_a_table_that_is_whole_and_does_not_fit_its_pack_is_refused(parcel: Parcel) -> None:
    path = next(parcel.directory.glob("seg-000001-*.table"))
    table = Table.load([path])
    entries = np.zeros(len(table), dtype=ENTRY)
    for name in ENTRY.names or ():
        entries[name] = table.column(name)
    entries["length"][0] += 1
    write_table(path, entries, table.checksums[0])
    with pytest.raises(MirrorDamaged, match="does not fit"):
        parcel.checked()


@pytest.mark.parametrize("what", ["bases", "targets", "starts"])
def test_links_that_are_whole_and_lead_nowhere_are_refused(what: str, parcel: Parcel) -> None:
    path = next(parcel.directory.glob("seg-000001-*.links"))
    links = Links.load([path])
    bases, starts, counts = links.bases.copy(), links.entries.starts, links.entries.counts.copy()
    targets = np.zeros(1, dtype=np.uint32)
    if what == "bases":
        bases[0] = 3
    elif what == "targets":
        targets[0] = 3
    else:
        counts[0] = 2
    write_part(
        path,
        entries=replace(links.entries, starts=starts, counts=counts),
        committed=links.committed,
        bases=bases,
        bundles=links.bundles,
        targets=[targets],
        checksum=links.checksums[0],
    )
    with pytest.raises(MirrorDamaged, match="lead to what is not there"):
        parcel.checked()


def test_what_lies_beside_a_pack_may_be_of_another_size_than_the_manifest_has(
    source: Mirror, parcel: Parcel, tmp_path: Path
) -> None:
    """It may have been made anew where it comes from."""
    said = manifest_of(source)
    segments = tuple(replace(segment, beside=1) for segment in said.segments)
    parcel.manifest = encode_manifest(replace(said, segments=segments))
    store = own_store(tmp_path)
    mirror = store.adopt(parcel.checked(), parcel.refs)
    assert mirror.segments[0].beside == source.segments[0].beside
    store.close()


def test_a_repository_that_has_a_mirror_by_now_keeps_it(parcel: Parcel, tmp_path: Path) -> None:
    store = own_store(tmp_path)
    mine = grow(store, KEY, heads(main=b"z"), [b"z"])
    with pytest.raises(MirrorMoved):
        store.adopt(parcel.checked(), parcel.refs)
    assert store.get(KEY) is mine
    assert len(list(mine.directory.iterdir())) == 5
    store.close()


@pytest.mark.parametrize("kind", KINDS)
def test_whenever_the_disk_or_the_power_fails_it_is_there_whole_or_not_at_all(
    kind: Kind, source: Mirror, tmp_path: Path
) -> None:
    is_over, step = False, 0
    found: set[bool] = set()
    while not is_over:
        place = tmp_path / f"{kind.name}-{step}"
        place.mkdir()
        (place / "limbo").mkdir()
        quiet = FaultDisk(place / "limbo")
        store = MirrorStore(place / "root", disk=quiet)
        store.open()
        before = len(quiet.steps)
        quiet._fault = Fault(step=before + step, kind=kind)
        parcel = Parcel(source, store.scratch_name())
        try:
            store.adopt(parcel.checked(), parcel.refs)
            is_over = len(quiet.steps) <= before + step
        except DiskFailed:
            assert store.get(KEY) is None
        except PowerCut:
            quiet.cut_power(place / "root", random.Random(step))
        store.close()
        again = MirrorStore(place / "root", disk=Disk())
        again.open()
        mirror = again.get(KEY)
        found.add(mirror is not None)
        if mirror is not None:
            assert mirror.generations == source.generations
            assert mirror.refs == source.refs
            assert len(mirror.table) == len(source.table)
        again.close()
        step += 1
    assert step > 10
    assert found == {True, False}

"""A second process reads a mirror that a node goes on changing."""

from pathlib import Path

import pytest

from goblet_node.errors import MirrorDamaged
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.guest import NoSuchMirror, read_mirror, with_mirror
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.store import MirrorStore
from goblet_shared.repo_key import RepoKey
from goblet_testing.mirrors import blob_id, grow, heads

ONE, TWO = RepoKey("example.org/one"), RepoKey("example.org/two")


@pytest.fixture
def store(tmp_path: Path) -> MirrorStore:
    store = MirrorStore(tmp_path, disk=Disk())
    store.open()
    grow(store, ONE, heads(main=b"a"), [b"a"])
    return store


def test_a_guest_sees_what_was_committed(store: MirrorStore, tmp_path: Path) -> None:
    mirror = store.get(ONE)
    assert mirror is not None
    seen = read_mirror(tmp_path, ONE)
    assert (seen.segments, seen.refs) == (mirror.segments, mirror.refs)
    assert seen.missing([blob_id(b"a")]) == []
    with pytest.raises(NoSuchMirror, match=r"holds no mirror of 'example\.org/two'"):
        read_mirror(tmp_path, TWO)


def test_a_guest_meets_damage_and_mends_nothing(store: MirrorStore, tmp_path: Path) -> None:
    mirror = store.get(ONE)
    assert mirror is not None
    mirror.segments[0].table.unlink()
    with pytest.raises(MirrorDamaged):
        with_mirror(tmp_path, ONE, lambda seen: seen.table)
    assert not mirror.segments[0].table.exists()
    mirror.segments[0].pack.write_bytes(b"")
    with pytest.raises(MirrorDamaged):
        read_mirror(tmp_path, ONE)
    assert mirror.directory.exists()


def test_a_mirror_that_changed_under_its_guest_is_read_again(
    store: MirrorStore, tmp_path: Path
) -> None:
    seen: list[int] = []

    def use(mirror: Mirror) -> int:
        seen.append(mirror.current.number)
        if len(seen) < 3:
            store.drop(ONE)
            for content in ((b"b",), (b"c", b"d"))[len(seen) - 1]:
                grow(store, ONE, heads(main=content), [content])
        return len(mirror.table)

    assert with_mirror(tmp_path, ONE, use) == 2
    assert seen == [1, 1, 2]

"""links: what objects refer to, as places, is what they say themselves, however it is stored."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from goblet_node import objects
from goblet_node.errors import MirrorDamaged
from goblet_node.mirror.graph import Graph, reached
from goblet_node.mirror.links import (
    BUNDLE,
    NO_BASE,
    Links,
    Lists,
    checksum_of,
    join_parts,
    write_part,
)
from goblet_node.mirror.reader import LogReader
from goblet_node.wire.refs import ObjectId
from goblet_testing.histories import random_history
from goblet_testing.packs import GrownLog, Repo

CHECKSUM = bytes(range(20))


def entries_of(graph: Graph, place: int) -> list[ObjectId]:
    """Return what an object refers to, with bundles opened."""
    found: list[ObjectId] = []
    unread = [target for piece in graph.targets(np.array([place])) for target in piece.tolist()]
    while unread:
        target = unread.pop(0)
        if target >= BUNDLE:
            opened = graph.bundled(np.array([target - BUNDLE]))
            unread = [held for piece in opened for held in piece.tolist()] + unread
        else:
            found += graph.oids([target])
    return found


def assert_says_what_the_objects_say(log: GrownLog) -> None:
    graph = log.graph()
    with LogReader(log.packs(), log.table()) as reader:
        for place in range(len(graph)):
            kind, content = reader.get_raw(graph.table.oid(place))
            raw, committed = objects.raw_references(kind, content)
            expected = [objects.hex_id(raw[at : at + 20]) for at in range(0, len(raw), 20)]
            assert entries_of(graph, place) == expected
            assert graph.links.committed[place] == committed
    every = np.arange(len(graph))
    is_delta = np.isin(graph.table.column("kind"), list(objects.DELTA_KINDS))
    expected_bases = graph.table.find_raw(graph.table.column("base"))
    assert np.array_equal(graph.bases(every), np.where(is_delta, expected_bases, -1))
    assert is_delta.any()


def wide_log(folder: Path, *, versions: int = 6, files: int = 400) -> tuple[Repo, GrownLog]:
    """Make a log of two segments, in which a large tree changes one entry at a time."""
    origin, log = Repo.create(folder / "origin"), GrownLog(folder / "log")
    content = {f"file{number}": b"%d" % number for number in range(files)}
    for version in range(versions):
        content[f"file{version * 50}"] = b"changed"
        origin.commit("main", {**content, "folder/file": b"%d" % version})
        if version == versions // 2:
            log.fetch(origin)
    log.fetch(origin)
    return origin, log


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_every_object_refers_to_what_it_says(seed: int, tmp_path: Path) -> None:
    """In a log that grew, submodules and tags of tags and of blobs included."""
    history, log = random_history(tmp_path / "repo", seed), GrownLog(tmp_path / "log")
    log.fetch(history.repo)
    history.grow(8)
    log.fetch(history.repo)
    assert len(log.segments) == 2
    assert_says_what_the_objects_say(log)


def test_a_large_tree_refers_in_bundles_to_what_it_says(tmp_path: Path) -> None:
    """In order; in a later segment the bundles are numbered after those before."""
    origin, log = wide_log(tmp_path)
    assert_says_what_the_objects_say(log)
    graph = log.graph()
    assert graph.bundles > 0
    mask = reached(graph, graph.places(log.tips))
    assert set(graph.oids(np.flatnonzero(mask).tolist())) == origin.reachable()


def test_versions_of_a_large_tree_share_what_they_have_in_common(tmp_path: Path) -> None:
    """Sixty versions of a tree of 400 entries are not 24,000 targets."""
    origin, log = Repo.create(tmp_path / "origin"), GrownLog(tmp_path / "log")
    content = {f"file{number}": b"%d" % number for number in range(400)}
    for version in range(60):
        content[f"file{version}"] = b"changed"
        origin.commit("main", content)
    log.fetch(origin)
    assert len(log.graph().links.targets) < 60 * 400 / 4


def test_joined_segments_have_the_links_that_they_had(tmp_path: Path) -> None:
    _, log = wide_log(tmp_path)
    expected = Links.load(log.links())
    join_parts(log.links(), tmp_path / "joined.links", CHECKSUM)
    joined = Links.load([tmp_path / "joined.links"])
    assert joined.checksums == (CHECKSUM,)
    assert_equal(joined, expected)


def test_a_log_that_grew_has_the_links_of_one_that_is_loaded_anew(tmp_path: Path) -> None:
    """And what was read is not read again."""
    _, log = wide_log(tmp_path)
    expected = Links.load(log.links())
    earlier = Links.load(log.links()[:1])
    log.links()[0].unlink()
    grown = Links.load(log.links(), grown_from=earlier)
    assert grown.paths == expected.paths
    assert_equal(grown, expected)


def test_what_grew_from_another_log_is_read_whole(tmp_path: Path) -> None:
    _, log = wide_log(tmp_path)
    other = Links.load(log.links()[1:])
    assert_equal(Links.load(log.links(), grown_from=other), Links.load(log.links()))


def assert_equal(links: Links, other: Links) -> None:
    for left, right in ((links.entries, other.entries), (links.bundles, other.bundles)):
        assert np.array_equal(left.starts, right.starts)
        assert np.array_equal(left.counts, right.counts)
    assert np.array_equal(links.committed, other.committed)
    assert np.array_equal(links.bases, other.bases)
    assert np.array_equal(links.targets, other.targets)


def small_part(path: Path) -> Path:
    """Write links of two objects, one of which refers to the other through a bundle."""
    write_part(
        path,
        entries=Lists(starts=np.array([0, 0]), counts=np.array([1, 0], dtype=np.uint32)),
        committed=np.array([7, 0]),
        bases=np.array([NO_BASE, 0], dtype=np.uint32),
        bundles=Lists(starts=np.array([1]), counts=np.array([1], dtype=np.uint32)),
        targets=[np.array([BUNDLE], dtype=np.uint32), np.array([1], dtype=np.uint32)],
        checksum=CHECKSUM,
    )
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    links = Links.load([small_part(tmp_path / "links")])
    assert links.checksums == (CHECKSUM,)
    assert checksum_of(tmp_path / "links") == CHECKSUM
    assert links.committed.tolist() == [7, 0]
    assert links.bases.tolist() == [NO_BASE, 0]
    assert links.entries.counts.tolist() == [1, 0]
    assert links.targets.tolist() == [BUNDLE, 1]


def test_a_log_without_segments_has_no_links() -> None:
    links = Links.load([])
    assert (len(links.entries), len(links.targets), links.checksums) == (0, 0, ())


def test_every_changed_byte_is_found_out(tmp_path: Path) -> None:
    """Of content and header; the last bytes of the header are padding."""
    path = small_part(tmp_path / "links")
    content = path.read_bytes()
    for at in [*range(52 - 20), *range(64, len(content))]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(MirrorDamaged):
            Links.load([path])
        with pytest.raises(MirrorDamaged):
            checksum_of(path)


@pytest.mark.parametrize("size", [0, 10, 63, 64, -1])
def test_a_file_that_ends_too_early_is_damage(size: int, tmp_path: Path) -> None:
    path = small_part(tmp_path / "links")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(MirrorDamaged, match="links"):
        Links.load([path])
    with pytest.raises(MirrorDamaged, match="links"):
        checksum_of(path)


def test_a_file_that_is_gone_is_damage(tmp_path: Path) -> None:
    with pytest.raises(MirrorDamaged, match="missing"):
        Links.load([tmp_path / "links"])
    with pytest.raises(MirrorDamaged, match="missing"):
        checksum_of(tmp_path / "links")


def test_to_check_a_large_file_takes_no_memory_to_speak_of(tmp_path: Path) -> None:
    """The node does, for logs of any size."""
    path = tmp_path / "links"
    none = Lists(starts=np.zeros(0, dtype=np.int64), counts=np.zeros(0, dtype=np.uint32))
    write_part(
        path,
        entries=none,
        committed=none.starts,
        bases=none.counts,
        bundles=none,
        targets=[np.zeros(4 << 20, dtype=np.uint32)],
        checksum=CHECKSUM,
    )
    tracemalloc.start()
    try:
        assert checksum_of(path) == CHECKSUM
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_links_of_another_log_make_no_graph(tmp_path: Path) -> None:
    _, log = wide_log(tmp_path)
    with pytest.raises(MirrorDamaged, match="not those of its tables"):
        Graph(log.table(), Links.load([small_part(tmp_path / "links")]))

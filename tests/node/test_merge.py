"""Segments are joined before there are many, and no byte is written often."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.errors import DiskFailed, MirrorDamaged
from goblet_node.mirror.graph import Graph, reached
from goblet_node.mirror.intake import rebuild
from goblet_node.mirror.layout import SegmentFiles
from goblet_node.mirror.links import Links
from goblet_node.mirror.merge import LEFT_ALONE, JoinJob, join_segments, to_join
from goblet_node.mirror.reader import LogReader
from goblet_testing.packs import GrownLog, Repo, joined, strict_index

MB = 1 << 20
PLENTY = 1 << 60


@given(st.lists(st.integers(100, 1 << 34), max_size=400))
def test_a_log_has_few_segments_however_it_grows(pushes: list[int]) -> None:
    """Of 400 packs up to 16 GB each, well under what 50 files are: 16 segments of three."""
    sizes: list[int] = []
    for push in pushes:
        sizes.append(push)
        if (found := to_join(sizes, at_most=PLENTY)) is not None:
            assert found.stop == len(sizes)
            assert len(found) > 1
            sizes[found.start :] = [sum(sizes[found.start :])]
        assert len(sizes) <= LEFT_ALONE + 5
    assert sum(sizes) == sum(pushes)


@given(st.integers(1, 64), st.integers(50, 600))
def test_a_byte_is_written_again_only_so_many_times_as_the_log_doubles(
    megabytes: int, count: int
) -> None:
    """Pushes of one size are what makes the most work; each join makes a segment half as large."""
    sizes: list[int] = []
    written = 0
    for _ in range(count):
        sizes.append(megabytes * MB)
        if (found := to_join(sizes, at_most=PLENTY)) is not None:
            whole = sum(sizes[found.start :])
            written += whole
            sizes[found.start :] = [whole]
    total = megabytes * MB * count
    assert written <= total * (math.log(count, 1.5) + 1)


def test_segments_that_shrink_by_more_than_half_each_are_left_alone() -> None:
    assert to_join([MB * 3**n for n in range(20, 0, -1)][: LEFT_ALONE + 4], at_most=PLENTY) is None


def test_a_few_segments_are_left_alone() -> None:
    assert to_join([100] * LEFT_ALONE, at_most=PLENTY) is None
    assert to_join([], at_most=PLENTY) is None
    assert to_join([1 << 30, *[100] * LEFT_ALONE], at_most=PLENTY) == range(1, LEFT_ALONE + 1)


@given(st.lists(st.integers(1, 50 * MB), max_size=300), st.integers(60 * MB, 1 << 30))
def test_what_finds_no_room_does_not_keep_what_came_after_it_from_being_joined(
    pushes: list[int], at_most: int
) -> None:
    """As few segments as may be: of any two neighbours but the last few, one fills half."""
    sizes: list[int] = []
    for push in pushes:
        sizes.append(push)
        if (found := to_join(sizes, at_most=at_most)) is not None:
            assert sum(sizes[found.start :]) <= at_most
            sizes[found.start :] = [sum(sizes[found.start :])]
    assert len(sizes) <= 2 * (sum(pushes) // at_most + 1) + LEFT_ALONE + 5


def test_what_is_too_large_to_be_joined_with_anything_stays() -> None:
    assert to_join([MB] * 20, at_most=MB) is None
    assert to_join([MB] * 20, at_most=0) is None
    assert to_join([MB] * 20, at_most=3 * MB) == range(17, 20)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Repo:
    return Repo.create(tmp_path_factory.mktemp("merge") / "origin")


@pytest.fixture(scope="module")
def log(origin: Repo, tmp_path_factory: pytest.TempPathFactory) -> GrownLog:
    """Six segments with deltas across them, a branch that goes, and a tag."""
    log = GrownLog(tmp_path_factory.mktemp("log"))
    text = b"".join(b"line %d\n" % number for number in range(300))
    for number in range(6):
        text = text.replace(b"line %d\n" % (number * 9), b"changed %d\n" % number)
        files = {"text": text, **{f"dir/{n}": b"%d %d\n" % (n, number) for n in range(150)}}
        origin.commit("main", files)
        if number == 2:
            origin.commit("side", {"text": text + b"more\n"}, parent="main")
            origin.tag("v1", "refs/heads/main")
        log.fetch(origin)
    assert len(log.segments) == 6
    return log


def join(log: GrownLog, first: int, last: int, scratch: Path) -> list[SegmentFiles]:
    """Return the log with these segments joined."""
    scratch.mkdir()
    made = join_segments(JoinJob(segments=tuple(log.segments[first:last]), scratch=scratch))
    assert made.files is not None
    assert made.objects == sum(
        len(GrownLog(scratch, [f]).table()) for f in log.segments[first:last]
    )
    assert made.bytes == made.files.pack.stat().st_size
    assert made.checksum == made.files.pack.read_bytes()[-20:].hex()
    return [*log.segments[:first], made.files, *log.segments[last:]]


@pytest.mark.parametrize(("first", "last"), [(0, 6), (0, 2), (2, 5), (4, 6)])
def test_a_joined_log_is_the_same_log(
    log: GrownLog, origin: Repo, first: int, last: int, tmp_path: Path
) -> None:
    """Every object at its place, with its links; and every one reads as before."""
    again = GrownLog(tmp_path, join(log, first, last, tmp_path / "scratch"))
    assert again.concatenated() == log.concatenated()
    assert strict_index(again.concatenated(), tmp_path) == origin.reachable()
    before, after = log.table(), again.table()
    for name in ("oid", "base", "length", "size", "header", "type", "kind"):
        assert after.column(name).tobytes() == before.column(name).tobytes(), name
    one, other = Links.load(log.links()), Links.load(again.links())
    tips = before.find(origin.tips())
    assert (reached(Graph(after, other), tips) == reached(Graph(before, one), tips)).all()
    assert other.committed.tobytes() == one.committed.tobytes()
    assert other.bases.tobytes() == one.bases.tobytes()
    with LogReader(again.packs(), after) as reader, LogReader(log.packs(), before) as truth:
        for place in range(len(after)):
            assert reader.get_raw(after.oid(place)) == truth.get_raw(before.oid(place))


def test_a_joined_segment_is_indexed_again_to_the_same_places(
    log: GrownLog, origin: Repo, tmp_path: Path
) -> None:
    """Its table and links may be lost like any other's."""
    again = GrownLog(tmp_path, join(log, 1, 5, tmp_path / "scratch"))
    (tmp_path / "made").mkdir()
    made = rebuild(again.segments[:1], again.segments[1].pack, tmp_path / "made")
    assert made.table.read_bytes() == again.segments[1].table.read_bytes()
    again.segments[1] = made
    graph = Graph(again.table(), Links.load(again.links()))
    old = Graph(log.table(), Links.load(log.links()))
    tips = graph.places(origin.tips())
    assert (reached(graph, tips) == reached(old, tips)).all()


def test_a_log_grows_on_joined_segments(log: GrownLog, tmp_path: Path) -> None:
    origin = Repo.create(tmp_path / "origin")
    grown = GrownLog(tmp_path / "log")
    for number in range(4):
        origin.commit("main", {"file": b"line\n" * 50 + b"%d\n" % number})
        grown.fetch(origin)
        if number == 2:
            grown.segments = join(grown, 0, 3, tmp_path / "scratch")
    assert len(grown.segments) == 2
    assert strict_index(grown.concatenated(), tmp_path) == origin.reachable()


@pytest.mark.parametrize("ending", ["pack", "table", "links"])
@pytest.mark.parametrize("spoil", ["flip", "truncate", "remove"])
def test_damage_does_not_travel_on(log: GrownLog, ending: str, spoil: str, tmp_path: Path) -> None:
    """A joined pack has a good checksum whatever it holds, so the old ones are checked."""
    copies = []
    for number, files in enumerate(log.segments[:3]):
        copy = SegmentFiles(*(tmp_path / f"{number}{path.suffix}" for path in files))
        for path, target in zip(files, copy, strict=True):
            target.write_bytes(path.read_bytes())
        copies.append(copy)
    path = getattr(copies[1], ending)
    content = path.read_bytes()
    path.unlink()
    if spoil == "flip":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif spoil == "truncate":
        path.write_bytes(content[:-1])
    with pytest.raises(MirrorDamaged):
        join_segments(JoinJob(segments=tuple(copies), scratch=tmp_path))


@pytest.mark.parametrize("ending", ["table", "links"])
def test_what_lies_beside_another_pack_is_found_out(
    log: GrownLog, ending: str, tmp_path: Path
) -> None:
    """Joined, it would have the checksum of the pack that it lies beside."""
    swapped = [
        files._replace(**{ending: getattr(other, ending)})
        for files, other in zip(log.segments[3:5], log.segments[4:2:-1], strict=True)
    ]
    with pytest.raises(MirrorDamaged, match="of another"):
        join_segments(JoinJob(segments=tuple(swapped), scratch=tmp_path))


def test_a_full_disk_is_a_disk_failure(log: GrownLog, tmp_path: Path) -> None:
    (tmp_path / "joined.table").symlink_to("/dev/full")
    with pytest.raises(DiskFailed):
        join_segments(JoinJob(segments=tuple(log.segments), scratch=tmp_path))


def test_joining_is_concatenation(log: GrownLog, tmp_path: Path) -> None:
    """Byte for byte what anyone else would make of the packs."""
    segments = join(log, 0, 6, tmp_path / "scratch")
    assert segments[0].pack.read_bytes() == joined([pack.read_bytes() for pack in log.packs()])

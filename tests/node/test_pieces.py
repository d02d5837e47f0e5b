"""pieces: runs of bytes come out as they lie, in slices, from few open files."""

import hashlib
import os
import tracemalloc
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.errors import DiskFailed, MirrorDamaged
from goblet_node.serve.pieces import (
    INLINE,
    RUN,
    SLICE,
    Pieces,
    Runs,
    pack_of,
    slices_of,
    touching,
)

Drawn = list[tuple[int, int, int]]

SIZE = 30_000


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three segments and, last, an inline file; what they hold is no matter here."""
    folder = tmp_path_factory.mktemp("files")
    made = [folder / name for name in ("0", "1", "2", "inline")]
    for path in made:
        path.write_bytes(os.urandom(SIZE))
    return made


def as_runs(drawn: Drawn) -> Runs:
    return np.array(drawn, dtype=RUN)


def bytes_of(files: Sequence[Path], drawn: Drawn) -> bytes:
    """Read the runs one after another; the last file is INLINE."""
    contents = [path.read_bytes() for path in files]
    return b"".join(contents[source][start : start + length] for source, start, length in drawn)


def pieces_of(runs: Runs, inline: Path) -> Pieces:
    return Pieces(runs=runs, inline=inline, objects=7, bytes=int(runs["length"].sum()))


@st.composite
def drawn_runs(draw: st.DrawFn) -> Drawn:
    """Draw runs in any order: next to each other, a little or far apart, of no bytes too."""
    runs, at = [], dict.fromkeys(range(INLINE, 3), 0)
    for _ in range(draw(st.integers(0, 20))):
        source = draw(st.integers(INLINE, 2))
        hole = draw(st.sampled_from([0, 0, 1, 100, 5000, -1000]))
        start = min(max(at[source] + hole, 0), SIZE)
        length = draw(st.integers(0, min(SIZE - start, draw(st.sampled_from([10, 3000])))))
        runs.append((source, start, length))
        at[source] = start + length
    return runs


@given(drawn_runs(), st.sampled_from([1000, 997, 50, SIZE]))
def test_slices_hold_what_the_runs_hold(files: list[Path], drawn: Drawn, size: int) -> None:
    """Wherever slices are cut, all are of one size but the last."""
    expected = bytes_of(files, drawn)
    slices = list(slices_of(files[:-1], as_runs(drawn), files[-1], size=size))
    assert b"".join(slices) == expected
    assert [len(data) for data in slices] == [
        min(size, len(expected) - start) for start in range(0, len(expected), size)
    ]


@given(drawn_runs())
def test_touching_runs_become_one_and_hold_the_same(files: list[Path], drawn: Drawn) -> None:
    joined = touching(as_runs(drawn))
    assert bytes_of(files, joined.tolist()) == bytes_of(files, drawn)
    ends = [(source, start + length) for source, start, length in joined.tolist()]
    starts = [(source, start) for source, start, _ in joined.tolist()]
    assert all(length for _, _, length in joined.tolist())
    assert not any(end == start for end, start in zip(ends, starts[1:], strict=False))


@given(drawn_runs())
def test_a_pack_is_a_header_the_runs_and_their_hash(files: list[Path], drawn: Drawn) -> None:
    header, *_, trailer = slices = list(pack_of(files[:-1], pieces_of(as_runs(drawn), files[-1])))
    pack = b"".join(slices)
    assert header == b"PACK\0\0\0\2\0\0\0\7"
    assert pack[12:-20] == bytes_of(files, drawn)
    assert trailer == hashlib.sha1(pack[:-20]).digest()


def test_a_long_run_leaves_in_slices_of_sixteen_packets(tmp_path: Path) -> None:
    pack = tmp_path / "0"
    pack.write_bytes(bytes(2 * SLICE + 5))
    pieces = pieces_of(as_runs([(0, 0, 2 * SLICE + 5)]), tmp_path / "none")
    assert [len(data) for data in pack_of([pack], pieces)] == [12, SLICE, SLICE, 5, 20]


def test_memory_stays_within_a_few_slices_however_far_the_runs_lie_apart(tmp_path: Path) -> None:
    """A stretch over all of these runs would be 64 MB."""
    pack, step, length = tmp_path / "0", 4000, 64 << 20
    with pack.open("wb") as file:
        file.truncate(length)
    runs = as_runs([(0, start, 20) for start in range(0, length - step, step)])
    tracemalloc.start()
    try:
        sent = sum(map(len, slices_of([pack], runs)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sent == 20 * len(runs)
    assert peak < 16 << 20


def test_one_segment_and_the_inline_file_are_open_at_a_time(files: list[Path]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    runs = as_runs([(source, 0, 900) for number in range(3) for source in (number, INLINE)])
    with closing(slices_of(files[:-1], runs, files[-1], size=1000)) as slices:
        opened = [len(os.listdir("/proc/self/fd")) - before for _ in slices]
    assert max(opened) == 2
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_descriptor_stays_open_when_a_client_leaves(files: list[Path]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    pieces = pieces_of(as_runs([(0, 0, 10), (INLINE, 0, 10)]), files[-1])
    with closing(pack_of(files[:-1], pieces)) as slices:
        next(slices)
        next(slices)
        assert len(os.listdir("/proc/self/fd")) == before + 2
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_segment_that_is_gone_is_damage(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(MirrorDamaged, match="missing"):
        list(slices_of([tmp_path / "gone"], as_runs([(0, 0, 10)])))


def test_a_segment_that_became_shorter_is_damage(files: list[Path]) -> None:
    for runs in ([(0, SIZE - 5, 10)], [(0, 0, 5), (0, SIZE - 5, 10)]):
        with pytest.raises(MirrorDamaged, match="shorter"):
            list(slices_of(files, as_runs(runs)))


def test_a_segment_that_the_disk_will_not_read_is_no_reason_to_drop_the_mirror(
    tmp_path: Path,
) -> None:
    with pytest.raises(DiskFailed, match="cannot be read"):
        list(slices_of([tmp_path], as_runs([(0, 0, 10)])))


def test_an_inline_file_that_is_gone_or_short_is_not_the_mirror_s_damage(
    files: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(DiskFailed, match="cannot be read"):
        list(slices_of([], as_runs([(INLINE, 0, 10)]), tmp_path / "gone"))
    with pytest.raises(DiskFailed, match="cut short"):
        list(slices_of([], as_runs([(INLINE, SIZE, 1)]), files[-1]))

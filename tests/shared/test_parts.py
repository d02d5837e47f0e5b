"""Parts are cut anywhere, and stay the same bytes."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_shared.parts import FileSpan, Part, cut, extents, size_of

FILES = {3: bytes(range(200)), 4: bytes(reversed(range(200)))}

spans = st.builds(
    FileSpan,
    file=st.sampled_from(list(FILES)),
    offset=st.integers(0, 100),
    count=st.integers(0, 60),
)
some_parts = st.lists(st.one_of(st.binary(max_size=20), spans), max_size=12)


def read(parts: list[Part]) -> bytes:
    return b"".join(
        FILES[part.file][part.offset :][: part.count] if isinstance(part, FileSpan) else part
        for part in parts
    )


@given(some_parts, st.integers(1, 70))
def test_cut_parts_are_the_same_bytes_in_full_lists_but_for_the_last(
    parts: list[Part], most: int
) -> None:
    lists = list(cut(parts, most))
    sizes = [size_of(found) for found in lists]
    assert b"".join(map(read, lists)) == read(parts)
    assert sizes[:-1] == [most] * len(sizes[:-1])
    assert all(0 < size <= most for size in sizes)


@given(some_parts, st.integers(1, 70))
def test_what_is_cut_has_nothing_empty_and_no_bytes_side_by_side(
    parts: list[Part], most: int
) -> None:
    for found in cut(parts, most):
        assert all(size_of([part]) for part in found)
        is_text = [isinstance(part, bytes) for part in found]
        assert (True, True) not in pairwise(is_text)


@given(some_parts, st.integers(0, 200))
def test_extents_are_the_first_bytes_of_files_in_order(parts: list[Part], most: int) -> None:
    of_files = read([part for part in parts if isinstance(part, FileSpan)])
    assert read([*extents(parts, most)]) == of_files[:most]


def test_packets_of_one_file_are_one_extent() -> None:
    framed: list[Part] = []
    for at in range(0, 1000, 100):
        framed += [b"head", FileSpan(file=3, offset=at, count=100)]
    assert extents(framed, 10_000) == [FileSpan(file=3, offset=0, count=1000)]
    assert extents(framed, 250) == [FileSpan(file=3, offset=0, count=250)]


@pytest.mark.parametrize("parts", [[], [b""], [FileSpan(file=3, offset=9, count=0)]])
def test_nothing_is_no_list_and_no_extent(parts: list[Part]) -> None:
    assert list(cut(parts, 5)) == []
    assert extents(parts, 5) == []

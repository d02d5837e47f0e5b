"""heads: many at once are what each would be alone, and distances settle."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.mirror.normalise import encode_distance, entry_head
from goblet_node.mirror.table import oid_array
from goblet_node.objects import OFS_DELTA, REF_DELTA
from goblet_node.serve.heads import (
    Bytes,
    Numbers,
    distance_spans,
    named_heads,
    near_heads,
    settle,
    whole_head,
)
from goblet_testing.packs import entry_start

# As many digits as there can be, and the places where one more is needed.
distances = st.integers(1, (1 << 60) - 1) | st.sampled_from(
    [127, 128, 16511, 16512, 2113663, 2113664, 270549119, 270549120]
)
varints = st.builds(entry_start, st.sampled_from([OFS_DELTA, REF_DELTA]), st.integers(0, 1 << 40))


def numbers(values: list[int]) -> Numbers:
    return np.array(values, dtype=np.int64)


def laid(sizes: list[bytes]) -> tuple[Bytes, Numbers]:
    return np.frombuffer(b"".join(sizes), dtype=np.uint8), numbers(list(map(len, sizes)))


@given(st.integers(1, 4), st.integers(0, 1 << 60))
def test_the_head_of_a_whole_object_is_git_s(kind: int, size: int) -> None:
    assert whole_head(kind, size) == entry_start(kind, size)


@given(st.lists(distances))
def test_a_distance_spans_as_many_bytes_as_it_is_written_with(drawn: list[int]) -> None:
    spans = distance_spans(numbers(drawn)).tolist()
    assert spans == [len(encode_distance(distance)) for distance in drawn]


@given(st.lists(st.tuples(varints, distances)))
def test_heads_by_distance_are_each_what_it_would_be_alone(drawn: list[tuple[bytes, int]]) -> None:
    heads, spans = near_heads(*laid([size for size, _ in drawn]), numbers([d for _, d in drawn]))
    alone = [entry_head(OFS_DELTA, size, encode_distance(d)) for size, d in drawn]
    assert (heads.tobytes(), spans.tolist()) == (b"".join(alone), [len(head) for head in alone])


@given(st.lists(st.tuples(varints, st.binary(min_size=20, max_size=20))))
def test_heads_by_id_are_each_what_it_would_be_alone(drawn: list[tuple[bytes, bytes]]) -> None:
    bases = oid_array(b"".join(base for _, base in drawn))
    heads, spans = named_heads(*laid([size for size, _ in drawn]), bases)
    alone = [entry_head(REF_DELTA, size, base) for size, base in drawn]
    assert (heads.tobytes(), spans.tolist()) == (b"".join(alone), [len(head) for head in alone])


def one_by_one(lengths: list[int], bases: list[int | None]) -> list[int]:
    """Return the distances of a pack that is written entry by entry; None is no OFS_DELTA."""
    starts, found, place = [], [], 0
    for length, base in zip(lengths, bases, strict=True):
        starts.append(place)
        if base is not None:
            found.append(place - starts[base])
            place += len(encode_distance(found[-1]))
        place += length
    return found


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[int], list[int | None]]:
    lengths = draw(st.lists(st.sampled_from([12, 63, 126, 127, 16384]), min_size=1, max_size=30))
    may_be_delta = draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    may_be_delta[0] = False
    bases = [
        draw(st.integers(max(0, place - 4), place - 1)) if is_delta else None
        for place, is_delta in enumerate(may_be_delta)
    ]
    return lengths, bases


@given(layouts(), st.integers(1, 5))
def test_distances_settle_on_those_of_a_pack_written_entry_by_entry(
    layout: tuple[list[int], list[int | None]], guess: int
) -> None:
    """Whatever the guess; and what does not settle in time is left out from its end."""
    lengths, bases = layout
    near = [place for place, base in enumerate(bases) if base is not None]
    found = settle(
        numbers(lengths),
        numbers(near),
        numbers([base for base in bases if base is not None]),
        numbers([guess] * len(near)),
    )
    right = one_by_one(lengths, bases)
    assert found.tolist() == right[: len(found)]
    assert len(found) >= min(len(right), 15)


def test_a_row_of_distances_that_each_widen_the_next_is_given_up_in_part() -> None:
    """Each round would settle one: with 100,000 of them that takes minutes."""
    count = 1000
    lengths = [128] + [126] * count
    bases = list(range(count))
    spans = numbers([1] * count)
    found = settle(numbers(lengths), numbers(list(range(1, count + 1))), numbers(bases), spans)
    assert found.tolist() == [128] * len(found)
    assert 10 < len(found) < 100

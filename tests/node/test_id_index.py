"""Ids are found whatever they begin with, and in an index that grew or was cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from goblet_node.mirror.id_index import OID, IdIndex, IdTwice

# Few beginnings and NULs everywhere: ties in the first eight bytes, ids that end in NULs.
ids = st.builds(
    lambda start, end: start + end,
    st.sampled_from([bytes(8), b"\xff" * 8, b"\0\0\0\0\0\0\0\1"]),
    st.lists(st.sampled_from([0, 1, 255]), min_size=12, max_size=12).map(bytes),
)


def array_of(raw: list[bytes]) -> NDArray[np.bytes_]:
    return np.frombuffer(b"".join(raw), dtype=OID)


@given(held=st.lists(ids, unique=True), asked=st.lists(ids), data=st.data())
def test_each_id_is_found_at_its_place_and_no_other_is(
    held: list[bytes], asked: list[bytes], data: st.DataObject
) -> None:
    """However the index came about: at once, in steps, or cut off from a longer one."""
    cut = data.draw(st.integers(0, len(held)))
    oids = array_of(held)
    truth = [held.index(raw) if raw in held else -1 for raw in [*asked, *held]]
    for index in (IdIndex.of(oids), IdIndex.of(oids[:cut]).with_more(oids)):
        assert index.find(array_of([*asked, *held]), oids).tolist() == truth
    shorter = IdIndex.of(oids).until(cut)
    truth = [place if place < cut else -1 for place in truth]
    assert shorter.find(array_of([*asked, *held]), oids[:cut]).tolist() == truth


@given(st.lists(ids, unique=True, min_size=1), st.data())
def test_an_id_that_is_there_twice_is_noticed(held: list[bytes], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(held)))
    oids = array_of([*held[:place], data.draw(st.sampled_from(held)), *held[place:]])
    with pytest.raises(IdTwice):
        IdIndex.of(oids)
    known = IdIndex.of(array_of(held))
    with pytest.raises(IdTwice):
        known.with_more(array_of([*held, held[0]]))

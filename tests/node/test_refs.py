"""Object ids on their way to another process."""

import pickle

from hypothesis import given
from hypothesis import strategies as st

from goblet_node.wire.refs import JoinedIds, ObjectId


@given(st.lists(st.binary(min_size=20, max_size=20).map(lambda raw: raw.hex().encode())))
def test_ids_come_out_as_they_went_in(oids: list[bytes]) -> None:
    ids = [ObjectId(oid) for oid in oids]
    assert JoinedIds.of(ids).apart() == tuple(ids)


def test_many_ids_travel_as_one_string() -> None:
    """It is what one by one costs the event loop that matters: an item each."""
    joined = JoinedIds.of(ObjectId(b"%040x" % number) for number in range(1000))
    assert len(pickle.dumps(joined)) < 40 * 1000 + 200

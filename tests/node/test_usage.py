"""Sizes are a running sum; uses are told to the disk now and then."""

from hypothesis import given
from hypothesis import strategies as st

from goblet_node.mirror.usage import NOTED_WITHIN, Usage
from goblet_shared.repo_key import RepoKey

ONE, TWO = RepoKey("example.org/one"), RepoKey("example.org/two")
keys = st.sampled_from([ONE, TWO, RepoKey("example.org/three")])


@given(st.lists(st.tuples(keys, st.none() | st.integers(0, 10**12))))
def test_the_total_is_the_sum_of_what_is_there(changes: list[tuple[RepoKey, int | None]]) -> None:
    usage = Usage()
    truth: dict[RepoKey, int] = {}
    for key, size in changes:
        if size is None:
            assert usage.forget(key) == truth.pop(key, 0)
        else:
            usage.found(key, bytes=size, used_at=0.0)
            truth[key] = size
        assert usage.sizes() == truth
        assert usage.total == sum(truth.values())


def test_a_use_is_told_once_in_a_while() -> None:
    now = [1000.0]
    usage = Usage(clock=lambda: now[0])
    usage.found(ONE, bytes=1, used_at=900.0)
    usage.touch(ONE)
    assert usage.used_at(ONE) == 1000.0
    assert usage.take_due() == {}
    now[0] += NOTED_WITHIN
    usage.touch(ONE)
    assert usage.take_due() == {ONE: now[0]}
    usage.touch(ONE)
    assert usage.take_due() == {}


def test_what_the_disk_knows_of_a_use_does_not_set_it_back() -> None:
    usage = Usage(clock=lambda: 1000.0)
    usage.found(ONE, bytes=1, used_at=800.0)
    usage.touch(ONE)
    usage.found(ONE, bytes=2, used_at=900.0)
    assert usage.used_at(ONE) == 1000.0


def test_a_mirror_that_is_gone_is_neither_told_of_nor_remembered() -> None:
    """It may have been used by somebody whose answer outlived it."""
    usage = Usage(clock=lambda: 1000.0)
    usage.found(ONE, bytes=1, used_at=0.0)
    usage.forget(ONE)
    usage.touch(ONE)
    usage.touch(TWO)
    assert usage.take_due() == {}
    assert usage.used_at(ONE) == usage.used_at(TWO) == 0.0

"""What is read stays, what is retired goes when nobody reads it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from goblet_node.mirror.leases import Leases
from goblet_node.mirror.log import Generation, Lazy, Mirror, Segment
from goblet_node.mirror.manifest import make_segment
from goblet_node.mirror.table import Table
from goblet_shared.repo_key import RepoKey

KEY = RepoKey("example.org/one")
HERE = Path("/cache/mirrors/aa/aaaa")


def segment(number: int) -> Segment:
    return make_segment(
        directory=HERE, number=number, objects=1, bytes=40, beside=2, checksum=f"{number:040x}"
    )


A, B, C, JOINED = (segment(number) for number in (1, 2, 3, 9))


def mirror(*segments: Segment) -> Mirror:
    return Mirror(
        key=KEY,
        directory=HERE,
        segments=segments,
        generations=(Generation(number=1, objects=0, bytes=0, refs_file="unused"),),
        lineage=object(),
        lazy_refs=Lazy.of(()),
        lazy_table=Lazy(lambda: Table.load([])),
    )


def test_a_retired_segment_is_released_when_no_reader_is_left_whose_mirror_names_it() -> None:
    """Of two readers of old mirrors each keeps what it may read, and no more."""
    leases = Leases()
    short, long = mirror(A), mirror(A, B)
    assert leases.take(short)
    assert leases.take(long)
    leases.retire(KEY, {A, B})
    leases.retire(KEY, {C})
    assert leases.bytes == 3 * 42
    assert leases.release(KEY) == {C}
    leases.give_back(long)
    assert leases.release(KEY) == {B}
    assert leases.waiting() == (KEY,)
    leases.give_back(short)
    assert leases.release(KEY) == {A}
    assert leases.release(KEY) == frozenset()
    assert leases.waiting() == ()
    assert leases.bytes == 0


def test_a_mirror_is_held_as_often_as_it_is_taken() -> None:
    leases = Leases()
    one = mirror(A)
    assert leases.take(one)
    assert leases.take(one)
    leases.give_back(one)
    assert leases.is_held(KEY)
    leases.give_back(one)
    assert not leases.is_held(KEY)


def test_a_closed_repository_is_read_by_nobody_and_a_read_one_is_not_closed() -> None:
    """Between the look and the deletion nobody begins to read."""
    leases = Leases()
    one = mirror(A)
    assert leases.take(one)
    assert not leases.close(KEY)
    leases.give_back(one)
    assert leases.close(KEY)
    assert not leases.close(KEY)
    assert not leases.take(one)
    assert not leases.is_held(KEY)
    leases.reopen(KEY)
    assert leases.take(one)


@pytest.mark.parametrize("end", [Leases.forget, Leases.release])
def test_nothing_is_left_of_what_was_deleted(end: Callable[[Leases, RepoKey], object]) -> None:
    leases = Leases()
    leases.retire(KEY, {A, JOINED})
    assert leases.retired(KEY) == {A, JOINED}
    end(leases, KEY)
    assert leases.retired(KEY) == frozenset()
    leases.retire(KEY, ())
    assert leases.waiting() == ()

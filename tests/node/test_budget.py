"""What is deleted to make room, and how a cap is read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.mirror.budget import (
    BadCap,
    Cap,
    Eviction,
    Kept,
    Use,
    intake_needs,
    what_to_evict,
)
from goblet_shared.repo_key import RepoKey

GB = 10**9


@st.composite
def uses(draw: st.DrawFn) -> Use:
    """Draw any state of a disk, often one above its cap."""
    facts = draw(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5), st.booleans())))
    return Use(
        cap=draw(st.integers(0, 300)),
        mirrors=[
            Kept(key=RepoKey(f"host/{number}"), bytes=size, used_at=at, is_in_use=in_use)
            for number, (size, at, in_use) in enumerate(facts)
        ],
        recordings=draw(st.integers(0, 100)),
        reserved=draw(st.integers(0, 200)),
    )


def freed(use: Use, eviction: Eviction) -> int:
    return eviction.recordings + sum(m.bytes for m in use.mirrors if m.key in eviction.mirrors)


@given(uses())
def test_enough_goes_or_nothing_is_named(use: Use) -> None:
    eviction = what_to_evict(use)
    idle = sum(mirror.bytes for mirror in use.mirrors if not mirror.is_in_use)
    if eviction is None:
        assert idle + use.recordings < use.excess
    else:
        assert freed(use, eviction) >= use.excess


@given(uses())
def test_no_mirror_goes_that_is_in_use_or_needless(use: Use) -> None:
    eviction = what_to_evict(use) or Eviction()
    in_use = {mirror.key for mirror in use.mirrors if mirror.is_in_use}
    assert not in_use & set(eviction.mirrors)
    assert eviction.recordings <= use.recordings
    if eviction.mirrors:
        without_the_last = Eviction(recordings=eviction.recordings, mirrors=eviction.mirrors[:-1])
        assert freed(use, without_the_last) < use.excess
        assert eviction.recordings == use.recordings  # all of them before any mirror
    else:
        assert eviction.recordings in (0, use.excess)


@given(uses())
def test_whoever_stays_was_used_no_earlier_than_who_goes(use: Use) -> None:
    eviction = what_to_evict(use) or Eviction()
    used_at = {mirror.key: mirror.used_at for mirror in use.mirrors}
    order = [used_at[key] for key in eviction.mirrors]
    assert order == sorted(order)
    stays = [
        mirror.used_at
        for mirror in use.mirrors
        if mirror.bytes and not mirror.is_in_use and mirror.key not in eviction.mirrors
    ]
    assert all(went <= stayed for went in order for stayed in stays)


@pytest.mark.parametrize(
    ("text", "file_system", "cap"),
    [
        ("200GB", 500 * GB, 200 * GB),
        ("1.5TiB", 0, int(1.5 * 2**40)),  # a file system that does not tell its size
        ("1000", 500 * GB, 1000),
        ("80%", 500 * GB, 400 * GB),
        (" 12.5 % ", 800, 100),
        ("100%", 800, 800),
    ],
)
def test_a_cap_is_a_size_or_a_share(text: str, file_system: int, cap: int) -> None:
    assert Cap.parse(text).of(file_system) == cap
    assert Cap.parse(str(Cap.parse(text))) == Cap.parse(text)


@pytest.mark.parametrize(
    "text", ["", "0", "0%", "101%", "-5%", "-1GB", "much", "80 GB%", "nan", "1e400", "%", "٣%x"]
)
def test_a_cap_that_is_nonsense_is_refused(text: str) -> None:
    with pytest.raises(BadCap, match=r"want"):
        Cap.parse(text)


def test_a_cap_that_the_file_system_cannot_have_is_refused() -> None:
    with pytest.raises(BadCap, match="has 100 bytes in all: 200 cannot be kept"):
        Cap.parse("200").of(100)
    with pytest.raises(BadCap, match="does not tell its size: 80% is nothing"):
        Cap.parse("80%").of(0)


def test_an_upstream_that_promises_objects_without_end_is_not_believed() -> None:
    honest = intake_needs(1_000_000, objects=1000, grows=False)
    assert intake_needs(1_000_000, objects=2**32 - 1, grows=False) < 20 * 1_000_000
    assert 67 * 1000 < honest < 1_000_000
    assert intake_needs(1_000_000, objects=1000, grows=True) == honest + 1_000_000

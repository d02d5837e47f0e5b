"""How worn a log is, and where its chains are cut."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.errors import MirrorDamaged
from goblet_node.mirror.graph import Graph
from goblet_node.mirror.links import NO_BASE, Links
from goblet_node.mirror.wear import Bounds, Wear, WearJob, chain_depths, cuts, is_worn, wear_of
from goblet_node.wire.refs import JoinedIds, ObjectId
from goblet_testing.packs import GrownLog, Repo

BOUNDS = Bounds(orphans=0.25, depth=200)


@st.composite
def base_lists(draw: st.DrawFn) -> list[int]:
    """What each object is made on; the places of bases come before and after."""
    count = draw(st.integers(0, 60))
    order = draw(st.permutations(range(count)))
    bases = [NO_BASE] * count
    for turn, place in enumerate(order):
        if turn and draw(st.integers(0, 9)):
            bases[place] = order[draw(st.integers(0, turn - 1))]
    return bases


def depth_of(place: int, bases: list[int]) -> int:
    depth = 0
    while bases[place] != NO_BASE:
        place, depth = bases[place], depth + 1
    return depth


@given(base_lists())
def test_depths_are_what_following_the_bases_gives(bases: list[int]) -> None:
    depths = chain_depths(np.array(bases, dtype=np.uint32))
    assert depths.tolist() == [depth_of(place, bases) for place in range(len(bases))]


@given(base_lists(), st.integers(1, 5))
def test_after_the_cuts_no_chain_is_too_long_and_short_ones_are_let_be(
    bases: list[int], most: int
) -> None:
    is_cut = cuts(chain_depths(np.array(bases, dtype=np.uint32)), most)
    cut = [NO_BASE if is_cut[place] else base for place, base in enumerate(bases)]
    assert all(depth_of(place, cut) <= most for place in range(len(cut)))
    for place in np.flatnonzero(is_cut).tolist():
        assert depth_of(place, bases) > most


def test_a_chain_of_a_million_takes_twenty_rounds() -> None:
    bases = np.arange(-1, 999_999, dtype=np.int64).astype(np.uint32)
    assert bases[0] == NO_BASE
    assert chain_depths(bases)[-1] == 999_999


def test_a_delta_on_itself_is_damage() -> None:
    with pytest.raises(MirrorDamaged):
        chain_depths(np.array([NO_BASE, 2, 1], dtype=np.uint32))


def test_wear_is_what_the_tips_do_not_reach(tmp_path: Path) -> None:
    origin = Repo.create(tmp_path / "origin")
    log = GrownLog(tmp_path / "log")
    origin.commit("main", {"kept": b"kept\n" * 20})
    origin.commit("side", {"lost": bytes(range(256)) * 40}, parent="main")
    log.fetch(origin)
    origin.point("refs/heads/side", None)
    log.fetch(origin)
    graph = Graph(log.table(), Links.load(log.links()))
    wear = wear_of(graph, log.tips)
    kept = {graph.table.oid(place) for place in np.flatnonzero(wear.kept).tolist()}
    assert kept == origin.reachable()
    lengths = graph.table.column("length")
    assert wear.orphans == pytest.approx(lengths[~wear.kept].sum() / lengths.sum())
    assert wear.is_past(BOUNDS) == (wear.orphans > 0.25)
    job = WearJob(segments=tuple(log.segments), tips=JoinedIds.of(log.tips), bounds=BOUNDS)
    assert is_worn(job) == wear.is_past(BOUNDS)
    with pytest.raises(MirrorDamaged):
        is_worn(replace(job, tips=JoinedIds.of([ObjectId(b"1" * 40)])))
    nothing = wear_of(graph, ())
    assert nothing.orphans == 1.0
    assert nothing.is_past(BOUNDS)


def test_an_empty_log_is_not_worn() -> None:
    assert not is_worn(WearJob(segments=(), tips=JoinedIds(), bounds=BOUNDS))


def test_only_the_chains_of_what_is_kept_count() -> None:
    depths = np.array([0, 200, 201], dtype=np.int32)
    kept = np.array([True, True, False])
    assert not Wear(kept=kept, orphans=0.0, depths=depths).is_past(BOUNDS)
    assert Wear(kept=~kept, orphans=0.0, depths=depths).is_past(BOUNDS)

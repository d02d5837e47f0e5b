"""graph: what is reached, level by level, is what git says."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goblet_node.mirror import graph as graph_module
from goblet_node.mirror.graph import Below, Graph, reached
from goblet_node.objects import BLOB, COMMIT, TAG, TREE
from goblet_node.wire.refs import ObjectId
from goblet_testing.histories import random_history
from goblet_testing.packs import GrownLog, Repo, run_git


@pytest.fixture
def origin(tmp_path: Path) -> Repo:
    """Two commits, a tag of a tag on the newest, a tag of a tree, and a tag of a blob."""
    repo = Repo.create(tmp_path / "origin")
    repo.commit("main", {"a/b/file": b"1", "file": b"2"})
    repo.commit("main", {"a/b/file": b"3", "file": b"2"})
    repo.tag("inner", "refs/heads/main")
    repo.tag("outer", "refs/tags/inner")
    repo.point("refs/tags/tree", oid_of(repo, "main^{tree}"))
    repo.point("refs/tags/blob", oid_of(repo, "main:file"))
    return repo


@pytest.fixture
def graph(origin: Repo, tmp_path: Path) -> Graph:
    log = GrownLog(tmp_path / "log")
    log.fetch(origin)
    return log.graph()


def oid_of(origin: Repo, name: str) -> ObjectId:
    return ObjectId(run_git("rev-parse", name, repo=origin.path).strip())


def place_of(graph: Graph, origin: Repo, name: str) -> int:
    return int(graph.places([oid_of(origin, name)])[0])


def named(graph: Graph, origin: Repo, *names: str) -> set[int]:
    return {place_of(graph, origin, name) for name in names}


@pytest.mark.slow
@settings(max_examples=settings().max_examples // 5)
@given(seed=st.integers(0, 1 << 32))
def test_what_objects_reach_is_what_rev_list_says(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Commits, tags of tags, trees and blobs, in a log of two segments."""
    folder = tmp_path_factory.mktemp("g")
    history, log = random_history(folder / "repo", seed), GrownLog(folder / "log")
    log.fetch(history.repo)
    history.grow(4)
    log.fetch(history.repo)
    graph = log.graph()
    for _ in range(3):
        starts = history.dice.sample(log.tips, history.dice.randint(1, len(log.tips)))
        said = run_git(
            "rev-list", "--objects", "--no-object-names", *words(starts), repo=history.path
        )
        mask = reached(graph, graph.places(starts))
        assert set(graph.oids(np.flatnonzero(mask).tolist())) == set(said.split())


def words(oids: list[ObjectId]) -> list[str]:
    return [oid.decode() for oid in oids]


def test_a_commit_says_what_it_is(graph: Graph, origin: Repo) -> None:
    main, first = place_of(graph, origin, "main"), place_of(graph, origin, "main~")
    assert graph.kind(main) == COMMIT
    assert graph.tree(main) == place_of(graph, origin, "main^{tree}")
    assert graph.parents(main) == [first]
    assert graph.parents(first) == []
    assert graph.committed(main) == graph.committed(first) + 60
    trees = [place_of(graph, origin, f"{name}^{{tree}}") for name in ("main", "main~")]
    assert graph.trees(np.array([main, first, main])).tolist() == [*trees, trees[0]]


def test_tags_are_followed_to_the_end(graph: Graph, origin: Repo) -> None:
    outer, inner = place_of(graph, origin, "outer"), place_of(graph, origin, "inner")
    main, tree = place_of(graph, origin, "main"), place_of(graph, origin, "refs/tags/tree")
    assert graph.kind(outer) == TAG
    assert graph.target(outer) == inner
    assert graph.chained([outer, tree]) == [outer, inner, main, tree]
    assert graph.commits(np.array([outer, tree, main])) == [main]
    assert graph.commits(np.array([tree])) == []


def test_of_a_chain_of_which_every_tag_is_named_each_is_looked_at_once(
    graph: Graph, origin: Repo
) -> None:
    """Who makes thousands of tags of tags must not make us walk the chain for each of them."""
    looked_at = []

    class Watched(Graph):
        def target(self, tag: int) -> int:
            looked_at.append(tag)
            return super().target(tag)

    outer, inner = place_of(graph, origin, "outer"), place_of(graph, origin, "inner")
    main = place_of(graph, origin, "main")
    watched = Watched(graph.table, graph.links)
    assert watched.chained([inner, outer, inner]) == [inner, main, outer]
    assert looked_at == [inner, outer]


def test_commits_behind_a_cut_are_not_reached(graph: Graph, origin: Repo) -> None:
    main, first = place_of(graph, origin, "main"), place_of(graph, origin, "main~")
    assert set(np.flatnonzero(list(graph.reached_commits([main])))) == {main, first}
    assert set(np.flatnonzero(list(graph.reached_commits([main], {main})))) == {main}


def test_an_object_that_is_not_here_is_a_key_error_or_left_out(graph: Graph, origin: Repo) -> None:
    gone, main = ObjectId(b"7" * 40), oid_of(origin, "main")
    with pytest.raises(KeyError):
        graph.places([main, gone])
    assert graph.held([gone, main]).tolist() == graph.places([main]).tolist()
    assert list(graph.oids(graph.places([main]).tolist())) == [main]


def test_each_level_is_what_trees_of_the_last_hold(graph: Graph, origin: Repo) -> None:
    below = Below(graph)
    level = below.add_level(graph.trees(graph.places([oid_of(origin, "main")])))
    assert set(level) == named(graph, origin, "main:a", "main:file")
    level = below.add_level(level)
    assert set(level) == named(graph, origin, "main:a/b")
    assert set(np.flatnonzero(below.mask)) == named(
        graph, origin, "main^{tree}", "main:a", "main:file"
    )


def test_what_a_set_has_is_not_looked_at_again(graph: Graph, origin: Repo) -> None:
    """So what is below two trees is the first of them and what the second has besides."""
    below = Below(graph)
    below.add(np.array([place_of(graph, origin, "main~^{tree}")]))
    before = below.copy()
    below.add(np.array([place_of(graph, origin, "main^{tree}")]))
    new = set(np.flatnonzero(below.mask & ~before.mask))
    assert new == named(graph, origin, "main^{tree}", "main:a", "main:a/b", "main:a/b/file")
    assert not (before.mask & ~below.mask).any()


def test_blobs_can_be_added_to_a_set_of_trees(graph: Graph, origin: Repo) -> None:
    below, blob = Below(graph), place_of(graph, origin, "main:file")
    assert graph.kind(blob) == BLOB
    below.add(np.array([blob, blob]))
    assert np.flatnonzero(below.mask).tolist() == [blob]


def test_where_levels_are_cut_never_matters(
    graph: Graph, origin: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A level larger than what is looked at in one step is looked at in several."""
    tips = graph.places([oid_of(origin, "main")])
    expected = reached(graph, tips)
    monkeypatch.setattr(graph_module, "_AT_ONCE", 1)
    assert np.array_equal(reached(graph, tips), expected)


def test_trees_of_a_kind_are_found_by_mask(graph: Graph) -> None:
    assert int((graph.kinds == TREE).sum()) == 6
    assert len(graph) == len(graph.table)

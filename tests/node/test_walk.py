"""walk: exactly the commits that `git rev-list` finds, and nothing known that is not."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goblet_node.mirror.graph import Graph
from goblet_node.mirror.links import Links
from goblet_node.serve.walk import walk
from goblet_node.wire.refs import ObjectId
from goblet_testing.histories import History, random_history
from goblet_testing.packs import GrownLog, Repo, run_git

seeds = st.integers(0, 1 << 32)


class CountingGraph(Graph):
    """Knows of how many commits the parents were asked for."""

    def __init__(self, log: GrownLog) -> None:
        super().__init__(log.table(), Links.load(log.links()))
        self.asked = 0

    def parents(self, commit: int) -> list[int]:
        """Count, and answer."""
        self.asked += 1
        return super().parents(commit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a walk found, by object ids."""

    new: tuple[ObjectId, ...]
    known: frozenset[ObjectId]


def walked(
    graph: Graph,
    *,
    wants: Sequence[ObjectId],
    known: Sequence[ObjectId] = (),
    cut: Collection[ObjectId] = (),
    cut_known: Collection[ObjectId] = (),
    since: int | None = None,
) -> Found:
    """Do what `walk` does with object ids."""
    found = walk(
        graph,
        wants=graph.places(wants).tolist(),
        known=graph.places(known).tolist(),
        cut=set(graph.places(list(cut)).tolist()),
        cut_known=set(graph.places(list(cut_known)).tolist()),
        since=since,
    )
    return Found(new=tuple(graph.oids(found.new)), known=frozenset(graph.oids(found.known)))


def scene(folder: Path, seed: int, commits: int = 20) -> tuple[History, Graph]:
    history = random_history(folder / "repo", seed, commits=commits)
    log = GrownLog(folder / "log")
    log.take(history.repo.pack(history.commits), history.commits)
    return history, log.graph()


def rev_list(repo: Path, wants: Iterable[ObjectId], *words: str) -> list[ObjectId]:
    said = run_git("rev-list", *words, *(oid.decode() for oid in wants), repo=repo)
    return [ObjectId(line) for line in said.split()]


def excluded(oids: Iterable[ObjectId]) -> list[str]:
    return [f"^{oid.decode()}" for oid in oids]


@pytest.mark.slow
@settings(max_examples=settings().max_examples // 5)
@given(seed=seeds)
def test_new_commits_are_those_of_rev_list(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the graph and the clocks: the mistakes that git makes are ours too."""
    history, graph = scene(tmp_path_factory.mktemp("g"), seed)
    wants = history.dice.sample(history.commits, 3)
    known = history.dice.sample(history.commits, history.dice.randint(0, 4))
    found = walked(graph, wants=wants, known=known)
    assert list(found.new) == rev_list(history.path, wants, *excluded(known))
    assert found.known <= set(rev_list(history.path, known) if known else ())
    assert found.known.isdisjoint(found.new)


@pytest.mark.slow
@settings(max_examples=settings().max_examples // 5)
@given(seed=seeds)
def test_commits_since_a_time_are_those_of_rev_list(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    history, graph = scene(tmp_path_factory.mktemp("g"), seed)
    wants = history.dice.sample(history.commits, 2)
    known = history.dice.sample(history.commits, history.dice.randint(0, 1))
    (some,) = graph.places([history.dice.choice(history.commits)]).tolist()
    since = graph.committed(some)
    found = rev_list(history.path, wants, f"--max-age={since}", *excluded(known))
    assert list(walked(graph, wants=wants, known=known, since=since).new) == found


def test_a_known_commit_behind_a_wrong_clock_is_found_again(tmp_path: Path) -> None:
    """It is met as new before the child that makes it known is looked at."""
    origin, log = Repo.create(tmp_path / "origin"), GrownLog(tmp_path / "log")
    origin.commit("main", {"file": b"0"})
    for number in range(1, 4):
        origin.commit("main", {"file": b"%d" % number}, seconds=86_400)
    origin.commit("known", {"file": b"child"}, parent="main", seconds=-30 * 86_400)
    origin.commit("wanted", {"file": b"other"}, parent="main", seconds=60 * 86_400)
    log.fetch(origin)
    refs = origin.refs()
    wanted, known = refs["refs/heads/wanted"], refs["refs/heads/known"]
    assert walked(log.graph(), wants=[wanted], known=[known]).new == (wanted,)


@pytest.fixture
def line(tmp_path: Path) -> tuple[CountingGraph, list[ObjectId]]:
    """Sixty commits on one branch, oldest first, a minute apart."""
    origin, log = Repo.create(tmp_path / "origin"), GrownLog(tmp_path / "log")
    for number in range(60):
        origin.commit("main", {"file": b"%d" % number})
    log.fetch(origin)
    return CountingGraph(log), rev_list(origin.path, origin.tips(), "--reverse")


def test_history_behind_what_is_known_is_not_looked_at(
    line: tuple[CountingGraph, list[ObjectId]],
) -> None:
    graph, commits = line
    found = walked(graph, wants=commits[-1:], known=[commits[-4]])
    assert found.new == tuple(commits[:-4:-1])
    assert graph.asked <= 20


def test_wants_do_not_reach_through_a_cut(line: tuple[CountingGraph, list[ObjectId]]) -> None:
    graph, commits = line
    found = walked(graph, wants=commits[-1:], cut={commits[-3]})
    assert found.new == tuple(commits[:-4:-1])


def test_what_is_behind_a_shallow_commit_is_not_known(
    line: tuple[CountingGraph, list[ObjectId]],
) -> None:
    graph, commits = line
    shallow = {commits[30]}
    found = walked(graph, wants=[commits[29]], known=commits[-1:], cut=shallow, cut_known=shallow)
    assert found.new == tuple(commits[29::-1])
    assert found.known <= set(commits[30:])


def test_what_is_known_is_followed_where_wants_are_cut(
    line: tuple[CountingGraph, list[ObjectId]],
) -> None:
    """The edge of an answer does not end what its client has."""
    graph, commits = line
    found = walked(graph, wants=[commits[-1], commits[20]], known=commits[-2:-1], cut={commits[-2]})
    assert found.new == (commits[-1],)

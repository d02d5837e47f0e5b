"""reach: exactly those old tips that nothing reaches any more are orphans."""

from collections.abc import Iterable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goblet_node.mirror.graph import Graph
from goblet_node.mirror.links import Links
from goblet_node.mirror.reach import orphans
from goblet_node.wire.refs import ObjectId
from goblet_testing.packs import GrownLog, Repo, run_git

A_YEAR = 365 * 24 * 60 * 60


class CountingGraph(Graph):
    """Knows of how many commits the parents were asked for."""

    def __init__(self, log: GrownLog) -> None:
        super().__init__(log.table(), Links.load(log.links()))
        self.asked = 0

    def parents(self, commit: int) -> list[int]:
        """Count, and answer."""
        self.asked += 1
        return super().parents(commit)


def orphans_of(
    log: GrownLog,
    tips: Iterable[ObjectId],
    old_tips: Iterable[ObjectId],
    old_orphans: Iterable[ObjectId] = (),
) -> tuple[ObjectId, ...]:
    return orphans(log.graph(), tips, old_tips, old_orphans)


@pytest.fixture
def origin(tmp_path: Path) -> Repo:
    """`main` with 100 commits, `merged` behind its merge, `feature` beside it."""
    repo = Repo.create(tmp_path / "origin")
    for number in range(50):
        repo.commit("main", {"file": b"%d" % number})
    repo.commit("merged", {"file": b"merged"}, parent="main")
    repo.commit("feature", {"file": b"feature"}, parent="main")
    for number in range(49):
        repo.commit("main", {"file": b"%d more" % number})
    repo.commit("main", {"file": b"merge"}, merge="merged")
    repo.flush()
    return repo


@pytest.fixture
def log(origin: Repo, tmp_path: Path) -> GrownLog:
    log = GrownLog(tmp_path / "log")
    log.fetch(origin)
    return log


def tip(origin: Repo, name: str) -> ObjectId:
    return ObjectId(run_git("rev-parse", name, repo=origin.path).strip())


def test_nothing_is_orphaned_while_all_tips_stay(origin: Repo, log: GrownLog) -> None:
    assert orphans_of(log, origin.tips(), origin.tips()) == ()


def test_a_deleted_merged_branch_orphans_nothing(origin: Repo, log: GrownLog) -> None:
    old = origin.tips()
    origin.point("refs/heads/merged", None)
    assert orphans_of(log, origin.tips(), old) == ()


def test_a_deleted_branch_that_was_not_merged_is_an_orphan(origin: Repo, log: GrownLog) -> None:
    old, feature = origin.tips(), tip(origin, "feature")
    origin.point("refs/heads/feature", None)
    assert orphans_of(log, origin.tips(), old) == (feature,)


def test_a_branch_set_back_orphans_its_old_tip(origin: Repo, log: GrownLog) -> None:
    old, main = origin.tips(), tip(origin, "main")
    origin.point("refs/heads/main", tip(origin, "main~1"))
    assert orphans_of(log, origin.tips(), old) == (main,)


def test_an_orphan_that_a_ref_brings_back_is_none(origin: Repo, log: GrownLog) -> None:
    """Told apart from the old tips or not, and whether the ref names it or reaches it."""
    feature = tip(origin, "feature")
    origin.point("refs/heads/feature", None)
    log.fetch(origin)
    assert log.orphans == (feature,)
    without = origin.tips()
    origin.point("refs/heads/again", feature)
    assert orphans_of(log, origin.tips(), without, [feature]) == ()
    origin.branches["again"] = {}
    origin.commit("again", {"file": b"on top"})
    assert log.fetch(origin).orphans == ()
    assert orphans_of(log, origin.tips(), [*without, feature]) == ()


def test_an_orphan_stays_one_while_others_move(origin: Repo, log: GrownLog) -> None:
    feature = tip(origin, "feature")
    origin.point("refs/heads/feature", None)
    for number in range(3):
        origin.commit("main", {"file": b"later %d" % number})
        log.fetch(origin)
        assert log.orphans == (feature,)


def test_a_fast_forward_is_settled_without_walking_history(origin: Repo, log: GrownLog) -> None:
    old = origin.tips()
    origin.commit("main", {"file": b"one more"})
    log.fetch(origin)
    graph = CountingGraph(log)
    assert orphans(graph, origin.tips(), old) == ()
    assert graph.asked < 10


def test_old_orphans_cost_no_walk_of_history(origin: Repo, log: GrownLog) -> None:
    """Where branches live for a pull request, every refresh looks for some."""
    feature = tip(origin, "feature")
    origin.point("refs/heads/feature", None)
    old = origin.tips()
    origin.commit("main", {"file": b"one more"})
    log.fetch(origin)
    graph = CountingGraph(log)
    assert orphans(graph, origin.tips(), old, [feature]) == (feature,)
    assert graph.asked < 10


def test_clocks_that_go_backwards_orphan_no_tip(tmp_path: Path) -> None:
    """An old tip is behind a commit that claims to be a year older than it."""
    origin, log = Repo.create(tmp_path / "origin"), GrownLog(tmp_path / "log")
    origin.commit("main", {"file": b"1"})
    origin.commit("main", {"file": b"2"})
    log.fetch(origin)
    origin.commit("main", {"file": b"3"}, seconds=-A_YEAR)
    origin.commit("main", {"file": b"4"}, seconds=0)
    log.fetch(origin)
    assert log.orphans == ()


def test_a_moved_annotated_tag_is_an_orphan_though_its_commit_is_not(
    origin: Repo, log: GrownLog
) -> None:
    origin.tag("v1", "refs/heads/main")
    log.fetch(origin)
    old = tip(origin, "v1")
    origin.tag("v1", "refs/heads/feature")
    log.fetch(origin)
    assert log.orphans == (old,)


def test_a_tag_that_another_tag_names_is_no_orphan(origin: Repo, log: GrownLog) -> None:
    origin.tag("v1", "refs/heads/main")
    origin.tag("v2", "refs/tags/v1")
    log.fetch(origin)
    old = origin.tips()
    origin.point("refs/tags/v1", None)
    assert orphans_of(log, origin.tips(), old) == ()


def test_a_commit_that_only_a_tag_reaches_is_no_orphan(origin: Repo, log: GrownLog) -> None:
    origin.tag("v1", "refs/heads/feature")
    log.fetch(origin)
    old = origin.tips()
    origin.point("refs/heads/feature", None)
    assert orphans_of(log, origin.tips(), old) == ()


def test_a_blob_or_tree_that_no_ref_names_is_an_orphan_even_inside_a_commit(
    origin: Repo, log: GrownLog
) -> None:
    """Conservative: nobody looks for it in every tree."""
    named = [tip(origin, "main:file"), tip(origin, "main^{tree}")]
    assert orphans_of(log, origin.tips(), [*origin.tips(), *named]) == tuple(sorted(named))


def test_what_the_log_does_not_hold_is_no_orphan_of_it(origin: Repo, log: GrownLog) -> None:
    gone = ObjectId(b"7" * 40)
    assert orphans_of(log, origin.tips(), [gone], [ObjectId(b"8" * 40)]) == ()


def test_an_empty_log_has_no_orphans(tmp_path: Path) -> None:
    assert orphans_of(GrownLog(tmp_path), (), [ObjectId(b"7" * 40)]) == ()


@pytest.mark.slow
@settings(max_examples=settings().max_examples // 5)
@given(seed=st.integers(0, 1 << 32))
def test_orphans_are_what_git_says_is_reachable_from_nothing(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any graph, any choice of tips before and now."""
    random = Random(seed)
    folder = tmp_path_factory.mktemp("g")
    origin, log = Repo.create(folder / "origin"), GrownLog(folder / "log")
    for number in range(random.randrange(2, 25)):
        others = list(origin.branches)
        origin.commit(
            f"b{number}",
            {"file": b"%d" % number},
            parent=random.choice([*others, ""]),
            merge=random.choice(others) if others and random.random() < 0.3 else None,
            seconds=random.choice([60, 0, -60, -2 * A_YEAR, 3 * A_YEAR]),
        )
    log.fetch(origin)
    commits = list(origin.tips())
    tips = random.sample(commits, random.randrange(len(commits)))
    old_tips = random.sample(commits, random.randrange(len(commits)))
    reached = (
        run_git("rev-list", *(oid.decode() for oid in tips), "--", repo=origin.path)
        if tips
        else b""
    )
    expected = set(old_tips) - set(reached.split())
    assert orphans_of(log, tips, old_tips) == tuple(sorted(expected))

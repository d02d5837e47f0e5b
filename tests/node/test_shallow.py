"""shallow: the boundary is the one that git's upload-pack announces."""

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goblet_node.errors import ProtocolError
from goblet_node.mirror.graph import Graph
from goblet_node.serve.shallow import Boundary, boundary
from goblet_node.wire.fetch_lines import MAX_DEPTH
from goblet_node.wire.pktline import decode_all
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.requests import Fetch
from goblet_node.wire.v2_client import encode_request
from goblet_testing.histories import History, random_history
from goblet_testing.packs import GrownLog, Repo, run_git
from goblet_testing.upload_pack import answer

NOTHING_SELECTED = "no commits selected for shallow requests"
Lines = tuple[set[bytes], set[bytes]]


def boundary_of(graph: Graph, fetch: Fetch, deepen_not: Sequence[ObjectId] = ()) -> Boundary | str:
    try:
        return boundary(
            graph,
            wants=fetch.wants,
            shallow=fetch.shallow,
            deepen=fetch.deepen,
            deepen_relative=fetch.deepen_relative,
            deepen_since=fetch.deepen_since,
            deepen_not=deepen_not,
        )
    except ProtocolError as exc:
        return str(exc)


def said_by_git(repo: Path, fetch: Fetch) -> Lines | str:
    """Return the shallow and the unshallow lines, or the word for there being none."""
    try:
        body = answer(repo, encode_request(replace(fetch, done=True)))
    except subprocess.CalledProcessError as exc:
        return str(exc.stderr.decode()).removeprefix("fatal: ").strip()
    lines = [line.split() for line in decode_all(body) if isinstance(line, bytes)]
    return (
        {line[1] for line in lines if line[0] == b"shallow"},
        {line[1] for line in lines if line[0] == b"unshallow"},
    )


@pytest.fixture
def line(tmp_path: Path) -> tuple[Path, Graph, list[ObjectId]]:
    """Ten commits on one branch, newest first, with a tag of a tag on the newest."""
    origin, log = Repo.create(tmp_path / "origin"), GrownLog(tmp_path / "log")
    for number in range(10):
        origin.commit("main", {"file": b"%d" % number})
    origin.tag("inner", "refs/heads/main")
    origin.tag("outer", "refs/tags/inner")
    log.fetch(origin)
    listed = run_git("rev-list", "main", repo=origin.path).split()
    return origin.path, log.graph(), [ObjectId(oid) for oid in listed]


def drawn_fetch(history: History, tips: Sequence[ObjectId]) -> tuple[Fetch, list[ObjectId]]:
    """Return a question for a boundary, and what its `deepen-not` names stand for."""
    dice = history.dice
    # All tips: of deepen-relative, git asks about all refs and we about the wants.
    fetch = Fetch(
        wants=tuple(tips),
        shallow=tuple(dice.sample(history.commits, dice.choice((0, 0, 1, 2, 3)))),
    )
    way = dice.randrange(6)
    if way == 0:
        return replace(fetch, deepen=MAX_DEPTH), []
    if way == 1:
        return replace(fetch, deepen=dice.randint(1, 5), deepen_relative=True), []
    if way <= 3:
        some = tuple(dice.sample(tips, dice.randint(1, len(tips))))
        return replace(fetch, wants=some, deepen=dice.randint(1, 6)), []
    fetch = replace(fetch, wants=tuple(dice.sample(tips, dice.randint(1, len(tips)))))
    refs = sorted(history.refs().items())
    excluded = dice.sample(refs, dice.randint(0 if way == 4 else 1, 1))
    if way == 4:
        picked = dice.choice(history.commits).decode()
        since = run_git("log", "-1", "--format=%ct", picked, repo=history.path)
        fetch = replace(fetch, deepen_since=int(since))
    names = tuple(name.encode() for name, _ in excluded)
    return replace(fetch, deepen_not=names), [oid for _, oid in excluded]


@pytest.mark.slow
@settings(max_examples=settings().max_examples // 5)
@given(seed=st.integers(0, 1 << 32))
def test_the_lines_are_those_of_upload_pack(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("g")
    history, log = random_history(folder / "repo", seed), GrownLog(folder / "log")
    tips = sorted(set(history.refs().values()))
    log.take(history.repo.pack([*history.commits, *tips]), [*history.commits, *tips])
    graph = log.graph()
    for _ in range(3):
        fetch, deepen_not = drawn_fetch(history, tips)
        expected = said_by_git(history.path, fetch)
        found = boundary_of(graph, fetch, deepen_not)
        if isinstance(found, str) or isinstance(expected, str):
            assert expected == found
            continue
        assert expected == (set(found.shallow), set(found.unshallow))
        assert found.edge == set(found.shallow) | set(fetch.shallow) - set(found.unshallow)


@pytest.mark.parametrize("start", ["main", "outer"])
def test_depth_counts_commits_of_a_branch_or_of_what_a_tag_points_at(
    line: tuple[Path, Graph, list[ObjectId]], start: str
) -> None:
    path, graph, commits = line
    want = ObjectId(run_git("rev-parse", start, repo=path).strip())
    found = boundary(graph, wants=[want], shallow=(), deepen=3)
    assert found == Boundary(shallow=(commits[2],), unshallow=(), edge=frozenset({commits[2]}))


def test_to_deepen_moves_the_boundary(line: tuple[Path, Graph, list[ObjectId]]) -> None:
    _, graph, commits = line
    found = boundary(graph, wants=commits[:1], shallow=[commits[1]], deepen=4)
    assert found == Boundary(
        shallow=(commits[3],), unshallow=(commits[1],), edge=frozenset({commits[3]})
    )


def test_to_deepen_by_two_counts_from_where_the_client_is(
    line: tuple[Path, Graph, list[ObjectId]],
) -> None:
    _, graph, commits = line
    found = boundary(graph, wants=commits[:1], shallow=[commits[4]], deepen=2, deepen_relative=True)
    assert found == Boundary(
        shallow=(commits[6],), unshallow=(commits[4],), edge=frozenset({commits[6]})
    )


def test_a_boundary_that_stays_is_not_announced_and_still_cuts(
    line: tuple[Path, Graph, list[ObjectId]],
) -> None:
    _, graph, commits = line
    found = boundary(graph, wants=commits[:1], shallow=[commits[2]], deepen=3)
    assert found == Boundary(shallow=(), unshallow=(), edge=frozenset({commits[2]}))


def test_to_unshallow_leaves_no_boundary(line: tuple[Path, Graph, list[ObjectId]]) -> None:
    _, graph, commits = line
    found = boundary(graph, wants=commits[:1], shallow=[commits[2]], deepen=MAX_DEPTH)
    assert found == Boundary(shallow=(), unshallow=(commits[2],), edge=frozenset())


def test_a_client_with_all_history_cannot_deepen_from_where_it_is(
    line: tuple[Path, Graph, list[ObjectId]],
) -> None:
    _, graph, commits = line
    found = boundary(graph, wants=commits[:1], shallow=(), deepen=1, deepen_relative=True)
    assert found == Boundary(shallow=(), unshallow=(), edge=frozenset())


def test_a_depth_beyond_the_root_is_no_boundary(
    line: tuple[Path, Graph, list[ObjectId]],
) -> None:
    _, graph, commits = line
    found = boundary(graph, wants=commits[:1], shallow=(), deepen=MAX_DEPTH - 1)
    assert found == Boundary(shallow=(), unshallow=(), edge=frozenset())


def test_a_time_after_all_commits_selects_nothing(
    line: tuple[Path, Graph, list[ObjectId]],
) -> None:
    path, graph, commits = line
    fetch = Fetch(wants=tuple(commits[:1]), deepen_since=2_000_000_000)
    assert boundary_of(graph, fetch) == NOTHING_SELECTED == said_by_git(path, fetch)


def test_a_blob_that_is_called_shallow_is_refused(
    line: tuple[Path, Graph, list[ObjectId]],
) -> None:
    path, graph, commits = line
    blob = ObjectId(run_git("rev-parse", "main:file", repo=path).strip())
    with pytest.raises(ProtocolError, match="invalid shallow object"):
        boundary(graph, wants=commits[:1], shallow=[blob], deepen=MAX_DEPTH)

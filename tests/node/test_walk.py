"""walk: exactly the commits that `git rev-list` finds, and nothing known that is not."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goblet_node.mirror.reader import LogReader
from goblet_node.serve.walk import Commits, walk
from goblet_node.wire.refs import ObjectId
from goblet_testing.histories import History, random_history
from goblet_testing.packs import GrownLog, Repo, run_git

seeds = st.integers(0, 1 << 32)


class CountingReader(LogReader):
    """Knows how many commits were read."""

    def __init__(self, log: GrownLog) -> None:
        super().__init__(log.packs(), log.table())
        self.reads = 0

    def resolve(self, raw: bytes) -> tuple[int, bytes]:
        """Count, and read."""
        self.reads += 1
        return super().resolve(raw)


@contextmanager
def scene(folder: Path, seed: int, commits: int = 20) -> Iterator[tuple[History, CountingReader]]:
    history = random_history(folder / "repo", seed, commits=commits)
    log = GrownLog(folder / "log")
    log.take(history.repo.pack(history.commits), history.commits)
    with CountingReader(log) as reader:
        yield history, reader


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
    with scene(tmp_path_factory.mktemp("g"), seed) as (history, reader):
        wants = history.dice.sample(history.commits, 3)
        known = history.dice.sample(history.commits, history.dice.randint(0, 4))
        walked = walk(Commits(reader), wants=wants, known=known)
        assert list(walked.new) == rev_list(history.path, wants, *excluded(known))
        assert walked.known <= set(rev_list(history.path, known) if known else ())
        assert walked.known.isdisjoint(walked.new)


@pytest.mark.slow
@settings(max_examples=settings().max_examples // 5)
@given(seed=seeds)
def test_commits_since_a_time_are_those_of_rev_list(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with scene(tmp_path_factory.mktemp("g"), seed) as (history, reader):
        commits = Commits(reader)
        wants = history.dice.sample(history.commits, 2)
        known = history.dice.sample(history.commits, history.dice.randint(0, 1))
        since = commits[history.dice.choice(history.commits)].committed
        walked = walk(commits, wants=wants, known=known, since=since)
        found = rev_list(history.path, wants, f"--max-age={since}", *excluded(known))
        assert list(walked.new) == found


def test_a_known_commit_behind_a_wrong_clock_is_found_again(tmp_path: Path) -> None:
    """It is met as new before the child that makes it known is read."""
    origin, log = Repo.create(tmp_path / "origin"), GrownLog(tmp_path / "log")
    origin.commit("main", {"file": b"0"})
    for number in range(1, 4):
        origin.commit("main", {"file": b"%d" % number}, seconds=86_400)
    origin.commit("known", {"file": b"child"}, parent="main", seconds=-30 * 86_400)
    origin.commit("wanted", {"file": b"other"}, parent="main", seconds=60 * 86_400)
    log.fetch(origin)
    refs = origin.refs()
    with LogReader(log.packs(), log.table()) as reader:
        walked = walk(
            Commits(reader), wants=[refs["refs/heads/wanted"]], known=[refs["refs/heads/known"]]
        )
    assert walked.new == (refs["refs/heads/wanted"],)


@pytest.fixture
def line(tmp_path: Path) -> Iterator[tuple[CountingReader, list[ObjectId]]]:
    """Sixty commits on one branch, oldest first, a minute apart."""
    origin, log = Repo.create(tmp_path / "origin"), GrownLog(tmp_path / "log")
    for number in range(60):
        origin.commit("main", {"file": b"%d" % number})
    log.fetch(origin)
    with CountingReader(log) as reader:
        yield reader, rev_list(origin.path, origin.tips(), "--reverse")


def test_history_behind_what_is_known_is_not_read(
    line: tuple[CountingReader, list[ObjectId]],
) -> None:
    reader, commits = line
    walked = walk(Commits(reader), wants=commits[-1:], known=[commits[-4]])
    assert walked.new == tuple(commits[:-4:-1])
    assert reader.reads <= 12


def test_wants_do_not_reach_through_a_cut(line: tuple[CountingReader, list[ObjectId]]) -> None:
    reader, commits = line
    walked = walk(Commits(reader), wants=commits[-1:], known=(), cut={commits[-3]})
    assert walked.new == tuple(commits[:-4:-1])


def test_what_is_behind_a_shallow_commit_is_not_known(
    line: tuple[CountingReader, list[ObjectId]],
) -> None:
    reader, commits = line
    shallow = {commits[30]}
    walked = walk(
        Commits(reader), wants=[commits[29]], known=commits[-1:], cut=shallow, cut_known=shallow
    )
    assert walked.new == tuple(commits[29::-1])
    assert walked.known <= set(commits[30:])


def test_what_is_known_is_followed_where_wants_are_cut(
    line: tuple[CountingReader, list[ObjectId]],
) -> None:
    """The edge of an answer does not end what its client has."""
    reader, commits = line
    walked = walk(
        Commits(reader), wants=[commits[-1], commits[20]], known=commits[-2:-1], cut={commits[-2]}
    )
    assert walked.new == (commits[-1],)


def test_tags_stand_for_commits_and_blobs_for_none(tmp_path: Path) -> None:
    origin, log = Repo.create(tmp_path / "origin"), GrownLog(tmp_path / "log")
    origin.commit("main", {"file": b"1"})
    origin.tag("inner", "refs/heads/main")
    origin.tag("outer", "refs/tags/inner")
    origin.point("refs/tags/blob", origin.blob(b"blob"))
    log.fetch(origin)
    refs = origin.refs()
    asked = [refs["refs/tags/outer"], refs["refs/tags/blob"], refs["refs/heads/main"]]
    with LogReader(log.packs(), log.table()) as reader:
        assert list(Commits(reader).peeled(asked)) == [refs["refs/heads/main"]] * 2


@pytest.mark.slow
@settings(max_examples=settings().max_examples // 10)
@given(seed=seeds)
def test_parents_come_first_whatever_the_clocks_say(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with scene(tmp_path_factory.mktemp("g"), seed) as (history, reader):
        commits = Commits(reader)
        some = history.dice.sample(history.commits, len(history.commits) - 3)
        ordered = list(commits.parents_first(some))
        assert sorted(ordered) == sorted(some)
        for place, oid in enumerate(ordered):
            assert not set(commits[oid].parents).intersection(ordered[place:])


def test_a_commit_is_read_once(line: tuple[CountingReader, list[ObjectId]]) -> None:
    reader, history = line
    commits = Commits(reader)
    assert commits[history[-1]] is commits[history[-1]]
    assert reader.reads == 1

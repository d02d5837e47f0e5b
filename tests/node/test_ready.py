"""ready: says so exactly where git's upload-pack does."""

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goblet_node.objects import COMMIT, TREE, hex_id, object_id
from goblet_node.serve.ready import ready
from goblet_node.wire.pktline import decode_all
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.requests import Fetch
from goblet_node.wire.v2_client import encode_request
from goblet_testing.histories import random_history
from goblet_testing.packs import GrownLog, HandMade, Repo, commit_of, pack_of, run_git
from goblet_testing.upload_pack import answer


def is_ready(
    log: GrownLog,
    wants: Sequence[ObjectId],
    common: Sequence[ObjectId],
    shallow: Sequence[ObjectId] = (),
) -> bool:
    return ready(log.graph(), wants=wants, common=common, shallow=shallow)


@pytest.mark.slow
@settings(max_examples=settings().max_examples // 5)
@given(seed=st.integers(0, 1 << 32))
def test_ready_is_what_upload_pack_says(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Clocks that are wrong and wants that are tags, trees and blobs included."""
    folder = tmp_path_factory.mktemp("g")
    history, log = random_history(folder / "repo", seed), GrownLog(folder / "log")
    tips = sorted({*history.commits, *history.refs().values()})
    log.take(history.repo.pack(tips), tips)
    for _ in range(3):
        wants = tuple(history.dice.sample(tips, history.dice.randint(1, 3)))
        haves = tuple(history.dice.sample(history.commits, history.dice.randint(1, 4)))
        said = decode_all(answer(history.path, encode_request(Fetch(wants=wants, haves=haves))))
        assert is_ready(log, wants, haves) == (b"ready\n" in said)


@pytest.fixture
def origin(tmp_path: Path) -> Repo:
    """`main` with 40 commits, and `feature` with two more from the twentieth on."""
    repo = Repo.create(tmp_path / "origin")
    for number in range(20):
        repo.commit("main", {"file": b"%d" % number})
    for number in range(20):
        repo.commit("main", {"file": b"%d more" % number})
    repo.flush()
    repo.point("refs/heads/feature", oid_of(repo, "main~20"))
    repo.branches["feature"] = {}
    for number in range(2):
        repo.commit("feature", {"file": b"%d feature" % number})
    repo.flush()
    return repo


@pytest.fixture
def log(origin: Repo, tmp_path: Path) -> GrownLog:
    grown = GrownLog(tmp_path / "log")
    grown.fetch(origin)
    return grown


def oid_of(origin: Repo, name: str) -> ObjectId:
    return ObjectId(run_git("rev-parse", name, repo=origin.path).strip())


def test_nothing_in_common_is_never_enough(origin: Repo, log: GrownLog) -> None:
    assert not is_ready(log, [oid_of(origin, "main")], [])


def test_one_want_that_reaches_nothing_common_is_enough_to_go_on(
    origin: Repo, log: GrownLog
) -> None:
    main, feature = oid_of(origin, "main"), oid_of(origin, "feature")
    assert is_ready(log, [main], [oid_of(origin, "main~3")])
    assert not is_ready(log, [main, feature], [oid_of(origin, "main~3")])
    assert is_ready(log, [main, feature], [oid_of(origin, "main~3"), oid_of(origin, "main~25")])


def test_the_parents_of_a_common_commit_are_common(origin: Repo, log: GrownLog) -> None:
    assert is_ready(log, [oid_of(origin, "main~1")], [oid_of(origin, "main")])
    assert not is_ready(log, [oid_of(origin, "main~2")], [oid_of(origin, "main")])


def test_the_parents_of_a_shallow_commit_are_not_common(origin: Repo, log: GrownLog) -> None:
    main = oid_of(origin, "main")
    assert not is_ready(log, [oid_of(origin, "main~1")], [main], shallow=[main])
    assert is_ready(log, [main], [main], shallow=[main])


def test_wants_that_are_no_commits_are_not_waited_for(origin: Repo, log: GrownLog) -> None:
    blob, tree = oid_of(origin, "main:file"), oid_of(origin, "main^{tree}")
    assert is_ready(log, [blob, tree], [oid_of(origin, "feature")])


def test_a_blob_in_common_leads_to_no_commit(origin: Repo, log: GrownLog) -> None:
    blob = oid_of(origin, "main:file")
    assert not is_ready(log, [oid_of(origin, "main")], [blob])
    assert is_ready(log, [blob], [blob])


@pytest.mark.slow
def test_a_commit_of_thousands_of_parents_is_gone_through_once(tmp_path: Path) -> None:
    """They are roots, and none is what the client has."""
    tree = object_id(TREE, b"")
    roots = [commit_of(tree, seconds=number) for number in range(10, 6000)]
    other = commit_of(tree)
    top = commit_of(tree, *(object_id(COMMIT, root) for root in roots), seconds=7000)
    made = [(TREE, b""), *((COMMIT, content) for content in (*roots, other, top))]
    log = GrownLog(tmp_path / "log")
    log.take(pack_of([HandMade(kind=kind, content=content) for kind, content in made]), ())
    want, common = (hex_id(object_id(COMMIT, content)) for content in (top, other))
    graph = log.graph()
    begun = time.process_time()
    assert not ready(graph, wants=[want], common=[common], shallow=[])
    assert time.process_time() - begun < 0.5

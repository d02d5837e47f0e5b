"""Which cold repositories a node mirrors, and from which request on: real git, a real node."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from goblet_testing import asks, repos
from goblet_testing.gitcli import clone, fsck, git
from goblet_testing.stand import HOST, Stand, start_stand

pytestmark = [pytest.mark.system, pytest.mark.slow]

_WITHIN = 20.0


def mirrors(stand: Stand) -> int:
    return int(stand.node.metrics()["goblet_node_mirrors"])


def wait_for_mirrors(stand: Stand, count: int) -> None:
    deadline = time.monotonic() + _WITHIN
    while mirrors(stand) < count:
        assert time.monotonic() < deadline, stand.node.log[-3000:]
        time.sleep(0.05)


def has_only_forwarded(stand: Stand, name: str) -> bool:
    """Whether the node asked for no pack of its own accord, nor does a moment later."""
    time.sleep(0.3)
    lines = [line for line in stand.node.log.splitlines() if f"key={HOST}/{name} " in line]
    return len(stand.packs(name)) == sum("cache=forwarded" in line for line in lines) > 0


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """An origin, and a node that excludes org/never* and mirrors at most 60 refs."""
    directory = tmp_path_factory.mktemp("stand")
    (directory / "root").mkdir()
    repos.make_repo(directory / "root/org/template.git", commits=20)
    flags = ["--never-mirror", f"{HOST}/ORG/never*", "--max-mirror-refs", "60"]
    with start_stand(directory, flags=flags) as stand:
        yield stand


def test_the_third_shallow_job_has_a_repository_mirrored(stand: Stand, tmp_path: Path) -> None:
    """Each of another depth: the same one again would be answered from its recording."""
    stand.copy("org/shallow", "org/template")
    before = mirrors(stand)
    for depth in (1, 2):
        fsck(clone(stand.url("org/shallow"), tmp_path / f"depth-{depth}", f"--depth={depth}"))
    assert has_only_forwarded(stand, "org/shallow")
    assert mirrors(stand) == before
    fsck(clone(stand.url("org/shallow"), tmp_path / "depth-3", "--depth=3"))
    wait_for_mirrors(stand, before + 1)
    with stand.answers_alone("org/shallow"):
        fsck(clone(stand.url("org/shallow"), tmp_path / "depth-4", "--depth=4"))


def test_one_partial_clone_does_not_count_for_each_file_that_it_opens(
    stand: Stand, tmp_path: Path
) -> None:
    stand.copy("org/partial", "org/template")
    before = mirrors(stand)
    dest = clone(stand.url("org/partial"), tmp_path / "partial", "--filter=blob:none")
    for number in range(1, 6):
        git("checkout", "--quiet", f"HEAD~{number}", cwd=dest)
    forwarded = [line for line in stand.node.log.splitlines() if "org/partial" in line]
    assert sum("cache=forwarded" in line for line in forwarded) > 3
    assert has_only_forwarded(stand, "org/partial")
    assert mirrors(stand) == before


def test_what_the_operator_excludes_is_cloned_and_never_mirrored(
    stand: Stand, tmp_path: Path
) -> None:
    stand.copy("org/never-this", "org/template")
    before = mirrors(stand)
    for number in range(4):
        fsck(clone(stand.url("org/never-this"), tmp_path / f"whole-{number}", "--mirror"))
    for depth in (1, 2, 3, 4):
        clone(stand.url("org/never-this"), tmp_path / f"depth-{depth}", f"--depth={depth}")
    assert has_only_forwarded(stand, "org/never-this")
    assert mirrors(stand) == before


def test_a_repository_with_too_many_refs_is_forwarded(stand: Stand, tmp_path: Path) -> None:
    repo = stand.copy("org/many-refs", "org/template")
    for number in range(60):
        git("branch", f"more/{number}", "main", cwd=repo)
    before = mirrors(stand)
    for number in range(2):
        fsck(clone(stand.url("org/many-refs"), tmp_path / f"whole-{number}", "--mirror"))
    assert has_only_forwarded(stand, "org/many-refs")
    assert mirrors(stand) == before
    assert "more than the 60 of a mirror" in stand.node.log


def test_a_cold_clone_asks_upstream_no_more_than_a_direct_one(stand: Stand, tmp_path: Path) -> None:
    stand.copy("org/rounds", "org/template")
    stand.origin.clear_log()
    clone(stand.direct("org/rounds"), tmp_path / "direct")
    direct = [seen.kind for seen in stand.origin.log]
    stand.origin.clear_log()
    clone(stand.url("org/rounds"), tmp_path / "through")
    through = [seen.kind for seen in stand.origin.log if seen.repo == "org/rounds"]
    assert sorted(through) == sorted(direct) == ["fetch", "info-refs", "ls-refs"]


def test_a_mirror_of_what_is_excluded_since_is_deleted_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    repos.make_repo(tmp_path / "root/org/repo.git", commits=5)
    with start_stand(tmp_path) as stand:
        stand.warm("org/repo")
        assert mirrors(stand) == 1
    with start_stand(tmp_path, flags=["--never-mirror", f"{HOST}/org/repo"]) as stand:
        assert mirrors(stand) == 0
        fsck(clone(stand.url("org/repo"), tmp_path / "clone"))
        assert has_only_forwarded(stand, "org/repo")


def test_refs_that_are_fresh_are_told_with_their_age_and_no_question(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    repo = repos.make_repo(tmp_path / "root/org/repo.git", commits=5)
    with start_stand(tmp_path, flags=["--freshness-seconds", "2"]) as stand:
        url = stand.url("org/repo")
        first = asks.ls_refs(url)
        pushed = repos.commit(repo, files={"new": "new\n"})
        stand.origin.clear_log()
        again = asks.ls_refs(url)
        old = asks.ask(f"{url}/info/refs?service=git-upload-pack")
        assert stand.origin.log == []
        assert again.body == first.body
        assert "goblet-age" not in first.headers
        assert int(again.headers["goblet-age"]) in (0, 1, 2)
        assert int(old.headers["goblet-age"]) in (0, 1, 2)
        assert pushed not in again.refs.values()
        deadline = time.monotonic() + _WITHIN
        while pushed not in (asked := asks.ls_refs(url)).refs.values():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert "goblet-age" not in asked.headers


def test_what_is_kept_goes_only_to_who_may_read_it_at_that_moment(tmp_path: Path) -> None:
    """Refs that are fresh, a recording, the mirror: none of them is a way round the check."""
    (tmp_path / "root").mkdir()
    repo = repos.make_repo(tmp_path / "root/org/private.git", commits=5)
    tip = repos.oid_of(repo, "main")
    users = {"alice": "one", "bob": "two", "eve": "three"}
    flags = ["--freshness-seconds", "60", "--access-seconds", "0"]
    with start_stand(tmp_path, users=users, flags=flags) as stand:
        stand.origin.private["org/private"] = {"alice", "bob"}
        url = stand.url("org/private")

        def statuses(user: str | None) -> set[int]:
            who = None if user is None else (user, users[user])
            old = f"{url}/info/refs?service=git-upload-pack"
            answers = [
                asks.info_refs(url, user=who),
                asks.ask(old, user=who),
                asks.ls_refs(url, user=who),
                asks.fetch(url, [tip], user=who),
                asks.fetch(url, [tip], arguments=["deepen 1"], user=who),
            ]
            assert all(tip not in answer.text for answer in answers if answer.status != 200)
            return {answer.status for answer in answers}

        for _ in range(3):
            assert statuses("alice") == {200}
        assert "goblet-age" in asks.ls_refs(url, user=("bob", "two")).headers
        assert statuses("bob") == {200}
        assert statuses("eve") == {403}
        assert statuses(None) == {401}
        stand.origin.private["org/private"] = {"alice"}
        assert statuses("bob") == {403}
        assert statuses("alice") == {200}


def test_a_commit_that_came_after_what_was_told_is_brought_when_it_is_asked_for(
    tmp_path: Path,
) -> None:
    """A job is given a commit by its name while the refs are still told as they were."""
    (tmp_path / "root").mkdir()
    repo = repos.make_repo(tmp_path / "root/org/repo.git", commits=5)
    with start_stand(tmp_path, flags=["--freshness-seconds", "60"]) as stand:
        stand.warm("org/repo")
        pushed = repos.commit(repo, files={"new": "new\n"})
        git("init", "--quiet", str(tmp_path / "job"))
        git("fetch", "--quiet", stand.url("org/repo"), pushed, cwd=tmp_path / "job")
        assert len(stand.packs("org/repo")) == 2, "the pack of a refresh, not of one object"
        git("cat-file", "-e", f"{pushed}^{{commit}}", cwd=tmp_path / "job")

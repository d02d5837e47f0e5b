"""The repositories of the tests are sound, equal for equal seeds, and change as told."""

from pathlib import Path

import pytest

from goblet_testing import repos
from goblet_testing.gitcli import GitFailed, fsck, git, hermetic_env, refs_of, storm

pytestmark = pytest.mark.system


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return repos.make_repo(tmp_path / "repo.git", commits=25, files=12)


def test_a_made_repository_is_sound_and_has_what_real_ones_have(repo: Path) -> None:
    fsck(repo)
    refs = refs_of(repo)
    assert {"HEAD", "refs/heads/main", "refs/heads/side/0"} <= set(refs)
    assert "refs/tags/v0.0^{}" in refs  # annotated
    assert "refs/tags/v0.1^{}" not in refs  # lightweight
    merges = git("rev-list", "--merges", "--count", "main", cwd=repo).stdout
    assert int(merges) >= 2


def test_equal_seeds_make_equal_repositories_and_others_do_not(tmp_path: Path) -> None:
    refs = [
        refs_of(repos.make_repo(tmp_path / f"{number}.git", commits=12, files=5, seed=seed))
        for number, seed in enumerate([4, 4, 5])
    ]
    assert refs[0] == refs[1]
    assert refs[0]["HEAD"] != refs[2]["HEAD"]


@pytest.mark.slow
def test_the_large_repository_has_more_than_fifty_thousand_objects_and_a_bitmap(
    large_root: Path,
) -> None:
    repo = large_root / "org/large.git"
    assert repos.count_objects(repo) > 50_000
    assert len(list(repo.glob("objects/pack/*.bitmap"))) == 1


@pytest.mark.slow
def test_blobs_do_not_compress(tmp_path: Path) -> None:
    repo = repos.make_blobs(tmp_path / "blobs.git", megabytes=8)
    fsck(repo)
    git("repack", "-adFq", cwd=repo)
    assert sum(pack.stat().st_size for pack in repo.glob("objects/pack/*.pack")) > 8 << 20


@pytest.mark.slow
def test_every_change_leaves_a_sound_repository_that_shows_it(repo: Path) -> None:
    before = repos.oid_of(repo, "main")
    first = repos.commit(repo, files={"a/first.txt": "first\n"})
    assert before == repos.oid_of(repo, f"{first}^")
    topic = repos.commit(repo, "topic", files={"b.txt": "b\n"}, parent=before)
    picked = repos.cherry_pick(repo, topic)
    assert [first, picked] == [repos.oid_of(repo, name) for name in ("main^", "main")]
    reverted = repos.revert(repo, picked)
    assert repos.oid_of(repo, f"{reverted}^{{tree}}") == repos.oid_of(repo, f"{first}^{{tree}}")
    squashed = repos.squash(repo, "topic")
    assert repos.oid_of(repo, f"{squashed}:b.txt") == repos.oid_of(repo, f"{topic}:b.txt")
    rewritten = repos.force_push(repo, back=2)
    assert picked == repos.oid_of(repo, f"{rewritten}^")
    tag = repos.add_tag(repo, "v9", annotated=True)
    nested = repos.add_tag(repo, "v9-again", "v9")
    assert rewritten == repos.oid_of(repo, f"{nested}^{{commit}}")
    assert tag != rewritten
    repos.delete_branch(repo, "topic")
    assert "refs/heads/topic" not in refs_of(repo)
    fsck(repo)
    assert str(repo) in git("worktree", "list", cwd=repo).stdout
    assert len(git("worktree", "list", cwd=repo).stdout.splitlines()) == 1


def test_git_knows_nothing_of_this_machine() -> None:
    origins = git("config", "--list", "--show-origin").stdout.splitlines()
    assert all(line.startswith("command line:") for line in origins if "file:.git" not in line)
    assert not [name for name in hermetic_env() if name.lower().endswith("_proxy")]


def test_a_failing_git_says_why(tmp_path: Path) -> None:
    with pytest.raises(GitFailed, match="not a git repository"):
        git("log", cwd=tmp_path, env={"GIT_CEILING_DIRECTORIES": str(tmp_path)})


@pytest.mark.slow
def test_a_git_that_does_not_end_is_killed_with_its_children() -> None:
    with pytest.raises(GitFailed, match=r"still running after 0\.3 s"):
        git("-c", "alias.wait=!sleep 60", "wait", timeout=0.3)


async def test_a_storm_says_which_clones_failed(repo: Path, tmp_path: Path) -> None:
    (tmp_path / "clone-001").mkdir()
    (tmp_path / "clone-001/in-the-way").touch()
    clones = await storm(2, str(repo), tmp_path, check=False)
    assert [cloned.returncode == 0 for cloned in clones] == [True, False]
    with pytest.raises(GitFailed, match="1 of 1 failed"):
        await storm(1, str(tmp_path / "nothing"), tmp_path / "elsewhere")

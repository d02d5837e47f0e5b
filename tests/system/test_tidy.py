"""A node joins and renews what pushes leave behind, and its clients notice nothing."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from goblet_testing import asks, repos
from goblet_testing.gitcli import clone, fsck, git, refs_of
from goblet_testing.stand import Stand, start_stand

pytestmark = [pytest.mark.system, pytest.mark.slow]

NAME = "org/busy"
_WITHIN = 30.0


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    (tmp_path / "root").mkdir()
    repos.make_repo(tmp_path / "root" / f"{NAME}.git")
    flags = ["--tidy-quiet-seconds", "0.5", "--tidy-within-seconds", "5"]
    with start_stand(tmp_path, flags=flags) as stand:
        yield stand


def push(stand: Stand, work: Path, number: int) -> None:
    """Commit to the origin, and have the node follow."""
    (work / "hot").write_text(f"{number}\n" * 200)
    git("add", "hot", cwd=work)
    git("commit", "-q", "-m", f"push {number}", cwd=work)
    git("push", "-q", stand.repo(NAME), "HEAD", cwd=work)
    asks.ls_refs(stand.url(NAME), "HEAD", "refs/heads/", "refs/tags/")
    stand.warm(NAME)


def segments(stand: Stand) -> list[Path]:
    return sorted(stand.directory.rglob("mirrors/*/*/seg-*.pack"))


def wait_until(holds: Callable[[], bool], stand: Stand) -> None:
    deadline = time.monotonic() + _WITHIN
    while not holds():
        assert time.monotonic() < deadline, stand.node.log[-3000:]
        time.sleep(0.05)


def test_segments_are_joined_and_every_client_is_served_on(stand: Stand, tmp_path: Path) -> None:
    """A clone from before, one made meanwhile, and a new one."""
    stand.warm(NAME)
    early = clone(stand.url(NAME), tmp_path / "early")
    work = clone(stand.direct(NAME), tmp_path / "work")
    for number in range(12):
        push(stand, work, number)
    wait_until(lambda: "segments of the mirror" in stand.node.log, stand)
    wait_until(lambda: len(segments(stand)) < 9, stand)
    with stand.answers_alone(NAME):
        git("fetch", "-q", "origin", cwd=early)
        late = clone(stand.url(NAME), tmp_path / "late", "--mirror")
        shallow = clone(stand.url(NAME), tmp_path / "shallow", "--depth", "1")
    for dest in (early, late, shallow):
        fsck(dest)
    assert refs_of(late) == refs_of(stand.direct(NAME))
    push(stand, work, 100)
    with stand.answers_alone(NAME):
        fsck(clone(stand.url(NAME), tmp_path / "later"))


def test_a_log_full_of_orphans_is_renewed_and_goes_whole_again(
    stand: Stand, tmp_path: Path
) -> None:
    """A branch with most of the bytes is deleted."""
    work = clone(stand.direct(NAME), tmp_path / "work")
    git("checkout", "-q", "-b", "big", cwd=work)
    (work / "blob").write_bytes(bytes(range(256)) * 4000 + Path("/bin/true").read_bytes() * 10)
    git("add", "blob", cwd=work)
    git("commit", "-q", "-m", "big", cwd=work)
    git("push", "-q", stand.repo(NAME), "big", cwd=work)
    stand.warm(NAME)
    before = sum(path.stat().st_size for path in segments(stand))
    git("push", "-q", stand.repo(NAME), ":big", cwd=work)
    asks.ls_refs(stand.url(NAME), "HEAD", "refs/heads/", "refs/tags/")
    wait_until(lambda: "is renewed" in stand.node.log, stand)
    wait_until(lambda: len(segments(stand)) == 1, stand)
    assert segments(stand)[0].stat().st_size < before * 0.75
    wants = sorted(set(asks.ls_refs(stand.url(NAME), "HEAD", "refs/").refs.values()))
    with stand.answers_alone(NAME):
        assert asks.fetch(stand.url(NAME), wants).cache == "whole"
        fsck(clone(stand.url(NAME), tmp_path / "late"))

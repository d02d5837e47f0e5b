"""Hold one repository against another: refs, where history ends, and every object.

What is compared is what a repository can show, not how it is packed.
"""

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from goblet_testing.gitcli import git


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a repository shows: compare two with `==`.

    `objects` is what its refs and HEAD reach; of a partial clone, in which that
    cannot be walked, all that it holds.
    """

    head: str
    refs: tuple[str, ...]
    shallow: frozenset[str]
    objects: frozenset[str]


def shown(repo: Path) -> Shown:
    """Return what the repository (bare or not) shows, without fetching anything lazily."""
    where = Path(git("rev-parse", "--absolute-git-dir", cwd=repo).stdout.strip())
    refs = git("for-each-ref", "--format=%(refname) %(objectname) %(symref)", cwd=repo).stdout
    shallow = where / "shallow"
    return Shown(
        head=(where / "HEAD").read_text().strip(),
        refs=tuple(refs.splitlines()),
        shallow=frozenset(shallow.read_text().split() if shallow.exists() else ()),
        objects=frozenset(_held(repo) if _is_partial(repo) else _reached(repo)),
    )


def assert_sound(repo: Path) -> None:
    """Return if `git fsck --strict` finds nothing to say against what the repository has.

    Raises:
        GitFailed: it does.
    """
    git("fsck", "--full", "--strict", "--no-dangling", "--no-progress", cwd=repo, timeout=300)


def assert_same(repo: Path, direct: Shown, *, besides: Set[str] = frozenset()) -> None:
    """Return if the repository is sound and shows exactly what a `direct` one shows.

    Of objects `besides` it may have some or none more.
    """
    assert_sound(repo)
    ours = shown(repo)
    # By difference: two tuples of 5,000 refs say little when they differ.
    for what, mine, theirs in (
        ("refs", set(ours.refs), set(direct.refs)),
        ("shallow commits", ours.shallow, direct.shallow),
        ("objects", ours.objects - (besides - direct.objects), direct.objects),
    ):
        assert mine == theirs, f"{what}: more {_some(mine - theirs)}, less {_some(theirs - mine)}"
    assert ours.head == direct.head, f"HEAD is {ours.head}, not {direct.head}"


def _reached(repo: Path) -> list[str]:
    return git("rev-list", "--objects", "--all", "--no-object-names", cwd=repo).stdout.split()


def _held(repo: Path) -> list[str]:
    check = "--batch-check=%(objectname)"
    return git("cat-file", "--batch-all-objects", "--unordered", check, cwd=repo).stdout.split()


def _is_partial(repo: Path) -> bool:
    done = git("config", "--get-regexp", "remote[.].*[.]promisor", cwd=repo, check=False)
    return done.returncode == 0


def _some(items: Set[str]) -> str:
    return f"{len(items)} {sorted(items)[:5]}"

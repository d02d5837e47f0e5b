"""One repository that has something of everything that a client can ask for."""

from pathlib import Path

from goblet_testing import repos
from goblet_testing.gitcli import git

SINCE = 1_600_200_000
"""Seconds since the epoch: about half of a `main` of 130 commits is younger."""


def make_rich(path: Path, *, commits: int = 130) -> Path:
    """Make a bare repository, packed without bitmaps, and return `path`.

    `main` has `commits` commits, some of them merges, and there are side branches, a
    branch without a common ancestor, a branch that is a symref; tags of all kinds of
    objects and of tags; blobs from one byte to 40 KiB.
    """
    repos.make_repo(path, commits=commits)
    sizes = {f"sizes/{size}": "x" * size for size in (1, 99, 100, 101, 1023, 1024, 1025, 40_960)}
    repos.commit(path, "main", files=sizes, message="sizes")
    repos.commit(path, "pages", files={"index.html": "<p>pages</p>\n"}, parent=_root(path))
    git("symbolic-ref", "refs/heads/alias", "refs/heads/main", cwd=path)
    repos.add_tag(path, "of-a-tag", "v0.0")
    repos.add_tag(path, "of-a-tag-of-a-tag", "of-a-tag")
    repos.add_tag(path, "of-a-tree", "main^{tree}")
    repos.add_tag(path, "of-a-blob", "main:sizes/100")
    repos.add_tag(path, "light-of-a-blob", "main:sizes/101", annotated=False)
    git("repack", "-adq", "--no-write-bitmap-index", cwd=path)
    return path


def _root(path: Path) -> str:
    """Return a commit without parents and without files."""
    tree = git("mktree", cwd=path).stdout.strip()
    return git("commit-tree", "-m", "root", tree, cwd=path).stdout.strip()

"""Where everything lies below a cache root. Pure: names in, paths out."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from goblet_shared.repo_key import RepoKey

MANIFEST = "manifest.json"


class SegmentFiles(NamedTuple):
    """The files of one segment: its entries, where each of them is, what each refers to."""

    pack: Path
    table: Path
    links: Path


@dataclass(frozen=True, slots=True)
class CacheRoot:
    """The paths below one cache root."""

    path: Path

    @property
    def lock(self) -> Path:
        """The file that the one living node of this root holds a lock on."""
        return self.path / "lock"

    @property
    def marker(self) -> Path:
        """The file that says under which name the node of this root was ready before."""
        return self.path / "was-ready"

    @property
    def mirrors(self) -> Path:
        """Mirrors, one directory each, fanned out over 256 directories."""
        return self.path / "mirrors"

    @property
    def scratch(self) -> Path:
        """Work in progress. Nothing in it outlives the process; same file system as `mirrors`."""
        return self.path / "scratch"

    @property
    def recordings(self) -> Path:
        """Recorded answers, a directory for each repository."""
        return self.path / "recordings"

    def directory_of(self, key: RepoKey) -> Path:
        """Return the directory of a repository's mirror.

        Named by a hash, so that no key makes a path outside the root, a name too
        long, or two names that a file system without letter case takes for one.
        """
        name = _hashed(key)
        return self.mirrors / name[:2] / name

    def recordings_of(self, key: RepoKey) -> Path:
        """Return the directory of a repository's recorded answers, named as its mirror's is."""
        return self.recordings / _hashed(key)


def _hashed(key: RepoKey) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def aside(path: Path) -> Path:
    """Return where a file is written before it gets its name."""
    return path.with_name(f"{path.name}.new")


def is_mirror_directory(path: Path) -> bool:
    """Say whether `path` is named as the directory of a mirror is."""
    return (
        re.fullmatch(r"[0-9a-f]{64}", path.name) is not None and path.parent.name == path.name[:2]
    )


# The names of segments and refs carry a part of the content's checksum: a commit
# that failed may have left its manifest on the disk, and what the next commit
# writes under the same number must not replace the files which that one names.


def segment_files(directory: Path, number: int, checksum: str) -> SegmentFiles:
    """Return where the files of a segment lie in its mirror's directory."""
    name = f"seg-{number:06d}-{checksum[:12]}"
    return SegmentFiles(
        pack=directory / f"{name}.pack",
        table=directory / f"{name}.table",
        links=directory / f"{name}.links",
    )


def refs_name(number: int, content: bytes) -> str:
    """Return the name of the file that holds a generation's refs."""
    return f"refs-{number:06d}-{hashlib.sha256(content).hexdigest()[:12]}"


def is_refs_name(name: str) -> bool:
    """Say whether `name` could be a refs file's: a manifest must not name anything else."""
    return re.fullmatch(r"refs-[0-9]{6,}-[0-9a-f]{12}", name) is not None

"""Where everything lies below a cache root. Pure: names in, paths out."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from goblet_shared.repo_key import RepoKey

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class CacheRoot:
    """The paths below one cache root."""

    path: Path

    @property
    def lock(self) -> Path:
        """The file that the one living node of this root holds a lock on."""
        return self.path / "lock"

    @property
    def mirrors(self) -> Path:
        """Mirrors, one directory each, fanned out over 256 directories."""
        return self.path / "mirrors"

    @property
    def scratch(self) -> Path:
        """Work in progress. Nothing in it outlives the process; same file system as `mirrors`."""
        return self.path / "scratch"

    def directory_of(self, key: RepoKey) -> Path:
        """Return the directory of a repository's mirror.

        Named by a hash, so that no key makes a path outside the root, a name too
        long, or two names that a file system without letter case takes for one.
        """
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.mirrors / name[:2] / name


def is_mirror_directory(path: Path) -> bool:
    """Say whether `path` is named as the directory of a mirror is."""
    return (
        re.fullmatch(r"[0-9a-f]{64}", path.name) is not None and path.parent.name == path.name[:2]
    )


# The names of segments and refs carry a part of the content's checksum: a commit
# that failed may have left its manifest on the disk, and what the next commit
# writes under the same number must not replace the files which that one names.


def segment_name(number: int, checksum: str) -> str:
    """Return the name of a segment's files, without the ending."""
    return f"seg-{number:06d}-{checksum[:12]}"


def refs_name(number: int, content: bytes) -> str:
    """Return the name of the file that holds a generation's refs."""
    return f"refs-{number:06d}-{hashlib.sha256(content).hexdigest()[:12]}"


def is_refs_name(name: str) -> bool:
    """Say whether `name` could be a refs file's: a manifest must not name anything else."""
    return re.fullmatch(r"refs-[0-9]{6,}-[0-9a-f]{12}", name) is not None

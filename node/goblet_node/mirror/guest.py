"""A mirror as a second process reads it: without the lock, while a node may go on with its work."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from goblet_node.errors import MirrorDamaged
from goblet_node.mirror.layout import CacheRoot
from goblet_node.mirror.log import Mirror, Segment
from goblet_node.mirror.recovery import check_mirror, read_manifest
from goblet_node.mirror.view import as_mirror
from goblet_shared.errors import GobletError
from goblet_shared.repo_key import RepoKey

T = TypeVar("T")

# How often a node may change the mirror under a reader who begins anew each time.
_ATTEMPTS = 5


class NoSuchMirror(GobletError):
    """The cache root holds no mirror of that repository."""

    status = 404


def read_mirror(root: Path, key: RepoKey) -> Mirror:
    """Return the mirror of a repository without locking or changing anything.

    A node may join its segments or drop it meanwhile. Then its files disappear under
    the reader, who gets MirrorDamaged: see `with_mirror`.

    Raises:
        NoSuchMirror: there is none.
        MirrorDamaged: it is no good. A table that is no good shows when it is loaded.
    """
    place = CacheRoot(root)
    directory = place.directory_of(key)
    manifest = read_manifest(directory)
    if manifest is None:
        raise NoSuchMirror(
            f"the cache root {str(root)!r} holds no mirror of {key!r}; "
            "clone it through the node of this root first"
        )
    check_mirror(manifest, directory, root=place)
    mirror = as_mirror(manifest, directory=directory, refs=None, earlier=None, mend=_mend_nothing)
    # At once: a busy node deletes the file with its next commit.
    mirror.lazy_refs.get()
    return mirror


def with_mirror(root: Path, key: RepoKey, use: Callable[[Mirror], T]) -> T:
    """Return what `use` makes of a mirror, begun anew if the mirror changed and it failed.

    Raises what `read_mirror` and `use` raise.
    """
    for _ in range(_ATTEMPTS - 1):
        manifest = read_manifest(CacheRoot(root).directory_of(key))
        try:
            return use(read_mirror(root, key))
        except MirrorDamaged:
            if read_manifest(CacheRoot(root).directory_of(key)) == manifest:
                raise
    return use(read_mirror(root, key))


def _mend_nothing(segments: Sequence[Segment], position: int) -> None:
    """Leave a damaged table to the process that holds the lock."""

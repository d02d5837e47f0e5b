"""From a manifest to a Mirror, and back."""

from collections.abc import Callable, Sequence
from pathlib import Path

from goblet_node.mirror.disk import read_file
from goblet_node.mirror.log import Lazy, Mirror, Segment, load_table
from goblet_node.mirror.manifest import Manifest
from goblet_node.mirror.refs import decode_refs
from goblet_node.mirror.table import Table
from goblet_node.wire.refs import Ref


def as_mirror(
    manifest: Manifest,
    *,
    directory: Path,
    refs: tuple[Ref, ...] | None,
    table: Lazy[Table] | None,
    mend: Callable[[Sequence[Segment], int], None],
) -> Mirror:
    """Return the mirror that a manifest describes.

    Refs and table that are not given are read when they are asked for;
    `mend(segments, i)` makes the i-th segment's table anew.
    """
    segments = manifest.segments
    refs_file = directory / manifest.generations[-1].refs_file
    return Mirror(
        key=manifest.key,
        directory=directory,
        segments=segments,
        generations=manifest.generations,
        lazy_refs=(
            Lazy(lambda: decode_refs(read_file(refs_file))) if refs is None else Lazy.of(refs)
        ),
        lazy_table=table or Lazy(lambda: load_table(segments, lambda i: mend(segments, i))),
    )


def manifest_of(mirror: Mirror) -> Manifest:
    """Return the manifest that describes a mirror."""
    return Manifest(key=mirror.key, segments=mirror.segments, generations=mirror.generations)

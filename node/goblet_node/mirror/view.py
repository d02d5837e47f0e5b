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
    earlier: Mirror | None,
    mend: Callable[[Sequence[Segment], int], None],
) -> Mirror:
    """Return the mirror that a manifest describes.

    Refs that are not given, and the table, are read when they are asked for, of the
    table what that of an `earlier` mirror of the same log has not; `mend(segments, i)`
    makes the i-th segment's table and links anew.
    """
    segments = manifest.segments
    # Not the earlier mirror itself: each would hold the one before it, for ever.
    table = None if earlier is None else earlier.lazy_table
    same_log = earlier is not None and earlier.segments == segments
    refs_file = directory / manifest.generations[-1].refs_file
    return Mirror(
        key=manifest.key,
        directory=directory,
        segments=segments,
        generations=manifest.generations,
        lineage=object() if earlier is None else earlier.lineage,
        lazy_refs=(
            Lazy(lambda: decode_refs(read_file(refs_file))) if refs is None else Lazy.of(refs)
        ),
        lazy_table=table if table is not None and same_log else _table(segments, table, mend),
    )


def _table(
    segments: Sequence[Segment],
    earlier: Lazy[Table] | None,
    mend: Callable[[Sequence[Segment], int], None],
) -> Lazy[Table]:
    # What was not loaded by now need not be: a table that is waited for longer is no help.
    grown_from = None if earlier is None else earlier.peek()
    return Lazy(lambda: load_table(segments, lambda i: mend(segments, i), grown_from=grown_from))


def manifest_of(mirror: Mirror) -> Manifest:
    """Return the manifest that describes a mirror."""
    return Manifest(key=mirror.key, segments=mirror.segments, generations=mirror.generations)

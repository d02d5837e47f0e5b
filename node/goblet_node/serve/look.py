"""What a mirror holds of what one fetch asks for. Reads the disk: for a worker thread."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goblet_node import objects
from goblet_node.errors import ProtocolError
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.table import Table
from goblet_node.serve.plan import Behind, Held
from goblet_node.wire.names import shown
from goblet_node.wire.refs import ObjectId, Ref
from goblet_node.wire.requests import Fetch

# Where git looks for a ref that is not named in full (ref_rev_parse_rules in refs.c).
_PLACES = (b"%s", b"refs/%s", b"refs/tags/%s", b"refs/heads/%s", b"refs/remotes/%s")


def look(mirror: Mirror, fetch: Fetch) -> Held:
    """Find what a plan needs to know. Raises MirrorDamaged."""
    rows = mirror.table.find(fetch.wants)
    is_here = rows >= 0
    segments = mirror.table.column("segment")[rows[is_here]]
    return Held(
        within=tuple(mirror.generations_within(frozenset(fetch.wants))) if fetch.is_plain else (),
        unknown=frozenset(oid for oid, here in zip(fetch.wants, is_here, strict=True) if not here),
        reach=int(segments.max()) + 1 if len(segments) else 0,
        behind=_behind(mirror, fetch, segments),
    )


def _behind(mirror: Mirror, fetch: Fetch, wanted_in: NDArray[Any]) -> Behind | None:
    """Find the newest clean generation all of which the client holds, tags perhaps excepted.

    A client names commits only: of a tag what it peels to. So whether it has the
    tag's own object is not known: what is made on one may not go to it, and if it
    wants an object from before that generation, by its id, this is not its answer.
    `wanted_in` are the segments of the wants.
    """
    if not fetch.haves or not mirror.current.is_clean:
        return None
    haves = set(fetch.haves)
    haves.update(tag for tag, peeled in tags_of(mirror.refs) if peeled in haves)
    for generation in mirror.generations_within(haves):
        first = generation.segments
        if first and generation.is_clean and not _is_made_on_tags(mirror.table, first):
            branches = {ref.oid for ref in mirror.refs if not ref.name.startswith(b"refs/tags/")}
            came = branches - mirror.tips_of(generation) - {None}
            is_asked_for = came <= set(fetch.wants) and bool((wanted_in >= first).all())
            return Behind(generation=generation, is_asked_for=is_asked_for)
    return None


def _is_made_on_tags(table: Table, first: int) -> bool:
    """Say whether a delta in the segments from `first` on has a tag for its base."""
    is_delta = (table.column("segment") >= first) & (table.column("kind") == objects.REF_DELTA)
    bases = table.find_raw(table.column("base")[is_delta])
    return bool(np.any(table.column("type")[bases] == objects.TAG))


def tags_of(refs: Iterable[Ref]) -> tuple[tuple[ObjectId, ObjectId], ...]:
    """Return each annotated tag that a ref names, and what it peels to."""
    return tuple(
        (ref.oid, ref.peeled) for ref in refs if ref.oid is not None and ref.peeled is not None
    )


def commits_named(names: Sequence[bytes], refs: Iterable[Ref]) -> tuple[ObjectId, ...]:
    """Return what refs that a user typed stand for, peeled. Raises ProtocolError."""
    known = {ref.name: ref.peeled or ref.oid for ref in refs} if names else {}
    return tuple(_commit_named(name, known) for name in names)


def _commit_named(name: bytes, known: Mapping[bytes, ObjectId | None]) -> ObjectId:
    for place in _PLACES:
        if (oid := known.get(place % name)) is not None:
            return oid
    raise ProtocolError(f"deepen-not is not a ref: {shown(name)}")

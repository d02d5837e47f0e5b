"""What a mirror holds of what one fetch asks for. Reads the disk: for a worker thread."""

from collections.abc import Iterable, Mapping, Sequence

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

_FEW = 256

# Where git looks for a ref that is not named in full (ref_rev_parse_rules in refs.c).
_PLACES = (b"%s", b"refs/%s", b"refs/tags/%s", b"refs/heads/%s", b"refs/remotes/%s")


def is_quick(mirror: Mirror, fetch: Fetch) -> bool:
    """Say whether `look` reads no disk and costs less than a hop to a thread, about 100 us."""
    is_loaded = mirror.lazy_table.is_loaded and mirror.lazy_refs.is_loaded
    return is_loaded and not fetch.haves and len(fetch.wants) <= _FEW and len(mirror.tips) <= _FEW


def look(mirror: Mirror, fetch: Fetch) -> Held:
    """Find what a plan needs to know. Raises MirrorDamaged."""
    rows = mirror.table.find(fetch.wants)
    is_here = rows >= 0
    places = rows[is_here]
    return Held(
        within=tuple(mirror.generations_within(frozenset(fetch.wants))) if fetch.is_plain else (),
        unknown=frozenset(oid for oid, here in zip(fetch.wants, is_here, strict=True) if not here),
        reach=int(places.max(initial=-1)) + 1,
        behind=_behind(mirror, fetch, places),
    )


def whole(mirror: Mirror, fetch: Fetch) -> int | None:
    """Return how many of the log's first objects are all that the wants reach, None if unknown.

    Known for a clean generation of which every tip is wanted: with a filter that spares
    the walk over all of history. Raises MirrorDamaged.
    """
    if fetch.haves or fetch.shallow or fetch.has_depth:
        return None
    reach = int(mirror.table.find(fetch.wants).max(initial=-1)) + 1
    for generation in mirror.generations_within(frozenset(fetch.wants)):
        if generation.is_clean and reach <= generation.objects:
            return generation.objects
    return None


def _behind(mirror: Mirror, fetch: Fetch, wanted: NDArray[np.int64]) -> Behind | None:
    """Find the newest clean generation all of which the client holds, tags perhaps excepted.

    A client names commits only: of a tag what it peels to. So whether it has the
    tag's own object is not known: what is made on one may not go to it, and if it
    wants an object from before that generation, by its id, this is not its answer.
    `wanted` are the places of the wants.
    """
    if not fetch.haves or not mirror.current.is_clean:
        return None
    haves = set(fetch.haves)
    haves.update(tag for tag, peeled in tags_of(mirror.refs) if peeled in haves)
    for generation in mirror.generations_within(haves):
        first = generation.objects
        if first and generation.is_clean and not _is_made_on_tags(mirror.table, first):
            branches = {ref.oid for ref in mirror.refs if not ref.name.startswith(b"refs/tags/")}
            came = branches - mirror.tips_of(generation) - {None}
            is_asked_for = came <= set(fetch.wants) and bool((wanted >= first).all())
            return Behind(generation=generation, is_asked_for=is_asked_for)
    return None


def _is_made_on_tags(table: Table, first: int) -> bool:
    """Say whether a delta from place `first` on has a tag for its base."""
    is_delta = table.column("kind")[first:] == objects.REF_DELTA
    bases = table.find_raw(table.column("base")[first:][is_delta])
    return bool(np.any(table.column("type")[bases] == objects.TAG))


def names_history(mirror: Mirror, oids: Sequence[ObjectId]) -> bool:
    """Say whether one of these objects is a commit or a tag. Raises MirrorDamaged."""
    table = mirror.table
    rows = table.find(oids)
    types = table.column("type")[rows[rows >= 0]]
    return bool(np.isin(types, (objects.COMMIT, objects.TAG)).any())


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

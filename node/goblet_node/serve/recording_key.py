"""One key for every question that has one answer. Pure: the caller looks things up.

Requests that differ in what does not matter (order, repetition, haves that are not here,
the client's name) are first said in one way; the answer that is recorded is the
answer to that. What is said in one way is what the key is made of, so that nothing
can matter to the answer and be missing in the key.

Two answers to one question, made at different times, may differ in their bytes: the log
has grown, an object is stored as another delta by then. Both are right, for ever:
objects are named by what they hold.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from goblet_node.wire.answers import Dialect, V2Dialect
from goblet_node.wire.filters import Filter, parse_filter
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.requests import Fetch

# Changes when this module, or what an answer is made of, does: what was recorded
# before is then not found any more, and goes as the least used.
_FORMAT = b"1"

Held = Callable[[Sequence[ObjectId]], Sequence[ObjectId]]
"""Returns those of some objects that the mirror holds, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedQuestion:
    """A fetch as all who ask the same share it, of one repository.

    Attributes:
        fetch: What is asked, said as `normalised` says it.
        dialect: How it is answered.
        common: Those of its haves that the mirror holds.
        deepen_not: The commits that its `deepen-not` names stand for.
        tags: What `tags_digest` says of the tags that it may get unasked; empty if it may none.
    """

    fetch: Fetch
    dialect: Dialect
    common: tuple[ObjectId, ...] = ()
    deepen_not: tuple[ObjectId, ...] = ()
    tags: bytes = b""


def is_ours_to_answer(fetch: Fetch) -> bool:
    """Whether a fetch asks for objects, in words that were offered: no other is recorded."""
    return bool(fetch.wants) and not (
        fetch.want_refs or fetch.packfile_uris is not None or fetch.sideband_all
    )


def normalised(fetch: Fetch, dialect: Dialect, *, held: Held) -> Fetch:
    """Return the fetch that has the same answer and is the same for all who ask for that.

    The answer to it is one to `fetch`, except that its `unshallow` lines may come in
    another order, and that it may be had more cheaply: whoever has nothing in common
    with the mirror asks for a whole clone.
    """
    haves, done, wait_for_done = fetch.haves, fetch.done, fetch.wait_for_done
    if isinstance(dialect, V2Dialect):
        # Of haves that are not here version 2 says nothing. With `done` it says nothing
        # of the others either, so that their order means nothing.
        known = tuple(held(haves)) if haves else ()
        if done or not haves:
            haves, done, wait_for_done = tuple(sorted(known)), True, False
        else:
            haves = known or haves  # none is here: the answer is that, and no clone
    # In versions 0 and 1 a have may be acknowledged that is not here, and an ACK for
    # what a client never named makes it die: there its very haves are the question.
    shallow = tuple(sorted(held(fetch.shallow))) if fetch.shallow else ()
    return replace(
        fetch,
        wants=tuple(sorted(set(fetch.wants))),
        haves=haves,
        done=done,
        wait_for_done=wait_for_done,
        # Thin is on what the client has.
        thin_pack=fetch.thin_pack and bool(haves or shallow),
        shallow=shallow,
        deepen_relative=fetch.deepen_relative and fetch.deepen is not None,
        deepen_not=tuple(sorted(set(fetch.deepen_not))),
        agent=None,
        session_id=None,
        server_options=(),
    )


def key_of(question: SharedQuestion) -> str:
    """Return what the answer is found by, among those of its repository: 64 hex digits.

    Raises:
        ProtocolError: the filter is none that we know.
    """
    fetch = question.fetch
    spec = fetch.filter_spec
    passing = None if spec is None else parse_filter(spec)
    numbers = (fetch.deepen, fetch.deepen_since, fetch.deepen_relative)
    flags = (
        fetch.done,
        fetch.wait_for_done,
        fetch.thin_pack,
        fetch.ofs_delta,
        fetch.no_progress,
        fetch.include_tag,
    )
    digest = hashlib.sha256(_FORMAT)
    for values in (
        # The dialect is a value: its repr says all of it, each field by name.
        [repr(question.dialect).encode(), repr((numbers, flags)).encode(), _said(passing)],
        fetch.wants,
        fetch.haves,
        question.common,
        fetch.shallow,
        sorted(set(question.deepen_not)),
        [question.tags],
    ):
        digest.update(_framed(values))
    return digest.hexdigest()


def tags_digest(tags: Iterable[tuple[ObjectId, ObjectId]]) -> bytes:
    """Return what tells one set of annotated tags, each with what it peels to, from another."""
    return hashlib.sha256(_framed(sorted({tag + peeled for tag, peeled in tags}))).digest()


def _said(passing: Filter | None) -> bytes:
    if passing is None:
        return b""
    return repr((sorted(passing.kinds), passing.blob_limit, passing.tree_depth)).encode()


def _framed(values: Sequence[bytes]) -> bytes:
    """Return values as one, so that no other values are the same one."""
    return b"%d;" % len(values) + b"".join([b"%d:%s" % (len(value), value) for value in values])

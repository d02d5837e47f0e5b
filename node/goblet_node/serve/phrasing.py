"""What a client asks, said as all who ask the same say it: looks up what the key needs."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from weakref import ReferenceType, WeakKeyDictionary, ref

import trio

from goblet_node.errors import ProtocolError
from goblet_node.fill.refs import Listing, RefsDesk
from goblet_node.mirror.log import Mirror
from goblet_node.serve.look import commits_named, tags_of
from goblet_node.serve.recording_key import (
    SharedQuestion,
    is_ours_to_answer,
    key_of,
    normalised,
    tags_digest,
)
from goblet_node.serve.sending import Asked
from goblet_node.wire.answers import Dialect
from goblet_node.wire.refs import ObjectId, Ref
from goblet_node.wire.requests import Fetch
from goblet_shared.repo_key import RepoKey

# A client fetches right after it was told the refs; later, somebody may have pushed.
TOLD_WITHIN = 5.0
# So many ids are looked up while others wait: for less than a hop to a thread costs.
FEW = 64
# 200 jobs of a CI send the same bytes: of so many bodies of so many bytes it is
# remembered what they ask of a mirror, which costs 120 us to find out.
MAX_REMEMBERED = 512
REMEMBERED_BODY = 4096
# Instead of the tags, where nobody knows them. Such a recording is asked for only
# until there is a mirror, and dies with that.
_UNKNOWN_TAGS = b"not known"


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrased:
    """A fetch as all who ask the same say it, and the key of its answer if that may be recorded."""

    fetch: Fetch
    key: str | None


_Said = tuple[ReferenceType[Mirror], bytes, Dialect]
"""A body that a client sent, how it is to be read, and of which mirror it asks."""


class Phrasing:
    """Says fetches in one way. Remembers of each mirror what its tags are."""

    def __init__(self, *, desk: RefsDesk) -> None:
        """Ask `desk` what was listed of a repository that has no mirror."""
        self._desk = desk
        # All mutable state; what two threads of a mirror put here is equal.
        self._tags: WeakKeyDictionary[Mirror, bytes] = WeakKeyDictionary()
        # Changed only between awaits, last used at the end. A mirror never changes, and
        # is not kept by this: when it is gone nothing asks for what was said of it.
        self._remembered: OrderedDict[_Said, Phrased] = OrderedDict()

    def known(self, asked: Asked, mirror: Mirror) -> Phrased | None:
        """Return what a request asks of `mirror` if that was found out before."""
        said = (ref(mirror), asked.body, asked.dialect)
        phrased = self._remembered.get(said)
        if phrased is not None:
            self._remembered.move_to_end(said)
        return phrased

    async def phrase(self, key: RepoKey, asked: Asked, mirror: Mirror | None) -> Phrased:
        """Return what a request asks of `mirror`, or of a repository that has none.

        Raises MirrorDamaged.
        """
        if mirror is None:
            return await self._phrase(key, asked.fetch, asked.dialect, None)
        phrased = self.known(asked, mirror)
        if phrased is None:
            phrased = await self._phrase(key, asked.fetch, asked.dialect, mirror)
            if len(asked.body) <= REMEMBERED_BODY:
                self._remembered[ref(mirror), asked.body, asked.dialect] = phrased
                if len(self._remembered) > MAX_REMEMBERED:
                    self._remembered.popitem(last=False)
        return phrased

    async def _phrase(
        self, key: RepoKey, fetch: Fetch, dialect: Dialect, mirror: Mirror | None
    ) -> Phrased:
        if not is_ours_to_answer(fetch):
            return Phrased(fetch=fetch, key=None)
        if mirror is None:
            listing = self._desk.told(key, within=TOLD_WITHIN)
            say = partial(_of_nothing, fetch, dialect, listing)
        else:
            say = partial(self._of, mirror, fetch, dialect)
        return await trio.to_thread.run_sync(say) if self._takes_long(fetch, mirror) else say()

    def _takes_long(self, fetch: Fetch, mirror: Mirror | None) -> bool:
        """Whether to look up what is needed takes a while, or reads the disk."""
        asked = len(fetch.haves) + len(fetch.shallow)
        if fetch.deepen_not or asked > FEW or len(fetch.wants) > FEW:
            return True
        if mirror is None:
            return fetch.include_tag
        if fetch.include_tag and mirror not in self._tags:
            return True
        return asked > 0 and not mirror.lazy_table.is_loaded

    def _of(self, mirror: Mirror, fetch: Fetch, dialect: Dialect) -> Phrased:
        def held(oids: Sequence[ObjectId]) -> Sequence[ObjectId]:
            rows = mirror.table.find(oids)
            return [oid for oid, row in zip(oids, rows, strict=True) if row >= 0]

        said = normalised(fetch, dialect, held=held)
        tags = b""
        if fetch.include_tag:
            if (known := self._tags.get(mirror)) is None:
                known = self._tags[mirror] = tags_digest(tags_of(mirror.refs))
            tags = known
        refs = mirror.refs if fetch.deepen_not else ()
        common = tuple(held(said.haves)) if said.haves else ()
        return _keyed(said, dialect, refs=refs, common=common, tags=tags)


def _of_nothing(fetch: Fetch, dialect: Dialect, listing: Listing | None) -> Phrased:
    """Return what is asked of a repository without a mirror, of which this was listed."""
    if fetch.haves or fetch.shallow:
        return Phrased(fetch=fetch, key=None)
    said = normalised(fetch, dialect, held=lambda _: ())
    tags = b""
    if fetch.include_tag:
        tags = _UNKNOWN_TAGS if listing is None else tags_digest(tags_of(listing.mirrored))
    refs = () if listing is None else listing.mirrored
    return _keyed(said, dialect, refs=refs, common=(), tags=tags)


def _keyed(
    fetch: Fetch,
    dialect: Dialect,
    *,
    refs: Iterable[Ref],
    common: tuple[ObjectId, ...],
    tags: bytes,
) -> Phrased:
    try:
        key = key_of(
            SharedQuestion(
                fetch=fetch,
                dialect=dialect,
                common=common,
                deepen_not=commits_named(fetch.deepen_not, refs),
                tags=tags,
            )
        )
    except ProtocolError:
        # A filter or a ref that we do not know: who answers says what is wrong with it.
        return Phrased(fetch=fetch, key=None)
    return Phrased(fetch=fetch, key=key)

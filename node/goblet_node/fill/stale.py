"""The refs while upstream is down: as it told them last, if that is not too long ago."""

import hashlib
import math
from collections.abc import Callable

import trio

from goblet_node.errors import DiskFailed, MirrorDamaged, UpstreamDown
from goblet_node.fill.outages import Outages
from goblet_node.fill.patience import DOUBTED, in_time_or_old
from goblet_node.fill.refs import MIRRORED, Listing, Question, RefsDesk
from goblet_node.fill.upstream import Grant
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.store import MirrorStore
from goblet_shared.repo_key import RepoKey

# Of how many repositories it is remembered that their upstream failed the last time.
MAX_DOUBTED = 65_536


class StaleRefs:
    """Asks the desk, and answers from what is here if upstream cannot."""

    def __init__(
        self,
        *,
        desk: RefsDesk,
        store: MirrorStore,
        confirmed: Callable[[Mirror], float | None],
        stale: float,
        stale_after: float,
        outages: Outages,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        """Let refs stand in that upstream told less than `stale` seconds ago; 0: none.

        `stale_after` is how many seconds upstream may take before they do. `confirmed`
        says when upstream last said that its refs are those of a mirror, in seconds of
        `clock`, which is the desk's.
        """
        self._desk = desk
        self._store = store
        self._confirmed = confirmed
        self._stale = stale
        self._stale_after = stale_after
        self._outages = outages
        self._clock = clock
        # All mutable state: whose upstream failed the last time, with the listing that was the
        # newest then. Changed only between awaits.
        self._doubted: dict[RepoKey, float | None] = {}

    async def ask(self, grant: Grant, question: Question) -> tuple[Listing, bool]:
        """Return at least the refs that `question` covers, and whether they are stale.

        Raises what the desk does if there are none that may stand in.
        """
        key = grant.key

        async def ask() -> tuple[Listing, bool]:
            listing = await self._desk.ask(grant, question)
            self._doubted.pop(key, None)
            self._outages.over(key)
            return listing, False

        async def old(why: UpstreamDown | None) -> tuple[Listing, bool] | None:
            listing = await self._old(key, question)
            if listing is None:
                return None
            self._doubt(key)
            self._outages.stale(key, "refs", age=self._clock() - listing.begun, why=why)
            return listing, True

        return await in_time_or_old(ask, old, patience=self._patience(key, question))

    def _patience(self, key: RepoKey, question: Question) -> float:
        """Return how much longer to wait for upstream, whose question may be under way."""
        mirror = self._store.get(key)
        has_listing = self._desk.kept(key, question, within=self._stale) is not None
        if not has_listing and (mirror is None or self._age(mirror) >= self._stale):
            return math.inf
        most = min(DOUBTED, self._stale_after) if self._is_doubted(key) else self._stale_after
        return most - self._desk.asked_for(key, question)

    async def _old(self, key: RepoKey, question: Question) -> Listing | None:
        """Return what may stand in.

        The newest listing, unless the mirror has not come to it: what it names could
        not be cloned, what the mirror has can.
        """
        listing = self._desk.kept(key, question, within=self._stale)
        mirror = self._store.get(key)
        if mirror is None or question != MIRRORED:
            return listing
        if self._age(mirror) >= self._stale:
            return listing
        own = await self._refs_of(mirror)
        return listing if own is None or _says_the_same(listing, own) else own

    async def _refs_of(self, mirror: Mirror) -> Listing | None:
        begun = self._confirmed(mirror)
        if begun is None:
            return None

        def read() -> Listing:
            return Listing(
                refs=mirror.refs,
                mirrored=mirror.refs,
                tips=mirror.tips,
                # It names the file's content, and no answer of an upstream is hashed like this.
                digest=hashlib.sha256(mirror.current.refs_file.encode()).digest(),
                begun=begun,
                bytes=0,
            )

        try:
            with self._store.reading(mirror):
                # In a thread: the first look at a mirror reads the disk.
                return await trio.to_thread.run_sync(read)
        except (MirrorDamaged, DiskFailed):
            return None  # who fetches will meet it, and have it dropped

    def _age(self, mirror: Mirror) -> float:
        begun = self._confirmed(mirror)
        return math.inf if begun is None else self._clock() - begun

    def _doubt(self, key: RepoKey) -> None:
        if len(self._doubted) >= MAX_DOUBTED:
            self._doubted.clear()
        self._doubted[key] = self._newest(key)

    def _is_doubted(self, key: RepoKey) -> bool:
        """Say whether upstream failed the last time: an answer that came late ends that, too."""
        return key in self._doubted and self._doubted[key] == self._newest(key)

    def _newest(self, key: RepoKey) -> float | None:
        newest = self._desk.told(key, within=math.inf)
        return None if newest is None else newest.begun


def _says_the_same(listing: Listing | None, own: Listing) -> bool:
    return listing is not None and listing.mirrored == own.mirrored

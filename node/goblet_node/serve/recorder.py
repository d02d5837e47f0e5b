"""Each question is answered once, however many ask: from its recording, or while that is made."""

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from goblet_node.errors import DiskFailed, NodeStopping
from goblet_node.fill.failures import Refused
from goblet_node.fill.room import Room
from goblet_node.fill.scratch import scratch_of
from goblet_node.metrics import NodeMetrics
from goblet_node.mirror.store import MirrorStore
from goblet_node.serve.open_files import Lent
from goblet_node.serve.production import RECORDED, Production
from goblet_node.serve.recordings import Recording, Recordings, Writing
from goblet_node.serve.reply import NOT_TO_BE_KEPT, RESULT, Reply
from goblet_node.serve.small_answers import SmallAnswer
from goblet_shared.errors import GobletError
from goblet_shared.parts import FileFailed, FileSpan
from goblet_shared.repo_key import RepoKey

log = logging.getLogger(__name__)

# Of how many questions it is remembered how often they were asked: 20 MB at the most.
# What is asked again is asked soon.
MAX_COUNTED = 65_536

_Place = tuple[RepoKey, str]
"""A repository and the key of a question."""

Make = Callable[[Production], Awaitable[None]]
"""Gives a production the answer to one question."""


class Recorder:
    """Sends recordings, and has answers made that become recordings."""

    def __init__(
        self,
        *,
        recordings: Recordings,
        store: MirrorStore,
        room: Room,
        nursery: trio.Nursery,
        record_after: int,
        record_whole_after: int,
        metrics: NodeMetrics,
    ) -> None:
        """Make answers in `nursery`, in scratch folders of `store`, with room claimed of `room`.

        What is not recorded at once is, from the `record_after`-th time on that it is asked;
        what lies in the log as it is sent, from the `record_whole_after`-th on, and never
        if that is 0.
        """
        self._recordings = recordings
        self._store = store
        self._room = room
        self._nursery = nursery
        self._record_after = record_after
        self._record_whole_after = record_whole_after
        self._metrics = metrics
        # All mutable state: the answers being made that can be joined, and how often
        # questions were asked, the latest last. Changed only between awaits.
        self._making: dict[_Place, Production] = {}
        self._asked: OrderedDict[_Place, int] = OrderedDict()

    async def replay_at_hand(self, repo: RepoKey, key: str, reply: Reply) -> bool:
        """Send the recorded answer to a question if it is in memory; return whether it is.

        Waits for nothing but the client.
        """
        answer = self._recordings.at_hand(repo, key)
        if answer is None:
            return False
        await _send_small(answer, reply)
        return True

    async def replay(self, repo: RepoKey, key: str, reply: Reply) -> bool:
        """Send the recorded answer to a question; return whether there is one."""
        found = self._recordings.find(repo, key)
        if found is None:
            return False
        try:
            if found.is_small:
                answer = await trio.to_thread.run_sync(self._recordings.read, found)
                if answer is not None:
                    await _send_small(answer, reply)
                return answer is not None
            lent = self._recordings.lend(found)
            if lent is None:
                lent = await trio.to_thread.run_sync(self._recordings.open_file, found)
        except DiskFailed as exc:
            log.warning("%s", exc)
            return False
        if lent is None:
            return False
        await self._send_file(found, lent, reply)
        return True

    async def _send_file(self, found: Recording, lent: Lent, reply: Reply) -> None:
        try:
            await _start(reply, has_pack=found.has_pack, length=found.size)
            await reply.send_parts([FileSpan(file=lent.file, offset=0, count=found.size)])
        except FileFailed:
            # Only this answer is lost to it: the next is made anew.
            await trio.to_thread.run_sync(self._recordings.forget, found)
            raise
        finally:
            self._recordings.give_back(lent)

    def is_due(self, repo: RepoKey, key: str, *, at_once: bool) -> bool:
        """Say whether an answer is to be recorded, counting one more who asks.

        One that is being made is, since it can be followed.
        """
        if not self._recordings.budget:
            return False
        is_asked_again = self._times_asked((repo, key)) >= self._record_after
        return at_once or is_asked_again or (repo, key) in self._making

    def is_copy_due(self, repo: RepoKey, key: str, *, size: int) -> bool:
        """Say whether an answer of `size` bytes that lies in the log is to be recorded too.

        As one file it is sent for two thirds of the CPU, and takes its size on the disk
        again: so only what is asked for often, and while there is plenty of room.
        """
        if not (self._recordings.budget and self._record_whole_after):
            return False
        is_usual = self._times_asked((repo, key)) >= self._record_whole_after
        is_small = size <= self._recordings.budget // 4
        has_room = size <= (self._room.cap - self._room.used) // 2
        return (is_usual and is_small and has_room) or (repo, key) in self._making

    def _times_asked(self, place: _Place) -> int:
        """Count one more who asks, and return how many did."""
        times = self._asked.pop(place, 0) + 1
        self._asked[place] = times
        if len(self._asked) > MAX_COUNTED:
            self._asked.popitem(last=False)
        return times

    async def follow(self, repo: RepoKey, key: str, make: Make, reply: Reply) -> None:
        """Send the answer that `make` gives, or that is being made for somebody else.

        The making belongs to the node: it goes on while anybody follows, whoever it is,
        and stops when nobody does. Raises what it failed of; then nothing was sent, or
        whole packets were.
        """
        place = (repo, key)
        while True:
            production = self._making.get(place)
            joined = production is not None and production.can_be_joined
            if production is None or not joined:
                production = self._making[place] = Production()
                self._nursery.start_soon(self._run, place, production, make)
            try:
                with production.followed() as follower:
                    await production.follow(follower, reply, joined=joined)
                return
            except Refused:
                # Upstream refused the credential of whoever had it made, not ours.
                if not joined or reply.is_started:
                    raise
            finally:
                if not (production.has_followers or production.ended):
                    # Not to be joined any more: it is over, though it may not know yet.
                    self._forget(place, production)
                    production.scope.cancel()

    async def _run(self, place: _Place, production: Production, make: Make) -> None:
        outcome = "abandoned"
        try:
            with production.scope, production.held():
                outcome = await self._produce(place, production, make)
        except Exception as exc:
            outcome = "failed"
            # Kept from the nursery: it belongs to those who follow.
            if production.ended:
                log.error("an answer could not be recorded", exc_info=exc)
            else:
                production.fail(exc)
        finally:
            if not production.ended:
                production.fail(NodeStopping("this node is stopping: ask again"))
            self._forget(place, production)
            self._metrics.recorded.labels(outcome).inc()

    async def _produce(self, place: _Place, production: Production, make: Make) -> str:
        """Have the answer made and kept; return what became of it."""
        async with scratch_of(self._store) as scratch:
            with self._room.claim(place[0]) as claim, self._recordings.writing(*place) as writing:
                file = scratch / "answer"
                await production.open(file, claim)
                await make(production)
                production.finish()
                is_kept = production.can_be_kept and await self._keep(writing, file, production)
        return "kept" if is_kept else "not-kept"

    async def _keep(self, writing: Writing, file: Path, production: Production) -> bool:
        try:
            return await trio.to_thread.run_sync(
                lambda: writing.keep(file, has_pack=production.cache is not None)
            )
        except GobletError as exc:
            log.warning("an answer is not recorded: %s", exc)
            return False

    def _forget(self, place: _Place, production: Production) -> None:
        if self._making.get(place) is production:
            del self._making[place]


async def _send_small(answer: SmallAnswer, reply: Reply) -> None:
    await _start(reply, has_pack=answer.has_pack, length=len(answer.data))
    await reply.send(answer.data)


async def _start(reply: Reply, *, has_pack: bool, length: int) -> None:
    cache = RECORDED if has_pack else None
    await reply.start(200, [RESULT, *NOT_TO_BE_KEPT], cache=cache, length=length)

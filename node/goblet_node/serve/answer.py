"""Act on a plan: bring the bytes of one fetch to its client."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import assert_never

import anyio
import trio

from goblet_node.errors import DiskFailed, MirrorDamaged, ProtocolError
from goblet_node.fill.refresh import Refresher
from goblet_node.fill.spool import Spool
from goblet_node.fill.upstream import Grant
from goblet_node.mirror.log import Generation, Mirror
from goblet_node.mirror.store import MirrorMoved, MirrorStore
from goblet_node.serve.cold import Cold, is_forwarded_for_all, told_as
from goblet_node.serve.look import is_quick, look, names_history
from goblet_node.serve.phrasing import Phrased, Phrasing
from goblet_node.serve.plan import (
    Bring,
    Follow,
    Forward,
    Held,
    Plan,
    Refill,
    Refuse,
    Select,
    Suffix,
    Tried,
    Whole,
    plan,
)
from goblet_node.serve.recorder import Recorder
from goblet_node.serve.reply import Reply
from goblet_node.serve.selecting import Selector
from goblet_node.serve.sending import Asked, FileSink, Sink, Straight
from goblet_node.serve.whole import Verbatim
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.requests import Fetch
from goblet_node.wire.v2_client import RemoteError
from goblet_shared.errors import GobletError
from goblet_shared.parts import FileFailed

# What goes wrong in this node and with this mirror, and would not upstream.
_OURS_ALONE = (MirrorDamaged, DiskFailed, MirrorMoved, anyio.BrokenWorkerProcess)


class Answerer:
    """Answers fetches from the mirror where it can, from upstream where it must."""

    def __init__(
        self,
        *,
        store: MirrorStore,
        refresher: Refresher,
        phrasing: Phrasing,
        recorder: Recorder,
        verbatim: Verbatim,
        selector: Selector,
        cold: Cold,
        refresh_wait: float,
        copy_wait: float = 0.0,
    ) -> None:
        """Wait at most `refresh_wait` seconds for a refresh that may bring an unknown want.

        And `copy_wait` for a mirror that another member of the cluster may have.
        """
        self._store = store
        self._refresher = refresher
        self._phrasing = phrasing
        self._recorder = recorder
        self._verbatim = verbatim
        self._selector = selector
        self._cold = cold
        self._refresh_wait = refresh_wait
        self._copy_wait = copy_wait

    async def answer_at_hand(self, asked: Asked, grant: Grant, reply: Reply) -> bool:
        """Answer a fetch from memory, waiting for nobody but the client; return whether it was."""
        mirror = self._store.get(grant.key)
        phrased = None if mirror is None else self._phrasing.known(asked, mirror)
        if phrased is None or phrased.key is None:
            return False
        if not await self._recorder.replay_at_hand(grant.key, phrased.key, reply):
            return False
        self._store.touch(grant.key)
        return True

    async def answer(self, asked: Asked, grant: Grant, reply: Reply) -> None:
        """Answer a fetch to a caller who may read the repository."""
        try:
            reason = await self._answer_here(asked, grant, reply)
        except FileFailed:
            # Part of a packet may have been sent: no word of ours can follow it.
            raise
        except (GobletError, anyio.BrokenWorkerProcess) as exc:
            if reply.is_started:
                # What was sent is packets, whole ones: the next can say what happened.
                # Who has no side-band is told by a connection that is cut.
                if not (said := asked.dialect.error(str(told_as(exc)))):
                    raise told_as(exc) from exc
                reply.note = str(exc)
                await reply.send(said)
                return
            if not isinstance(exc, _OURS_ALONE):
                raise
            # Nothing was sent, and the trouble is this node's: upstream can answer.
            reason = str(exc) or type(exc).__name__
        if reason is not None:
            reply.note = reason
            await self.forward(asked.body, asked.headers, grant, reply)

    async def forward(
        self, body: bytes, headers: Mapping[str, str], grant: Grant, reply: Reply
    ) -> None:
        """Let upstream answer a POST, and pass its answer on as it comes."""
        await self._cold.forward(body, headers, grant, reply)

    async def _answer_here(self, asked: Asked, grant: Grant, reply: Reply) -> str | None:
        """Answer from what is here, or return why that cannot be."""
        tried = Tried.NOTHING
        began = trio.current_time()
        while True:
            mirror = self._store.get(grant.key)
            phrased = await self._phrase(asked, grant, mirror)
            if phrased.key and await self._recorder.replay(grant.key, phrased.key, reply):
                if mirror is not None:
                    self._store.touch(grant.key)
                return None
            if mirror is None and await self._is_there_by_now(phrased.fetch, grant, since=began):
                continue
            spool, chosen = await self._plan(asked.fetch, phrased.fetch, mirror, grant, tried)
            match chosen:
                case Refill():
                    tried = Tried.REFRESH
                    await self._refill(grant, cold=mirror is None)
                case Bring(oids):
                    tried = await self._bring(grant, oids)
                case Refuse(oid):
                    raise ProtocolError(f"upload-pack: not our ref {oid.decode()}")
                case Forward(reason, fill):
                    if mirror is None:
                        self._refresher.note_forwarded(grant.key, asked.fetch)
                    if fill:
                        self._refresher.start(grant)
                    if mirror is not None or not self._is_for_all(asked, phrased, grant):
                        return reason
                    reply.note = reason
                    await self._forward_for_all(asked, phrased, grant, reply)
                    return None
                case Follow():
                    assert spool is not None  # of which the plan was told
                    return await self._cold.follow(asked, spool, reply)
                case Whole() | Suffix() | Select():
                    assert mirror is not None
                    await self._answer_from(mirror, chosen, asked, phrased, reply)
                    return None
                case _:
                    assert_never(chosen)

    async def _phrase(self, asked: Asked, grant: Grant, mirror: Mirror | None) -> Phrased:
        if mirror is None:
            return await self._phrasing.phrase(grant.key, asked, None)
        async with self._reading(mirror):
            return await self._phrasing.phrase(grant.key, asked, mirror)

    async def _answer_from(
        self,
        mirror: Mirror,
        chosen: Whole | Suffix | Select,
        asked: Asked,
        phrased: Phrased,
        reply: Reply,
    ) -> None:
        self._store.touch(mirror.key)
        said = replace(asked, fetch=phrased.fetch)
        try:
            match chosen:
                case Whole(generation):
                    await self._whole(said, phrased.key, mirror, generation, reply)
                case Suffix(generation):
                    async with self._sending_segments(mirror):
                        sink = Straight(reply)
                        await self._verbatim.send_suffix(said, mirror, generation, sink)
                case Select():
                    await self._select(said, phrased.key, mirror, reply)
        except MirrorDamaged as exc:
            await self._refresher.drop(mirror, exc)
            raise

    async def _whole(
        self, asked: Asked, key: str | None, mirror: Mirror, generation: Generation, reply: Reply
    ) -> None:
        async def make(sink: FileSink) -> None:
            async with self._sending_segments(mirror):
                await self._verbatim.send_whole(asked, mirror, generation, sink)

        size = generation.bytes
        if key is not None and self._recorder.is_copy_due(mirror.key, key, size=size):
            await self._recorder.follow(mirror.key, key, make, reply)
        else:
            await make(Straight(reply))

    async def _select(self, asked: Asked, key: str | None, mirror: Mirror, reply: Reply) -> None:
        fetch, dialect = asked.fetch, asked.dialect

        async def make(sink: Sink) -> None:
            await self._selector.make(fetch, dialect, mirror, sink)

        if key is not None and await self._is_due(key, fetch, mirror):
            await self._recorder.follow(mirror.key, key, make, reply)
        else:
            await make(Straight(reply))

    async def _is_due(self, key: str, fetch: Fetch, mirror: Mirror) -> bool:
        """Say whether the answer is to be recorded.

        What clones ask for is asked for again; not so what one client needs to go on
        from what it has, or single files that a partial clone opens.
        """
        at_once = False
        if not fetch.haves:
            async with self._reading(mirror):
                at_once = await trio.to_thread.run_sync(names_history, mirror, fetch.wants)
        return self._recorder.is_due(mirror.key, key, at_once=at_once)

    def _is_for_all(self, asked: Asked, phrased: Phrased, grant: Grant) -> bool:
        return (
            phrased.key is not None
            and is_forwarded_for_all(asked.fetch, asked.dialect)
            and self._recorder.is_due(grant.key, phrased.key, at_once=True)
        )

    async def _forward_for_all(
        self, asked: Asked, phrased: Phrased, grant: Grant, reply: Reply
    ) -> None:
        assert phrased.key is not None  # it is for all
        await self._recorder.follow(
            grant.key,
            phrased.key,
            lambda production: self._cold.make(asked, grant, production),
            reply,
        )

    async def _is_there_by_now(self, said: Fetch, grant: Grant, *, since: float) -> bool:
        """Wait for what can be had of a cold repository; say if a mirror has come.

        That is another member's mirror, or else, for a clone, a first fetch to follow.
        """
        with trio.move_on_at(since + self._copy_wait):
            await self._refresher.copied(grant.key)
        flying = self._refresher.flying(grant.key)
        if said.is_plain and flying is not None:
            await flying.announced.wait()
        return self._store.get(grant.key) is not None

    async def _plan(
        self, asked: Fetch, said: Fetch, mirror: Mirror | None, grant: Grant, tried: Tried
    ) -> tuple[Spool | None, Plan]:
        """Plan a fetch that was `asked` for, and is `said` as all say it."""
        held = None if mirror is None else await self._look(mirror, said)
        # From here to the first look at a spool nothing is awaited: it is there.
        flying = self._refresher.flying(grant.key) if mirror is None else None
        spool = flying.spool if flying is not None else None
        if spool is not None and spool.not_kept is not None:
            spool = None  # it only passes: its first bytes may be gone
        arriving = flying.tips if flying is not None and spool is not None else None
        chosen = plan(
            said,
            held=held,
            arriving=arriving,
            tried=tried,
            standing=self._refresher.standing(grant.key, asked),
        )
        return spool, chosen

    async def _look(self, mirror: Mirror, fetch: Fetch) -> Held:
        async with self._reading(mirror):
            if is_quick(mirror, fetch):
                return look(mirror, fetch)
            return await trio.to_thread.run_sync(look, mirror, fetch)

    @asynccontextmanager
    async def _reading(self, mirror: Mirror) -> AsyncIterator[None]:
        """Keep a mirror's files where they are meanwhile, and have it dropped if it is damaged."""
        try:
            with self._store.reading(mirror):
                yield
        except MirrorDamaged as exc:
            await self._refresher.drop(mirror, exc)
            raise

    @asynccontextmanager
    async def _sending_segments(self, mirror: Mirror) -> AsyncIterator[None]:
        """Have a mirror dropped of which a segment proves torn while it is sent."""
        try:
            yield
        except FileFailed as exc:
            await self._refresher.drop(mirror, MirrorDamaged(str(exc)))
            raise

    async def _refill(self, grant: Grant, *, cold: bool) -> None:
        refresh = self._refresher.start(grant)
        if refresh is not None:
            with trio.move_on_after(self._refresh_wait):
                await (refresh.announced if cold else refresh.ended).wait()

    async def _bring(self, grant: Grant, oids: frozenset[ObjectId]) -> Tried:
        try:
            with trio.move_on_after(self._refresh_wait):
                await self._refresher.bring(grant, oids)
        except RemoteError as exc:
            return Tried.REFUSED if "not our ref" in str(exc) else Tried.ALL
        except GobletError:
            pass  # upstream is asked once more, with this client's own request
        return Tried.ALL

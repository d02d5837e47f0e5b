"""Act on a plan: bring the bytes of one fetch to its client."""

from collections.abc import Mapping, Sequence
from contextlib import aclosing, closing
from typing import assert_never

import anyio
import anyio.to_process
import trio

from goblet_node.errors import DiskFailed, MirrorDamaged, ProtocolError
from goblet_node.fill.refresh import Refresher
from goblet_node.fill.scratch import scratch_of
from goblet_node.fill.spool import Spool
from goblet_node.fill.upstream import Grant, Upstream
from goblet_node.mirror.log import Mirror, Segment
from goblet_node.mirror.store import MirrorMoved, MirrorStore
from goblet_node.serve.alive import while_working
from goblet_node.serve.look import commits_named, look, tags_of
from goblet_node.serve.negotiate import negotiate
from goblet_node.serve.pieces import SLICE, pack_of
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
from goblet_node.serve.reply import Reply
from goblet_node.serve.selection import Selection, SelectJob, select
from goblet_node.serve.sending import Asked, Sending
from goblet_node.serve.verbatim import whole_pack
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.requests import Fetch
from goblet_node.wire.v2_client import RemoteError
from goblet_shared.errors import GobletError

# git's own server sends a keepalive after 5 s of silence (uploadpack.keepAlive):
# the middleboxes that clients live behind are used to that.
KEEPALIVE_AFTER = 5.0
# How many logs' trailers are remembered; each is 20 bytes.
MAX_TRAILERS = 4096
# What goes wrong in this node and with this mirror, and would not upstream.
_OURS_ALONE = (MirrorDamaged, DiskFailed, MirrorMoved, anyio.BrokenWorkerProcess)


class Answerer:
    """Answers fetches from the mirror where it can, from upstream where it must."""

    def __init__(
        self,
        *,
        name: str,
        store: MirrorStore,
        refresher: Refresher,
        upstream: Upstream,
        refresh_wait: float,
        selectors: anyio.CapacityLimiter,
    ) -> None:
        """Wait at most `refresh_wait` seconds for a refresh that may bring an unknown want.

        At most `selectors` worker processes at once look for objects. `name` is the
        node's, for the progress that a user reads.
        """
        self._name = name
        self._store = store
        self._refresher = refresher
        self._upstream = upstream
        self._refresh_wait = refresh_wait
        self._selectors = selectors
        # SHA-1 trailers of verbatim answers, computed while they were first sent.
        self._trailers: dict[tuple[str, ...], bytes] = {}

    async def answer(self, asked: Asked, grant: Grant, reply: Reply) -> None:
        """Answer a fetch to a caller who may read the repository."""
        try:
            reason = await self._answer_here(asked, grant, reply)
        except (GobletError, anyio.BrokenWorkerProcess) as exc:
            if reply.is_started:
                # What was sent is packets, whole ones: the next can say what happened.
                # Who has no side-band is told by a connection that is cut.
                if not (said := asked.dialect.error(str(_told_as(exc)))):
                    raise _told_as(exc) from exc
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
        async with self._upstream.forward_post(grant, body, headers) as answer:
            cache = "forwarded" if answer.status == 200 else None
            await reply.start(answer.status, answer.headers, cache=cache)
            async with aclosing(answer.body) as chunks:
                async for chunk in chunks:
                    await reply.send(chunk)

    async def _answer_here(self, asked: Asked, grant: Grant, reply: Reply) -> str | None:
        """Answer from the mirror, or return why it cannot."""
        tried = Tried.NOTHING
        while True:
            mirror, spool, chosen = await self._plan(asked.fetch, grant, tried)
            match chosen:
                case Refill():
                    tried = Tried.REFRESH
                    await self._refill(grant, cold=mirror is None)
                case Bring(oids):
                    tried = await self._bring(grant, oids)
                case Refuse(oid):
                    raise ProtocolError(f"upload-pack: not our ref {oid.decode()}")
                case Forward(reason, fill):
                    if fill:
                        self._refresher.start(grant)
                    return reason
                case Follow():
                    assert spool is not None  # of which the plan was told
                    return await self._follow(asked, spool, reply)
                case Whole() | Suffix() | Select():
                    assert mirror is not None
                    await self._answer_from(mirror, chosen, asked, reply)
                    return None
                case _:
                    assert_never(chosen)

    async def _answer_from(
        self, mirror: Mirror, chosen: Whole | Suffix | Select, asked: Asked, reply: Reply
    ) -> None:
        try:
            match chosen:
                case Whole(generation):
                    segments = mirror.segments[: generation.segments]
                    await self._verbatim(asked, segments, "whole", reply)
                case Suffix(generation):
                    segments = mirror.segments[generation.segments :]
                    await self._verbatim(asked, segments, "suffix", reply)
                case Select():
                    await self._select(asked, mirror, reply)
        except MirrorDamaged as exc:
            await self._refresher.drop(mirror, exc)
            raise

    async def _plan(
        self, fetch: Fetch, grant: Grant, tried: Tried
    ) -> tuple[Mirror | None, Spool | None, Plan]:
        flying = self._refresher.flying(grant.key)
        if fetch.is_plain and flying is not None and self._store.get(grant.key) is None:
            await flying.announced.wait()
        mirror = self._store.get(grant.key)
        held = None if mirror is None else await self._look(mirror, fetch)
        # From here to the first look at a spool nothing is awaited: it is there.
        flying = self._refresher.flying(grant.key) if mirror is None else None
        spool = flying.spool if flying is not None else None
        arriving = flying.tips if flying is not None and spool is not None else None
        return mirror, spool, plan(fetch, held=held, arriving=arriving, tried=tried)

    async def _look(self, mirror: Mirror, fetch: Fetch) -> Held:
        try:
            return await trio.to_thread.run_sync(look, mirror, fetch)
        except MirrorDamaged as exc:
            await self._refresher.drop(mirror, exc)
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

    async def _verbatim(
        self, asked: Asked, segments: Sequence[Segment], cache: str, reply: Reply
    ) -> None:
        # Whoever holds all tips of a generation, or nothing, need not say more.
        turn = negotiate(
            asked.fetch, asked.dialect, common=asked.fetch.haves, shallow=(), ready=lambda _: True
        )
        name = tuple(segment.checksum for segment in segments)
        known = self._trailers.get(name)
        objects = sum(segment.objects for segment in segments)
        sending = Sending(asked, reply, cache=cache, told=self._told(objects))
        with closing(whole_pack(segments, trailer=known)) as slices:
            trailer = await sending.send(Selection(turn=turn), slices)
        if known is None and trailer is not None:
            if len(self._trailers) >= MAX_TRAILERS:
                self._trailers.pop(next(iter(self._trailers)))
            self._trailers[name] = trailer

    async def _select(self, asked: Asked, mirror: Mirror, reply: Reply) -> None:
        fetch = asked.fetch
        sending = Sending(asked, reply, cache="selected")
        async with scratch_of(self._store) as scratch:
            job = SelectJob(
                segments=tuple((segment.pack, segment.table) for segment in mirror.segments),
                fetch=fetch,
                dialect=asked.dialect,
                deepen_not=await trio.to_thread.run_sync(
                    commits_named, fetch.deepen_not, mirror.refs
                ),
                tags=tags_of(mirror.refs) if fetch.include_tag else (),
                inline=scratch / "inline",
            )
            found = await while_working(
                lambda: anyio.to_process.run_sync(
                    select, job, cancellable=True, limiter=self._selectors
                ),
                sending.keep_alive,
                every=KEEPALIVE_AFTER,
            )
            if found.pieces is None:
                await sending.begin(found)
                return
            sending.told = self._told(found.pieces.objects)
            packs = [segment.pack for segment in mirror.segments]
            with closing(pack_of(packs, found.pieces)) as slices:
                await sending.send(found, slices)

    async def _follow(self, asked: Asked, spool: Spool, reply: Reply) -> str | None:
        """Send what arrives; return why not, if nothing did."""
        turn = negotiate(asked.fetch, asked.dialect, common=(), shallow=(), ready=lambda _: False)
        sending = Sending(asked, reply, cache="cold")
        with spool.held():
            with trio.move_on_after(KEEPALIVE_AFTER):
                while not (spool.size or spool.said or spool.ended):
                    await spool.changed()
            if spool.error is not None and not spool.size:
                # It may have been refused for the sake of whoever came first.
                return f"the first fetch failed: {_told_as(spool.error)}"
            await sending.begin(Selection(turn=turn))
            if turn.has_pack:
                await self._copy(asked, spool, reply)
                if spool.error is not None:
                    raise _told_as(spool.error)
                await reply.send(asked.dialect.end)
        return None

    async def _copy(self, asked: Asked, spool: Spool, reply: Reply) -> None:
        """Send what a spool holds and what comes, until it has ended."""
        offset = said = 0
        while True:
            if said < len(spool.said):
                text, said = b"".join(spool.said[said:]), len(spool.said)
                if not asked.fetch.no_progress:
                    await reply.send(asked.dialect.progress(text))
            elif offset < spool.size:
                data = await trio.to_thread.run_sync(spool.read, offset, SLICE)
                offset += len(data)
                await reply.send(asked.dialect.pack(data))
            elif spool.ended:
                return
            else:
                with trio.move_on_after(KEEPALIVE_AFTER) as silence:
                    await spool.changed()
                if silence.cancelled_caught:
                    await reply.send(asked.dialect.keepalive)

    def _told(self, objects: int) -> str:
        return f"Goblet {self._name}: {objects:,} objects\n"


def _told_as(error: Exception) -> GobletError:
    """Return what a client may be told of an error, which another task may have met."""
    return error if isinstance(error, GobletError) else GobletError("this node failed: try again")

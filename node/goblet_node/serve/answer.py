"""Act on a plan: bring the bytes of one fetch to its client."""

from collections.abc import Mapping
from contextlib import aclosing, closing

import trio

from goblet_node.errors import MirrorDamaged
from goblet_node.fill.refresh import Refresher
from goblet_node.fill.spool import Spool
from goblet_node.fill.upstream import Grant, Upstream
from goblet_node.mirror.log import Generation, Mirror
from goblet_node.mirror.store import MirrorStore
from goblet_node.serve.plan import Follow, Forward, Held, Whole, plan
from goblet_node.serve.reply import NOT_TO_BE_KEPT, RESULT, Reply
from goblet_node.serve.verbatim import SLICE, whole_pack
from goblet_node.wire import pktline, v2
from goblet_node.wire.pktline import Band, Marker
from goblet_node.wire.requests import Fetch
from goblet_shared.errors import GobletError

# git's own server sends a keepalive after 5 s of silence (uploadpack.keepAlive):
# the middleboxes that clients live behind are used to that.
KEEPALIVE_AFTER = 5.0
# How many generations' trailers are remembered; each is 20 bytes.
MAX_TRAILERS = 4096

_FLUSH = pktline.encode(Marker.FLUSH)


class Answerer:
    """Answers fetches from the mirror where it can, from upstream where it must."""

    def __init__(
        self,
        *,
        store: MirrorStore,
        refresher: Refresher,
        upstream: Upstream,
        refresh_wait: float,
    ) -> None:
        """Wait at most `refresh_wait` seconds for a refresh that may bring an unknown want."""
        self._store = store
        self._refresher = refresher
        self._upstream = upstream
        self._refresh_wait = refresh_wait
        # SHA-1 trailers of whole logs, computed while they were first sent.
        self._trailers: dict[tuple[str, ...], bytes] = {}

    async def answer(
        self, fetch: Fetch, body: bytes, headers: Mapping[str, str], grant: Grant, reply: Reply
    ) -> None:
        """Answer `fetch`, which came as `body` under `headers`, to a caller who may read it."""
        try:
            reason = await self._answer_here(fetch, grant, reply)
        except MirrorDamaged as exc:
            if reply.is_started:
                raise
            reason = "the mirror is damaged"
            await self._refresher.drop(grant.key, exc)
        if reason is not None:
            reply.note = reason
            await self.forward(body, headers, grant, reply)

    async def _answer_here(self, fetch: Fetch, grant: Grant, reply: Reply) -> str | None:
        """Answer from the mirror, or return why it cannot."""
        may_refill = fetch.is_plain
        while True:
            flying = self._refresher.flying(grant.key)
            if fetch.is_plain and flying is not None and self._store.get(grant.key) is None:
                await flying.announced.wait()
            mirror = self._store.get(grant.key)
            held = None
            if mirror is not None and fetch.is_plain:
                held = await trio.to_thread.run_sync(look, mirror, fetch)
            # From here to the first byte of a Follow nothing is awaited: the spool is there.
            flying = self._refresher.flying(grant.key) if mirror is None else None
            spool = flying.spool if flying is not None else None
            arriving = flying.tips if flying is not None and spool is not None else None
            match plan(fetch, held=held, arriving=arriving, may_refill=may_refill):
                case Whole(generation) if mirror is not None:
                    await self._whole(mirror, generation, reply)
                    return None
                case Follow() if spool is not None:
                    await self._follow(spool, fetch, reply)
                    return None
                case Forward(reason):
                    return reason
                case _:
                    may_refill = False
                    await self._refill(grant, cold=mirror is None)

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

    async def _refill(self, grant: Grant, *, cold: bool) -> None:
        refresh = self._refresher.start(grant)
        if refresh is not None:
            with trio.move_on_after(self._refresh_wait):
                await (refresh.announced if cold else refresh.ended).wait()

    async def _whole(self, mirror: Mirror, generation: Generation, reply: Reply) -> None:
        segments = mirror.segments[: generation.segments]
        name = tuple(segment.checksum for segment in segments)
        trailer = self._trailers.get(name)
        with closing(whole_pack(segments, trailer=trailer)) as slices:
            # The first slice is read before the head is sent: a damaged log is still a status.
            head = next(slices)
            first = await trio.to_thread.run_sync(next, slices)
            await reply.start(200, [RESULT, *NOT_TO_BE_KEPT], cache="whole")
            await reply.send(v2.PACKFILE_SECTION)
            data: bytes | None
            for data in (head, first):
                await reply.send(pktline.encode_band(Band.PACK, data))
            while (data := await trio.to_thread.run_sync(next, slices, None)) is not None:
                await reply.send(pktline.encode_band(Band.PACK, data))
                first = data
        await reply.send(_FLUSH)
        if trailer is None:
            if len(self._trailers) >= MAX_TRAILERS:
                self._trailers.pop(next(iter(self._trailers)))
            self._trailers[name] = first

    async def _follow(self, spool: Spool, fetch: Fetch, reply: Reply) -> None:
        with spool.held():
            with trio.move_on_after(KEEPALIVE_AFTER):
                while not (spool.size or spool.said or spool.ended):
                    await spool.changed()
            if spool.error is not None and not spool.size:
                raise spool.error  # nothing was sent: it can still be a status
            await reply.start(200, [RESULT, *NOT_TO_BE_KEPT], cache="cold")
            await reply.send(v2.PACKFILE_SECTION)
            await self._copy(spool, fetch, reply)
        if spool.error is None:
            await reply.send(_FLUSH)
        else:
            sentence = _sentence(spool.error)
            await reply.send(pktline.encode_band(Band.ERROR, sentence.encode() + b"\n"))

    async def _copy(self, spool: Spool, fetch: Fetch, reply: Reply) -> None:
        """Send what a spool holds and what comes, until it has ended."""
        offset = said = 0
        while True:
            if said < len(spool.said) and not fetch.no_progress:
                for text in spool.said[said:]:
                    await reply.send(pktline.encode_band(Band.PROGRESS, text))
            said = len(spool.said)
            if offset < spool.size:
                data = await trio.to_thread.run_sync(spool.read, offset, SLICE)
                offset += len(data)
                await reply.send(pktline.encode_band(Band.PACK, data))
            elif spool.ended:
                return
            else:
                with trio.move_on_after(KEEPALIVE_AFTER) as silence:
                    await spool.changed()
                if silence.cancelled_caught:
                    await reply.send(pktline.KEEPALIVE)


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, GobletError) else "this node failed: try again"


def look(mirror: Mirror, fetch: Fetch) -> Held:
    """Find in a mirror what a plan needs to know. May read the disk: for a worker thread."""
    rows = mirror.table.find(fetch.wants)
    known = rows >= 0
    segments = mirror.table.column("segment")[rows[known]]
    return Held(
        within=tuple(mirror.generations_within(frozenset(fetch.wants))),
        unknown=frozenset(oid for oid, here in zip(fetch.wants, known, strict=True) if not here),
        reach=int(segments.max()) + 1 if len(segments) else 0,
        is_clean=mirror.current.is_clean,
    )

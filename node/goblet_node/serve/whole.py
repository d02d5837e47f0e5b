"""Whole and Suffix: the log's bytes as they lie, framed, and remembered by their trailer."""

from collections.abc import Sequence
from contextlib import aclosing

from goblet_node.mirror.log import Generation, Mirror, Stretch
from goblet_node.mirror.store import MirrorStore
from goblet_node.serve.negotiate import negotiate
from goblet_node.serve.selecting import told
from goblet_node.serve.sending import Asked, FileSink
from goblet_node.serve.verbatim import FramedPack, trailer_of

# How many answers' trailers are remembered; each is 20 bytes.
MAX_TRAILERS = 4096


class Verbatim:
    """Sends what a mirror holds without looking into it."""

    def __init__(self, *, name: str, store: MirrorStore) -> None:
        """Tell users the node's `name`."""
        self._name = name
        self._store = store
        # All mutable state: SHA-1 trailers, computed while the answers were first sent.
        self._trailers: dict[tuple[Stretch, ...], bytes] = {}

    async def send_whole(
        self, asked: Asked, mirror: Mirror, generation: Generation, sink: FileSink
    ) -> None:
        """Send everything up to a generation.

        Raises MirrorDamaged, DiskFailed, MirrorMoved; FileFailed where it can be noticed
        only in the middle of a packet.
        """
        stretches = mirror.stretches(0, generation.bytes)
        with self._store.reading(mirror):
            await self._send(asked, mirror, stretches, generation.objects, "whole", sink)

    async def send_suffix(
        self, asked: Asked, mirror: Mirror, generation: Generation, sink: FileSink
    ) -> None:
        """Send everything that came after a generation; raises what `send_whole` does."""
        stretches = mirror.stretches(generation.bytes, mirror.current.bytes)
        objects = mirror.current.objects - generation.objects
        with self._store.reading(mirror):
            await self._send(asked, mirror, stretches, objects, "suffix", sink)

    async def _send(
        self,
        asked: Asked,
        mirror: Mirror,
        stretches: Sequence[Stretch],
        objects: int,
        cache: str,
        sink: FileSink,
    ) -> None:
        fetch, dialect = asked.fetch, asked.dialect
        # Whoever holds all tips of a generation, or nothing, need not say more.
        turn = negotiate(fetch, dialect, common=fetch.haves, shallow=(), ready=lambda _: True)
        before = dialect.head(turn)
        if not turn.has_pack:
            await sink.start(cache=None, length=len(before))
            await sink.send(before)
            return
        if not fetch.no_progress:
            before += dialect.progress(told(self._name, objects).encode())
        # A pack's name holds its checksum.
        name = tuple(stretches)
        known = self._trailers.get(name) or trailer_of(mirror.segments, stretches)
        pack = FramedPack(stretches, objects=objects, trailer=known, dialect=dialect)
        length = len(before) + pack.length + len(dialect.end)
        async with aclosing(pack.batches()) as batches:
            async for batch in batches:
                if not sink.is_started:
                    # Not before there is a batch: a damaged log is still a status.
                    await sink.start(cache=cache, length=length)
                    batch = [before, *batch]
                await sink.send_parts(batch)
        await sink.send(dialect.end)
        self._remember(name, pack.trailer)

    def _remember(self, name: tuple[Stretch, ...], trailer: bytes | None) -> None:
        if trailer is None or name in self._trailers:
            return
        if len(self._trailers) >= MAX_TRAILERS:
            self._trailers.pop(next(iter(self._trailers)))
        self._trailers[name] = trailer

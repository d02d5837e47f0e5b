"""Selected: a worker finds what to send, this process reads and sends it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_process
import trio

from goblet_node.fill.room import Claim, Room
from goblet_node.fill.scratch import claim_files
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.store import MirrorStore
from goblet_node.serve.alive import while_working
from goblet_node.serve.look import commits_named, is_quick, tags_of, whole
from goblet_node.serve.pieces import Pieces, pack_of
from goblet_node.serve.selection import Packed, Selection, SelectJob, select
from goblet_node.serve.sending import Sending, Sink
from goblet_node.wire.answers import Dialect
from goblet_node.wire.requests import Fetch

# git's own server sends a keepalive after 5 s of silence (uploadpack.keepAlive):
# the middleboxes that clients live behind are used to that.
KEEPALIVE_AFTER = 5.0
# Packs up to here come from the worker as they are: to read one here would cost a hop to
# a thread for each of its slices, and a folder for what is not in the log.
SMALL = 256 * 1024
# So many refs are looked at while others wait, for less than a hop to a thread costs.
_FEW_REFS = 256


class Selector:
    """Makes selected answers, each in a worker process and then here."""

    def __init__(
        self, *, name: str, store: MirrorStore, room: Room, workers: anyio.CapacityLimiter
    ) -> None:
        """Look for objects in at most `workers` processes at once.

        What an answer has of its own, and does not lie in the log, claims `room`
        meanwhile. `name` is the node's, for the progress that a user reads.
        """
        self._name = name
        self._store = store
        self._room = room
        self._workers = workers

    async def make(self, fetch: Fetch, dialect: Dialect, mirror: Mirror, sink: Sink) -> None:
        """Give `sink` the answer to a fetch, of which `mirror` holds every want.

        Raises ProtocolError, MirrorDamaged, MirrorMoved, DiskFailed and
        anyio.BrokenWorkerProcess; what was given until then is whole packets.
        """
        with self._store.reading(mirror), self._room.claim(mirror.key) as claim:
            await self._make(fetch, dialect, mirror, claim, sink)

    async def _make(
        self, fetch: Fetch, dialect: Dialect, mirror: Mirror, claim: Claim, sink: Sink
    ) -> None:
        sending = Sending(fetch, dialect, sink, cache="selected")
        async with _scratch(self._store) as scratch:
            job = await _job_for(fetch, dialect, mirror, scratch.path / "inline")
            found = await while_working(
                lambda: anyio.to_process.run_sync(
                    select, job, cancellable=True, limiter=self._workers
                ),
                sending.keep_alive,
                every=KEEPALIVE_AFTER,
            )
            scratch.is_used = _has_file(found)
            match found.pieces:
                case None:
                    await sending.begin(found)
                case Packed() as packed:
                    sending.told = told(self._name, packed.objects)
                    await sending.send_packed(found, packed)
                case Pieces() as pieces:
                    sending.told = told(self._name, pieces.objects)
                    if scratch.is_used:
                        await claim_files(claim, scratch.path)
                    packs = [files.pack for files in mirror.files]
                    with closing(pack_of(packs, pieces)) as slices:
                        await sending.send(found, slices)


@dataclass(slots=True)
class _Scratch:
    """A name for a folder that a worker makes if it needs one."""

    path: Path
    is_used: bool = True  # as far as is known


@asynccontextmanager
async def _scratch(store: MirrorStore) -> AsyncIterator[_Scratch]:
    """Give such a name, and delete the folder afterwards unless it is known not to be there."""
    scratch = _Scratch(store.scratch_name())
    try:
        yield scratch
    finally:
        if scratch.is_used:
            with trio.CancelScope(shield=True):
                # Local deletes only: short, and the folder must not outlive its task.
                await trio.to_thread.run_sync(store.discard_scratch, scratch.path)


async def _job_for(fetch: Fetch, dialect: Dialect, mirror: Mirror, inline: Path) -> SelectJob:
    def job() -> SelectJob:
        return SelectJob(
            segments=mirror.files,
            fetch=fetch,
            dialect=dialect,
            deepen_not=commits_named(fetch.deepen_not, mirror.refs),
            tags=tags_of(mirror.refs) if fetch.include_tag else (),
            inline=inline,
            small=SMALL,
            whole=whole(mirror, fetch),
        )

    is_looked_for = not fetch.haves and not is_quick(mirror, fetch)
    looks_at_refs = fetch.include_tag or fetch.deepen_not
    has_few_refs = mirror.lazy_refs.is_loaded and len(mirror.refs) <= _FEW_REFS
    if is_looked_for or (looks_at_refs and not has_few_refs):
        return await trio.to_thread.run_sync(job)
    return job()


def _has_file(found: Selection) -> bool:
    return isinstance(found.pieces, Pieces) and isinstance(found.pieces.inline, Path)


def told(name: str, objects: int) -> str:
    """Return what a user reads of an answer before its pack."""
    return f"Goblet {name}: {objects:,} objects\n"

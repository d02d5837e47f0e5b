"""A folder for the work of one task, gone when the task is."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from goblet_node.fill.room import Claim
from goblet_node.mirror.store import MirrorStore


@asynccontextmanager
async def scratch_of(store: MirrorStore) -> AsyncIterator[Path]:
    """Give a new folder on the mirrors' file system, and delete it afterwards."""
    scratch = await trio.to_thread.run_sync(store.new_scratch)
    try:
        yield scratch
    finally:
        with trio.CancelScope(shield=True):
            # Local deletes only: short, and a scratch folder must not outlive its task.
            await trio.to_thread.run_sync(store.discard_scratch, scratch)


async def claim_files(claim: Claim, scratch: Path) -> None:
    """Have `claim` be what the files in a flat folder take: not more, and not less.

    For what was written before its size was known. Raises NoRoom; then they should go.
    """
    written = await trio.to_thread.run_sync(_bytes_in, scratch)
    await claim.grow_to(written)
    claim.shrink_to(written)


def _bytes_in(scratch: Path) -> int:
    return sum(path.stat().st_size for path in scratch.iterdir())

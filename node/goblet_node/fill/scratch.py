"""A folder for the work of one task, gone when the task is."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

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

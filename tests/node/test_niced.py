"""Work at the lowest priority, in a process that goes on at its own."""

import os
import threading

import anyio
import anyio.to_process
import pytest

from goblet_node.fill.niced import niced


def niceness(of_thread: int) -> int:
    """Return the niceness that is asked for, and that of the thread that asks."""
    mine = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    return mine * 100 + os.getpriority(os.PRIO_PROCESS, of_thread)


def fail(job: str) -> None:
    raise ValueError(job)


def test_only_the_work_is_niced() -> None:
    """A worker process is kept, and the next job may be somebody's clone."""
    me = threading.get_native_id()
    before = os.getpriority(os.PRIO_PROCESS, me)
    assert niced(niceness, me) == 1900 + before
    assert os.getpriority(os.PRIO_PROCESS, me) == before


def test_an_error_arrives_as_it_is() -> None:
    with pytest.raises(ValueError, match="as it is"):
        niced(fail, "as it is")


@pytest.mark.slow
async def test_a_worker_process_is_as_before_when_it_is_done() -> None:
    before = await anyio.to_process.run_sync(os.nice, 0)
    assert await anyio.to_process.run_sync(niced, os.nice, 0) == 19
    assert await anyio.to_process.run_sync(os.nice, 0) == before < 19

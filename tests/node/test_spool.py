"""A file that grows while many read it."""

import os
from pathlib import Path

import pytest
import trio
import trio.testing

from goblet_node.errors import DiskFailed
from goblet_node.fill import spool as spool_module
from goblet_node.fill.spool import Spool


async def read_all(spool: Spool, step: int) -> bytes:
    """Read as a slow reader does: `step` bytes at a time, to the end."""
    got = b""
    while True:
        if len(got) < spool.size:
            got += spool.read(len(got), step)
        elif spool.ended:
            return got
        else:
            await spool.changed()


async def test_every_reader_sees_all_bytes_at_its_own_pace(tmp_path: Path) -> None:
    pieces = [bytes([n]) * (n * 97 % 1000 + 1) for n in range(50)]
    spool = Spool(tmp_path / "spool")
    results: list[bytes] = []

    async def read(step: int) -> None:
        results.append(await read_all(spool, step))

    with spool.held():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, 1000)
            for piece in pieces[:25]:
                await spool.append(piece)
            nursery.start_soon(read, 7)  # comes late
            for piece in pieces[25:]:
                await spool.append(piece)
            spool.finish()
    assert results == [b"".join(pieces)] * 2
    assert spool.error is None


async def test_a_failure_wakes_those_who_wait(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    with spool.held():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_all, spool, 10)
            await trio.testing.wait_all_tasks_blocked()
            spool.fail(ValueError("upstream left"))
        assert str(spool.error) == "upstream left"


async def test_the_last_holder_closes_the_file(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    before = len(os.listdir("/proc/self/fd"))
    with spool.held():
        await spool.append(b"abc")
        reader = spool.held()
        reader.__enter__()
    assert spool.read(0, 10) == b"abc"
    reader.__exit__(None, None, None)
    assert len(os.listdir("/proc/self/fd")) == before - 1


async def test_a_disk_that_refuses_is_a_disk_failure(tmp_path: Path) -> None:
    """/dev/full answers every write with ENOSPC, as a full disk does."""
    (tmp_path / "spool").symlink_to("/dev/full")
    with pytest.raises(DiskFailed, match="refused a new file"):
        Spool(tmp_path / "spool")  # O_EXCL: a spool never writes into what is there
    spool = Spool(tmp_path / "other")
    with spool.held():
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, spool._fd)
        os.close(full)
        with pytest.raises(DiskFailed, match="No space left"):
            await spool.append(b"abc")
        assert spool.size == 0


async def test_what_is_said_is_bounded(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    with spool.held():
        for _ in range(1000):
            spool.say(b"x" * 1024)
    assert sum(map(len, spool.said)) <= spool_module.MAX_SAID

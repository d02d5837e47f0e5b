"""A file that grows while many read it."""

import errno
import os
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from goblet_node.errors import DiskFailed
from goblet_node.fill import spool as spool_module
from goblet_node.fill.room import NoRoom, TooLarge
from goblet_node.fill.spool import Follower, Spool
from goblet_shared.parts import FileSpan
from goblet_shared.repo_key import RepoKey
from goblet_testing.rooms import claim_of, room_of


def read(follower: Follower, most: int) -> bytes:
    """Take the next bytes, as a connection does that is fast."""
    part = follower.part(most)
    data = part if isinstance(part, bytes) else os.pread(part.file, part.count, part.offset)
    follower.taken(len(data))
    return data


async def read_all(spool: Spool, step: int) -> bytes:
    """Follow as a client does: at most `step` bytes at a time, to the end."""
    got = b""
    with spool.following() as follower:
        while True:
            if follower.is_behind:
                got += read(follower, step)
            elif spool.ended:
                return got
            else:
                await spool.changed()


async def test_every_reader_sees_all_bytes_at_its_own_pace(tmp_path: Path) -> None:
    pieces = [bytes([n]) * (n * 97 % 1000 + 1) for n in range(50)]
    spool = Spool(tmp_path / "spool", claim=claim_of())
    results: list[bytes] = []

    async def follow(step: int) -> None:
        results.append(await read_all(spool, step))

    with spool.held():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, 1000)
            for piece in pieces[:25]:
                await spool.append(piece)
            nursery.start_soon(follow, 7)  # comes late
            for piece in pieces[25:]:
                await spool.append(piece)
            spool.finish()
    assert results == [b"".join(pieces)] * 2
    assert spool.error is None


async def test_a_failure_wakes_those_who_wait(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", claim=claim_of())
    with spool.held():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_all, spool, 10)
            await trio.testing.wait_all_tasks_blocked()
            spool.fail(ValueError("upstream left"))
        assert str(spool.error) == "upstream left"


async def test_the_last_holder_closes_the_file(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", claim=claim_of())
    before = len(os.listdir("/proc/self/fd"))
    with spool.held():
        await spool.append(b"abc")
        reader = spool.following()
        follower = reader.__enter__()
    assert read(follower, 10) == b"abc"
    reader.__exit__(None, None, None)
    assert len(os.listdir("/proc/self/fd")) == before - 1


async def test_a_disk_that_refuses_is_a_disk_failure(tmp_path: Path) -> None:
    """/dev/full answers every write with ENOSPC, as a full disk does."""
    (tmp_path / "spool").symlink_to("/dev/full")
    with pytest.raises(DiskFailed, match="refused to begin"):
        Spool(
            tmp_path / "spool", claim=claim_of()
        )  # O_EXCL: a spool never writes into what is there
    spool = Spool(tmp_path / "other", claim=claim_of())
    with spool.held():
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, spool._file._fd)
        os.close(full)
        with pytest.raises(DiskFailed, match="No space left"):
            await spool.append(b"abc")
        assert spool.size == 0


async def test_what_is_said_is_bounded(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", claim=claim_of())
    with spool.held():
        for _ in range(1000):
            spool.say(b"x" * 1024)
    assert sum(map(len, spool.said)) <= spool_module.MAX_SAID


KEY = RepoKey("origin.test/org/repo")


@contextmanager
def spool_in(
    path: Path, *, cap: int, most: int | None = None, stalled_after: float = 60.0
) -> Iterator[Spool]:
    """Give a spool that finds room for `cap` bytes.

    On the real clock: one that jumps while all tasks wait would jump while threads write.
    """
    room = room_of(cap)
    with room.claim(KEY) as claim:
        spool = Spool(path, claim=claim, most=most, stalled_after=stalled_after)
        with spool.held():
            yield spool
    assert room.used == 0


async def append_all(spool: Spool, data: bytes, piece: int) -> None:
    for start in range(0, len(data), piece):
        await spool.append(data[start : start + piece])
    spool.finish()
    await spool.drained()


@settings(max_examples=40)
@given(
    cap=st.integers(1, 3000),
    piece=st.integers(1, 700),
    steps=st.lists(st.integers(1, 900), min_size=1, max_size=4),
    held=st.integers(1, 1500),
)
def test_whoever_follows_gets_all_of_it_though_there_is_no_room(
    tmp_path_factory: pytest.TempPathFactory, cap: int, piece: int, steps: list[int], held: int
) -> None:
    data = random.Random(cap).randbytes(2000)
    directory = tmp_path_factory.mktemp("spool")
    results: list[bytes] = []

    async def scenario() -> None:
        with spool_in(directory / "spool", cap=cap) as spool:

            async def follow(step: int) -> None:
                results.append(await read_all(spool, step))

            async with trio.open_nursery() as nursery:
                for step in steps:
                    nursery.start_soon(follow, step)
                await trio.testing.wait_all_tasks_blocked()
                await append_all(spool, data, piece)
            assert (spool.not_kept is not None) == (cap < len(data))
            assert spool.path.stat().st_size == (0 if cap < len(data) else len(data))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool_module, "HELD_BYTES", held)
        trio.run(scenario)
    assert results == [data] * len(steps)


def test_a_spool_without_room_and_without_followers_stops(tmp_path: Path) -> None:
    async def scenario() -> None:
        with spool_in(tmp_path / "spool", cap=100) as spool:
            await spool.append(b"x" * 100)
            with pytest.raises(NoRoom):
                await spool.append(b"x")
            assert spool.not_kept is None

    trio.run(scenario)


def test_a_spool_that_passes_stops_when_the_last_follower_leaves(tmp_path: Path) -> None:
    async def scenario() -> None:
        with spool_in(tmp_path / "spool", cap=100) as spool:
            with spool.following() as follower:
                await spool.append(b"x" * 100)
                read(follower, 100)
                await spool.append(b"y" * 100)
            with pytest.raises(NoRoom):
                await spool.append(b"z")

    trio.run(scenario)


def test_nobody_new_follows_what_only_passes(tmp_path: Path) -> None:
    async def scenario() -> None:
        with spool_in(tmp_path / "spool", cap=100) as spool, spool.following() as follower:
            await spool.append(b"x" * 100)
            read(follower, 100)
            await spool.append(b"y" * 50)
            with pytest.raises(NoRoom), spool.following():
                pass

    trio.run(scenario)


def test_what_is_larger_than_a_mirror_may_be_passes(tmp_path: Path) -> None:
    async def scenario() -> None:
        with (
            spool_in(tmp_path / "spool", cap=1 << 30, most=100) as spool,
            spool.following() as follower,
        ):
            await spool.append(b"x" * 90)
            read(follower, 90)
            await spool.append(b"y" * 20)
            assert isinstance(spool.not_kept, TooLarge)
            assert read(follower, 100) == b"y" * 20

    trio.run(scenario)


def test_what_all_have_read_is_given_back_once_the_rest_passes(tmp_path: Path) -> None:
    async def scenario() -> None:
        room = room_of(1000)
        with room.claim(KEY) as claim:
            spool = Spool(tmp_path / "spool", claim=claim)
            with spool.held(), spool.following() as follower:
                await spool.append(b"x" * 1000)
                while follower.is_behind:
                    read(follower, 300)
                await spool.append(b"y" * 10)
                assert room.used == spool.path.stat().st_size == 0

    trio.run(scenario)


def test_what_passes_is_held_in_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "HELD_BYTES", 100)

    async def scenario() -> None:
        with spool_in(tmp_path / "spool", cap=50) as spool, spool.following() as slow:
            with trio.move_on_after(0.05) as waiting:
                for _ in range(20):
                    await spool.append(b"x" * 30)
            assert waiting.cancelled_caught
            assert spool.size == 30 + 3 * 30  # what the file has, and what is held
            assert read(slow, 1000) == b"x" * 30  # the file has gone, all else is still held
            with trio.move_on_after(0.05) as waiting:
                await spool.append(b"y" * 30)
            assert waiting.cancelled_caught
            read(slow, 30)
            await spool.append(b"y" * 30)
            assert spool.size == 150

    trio.run(scenario)


def test_what_was_sent_does_not_change_before_its_client_reads_it(tmp_path: Path) -> None:
    """The kernel sends what is in the file when the client takes it, not when it was told to."""
    data = random.Random(1).randbytes(300_000)

    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs, spool_in(tmp_path / "spool", cap=100_000) as spool:
            ours.setblocking(False)
            sent = 0
            with spool.following() as follower:
                for start in range(0, len(data), 50_000):
                    await spool.append(data[start : start + 50_000])
                    part = follower.part(50_000)
                    if isinstance(part, FileSpan):
                        done = os.sendfile(ours.fileno(), part.file, part.offset, part.count)
                    else:
                        done = ours.send(part)
                    follower.taken(done)
                    sent += done
                    if start >= 200_000:
                        break
            assert sent > 150_000  # more than the file ever held
            got = b"".join(theirs.recv(sent, socket.MSG_WAITALL) for _ in range(1))
            assert got == data[:sent]

    trio.run(scenario)


def test_one_who_takes_nothing_is_given_up_and_the_others_get_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "HELD_BYTES", 120)
    data = bytes(range(250)) * 4

    async def scenario() -> None:
        with (
            spool_in(tmp_path / "spool", cap=100, stalled_after=0.1) as spool,
            spool.following() as stalled,
        ):
            got = b""

            async def follow() -> None:
                nonlocal got
                got = await read_all(spool, 33)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(follow)
                await trio.testing.wait_all_tasks_blocked()
                await append_all(spool, data, 50)
            assert got == data
            assert stalled.is_behind
            with pytest.raises(TooLarge, match="clone it again"):
                read(stalled, 10)
            with pytest.raises(TooLarge, match="clone it again"):
                stalled.taken(1)  # by one who is sending

    trio.run(scenario)


@pytest.mark.slow
def test_a_slow_one_who_takes_something_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "HELD_BYTES", 20)
    data = bytes(range(60))
    got = b""

    async def slowly(spool: Spool, follower: Follower) -> None:
        nonlocal got
        while len(got) < len(data):
            await trio.sleep(0.2)
            got += read(follower, 4)

    async def scenario() -> None:
        with (
            spool_in(tmp_path / "spool", cap=20, stalled_after=1.5) as spool,
            spool.following() as follower,
        ):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(slowly, spool, follower)
                await append_all(spool, data, 10)

    trio.run(scenario)
    assert got == data


def test_a_writer_that_is_cancelled_while_it_waits_can_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "HELD_BYTES", 10)

    async def scenario() -> None:
        with spool_in(tmp_path / "spool", cap=100) as spool, spool.following() as follower:
            await spool.append(b"x" * 100)
            await spool.append(b"y" * 10)
            with trio.move_on_after(0.05) as waiting:
                await spool.append(b"y" * 10)
            assert waiting.cancelled_caught
            assert read(follower, 10) == b"x" * 10
            spool.fail(ValueError("stopped"))
            assert not follower.is_behind  # the rest of what was lost is not worth reading

    trio.run(scenario)


def test_a_full_disk_makes_a_spool_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of limited size stands in for a full file system; the errno is what differs."""
    limit = 1000
    pwrite = os.pwrite

    def limited(descriptor: int, data: memoryview, position: int) -> int:
        if position >= limit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data[: limit - position], position)

    monkeypatch.setattr(os, "pwrite", limited)
    data = random.Random(1).randbytes(5000)

    async def scenario() -> None:
        with spool_in(tmp_path / "spool", cap=1 << 30) as spool:
            got = b""

            async def follow() -> None:
                nonlocal got
                got = await read_all(spool, 333)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(follow)
                await trio.testing.wait_all_tasks_blocked()
                await append_all(spool, data, 300)
            assert "No space left" in str(spool.not_kept)
            assert got == data

    trio.run(scenario)


def test_who_follows_gets_all_of_it_though_not_even_the_first_byte_finds_room(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        with spool_in(tmp_path / "spool", cap=0) as spool, spool.following() as follower:
            await spool.append(b"abc")
            spool.finish()
            assert read(follower, 10) == b"abc"
            assert spool.not_kept is not None

    trio.run(scenario)

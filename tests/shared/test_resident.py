"""What is in memory is known, and what is not is brought."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from goblet_shared.parts import FileSpan
from goblet_shared.resident import Pages

SIZE = 8 << 20


class OldKernel(Pages):
    """Pages as a kernel before cachestat(2) tells of them."""

    def _cached(self, span: FileSpan) -> int | None:
        return None


class Hopeful(Pages):
    """Pages that the kernel counts while they are on their way from the disk."""

    def _cached(self, span: FileSpan) -> int | None:
        return 1 << 30


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """A descriptor of 8 MB and 10 bytes that lie on the disk alone."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom(SIZE + 10))
    descriptor = os.open(path, os.O_RDONLY)
    evict(descriptor)
    yield descriptor
    os.close(descriptor)


def evict(descriptor: int) -> None:
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return
    pytest.skip("this file system keeps everything in memory")


@pytest.mark.parametrize("kind", [Pages, OldKernel])
async def test_what_was_brought_is_here_and_what_was_not_is_not(
    kind: type[Pages], file: int
) -> None:
    pages = kind(readers=1)
    everything = FileSpan(file=file, offset=0, count=SIZE + 10)
    assert not pages.are_here(everything)
    await pages.bring([everything])
    assert pages.are_here(everything)


@pytest.mark.parametrize("kind", [Pages, OldKernel])
async def test_both_ends_are_not_the_whole(kind: type[Pages], file: int) -> None:
    pages = kind(readers=1)
    ends = [FileSpan(file=file, offset=at, count=15) for at in (0, SIZE - 5)]
    await pages.bring(ends)
    assert all(map(pages.are_here, ends))
    assert not pages.are_here(FileSpan(file=file, offset=3, count=SIZE))


async def test_pages_that_another_process_waits_for_are_not_here(file: int) -> None:
    assert not Hopeful(readers=1).are_here(FileSpan(file=file, offset=0, count=SIZE + 10))


async def test_pages_that_the_kernel_reads_ahead_of_us_are_not_here_before_they_are(
    file: int, mock_clock: trio.testing.MockClock
) -> None:
    """For a while after something was read, what is counted as cached is not trusted."""
    pages = Hopeful(readers=1)
    ends = [FileSpan(file=file, offset=at, count=15) for at in (0, SIZE - 5)]
    await pages.bring(ends)
    assert not pages.are_here(FileSpan(file=file, offset=0, count=SIZE + 10))
    mock_clock.jump(5)
    assert pages.are_here(FileSpan(file=file, offset=0, count=SIZE + 10))


@pytest.mark.parametrize("kind", [Pages, OldKernel])
async def test_a_span_beyond_the_end_is_not_here_and_brought_without_an_error(
    kind: type[Pages], file: int
) -> None:
    pages = kind(readers=1)
    beyond = FileSpan(file=file, offset=SIZE, count=100_000)
    await pages.bring([beyond])
    assert not pages.are_here(beyond)


async def test_a_descriptor_that_is_not_open_is_an_error(file: int) -> None:
    closed = os.dup(file)
    os.close(closed)
    with pytest.raises(OSError, match="Bad file descriptor"):
        await Pages(readers=1).bring([FileSpan(file=closed, offset=0, count=1)])

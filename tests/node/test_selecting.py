"""Selected answers, with a real worker: small ones come as they are, none leaves a file behind."""

import hashlib
import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
import trio
import trio.testing

from goblet_node.mirror.disk import Disk
from goblet_node.mirror.intake import IntakeJob, take_in
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.refs import tips
from goblet_node.mirror.store import MirrorStore
from goblet_node.objects import BLOB, OFS_DELTA
from goblet_node.serve.delta import make_delta
from goblet_node.serve.emit import IN_MEMORY
from goblet_node.serve.selecting import Selector
from goblet_node.wire.answers import V0Dialect
from goblet_node.wire.refs import JoinedIds
from goblet_node.wire.requests import Fetch
from goblet_shared.repo_key import RepoKey
from goblet_testing.mirrors import blob_id, grow, heads
from goblet_testing.packs import HandMade, pack_of
from goblet_testing.rooms import room_of

pytestmark = pytest.mark.slow

KEY = RepoKey("origin.test/org/repo")
# Without a side-band: what follows the first line is the very pack.
PLAIN = V0Dialect()


class Taken:
    """Takes an answer, and notes what lay in the scratch each time."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self.is_started = False
        self.pieces: list[bytes] = []
        self.seen: list[str] = []
        self.cancelled = trio.Event()
        self.never = False

    async def start(self, *, cache: str | None, length: int | None = None) -> None:
        self.is_started = True

    async def send(self, data: bytes) -> None:
        self.seen += [path.name for path in self._scratch.rglob("*")]
        self.pieces.append(data)
        if self.never:
            self.cancelled.set()
            await trio.sleep_forever()

    @property
    def pack(self) -> bytes:
        data = b"".join(self.pieces)
        pack = data[data.index(b"PACK") :]
        assert hashlib.sha1(pack[:-20]).digest() == pack[-20:]
        return pack


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MirrorStore]:
    store = MirrorStore(tmp_path, disk=Disk())
    store.open()
    yield store
    store.close()


def selector(store: MirrorStore) -> Selector:
    return Selector(name="n", store=store, room=room_of(), workers=anyio.CapacityLimiter(1))


def with_a_delta(store: MirrorStore, first: bytes, second: bytes) -> Mirror:
    """Return a mirror that holds the second blob as a delta on the first."""
    scratch = store.new_scratch()
    received = scratch / "received.pack"
    delta = HandMade(kind=OFS_DELTA, content=make_delta(BLOB, first, second), base=0)
    received.write_bytes(pack_of([HandMade(kind=BLOB, content=first), delta]))
    refs = heads(first=first, second=second)
    none = JoinedIds.of(())
    job = IntakeJob(
        received=received,
        scratch=scratch,
        segments=(),
        tips=JoinedIds.of(sorted(tips(refs))),
        old_tips=none,
        old_orphans=none,
    )
    mirror = store.commit(KEY, base=None, refs=refs, intake=take_in(job))
    store.discard_scratch(scratch)
    return mirror


async def test_a_small_answer_is_sent_at_once_and_touches_no_scratch(
    store: MirrorStore, tmp_path: Path
) -> None:
    mirror = grow(store, KEY, heads(a=b"one\n"), [b"one\n", b"two\n"])
    sink = Taken(tmp_path / "scratch")
    fetch = Fetch(wants=(blob_id(b"one\n"),), done=True)
    await selector(store).make(fetch, PLAIN, mirror, sink)
    assert zlib.decompress(sink.pack[13:-20]) == b"one\n"
    assert len(sink.pieces) == 1
    assert sink.seen == []


@pytest.mark.parametrize("leaves", [False, True])
async def test_the_file_of_a_large_answer_goes_with_it(
    store: MirrorStore, tmp_path: Path, leaves: bool
) -> None:
    """Of what the log holds as a delta on what is not sent, all is made anew."""
    first = random.Random(7).randbytes(IN_MEMORY + 5000)
    mirror = with_a_delta(store, first, first + b"more")
    sink = Taken(tmp_path / "scratch")
    sink.never = leaves
    fetch = Fetch(wants=(blob_id(first + b"more"),), done=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(selector(store).make, fetch, PLAIN, mirror, sink)
        if leaves:
            await sink.cancelled.wait()
            nursery.cancel_scope.cancel()
    assert "inline" in sink.seen
    assert list((tmp_path / "scratch").iterdir()) == []
    if not leaves:
        unzip = zlib.decompressobj()
        assert unzip.decompress(sink.pack[12 + 4 :]) == first + b"more"


async def test_who_leaves_while_the_worker_works_leaves_nothing_behind(
    store: MirrorStore, tmp_path: Path
) -> None:
    mirror = grow(store, KEY, heads(a=b"one\n"), [b"one\n"])
    fetch = Fetch(wants=(blob_id(b"one\n"),), done=True)
    first, second = (Taken(tmp_path / "scratch") for _ in range(2))
    selected = selector(store)
    await selected.make(fetch, PLAIN, mirror, first)  # the worker has started now
    async with trio.open_nursery() as nursery:
        nursery.start_soon(selected.make, fetch, PLAIN, mirror, second)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert (first.is_started, second.is_started) == (True, False)
    assert not store.is_in_use(KEY)
    assert list((tmp_path / "scratch").iterdir()) == []

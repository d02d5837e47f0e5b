"""One answer made, many who follow: each at its own pace, and none of them for the others."""

import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry

from goblet_node.errors import DiskFailed, NodeStopping, UpstreamError
from goblet_node.fill.failures import Refused
from goblet_node.fill.room import Room
from goblet_node.metrics import NodeMetrics
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.store import MirrorStore
from goblet_node.serve.production import Production
from goblet_node.serve.recorder import Recorder
from goblet_node.serve.recordings import Recordings
from goblet_node.serve.reply import Reply
from goblet_shared.asgi import Message
from goblet_shared.parts import FileFailed
from goblet_shared.repo_key import RepoKey
from goblet_testing.rooms import PLENTY, room_of

REPO = RepoKey("origin.test/org/repo")
KEY = "1" * 64


@dataclass
class Client:
    """One who asks: what was received so far, and how fast it takes more."""

    metrics: NodeMetrics
    head: Message = field(default_factory=dict)
    body: bytes = b""
    takes: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
    failure: Exception | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.head = message
            return
        await self.takes()
        self.body += message.get("body", b"")

    def reply(self) -> Reply:
        return Reply(send=self.send, node="n", request_id=b"1", metrics=self.metrics)

    @property
    def cache(self) -> bytes | None:
        """What it was told of how the answer came about."""
        return dict(self.head.get("headers", ())).get(b"goblet-cache")

    @property
    def length(self) -> bytes | None:
        """What it was told of the answer's length."""
        return dict(self.head.get("headers", ())).get(b"content-length")


@dataclass
class House:
    """A recorder with all that it stands on."""

    root: Path
    nursery: trio.Nursery
    store: MirrorStore
    recordings: Recordings
    recorder: Recorder
    metrics: NodeMetrics
    made: int = 0

    def client(self, takes: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint) -> Client:
        return Client(self.metrics, takes=takes)

    async def ask(
        self, client: Client, make: Callable[[Production], Awaitable[None]], key: str = KEY
    ) -> None:
        """Ask one question, from its recording if there is one; what fails is the client's."""
        with client.scope:
            try:
                reply = client.reply()
                if not await self.recorder.replay(REPO, key, reply):
                    await self.recorder.follow(REPO, key, make, reply)
            except Exception as exc:
                client.failure = exc
        client.ended.set()

    def outcomes(self, outcome: str) -> float:
        """Return how many productions ended so."""
        labels = {"outcome": outcome}
        name = "goblet_node_recorded_answers_total"
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    async def settled(self, outcome: str, count: int = 1) -> None:
        """Return when so many productions ended so."""
        await until(lambda: self.outcomes(outcome) >= count)

    def leftovers(self) -> list[Path]:
        """Return what lies in the scratch folder."""
        return list((self.root / "scratch").iterdir())


@asynccontextmanager
async def house(
    root: Path, *, budget: int = PLENTY, room: Room | None = None, record_after: int = 2
) -> AsyncIterator[House]:
    """Run a recorder on a cache root; leaving cancels what it has under way."""
    store = MirrorStore(root, disk=Disk())
    store.open()
    recordings = Recordings(root, budget=budget, disk=Disk())
    recordings.open()
    metrics = NodeMetrics(CollectorRegistry())
    try:
        async with trio.open_nursery() as nursery:
            recorder = Recorder(
                recordings=recordings,
                store=store,
                room=room or room_of(),
                nursery=nursery,
                record_after=record_after,
                record_whole_after=3,
                metrics=metrics,
            )
            yield House(root, nursery, store, recordings, recorder, metrics)
            nursery.cancel_scope.cancel()
    finally:
        store.close()


PIECES = [bytes([number]) * (number * 977) for number in range(1, 30)]
WHOLE = b"".join(PIECES)


async def make_all(production: Production) -> None:
    """Give all of an answer at once."""
    await production.start(cache="selected")
    for piece in PIECES:
        await production.send(piece)


class Stepwise:
    """Makes an answer, pausing in the middle until it is told to go on."""

    def __init__(self) -> None:
        self.times = 0
        self.is_half = trio.Event()
        self.go_on = trio.Event()
        self.was_cancelled = False
        self.then: Callable[[], None] = lambda: None

    async def __call__(self, production: Production) -> None:
        self.times += 1
        await production.start(cache="selected")
        try:
            for piece in PIECES[:15]:
                await production.send(piece)
            self.is_half.set()
            await self.go_on.wait()
        except trio.Cancelled:
            self.was_cancelled = True
            raise
        self.then()
        for piece in PIECES[15:]:
            await production.send(piece)


async def until(fact: Callable[[], bool]) -> None:
    """Return when `fact()` is true; threads of the recorder's may have to end for that."""
    for _ in range(5000):
        if fact():
            return
        await trio.sleep(0.001)
    raise TimeoutError("it did not come to that")


async def test_the_second_who_asks_gets_the_recording_with_its_length(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        first, second = at.client(), at.client()
        await at.ask(first, make_all)
        await at.settled("kept")
        await at.ask(second, make_all)
        assert (first.body, first.cache) == (WHOLE, b"selected")
        assert (second.body, second.cache) == (WHOLE, b"recorded")
        assert second.length == b"%d" % len(WHOLE)
        assert at.outcomes("kept") == 1
        assert at.leftovers() == []


async def make_few(production: Production) -> None:
    """Give an answer that is small enough to be kept in memory."""
    await production.start(cache="selected")
    await production.send(b"few words")


async def test_a_small_recording_is_at_hand_once_it_was_sent(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        await at.ask(at.client(), make_few)
        await at.settled("kept")
        assert not await at.recorder.replay_at_hand(REPO, KEY, at.client().reply())
        await at.ask(second := at.client(), make_few)
        third = at.client()
        assert await at.recorder.replay_at_hand(REPO, KEY, third.reply())
        for client in (second, third):
            assert (client.body, client.cache) == (b"few words", b"recorded")
            assert client.length == b"9"
        assert not await at.recorder.replay_at_hand(REPO, "2" * 64, at.client().reply())


async def test_a_small_recording_that_is_not_what_it_was_is_made_anew(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        await at.ask(at.client(), make_few)
        await at.settled("kept")
        found = at.recordings.find(REPO, KEY)
        assert found is not None
        os.truncate(found.path, 3)
        await at.ask(again := at.client(), make_few)
        assert (again.body, again.cache) == (b"few words", b"selected")


async def test_an_answer_without_a_pack_is_replayed_without_a_word_of_one(tmp_path: Path) -> None:
    async def make(production: Production) -> None:
        await production.start(cache=None)
        await production.send(b"0008NAK\n")

    async with house(tmp_path) as at:
        clients = [at.client(), at.client()]
        for client in clients:
            await at.ask(client, make)
            await at.settled("kept")
        assert [(client.body, client.cache) for client in clients] == [(b"0008NAK\n", None)] * 2


async def test_all_who_ask_at_once_share_one_making(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        make = Stepwise()
        clients = [at.client() for _ in range(8)]
        for client in clients[:5]:
            at.nursery.start_soon(at.ask, client, make)
        await make.is_half.wait()
        for client in clients[5:]:
            at.nursery.start_soon(at.ask, client, make)
        half = b"".join(PIECES[:15])
        await until(lambda: all(client.body == half for client in clients))
        make.go_on.set()
        for client in clients:
            await client.ended.wait()
        assert make.times == 1
        assert [client.body for client in clients] == [WHOLE] * 8
        assert sorted(str(client.cache) for client in clients) == sorted(
            ["b'selected'", *["b'recorded'"] * 7]
        )


async def test_a_slow_reader_holds_up_nobody(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        slow, quick = at.client(trio.sleep_forever), at.client()
        at.nursery.start_soon(at.ask, slow, make_all)
        await until(lambda: bool(slow.head))
        await at.ask(quick, make_all)
        await at.settled("kept")
        assert quick.body == WHOLE
        assert slow.body == b""


async def test_a_slow_reader_reads_on_though_the_recording_is_deleted(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        gate = trio.Event()
        slow = at.client(gate.wait)
        at.nursery.start_soon(at.ask, slow, make_all)
        await at.settled("kept")
        at.recordings.discard(REPO)
        gate.set()
        await slow.ended.wait()
        assert slow.body == WHOLE


async def test_the_making_goes_on_when_the_first_client_leaves(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        make = Stepwise()
        first, second = at.client(), at.client()
        at.nursery.start_soon(at.ask, first, make)
        await make.is_half.wait()
        at.nursery.start_soon(at.ask, second, make)
        await until(lambda: bool(second.body))
        first.scope.cancel()
        await first.ended.wait()
        make.go_on.set()
        await second.ended.wait()
        assert (second.body, make.times) == (WHOLE, 1)
        await at.settled("kept")


async def test_the_making_stops_when_all_have_left_and_nothing_is_found(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        make = Stepwise()
        clients = [at.client(), at.client()]
        for client in clients:
            at.nursery.start_soon(at.ask, client, make)
        await make.is_half.wait()
        for client in clients:
            client.scope.cancel()
        await at.settled("abandoned")
        assert make.was_cancelled
        assert at.recordings.find(REPO, KEY) is None
        assert at.leftovers() == []


async def test_who_comes_right_after_the_last_one_left_has_it_made_anew(tmp_path: Path) -> None:
    """The making that was given up may not have ended yet: it is not to be joined."""
    async with house(tmp_path) as at:
        make = Stepwise()
        first, second = at.client(), at.client()
        at.nursery.start_soon(at.ask, first, make)
        await make.is_half.wait()
        first.scope.cancel()
        await first.ended.wait()
        make.go_on.set()
        await at.ask(second, make)
        assert second.body == WHOLE
        assert make.times == 2


async def test_who_leaves_after_the_last_byte_does_not_stop_the_recording(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        client = at.client()
        await at.ask(client, make_all)
        await at.settled("kept")
        assert at.recordings.find(REPO, KEY) is not None


async def test_a_failure_before_the_first_byte_is_everybodys_and_nothing_was_sent(
    tmp_path: Path,
) -> None:
    async with house(tmp_path) as at:
        gate = trio.Event()

        async def make(production: Production) -> None:
            await gate.wait()
            raise UpstreamError("upstream is away")

        clients = [at.client(), at.client()]
        for client in clients:
            at.nursery.start_soon(at.ask, client, make)
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
        for client in clients:
            await client.ended.wait()
        assert [str(client.failure) for client in clients] == ["upstream is away"] * 2
        assert [client.head for client in clients] == [{}] * 2
        await at.ask(after := at.client(), make_all)
        assert after.body == WHOLE


async def test_a_failure_in_the_middle_reaches_all_behind_whole_packets(tmp_path: Path) -> None:
    def fail() -> None:
        raise UpstreamError("upstream broke off")

    async with house(tmp_path) as at:
        make = Stepwise()
        make.then = fail
        clients = [at.client(), at.client()]
        for client in clients:
            at.nursery.start_soon(at.ask, client, make)
        await make.is_half.wait()
        make.go_on.set()
        for client in clients:
            await client.ended.wait()
        assert [client.body for client in clients] == [b"".join(PIECES[:15])] * 2
        assert [str(client.failure) for client in clients] == ["upstream broke off"] * 2
        await at.settled("failed")
        assert at.recordings.find(REPO, KEY) is None
        await at.ask(after := at.client(), make_all)
        assert (after.body, after.cache) == (WHOLE, b"selected")


async def test_a_refused_credential_is_only_its_owners(tmp_path: Path) -> None:
    """Who joined asks again with its own; upstream's words reach the one that they are for."""
    async with house(tmp_path) as at:
        gate = trio.Event()

        async def refused(production: Production) -> None:
            await gate.wait()
            raise Refused(401, [], b"who are you?")

        first, second = at.client(), at.client()
        at.nursery.start_soon(at.ask, first, refused)
        await trio.testing.wait_all_tasks_blocked()
        at.nursery.start_soon(at.ask, second, make_all)
        await trio.testing.wait_all_tasks_blocked()
        gate.set()
        await first.ended.wait()
        await second.ended.wait()
        assert isinstance(first.failure, Refused)
        assert (second.body, second.failure) == (WHOLE, None)


async def test_what_is_not_good_is_sent_and_not_kept(tmp_path: Path) -> None:
    async def make(production: Production) -> None:
        await make_all(production)
        production.is_good = False

    async with house(tmp_path) as at:
        await at.ask(client := at.client(), make)
        await at.settled("not-kept")
        assert client.body == WHOLE
        assert at.recordings.find(REPO, KEY) is None


async def test_who_comes_right_after_what_is_not_good_has_it_made_anew(tmp_path: Path) -> None:
    async def make_badly(production: Production) -> None:
        house_.made += 1
        await make_all(production)
        production.is_good = False

    async with house(tmp_path) as house_:
        for _ in range(3):  # the making before may be clearing up
            client = house_.client()
            await house_.ask(client, make_badly)
            assert client.cache != b"recorded"
        assert house_.made == 3


async def test_what_a_discarding_met_half_way_is_sent_and_not_kept(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        make = Stepwise()
        make.then = lambda: at.recordings.discard(REPO)
        at.nursery.start_soon(at.ask, client := at.client(), make)
        await make.is_half.wait()
        make.go_on.set()
        await at.settled("not-kept")
        await client.ended.wait()
        assert client.body == WHOLE
        assert at.recordings.find(REPO, KEY) is None


@pytest.mark.parametrize("cap", [0, 40_000])
async def test_where_there_is_no_room_every_answer_that_was_begun_is_finished(
    tmp_path: Path, cap: int
) -> None:
    async with house(tmp_path, room=room_of(cap)) as at:
        make = Stepwise()
        clients = [at.client() for _ in range(3)]
        for client in clients:
            at.nursery.start_soon(at.ask, client, make)
        await make.is_half.wait()
        make.go_on.set()
        for client in clients:
            await client.ended.wait()
        assert [client.failure for client in clients] == [None] * 3
        assert [client.body for client in clients] == [WHOLE] * 3
        assert make.times == 1
        await at.settled("not-kept")
        assert at.recordings.find(REPO, KEY) is None


async def test_a_disk_that_fills_up_half_way_costs_nobody_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0

    def pwrite(file: int, data: memoryview, offset: int) -> int:
        nonlocal written
        if written > 100_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        # Half of it first, as a disk that is nearly full does.
        size = os_pwrite(file, data[: len(data) // 2 + 1], offset)
        written += size
        return size

    os_pwrite = os.pwrite
    async with house(tmp_path) as at:
        monkeypatch.setattr(os, "pwrite", pwrite)
        gate = trio.Event()
        quick, slow = at.client(), at.client(gate.wait)
        at.nursery.start_soon(at.ask, slow, make_all)
        at.nursery.start_soon(at.ask, quick, make_all)
        await until(lambda: written > 100_000 and len(quick.body) > 100_000)
        late = at.client()
        monkeypatch.setattr(os, "pwrite", os_pwrite)
        await at.ask(late, make_all)  # its beginning is in nobody's memory: made anew
        assert late.body == WHOLE
        gate.set()
        for client in (quick, slow):
            await client.ended.wait()
            assert (client.body, client.failure) == (WHOLE, None)


async def test_one_who_leaves_while_it_passes_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async with house(tmp_path, room=room_of(0)) as at:
        stuck, other = at.client(trio.sleep_forever), at.client()
        for client in (stuck, other):
            at.nursery.start_soon(at.ask, client, make_all)
        await until(lambda: bool(other.body))
        stuck.scope.cancel()
        await other.ended.wait()
        assert other.body == WHOLE


async def test_a_scratch_that_cannot_be_had_is_the_disks_failure(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        (tmp_path / "scratch").rmdir()
        await at.ask(client := at.client(), make_all)
        assert isinstance(client.failure, DiskFailed)
        (tmp_path / "scratch").mkdir()


async def test_a_node_that_stops_tells_those_who_follow(tmp_path: Path) -> None:
    store = MirrorStore(tmp_path, disk=Disk())
    store.open()
    recordings = Recordings(tmp_path, budget=PLENTY, disk=Disk())
    recordings.open()
    metrics = NodeMetrics(CollectorRegistry())
    client, make = Client(metrics), Stepwise()
    async with trio.open_nursery() as clients:
        async with trio.open_nursery() as nursery:
            recorder = Recorder(
                recordings=recordings,
                store=store,
                room=room_of(),
                nursery=nursery,
                record_after=1,
                record_whole_after=1,
                metrics=metrics,
            )
            at = House(tmp_path, nursery, store, recordings, recorder, metrics)
            clients.start_soon(at.ask, client, make)
            await make.is_half.wait()
            nursery.cancel_scope.cancel()
        await client.ended.wait()
    assert isinstance(client.failure, NodeStopping)
    assert recordings.find(REPO, KEY) is None
    store.close()


async def test_a_recording_that_the_disk_cannot_read_is_forgotten(tmp_path: Path) -> None:
    async with house(tmp_path) as at:
        await at.ask(at.client(), make_all)
        await at.settled("kept")
        found = at.recordings.find(REPO, KEY)
        assert found is not None

        os.truncate(found.path, 10)
        await at.ask(cut := at.client(), make_all)
        assert (cut.body, cut.cache) == (WHOLE, b"selected")  # noticed when it was opened
        await at.settled("kept", 2)
        await at.ask(at.client(), make_all)
        os.truncate(found.path, 10)
        await at.ask(torn := at.client(), make_all)
        assert isinstance(torn.failure, FileFailed)
        await at.ask(again := at.client(), make_all)
        assert (again.body, again.cache) == (WHOLE, b"selected")


async def test_claimed_room_is_given_back(tmp_path: Path) -> None:
    room = room_of()
    async with house(tmp_path, room=room) as at:
        await at.ask(at.client(), make_all)
        await at.settled("kept")
        assert room.kinds()["claimed"]() == 0


@pytest.mark.parametrize(
    ("record_after", "at_once", "due"),
    [
        (1, False, [True, True, True]),
        (2, False, [False, True, True]),
        (3, False, [False, False, True]),
        (3, True, [True, True, True]),
    ],
)
async def test_what_is_not_recorded_at_once_is_from_the_nth_time_on(
    tmp_path: Path, record_after: int, at_once: bool, due: list[bool]
) -> None:
    async with house(tmp_path, record_after=record_after) as at:
        said = [at.recorder.is_due(REPO, KEY, at_once=at_once) for _ in due]
        assert said == due
        assert not at.recorder.is_due(REPO, "2" * 64, at_once=False) or record_after == 1


async def test_what_is_being_made_is_joined_by_whoever_asks(tmp_path: Path) -> None:
    async with house(tmp_path, record_after=100) as at:
        make = Stepwise()
        at.nursery.start_soon(at.ask, at.client(), make)
        await make.is_half.wait()
        assert at.recorder.is_due(REPO, KEY, at_once=False)


async def test_without_a_budget_nothing_is_due(tmp_path: Path) -> None:
    async with house(tmp_path, budget=0) as at:
        assert not at.recorder.is_due(REPO, KEY, at_once=True)


@pytest.mark.parametrize(
    ("size", "cap", "due"),
    [
        (1000, 2000, [False, False, True]),
        (1000, 1999, [False, False, False]),  # what is kept would be evicted for it
        (1001, PLENTY, [False, False, False]),  # more than a quarter of what recordings may take
    ],
)
async def test_what_lies_in_the_log_is_recorded_where_it_is_asked_for_often_and_costs_nobody(
    tmp_path: Path, size: int, cap: int, due: list[bool]
) -> None:
    async with house(tmp_path, budget=4000, room=room_of(cap)) as at:
        assert [at.recorder.is_copy_due(REPO, KEY, size=size) for _ in due] == due


async def test_what_is_counted_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goblet_node.serve.recorder.MAX_COUNTED", 2)
    async with house(tmp_path) as at:
        asked = ["1", "2", "3", "1", "3"]
        assert [at.recorder.is_due(REPO, key, at_once=False) for key in asked] == [
            False,
            False,
            False,
            False,
            True,
        ]

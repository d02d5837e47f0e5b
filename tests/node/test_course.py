"""A member's life from its start to its end, with time that a test moves."""

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from goblet_node.cluster.course import Bounds, Course
from goblet_node.cluster.life import Fact, Life
from goblet_node.cluster.marker import Marker
from goblet_node.mirror.disk import Disk
from goblet_shared.contract import NodeName
from goblet_shared.members import MemberState


class Task:
    """Something that takes `seconds`, and remembers from when to when it ran."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.begun: float | None = None
        self.ended: float | None = None
        self.is_whole = False

    async def run(self) -> None:
        self.begun = trio.current_time()
        try:
            await trio.sleep(self._seconds)
            self.is_whole = True
        finally:
            self.ended = trio.current_time()


class Lived:
    """A course under way, and when each of its turns came."""

    def __init__(
        self,
        root: Path,
        *,
        state: MemberState = MemberState.JOINING,
        join: float = 5,
        drain: float = 5,
        known: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    ) -> None:
        self.turns: dict[MemberState, float] = {}
        self.life = Life(state, observers=[self._note])
        self.join, self.drain = Task(join), Task(drain)
        self.marker = Marker(root / "was-ready", NodeName("goblet-1"), disk=Disk())
        self.stop = trio.Event()
        self.course = Course(
            life=self.life,
            known=known,
            join=self.join,
            drain=self.drain,
            marker=self.marker,
            bounds=Bounds(join=60, drain=20, notice=3),
        )

    def _note(self, state: MemberState) -> None:
        self.turns[state] = trio.current_time()

    async def go_at(self, moment: float) -> None:
        """Live, and be told to go then."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.course.run, self.stop)
            await trio.sleep_until(moment)
            self.life.happens(Fact.TOLD_TO_GO)


async def test_a_new_node_joins_is_ready_drains_and_stops(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    lived = Lived(tmp_path)
    assert not lived.marker.is_set()
    await lived.go_at(100)
    assert lived.turns == {
        MemberState.JOINING: 0,
        MemberState.READY: 5,
        MemberState.DRAINING: 100,
    }
    assert lived.marker.is_set()
    assert lived.drain.ended == 105
    assert lived.stop.is_set()
    assert trio.current_time() == 105


async def test_a_node_that_was_ready_before_copies_nothing(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    lived = Lived(tmp_path, state=MemberState.READY)
    await lived.go_at(100)
    assert lived.join.begun is None
    assert list(lived.turns) == [MemberState.READY, MemberState.DRAINING]


async def test_routers_have_time_to_notice_though_nothing_is_handed_over(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    lived = Lived(tmp_path, drain=0)
    await lived.go_at(100)
    assert trio.current_time() == 103


async def test_joining_and_draining_end_when_they_take_too_long(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lived = Lived(tmp_path, join=1000, drain=1000)
    with caplog.at_level(logging.WARNING):
        await lived.go_at(100)
    assert lived.turns[MemberState.READY] == lived.join.ended == 60
    assert lived.drain.ended == trio.current_time() == 120
    assert [text.partition(":")[0] for text in caplog.messages] == ["joining", "draining"]


async def test_a_cluster_that_nobody_tells_of_is_not_waited_for_longer_than_that(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    lived = Lived(tmp_path, known=trio.sleep_forever)
    await lived.go_at(100)
    assert lived.turns[MemberState.READY] == 60
    assert lived.join.begun is None


async def test_a_node_that_is_told_to_go_while_it_joins_goes_and_joins_anew_next_time(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    lived = Lived(tmp_path, join=50)
    await lived.go_at(10)
    assert (lived.join.ended, lived.join.is_whole) == (10, False)
    assert MemberState.READY not in lived.turns
    assert lived.stop.is_set()
    assert not lived.marker.is_set()

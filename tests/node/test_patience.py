"""Who waits for an answer, for how long, and what stands in."""

import math

import pytest
import trio
import trio.testing

from goblet_node.errors import UpstreamDown, UpstreamError
from goblet_node.fill.patience import in_time_or_old

DOWN = UpstreamDown("down")


class Question:
    """One that takes its time, or fails, and what is known of old."""

    def __init__(
        self, *, seconds: float = 0, failure: Exception | None = None, old: str | None = None
    ) -> None:
        self.asked = 0
        self.whys: list[UpstreamDown | None] = []
        self._seconds = seconds
        self._failure = failure
        self._old = old

    async def ask(self) -> str:
        self.asked += 1
        await trio.sleep(self._seconds)
        if self._failure is not None:
            raise self._failure
        return "new"

    async def old(self, why: UpstreamDown | None) -> str | None:
        self.whys.append(why)
        return self._old

    async def answer(self, patience: float = 10) -> tuple[str, float]:
        began = trio.current_time()
        answer = await in_time_or_old(self.ask, self.old, patience=patience)
        return answer, trio.current_time() - began


async def test_an_answer_in_time_is_the_answer(autojump_clock: trio.testing.MockClock) -> None:
    question = Question(seconds=9, old="old")
    assert await question.answer() == ("new", 9)
    assert question.whys == []


async def test_what_is_late_is_stood_in_for_by_what_is_old(
    autojump_clock: trio.testing.MockClock,
) -> None:
    question = Question(seconds=11, old="old")
    assert await question.answer() == ("old", 10)
    assert question.whys == [None]
    assert await question.answer(patience=-1) == ("old", 0)


async def test_what_is_late_is_waited_for_if_nothing_is_old(
    autojump_clock: trio.testing.MockClock,
) -> None:
    question = Question(seconds=11)
    assert (await question.answer())[0] == "new"
    assert question.asked == 2, "a shared question is joined again"
    assert await question.answer(patience=math.inf) == ("new", 11)


async def test_an_outage_is_stood_in_for_at_once_or_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    question = Question(seconds=1, failure=DOWN, old="old")
    assert await question.answer() == ("old", 1)
    assert question.whys == [DOWN]
    with pytest.raises(UpstreamDown):
        await Question(failure=DOWN).answer()


async def test_no_other_failure_is_stood_in_for() -> None:
    question = Question(failure=UpstreamError("html"), old="old")
    with pytest.raises(UpstreamError):
        await question.answer()
    assert question.whys == []

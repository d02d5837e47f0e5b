"""One question for all who overlap, and nobody's cancellation but one's own."""

import pytest
import trio
import trio.testing

from goblet_node.errors import NodeStopping
from goblet_node.fill.flights import Flights


class Question:
    """Counts how often it is asked, and answers when told to."""

    def __init__(self, answer: int | Exception) -> None:
        self.asked = 0
        self.may_answer = trio.Event()
        self._answer = answer

    async def ask(self) -> int:
        self.asked += 1
        await self.may_answer.wait()
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


async def test_all_who_overlap_share_one_answer(nursery: trio.Nursery) -> None:
    flights: Flights[str, int] = Flights(nursery)
    question = Question(7)
    answers: list[int] = []

    async def wait() -> None:
        answers.append(await flights.join("key", question.ask))

    async with trio.open_nursery() as waiting:
        for _ in range(5):
            waiting.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        question.may_answer.set()
    assert answers == [7] * 5
    assert question.asked == 1
    assert "key" not in flights


async def test_the_next_question_is_asked_anew(nursery: trio.Nursery) -> None:
    flights: Flights[str, int] = Flights(nursery)
    question = Question(7)
    question.may_answer.set()
    await flights.join("key", question.ask)
    await flights.join("key", question.ask)
    assert question.asked == 2


async def test_the_first_askers_leaving_fails_nobody(nursery: trio.Nursery) -> None:
    flights: Flights[str, int] = Flights(nursery)
    question = Question(7)
    answers: list[int] = []

    async def wait(task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        with trio.CancelScope() as scope:
            task_status.started(scope)
            answers.append(await flights.join("key", question.ask))

    async with trio.open_nursery() as waiting:
        first = await waiting.start(wait)
        await waiting.start(wait)
        await trio.testing.wait_all_tasks_blocked()
        first.cancel()
        await trio.testing.wait_all_tasks_blocked()
        question.may_answer.set()
    assert answers == [7]
    assert question.asked == 1


async def test_a_failure_reaches_all_who_wait_and_not_the_nursery(nursery: trio.Nursery) -> None:
    flights: Flights[str, int] = Flights(nursery)
    question = Question(ValueError("no"))
    seen: list[str] = []

    async def wait() -> None:
        with pytest.raises(ValueError, match="no"):
            await flights.join("key", question.ask)
        seen.append("no")

    async with trio.open_nursery() as waiting:
        waiting.start_soon(wait)
        waiting.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        question.may_answer.set()
    assert seen == ["no", "no"]


async def test_a_stopping_node_tells_those_who_wait() -> None:
    question = Question(7)
    async with trio.open_nursery() as waiting, trio.open_nursery() as node:
        flights: Flights[str, int] = Flights(node)

        async def wait() -> None:
            with pytest.raises(NodeStopping):
                await flights.join("key", question.ask)

        waiting.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        node.cancel_scope.cancel()

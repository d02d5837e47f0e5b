"""Say something while work takes long."""

import pytest
import trio
import trio.testing

from goblet_node.serve.alive import while_working


async def work_for_six_seconds() -> None:
    await trio.sleep(6)


async def say_nothing() -> None:
    await trio.lowlevel.checkpoint()


async def test_each_period_of_silence_is_broken(autojump_clock: trio.testing.MockClock) -> None:
    said: list[float] = []
    start = trio.current_time()

    async def work() -> str:
        await trio.sleep(17)
        return "done"

    async def say() -> None:
        said.append(trio.current_time() - start)

    assert await while_working(work, say, every=5) == "done"
    assert said == [5, 10, 15]


async def test_quick_work_is_silent(autojump_clock: trio.testing.MockClock) -> None:
    async def work() -> int:
        await trio.sleep(4.9)
        return 7

    async def say() -> None:
        raise AssertionError("nothing to say")

    assert await while_working(work, say, every=5) == 7


async def test_what_is_being_said_is_said_to_its_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A head half sent would be worse than silence."""
    said: list[str] = []

    async def say() -> None:
        said.append("begun")
        await trio.sleep(100)
        said.append("ended")

    await while_working(work_for_six_seconds, say, every=5)
    assert said == ["begun", "ended"]


async def test_a_failure_of_the_work_leaves_bare(autojump_clock: trio.testing.MockClock) -> None:
    async def work() -> None:
        await trio.sleep(6)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await while_working(work, say_nothing, every=5)


async def test_cancelling_ends_both(autojump_clock: trio.testing.MockClock) -> None:
    with trio.move_on_after(12) as scope:
        await while_working(trio.sleep_forever, say_nothing, every=5)
    assert scope.cancelled_caught

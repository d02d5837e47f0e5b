"""What another member hands over is copied in its order, a few at a time, and bounded."""

import pytest
import trio
import trio.testing

from goblet_node.fill.pace import Pace
from goblet_node.fill.taking import MAX_WAITING, Taker, TooManyTaken
from goblet_node.mirror.log import Mirror
from goblet_shared.contract import NodeName
from goblet_shared.repo_key import RepoKey

ONE, TWO = NodeName("goblet-1"), NodeName("goblet-2")


class Copies:
    """Copies nothing, once it may; notes what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.at_once = 0
        self.most = 0
        self.may = trio.Event()

    async def copy(
        self, key: RepoKey, source: NodeName, *, pace: Pace | None = None
    ) -> Mirror | None:
        self.told.append((key, source))
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await self.may.wait()
        self.at_once -= 1
        return None


def keys(count: int, *, since: int = 0) -> list[RepoKey]:
    return [RepoKey(f"origin.test/org/{number}") for number in range(since, since + count)]


async def test_all_that_was_handed_over_is_copied_in_its_order_two_at_once() -> None:
    copies = Copies()
    taker = Taker(copies=copies, at_once=2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(taker.run)
        await trio.testing.wait_all_tasks_blocked()
        taker.take(ONE, keys(3))
        taker.take(TWO, keys(3, since=2))
        await trio.testing.wait_all_tasks_blocked()
        assert copies.told == [(key, ONE) for key in keys(2)]
        assert taker.awaited == set(keys(5))
        copies.may.set()
        await trio.testing.wait_all_tasks_blocked()
        # Who names a mirror last is going, too, and may be the only one to have it.
        assert copies.told[2:] == [(key, TWO) for key in keys(3, since=2)]
        assert copies.most == 2
        assert taker.awaited == set()
        taker.take(ONE, keys(1))
        await trio.testing.wait_all_tasks_blocked()
        assert len(copies.told) == 6
        nursery.cancel_scope.cancel()


async def test_more_than_can_be_remembered_is_refused_whole() -> None:
    copies = Copies()
    taker = Taker(copies=copies, at_once=1)
    taker.take(ONE, keys(MAX_WAITING - 1))
    with pytest.raises(TooManyTaken):
        taker.take(TWO, keys(2, since=MAX_WAITING))
    taker.take(TWO, keys(1, since=MAX_WAITING))
    with pytest.raises(TooManyTaken):
        taker.take(TWO, keys(1, since=MAX_WAITING + 1))
    taker.take(TWO, keys(5))

"""One thread a mirror has its turn."""

import threading

from goblet_node.mirror.turns import Turns
from goblet_shared.repo_key import RepoKey

ONE, TWO = RepoKey("example.org/one"), RepoKey("example.org/two")


def test_a_turn_waits_for_the_one_before_and_not_for_other_mirrors() -> None:
    turns = Turns()
    order: list[str] = []

    def go() -> None:
        with turns.alone(ONE):
            order.append("second")

    with turns.alone(ONE), turns.alone(TWO):
        second = threading.Thread(target=go)
        second.start()
        second.join(0.05)
        assert second.is_alive()
        order.append("first")
    second.join()
    assert order == ["first", "second"]


def test_who_does_not_wait_is_told() -> None:
    turns = Turns()
    with turns.alone_now(ONE) as is_mine:
        assert is_mine
        assert turns.is_taken(ONE)
        with turns.alone_now(ONE) as is_mine_too:
            assert not is_mine_too
        assert turns.is_taken(ONE)
        assert not turns.is_taken(TWO)
    assert not turns.is_taken(ONE)
    with turns.alone_now(ONE) as is_mine:
        assert is_mine

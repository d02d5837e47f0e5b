"""What is asked again, how often and how soon."""

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.errors import UpstreamDown, UpstreamError, UpstreamResting, UpstreamTooSlow
from goblet_node.fill.failures import Refused
from goblet_node.fill.retrying import Backoff, pause_after, retried

BACKOFF = Backoff(tries=3, first=1.0, longest=5.0)


def pause(
    failure: Exception, *, tried: int = 1, left: float = 100.0, jitter: float = 1.0
) -> float | None:
    return pause_after(failure, tried=tried, left=left, backoff=BACKOFF, jitter=jitter)


def busy(status: int, retry_after: str | None) -> Refused:
    headers = [] if retry_after is None else [(b"retry-after", retry_after.encode())]
    return Refused(status, headers, b"")


@pytest.mark.parametrize(
    "failure",
    [
        Refused(401, (), b""),
        busy(404, "1"),
        busy(429, None),
        busy(429, "soon"),
        UpstreamError("html"),
        UpstreamResting("resting"),
    ],
)
def test_an_answer_is_not_asked_for_again(failure: Exception) -> None:
    assert pause(failure) is None


def test_pauses_grow_and_are_bounded_and_random() -> None:
    down = UpstreamDown("down")
    patient = Backoff(tries=10, first=1.0, longest=5.0)
    most = [
        pause_after(down, tried=tried, left=100, backoff=patient, jitter=1.0)
        for tried in range(1, 6)
    ]
    assert most == [1, 2, 4, 5, 5]
    assert pause(down, jitter=0.0) == 0
    assert pause(down, tried=2, jitter=0.25) == 0.5


def test_there_are_so_many_tries_and_no_more() -> None:
    assert pause(UpstreamTooSlow("late"), tried=2) is not None
    assert pause(UpstreamTooSlow("late"), tried=3) is None


@given(st.floats(0, 1000), st.floats(0, 100), st.floats(0, 1))
def test_what_upstream_asks_for_is_kept_or_it_is_not_asked_again(
    said: float, left: float, jitter: float
) -> None:
    given = pause(UpstreamDown("busy", retry_after=said), left=left, jitter=jitter)
    assert given is None if said >= left else True
    assert given is None or said <= given < left


def test_too_many_requests_are_asked_again_when_upstream_says_so() -> None:
    assert pause(busy(429, "7"), jitter=0.5) == 7.5
    assert pause(busy(429, "7"), left=7) is None


async def outcome(*results: Exception | int, within: float = 100.0) -> tuple[object, int, float]:
    """Ask for these results in turn; return the last that was had, how many were, and when."""
    left = list(results)

    async def ask() -> int:
        result = left.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    began = trio.current_time()
    last: object
    try:
        last = await retried(ask, deadline=began + within, backoff=BACKOFF, random=lambda: 1.0)
    except (UpstreamError, Refused) as exc:
        last = exc
    return last, len(results) - len(left), trio.current_time() - began


async def test_a_failure_is_asked_again_and_its_answer_is_the_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    assert await outcome(UpstreamDown("once"), 7) == (7, 2, 1)


async def test_the_last_failure_is_what_is_told(autojump_clock: trio.testing.MockClock) -> None:
    last = UpstreamTooSlow("last")
    assert await outcome(UpstreamDown("1"), UpstreamDown("2"), last) == (last, 3, 3)


async def test_nobody_waits_longer_than_there_is_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    down = UpstreamDown("down")
    assert await outcome(down, within=0.5) == (down, 1, 0)


async def test_a_breaker_that_opens_between_two_tries_ends_them(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """What upstream itself said tells more than that it is left alone since."""
    down = UpstreamDown("down")
    assert await outcome(down, UpstreamResting("resting"), 7) == (down, 2, 1)

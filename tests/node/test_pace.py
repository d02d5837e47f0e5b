"""What is drawn never passes faster than the rate, however many draw."""

from hypothesis import given
from hypothesis import strategies as st

from goblet_node.fill.pace import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(
    st.integers(1, 10**9),
    st.lists(st.tuples(st.floats(0, 5), st.integers(1, 10**7)), min_size=1, max_size=40),
)
def test_no_stretch_of_time_sees_more_than_the_rate_and_one_burst(
    rate: int, draws: list[tuple[float, int]]
) -> None:
    clock = Clock()
    pace = Pace(rate, burst=0.1, clock=clock)
    first = clock.now
    drawn = 0
    for rest, size in draws:
        clock.now += rest
        drawn += size
        done = pace.draw(size)
        assert drawn <= rate * (done - first + 0.1) * (1 + 1e-9)
        clock.now = max(clock.now, done)


def test_who_draws_without_rest_has_the_whole_rate() -> None:
    clock = Clock()
    pace = Pace(1000, burst=0.0, clock=clock)
    for number in range(1, 11):
        clock.now = pace.draw(500)
        assert clock.now == 100.0 + number * 0.5


def test_a_long_rest_saves_up_no_more_than_a_burst() -> None:
    clock = Clock()
    pace = Pace(1000, burst=0.1, clock=clock)
    clock.now += 3600
    assert pace.draw(100) == clock.now
    assert pace.draw(100) == clock.now + 0.1


def test_two_who_share_a_pace_have_half_of_it_each() -> None:
    clock = Clock()
    pace = Pace(1000, burst=0.0, clock=clock)
    assert pace.draw(500) == 100.5
    assert pace.draw(500) == 101.0

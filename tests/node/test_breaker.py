"""When an upstream is left alone, when it is tried again, and who is told so."""

import logging

import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from goblet_node.errors import UpstreamDown, UpstreamError, UpstreamResting, UpstreamTooSlow
from goblet_node.fill.breaker import NEXT, Breaker, Breakers, Rules, State
from goblet_node.fill.failures import Refused
from goblet_node.metrics import NodeMetrics
from goblet_shared.repo_key import RepoKey

RULES = Rules(failures=3, rest=10)
ONE, OTHER = RepoKey("upstream.test/org/one"), RepoKey("upstream.test/org/other")
URL = "http://upstream.test:8080/org/one"


def failed(breaker: Breaker, *, key: RepoKey = ONE, unreachable: bool = True) -> Breaker:
    """Have a question that was asked just now fail at second 0."""
    return breaker.failed(
        key, turn=breaker.turn, is_unreachable=unreachable, now=0, rest=10, rules=RULES
    )


def opened() -> Breaker:
    breaker = Breaker()
    for _ in range(3):
        breaker = failed(breaker)
    assert breaker.state is State.OPEN
    return breaker


def test_failures_in_a_row_open_it_and_an_answer_between_them_begins_anew() -> None:
    two = failed(failed(Breaker()))
    assert two.state is State.CLOSED
    assert failed(failed(two.answered())).state is State.CLOSED
    assert failed(two).state is State.OPEN


def test_while_it_rests_nobody_asks_then_one_does() -> None:
    breaker = opened()
    breaker, may = breaker.asked(now=9.9, rest=10)
    assert not may
    breaker, may = breaker.asked(now=10, rest=10)
    assert may
    assert breaker.state is State.HALF_OPEN
    assert not breaker.asked(now=10, rest=10)[1]


def test_a_probe_that_fails_begins_another_rest_and_one_that_is_answered_ends_it() -> None:
    probing, _ = opened().asked(now=10, rest=10)
    assert failed(probing).state is State.OPEN
    assert probing.answered() == Breaker(turn=probing.turn + 1, until=probing.until)


def test_a_probe_that_was_never_heard_of_makes_room_for_the_next() -> None:
    """Its client may have left."""
    probing, _ = opened().asked(now=10, rest=10)
    again, may = probing.asked(now=20, rest=10)
    assert may
    assert again.state is State.HALF_OPEN


def test_what_was_asked_before_an_outage_and_fails_after_it_says_nothing() -> None:
    """A hundred questions that time out together would open it again."""
    breaker = opened()
    closed = breaker.asked(now=10, rest=10)[0].answered()
    late = closed
    for _ in range(100):
        late = late.failed(ONE, turn=0, is_unreachable=True, now=11, rest=10, rules=RULES)
    assert late == closed


def test_one_repository_that_always_gives_500_is_not_its_host() -> None:
    breaker = Breaker()
    for _ in range(50):
        breaker = failed(breaker, unreachable=False)
    assert breaker.state is State.CLOSED
    assert failed(breaker, key=OTHER, unreachable=False).state is State.OPEN


def test_without_a_number_of_failures_it_stays_closed() -> None:
    never = Rules(failures=0, rest=10)
    breaker = Breaker()
    for key in (ONE, OTHER) * 20:
        breaker = breaker.failed(key, turn=0, is_unreachable=True, now=0, rest=10, rules=never)
    assert breaker == Breaker()


@given(st.lists(st.tuples(st.sampled_from(["ask", "answer", "fail", "late"]), st.floats(0, 5))))
def test_whatever_happens_it_is_asked_once_a_rest_at_most_and_an_answer_closes_it(
    facts: list[tuple[str, float]],
) -> None:
    breaker, now, asked_at = Breaker(), 0.0, -100.0
    for fact, seconds in facts:
        now += seconds
        before = breaker
        if fact == "ask":
            breaker, may = breaker.asked(now=now, rest=10)
            assert may or breaker.state is not State.CLOSED
            if may and breaker.state is State.HALF_OPEN:
                assert now - asked_at >= 10
                asked_at = now
        elif fact == "answer":
            breaker = breaker.answered()
            assert breaker.state is State.CLOSED
            asked_at = -100.0
        else:
            turn = breaker.turn - (fact == "late")
            breaker = breaker.failed(
                ONE, turn=turn, is_unreachable=True, now=now, rest=10, rules=RULES
            )
            assert fact == "fail" or breaker == before
        assert breaker.state is before.state or breaker.state in NEXT[before.state].values()
        assert len(breaker.about) <= 2


class House:
    """Breakers at a time that is set, and what they measured."""

    def __init__(self) -> None:
        self.now = 0.0
        self.registry = CollectorRegistry()
        self.breakers = Breakers(
            rules=RULES,
            metrics=NodeMetrics(self.registry),
            random=lambda: 0.5,
            clock=lambda: self.now,
        )

    def ask(
        self,
        failure: BaseException | None = None,
        *,
        key: RepoKey = ONE,
        is_clients: bool = False,
    ) -> None:
        with self.breakers.watching(URL, key, is_clients=is_clients):
            if failure is not None:
                raise failure

    def fails(
        self, failure: BaseException, *, key: RepoKey = ONE, is_clients: bool = False
    ) -> None:
        with pytest.raises(type(failure)):
            self.ask(failure, key=key, is_clients=is_clients)

    def shown(self) -> tuple[float | None, float | None]:
        labels = {"host": "upstream.test:8080"}
        return (
            self.registry.get_sample_value("goblet_node_upstream_breaker_state", labels),
            self.registry.get_sample_value("goblet_node_upstream_breaker_opened_total", labels),
        )


def unreachable() -> UpstreamDown:
    failure = UpstreamDown("upstream.test could not be asked (ConnectError): try again later")
    failure.__cause__ = httpx.ConnectError("nobody there")
    return failure


def test_who_asks_while_it_rests_is_told_so_at_once_and_the_operator_once_a_turn(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = House()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            house.fails(unreachable())
        for _ in range(20):
            with pytest.raises(UpstreamResting, match=r"upstream\.test failed 3 times in a row"):
                house.ask()
        assert house.shown() == (2, 1)
        house.now = 10
        house.fails(unreachable())
        house.now = 20
        house.ask()
    assert house.shown() == (0, 1)
    assert [record.message.split(" after")[0] for record in caplog.records] == [
        "upstream.test:8080 is left alone",
        "upstream.test:8080 answers again",
    ]
    house.ask()


@pytest.mark.parametrize(
    "failure",
    [Refused(401, (), b""), Refused(404, (), b""), Refused(429, (), b""), UpstreamError("html")],
)
def test_an_answer_is_no_failure_whatever_it_says(failure: Exception) -> None:
    house = House()
    for _ in range(10):
        house.fails(unreachable())
        house.fails(unreachable())
        house.fails(failure)
    assert house.shown()[0] == 0


def test_what_is_cancelled_says_nothing_and_neither_does_our_own_lack_of_connections() -> None:
    house = House()
    ours = UpstreamTooSlow("no connection")
    ours.__cause__ = httpx.PoolTimeout("none")
    for _ in range(10):
        house.fails(ours)
        house.fails(KeyboardInterrupt())
    assert house.shown()[0] == 0


def test_of_clients_own_questions_only_connections_count() -> None:
    """A client may ask for what takes upstream for ever."""
    house = House()
    for _ in range(10):
        house.fails(UpstreamTooSlow("late"), is_clients=True)
    assert house.shown()[0] == 0
    for _ in range(3):
        house.fails(unreachable(), is_clients=True)
    assert house.shown()[0] == 2


def test_repositories_that_somebody_invents_have_no_host_left_alone() -> None:
    """A name that upstream chokes on gives a 500, and one client can think of many."""
    house = House()
    house.ask()
    for number in range(20):
        house.fails(UpstreamDown("500"), key=RepoKey(f"upstream.test/no/{number}"))
    assert house.shown() == (0, None)
    house.ask(key=OTHER)
    for key in (ONE, OTHER, ONE):
        house.fails(UpstreamDown("500"), key=key)
    assert house.shown() == (2, 1)
    house.now = 10
    house.fails(UpstreamDown("500"), key=RepoKey("upstream.test/no/where"))
    house.now = 20
    house.ask()
    assert house.shown()[0] == 0


def test_before_upstream_answered_for_anything_whatever_fails_counts() -> None:
    """Else one that is down when a node starts would be asked by everybody."""
    house = House()
    for number in range(3):
        house.fails(UpstreamTooSlow("late"), key=RepoKey(f"upstream.test/org/{number}"))
    assert house.shown()[0] == 2


def test_of_how_many_repositories_an_answer_is_remembered_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("goblet_node.fill.breaker._ANSWERED_FOR", 10)
    house = House()
    for number in range(25):
        house.ask(key=RepoKey(f"upstream.test/org/{number}"))
    assert [len(kept) for kept in house.breakers._answered_for.values()] == [10]


async def test_an_exchange_that_its_caller_gives_up_is_no_failure(nursery: trio.Nursery) -> None:
    house = House()
    for _ in range(5):
        with trio.move_on_after(0), house.breakers.watching(URL, ONE):
            await trio.sleep_forever()
    house.ask()
    assert house.shown()[0] == 0

"""Who is asked about, what is remembered, and for how long."""

import logging

import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry

from goblet_node.access.callers import Caller
from goblet_node.access.check import Access
from goblet_node.errors import UpstreamDown, UpstreamError, UpstreamTooSlow
from goblet_node.fill.failures import Refused
from goblet_node.fill.grants import Grants
from goblet_node.fill.outages import Outages
from goblet_node.fill.upstream import Grant
from goblet_node.metrics import NodeMetrics
from goblet_node.wire.v2_client import Advertisement
from goblet_shared.git_route import Route, parse_target

LIFETIME = 30.0


class FakeJudge:
    """Allows some credentials, counts the questions, and can be made to take its time."""

    def __init__(self, *allowed: str | None, crossed_hosts: bool = False) -> None:
        self.allowed = set(allowed)
        self.questions: list[tuple[str, str | None]] = []
        self.seconds = 0.0
        self.failure: Exception | None = None
        self._crossed_hosts = crossed_hosts

    async def may_read(self, route: Route, authorization: str | None) -> Grant:
        self.questions.append((route.key, authorization))
        verdict = authorization in self.allowed
        await trio.sleep(self.seconds)
        if self.failure is not None:
            raise self.failure
        if not verdict:
            raise Refused(401, (), b"")
        return Grant(
            key=route.key,
            url="http://upstream.test/org/repo",
            authorization=None if self._crossed_hosts else authorization,
            crossed_hosts=self._crossed_hosts,
            advertisement=Advertisement(version=2, features={}),
        )


def route_to(repo: str) -> Route:
    return parse_target(
        method="GET",
        raw_path=f"/upstream.test/{repo}/info/refs".encode(),
        query=b"service=git-upload-pack",
    )


REPO = route_to("org/repo")


def caller(authorization: str | None) -> Caller:
    return Caller(authorization=authorization)


def access_of(
    judge: FakeJudge,
    nursery: trio.Nursery,
    lifetime: float = LIFETIME,
    *,
    stale: float = 0.0,
    stale_after: float = 10.0,
    grants: Grants | None = None,
) -> Access:
    metrics = NodeMetrics(CollectorRegistry())
    return Access(
        judge=judge,
        grants=grants or Grants(),
        nursery=nursery,
        lifetime=lifetime,
        metrics=metrics,
        outages=Outages(metrics=metrics),
        stale=stale,
        stale_after=stale_after,
    )


async def test_a_yes_is_remembered_for_its_lifetime_and_no_longer(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    judge = FakeJudge("alice")
    access = access_of(judge, nursery)
    await access.check(REPO, caller("alice"))
    await trio.sleep(LIFETIME - 0.1)
    await access.check(REPO, caller("alice"))
    assert len(judge.questions) == 1
    await trio.sleep(0.2)
    judge.allowed.clear()
    with pytest.raises(Refused):
        await access.check(REPO, caller("alice"))


async def test_the_lifetime_begins_with_the_question_not_with_its_answer(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    judge = FakeJudge("alice")
    judge.seconds = LIFETIME - 1
    access = access_of(judge, nursery)
    await access.check(REPO, caller("alice"))
    await trio.sleep(2)
    await access.check(REPO, caller("alice"))
    assert len(judge.questions) == 2


async def test_a_yes_is_for_one_credential_and_one_repository(nursery: trio.Nursery) -> None:
    judge = FakeJudge("alice", None)
    access = access_of(judge, nursery)
    await access.check(REPO, caller("alice"))
    for other in ("bob", "", "alice "):
        with pytest.raises(Refused):
            await access.check(REPO, caller(other))
    await access.check(route_to("org/other"), caller("alice"))
    await access.check(REPO, caller(None))
    assert len(judge.questions) == 6


async def test_a_no_is_not_remembered(nursery: trio.Nursery) -> None:
    judge = FakeJudge()
    access = access_of(judge, nursery)
    with pytest.raises(Refused):
        await access.check(REPO, caller("alice"))
    judge.allowed.add("alice")
    await access.check(REPO, caller("alice"))


async def test_overlapping_questions_are_shared_by_equal_credentials_only(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    judge = FakeJudge("alice")
    judge.seconds = 1.0
    access = access_of(judge, nursery)
    refused: list[str] = []

    async def check(who: str) -> None:
        try:
            await access.check(REPO, caller(who))
        except Refused:
            refused.append(who)

    async with trio.open_nursery() as asking:
        for who in ("alice", "bob", "alice", "bob", "alice"):
            asking.start_soon(check, who)
    assert sorted(judge.questions) == [(REPO.key, "alice"), (REPO.key, "bob")]
    assert refused == ["bob", "bob"]


async def test_a_no_that_comes_later_has_it_asked_again(nursery: trio.Nursery) -> None:
    judge, grants = FakeJudge("alice", "bob"), Grants()
    access = access_of(judge, nursery, grants=grants)
    for who in ("bob", "alice"):
        grant = await access.check(REPO, caller(who))
    grants.refused(grant)
    for who in ("bob", "alice"):
        await access.check(REPO, caller(who))
    assert [who for _, who in judge.questions] == ["bob", "alice", "alice"]


async def test_a_remembered_grant_carries_the_callers_own_credential(
    nursery: trio.Nursery,
) -> None:
    access = access_of(FakeJudge("alice"), nursery)
    for _ in range(2):
        assert (await access.check(REPO, caller("alice"))).authorization == "alice"


async def test_after_a_redirect_to_another_host_it_carries_none(nursery: trio.Nursery) -> None:
    access = access_of(FakeJudge("alice", crossed_hosts=True), nursery)
    for _ in range(2):
        assert (await access.check(REPO, caller("alice"))).authorization is None


async def test_without_a_lifetime_every_request_is_asked(nursery: trio.Nursery) -> None:
    judge = FakeJudge("alice")
    access = access_of(judge, nursery, lifetime=0)
    await access.check(REPO, caller("alice"))
    await access.check(REPO, caller("alice"))
    assert len(judge.questions) == 2


STALE = 3600.0
DOWN = UpstreamDown("upstream.test could not be asked: try again later")


async def test_while_upstream_is_down_who_was_allowed_is_let_in_within_the_bound(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    judge = FakeJudge("alice")
    access = access_of(judge, nursery, stale=STALE)
    assert (await access.check(REPO, caller("alice"))).age is None
    judge.failure = DOWN
    await trio.sleep(STALE - 1)
    grant = await access.check(REPO, caller("alice"))
    assert (grant.age, grant.authorization) == (STALE - 1, "alice")
    for repo, who in ((REPO, "bob"), (route_to("org/other"), "alice"), (REPO, None)):
        with pytest.raises(UpstreamDown):
            await access.check(repo, caller(who))
    await trio.sleep(1)
    with pytest.raises(UpstreamDown):
        await access.check(REPO, caller("alice"))


async def test_without_a_bound_nobody_is_let_in_by_what_was(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    judge = FakeJudge("alice")
    access = access_of(judge, nursery, stale=0)
    await access.check(REPO, caller("alice"))
    judge.failure = DOWN
    await trio.sleep(LIFETIME)
    with pytest.raises(UpstreamDown):
        await access.check(REPO, caller("alice"))


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_no_is_never_answered_by_what_was_and_ends_it(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, status: int
) -> None:
    """In whatever spelling it was asked: the repository is one."""
    judge = FakeJudge("alice")
    access = access_of(judge, nursery, stale=STALE)
    spelled = [route_to(name) for name in ("org/repo", "org/repo.git", "Org/Repo.git")]
    for route in spelled:
        await access.check(route, caller("alice"))
    await trio.sleep(LIFETIME)
    judge.failure = Refused(status, (), b"")
    with pytest.raises(Refused):
        await access.check(REPO, caller("alice"))
    judge.failure = DOWN
    for route in spelled:
        with pytest.raises(UpstreamDown):
            await access.check(route, caller("alice"))


async def test_too_many_requests_end_nothing_and_let_nobody_in(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    judge = FakeJudge("alice")
    access = access_of(judge, nursery, stale=STALE)
    await access.check(REPO, caller("alice"))
    await trio.sleep(LIFETIME)
    judge.failure = Refused(429, (), b"")
    with pytest.raises(Refused):
        await access.check(REPO, caller("alice"))
    judge.failure = UpstreamTooSlow("late")
    assert (await access.check(REPO, caller("alice"))).age is not None


async def test_an_upstream_that_lies_lets_nobody_in_by_what_was(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    judge = FakeJudge("alice")
    access = access_of(judge, nursery, stale=STALE)
    await access.check(REPO, caller("alice"))
    await trio.sleep(LIFETIME)
    judge.failure = UpstreamError("a login page")
    for _ in range(2):
        with pytest.raises(UpstreamError):
            await access.check(REPO, caller("alice"))


async def test_a_slow_upstream_is_waited_for_once_and_answers_for_those_who_come_later(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    judge = FakeJudge("alice")
    access = access_of(judge, nursery, stale=STALE, stale_after=10)
    await access.check(REPO, caller("alice"))
    await trio.sleep(LIFETIME)
    judge.seconds = 40.0
    began = trio.current_time()
    assert (await access.check(REPO, caller("alice"))).age == LIFETIME + 10
    assert trio.current_time() - began == 10
    assert (await access.check(REPO, caller("alice"))).age == LIFETIME + 10
    assert trio.current_time() - began == 10, "the question is 10 s old already"
    assert len(judge.questions) == 2
    await trio.sleep(31)
    assert (await access.check(REPO, caller("alice"))).age == 51, "what came late is 40 s younger"


async def test_an_upstream_that_just_failed_is_given_a_second(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    judge = FakeJudge("alice")
    access = access_of(judge, nursery, stale=STALE, stale_after=10)
    await access.check(REPO, caller("alice"))
    await trio.sleep(LIFETIME)
    judge.seconds, judge.failure = 40.0, UpstreamTooSlow("late")
    assert (await access.check(REPO, caller("alice"))).age == LIFETIME + 10
    await trio.sleep(40)
    began = trio.current_time()
    assert (await access.check(REPO, caller("alice"))).age is not None
    assert trio.current_time() - began == 1


async def test_who_has_nothing_that_could_stand_in_waits_for_upstream(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    judge = FakeJudge("alice")
    judge.seconds = 40.0
    access = access_of(judge, nursery, stale=STALE, stale_after=10)
    assert (await access.check(REPO, caller("alice"))).age is None
    assert trio.current_time() == 40


async def test_an_upstream_that_is_back_is_asked_and_what_is_stale_is_over(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    judge = FakeJudge("alice")
    access = access_of(judge, nursery, stale=STALE)
    await access.check(REPO, caller("alice"))
    await trio.sleep(LIFETIME)
    judge.failure = DOWN
    assert (await access.check(REPO, caller("alice"))).age is not None
    judge.failure = None
    assert (await access.check(REPO, caller("alice"))).age is None


async def test_an_outage_is_told_once_a_repository_and_counted_each_time(
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    judge = FakeJudge("alice")
    access = access_of(judge, nursery, stale=STALE)
    await access.check(REPO, caller("alice"))
    await trio.sleep(LIFETIME)
    judge.failure = DOWN
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            await access.check(REPO, caller("alice"))
    assert [record.message for record in caplog.records] == [
        f"{REPO.key} is served as its upstream had it 30 s ago: {DOWN}"
    ]
    counted = access._metrics.registry.get_sample_value
    assert counted("goblet_node_stale_answers_total", {"of": "access"}) == 5
    assert counted("goblet_node_access_total", {"verdict": "stale"}) == 5


async def test_a_yes_that_is_older_than_a_no_lets_nobody_in_later(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Upstream thinks for a while about one spelling, and says no to the other meanwhile."""
    judge = FakeJudge("alice")
    access = access_of(judge, nursery, stale=STALE)
    judge.seconds = 5.0
    async with trio.open_nursery() as asking:
        asking.start_soon(access.check, REPO, caller("alice"))
        await trio.sleep(1)
        judge.allowed.clear()
        judge.seconds = 1.0
        with pytest.raises(Refused):
            await access.check(route_to("org/repo.git"), caller("alice"))
    judge.failure = DOWN
    with pytest.raises(UpstreamDown):
        await access.check(REPO, caller("alice"))

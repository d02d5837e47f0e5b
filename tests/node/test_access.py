"""Who is asked about, what is remembered, and for how long."""

import gc

import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry

from goblet_node.access import Access
from goblet_node.fill.failures import Refused
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
        self._crossed_hosts = crossed_hosts

    async def may_read(self, route: Route, authorization: str | None) -> Grant:
        self.questions.append((route.key, authorization))
        verdict = authorization in self.allowed
        await trio.sleep(self.seconds)
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


def access_of(judge: FakeJudge, nursery: trio.Nursery, lifetime: float = LIFETIME) -> Access:
    metrics = NodeMetrics(CollectorRegistry())
    return Access(judge=judge, nursery=nursery, lifetime=lifetime, metrics=metrics)


async def test_a_yes_is_remembered_for_its_lifetime_and_no_longer(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    judge = FakeJudge("alice")
    access = access_of(judge, nursery)
    await access.check(REPO, "alice")
    await trio.sleep(LIFETIME - 0.1)
    await access.check(REPO, "alice")
    assert len(judge.questions) == 1
    await trio.sleep(0.2)
    judge.allowed.clear()
    with pytest.raises(Refused):
        await access.check(REPO, "alice")


async def test_the_lifetime_begins_with_the_question_not_with_its_answer(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    judge = FakeJudge("alice")
    judge.seconds = LIFETIME - 1
    access = access_of(judge, nursery)
    await access.check(REPO, "alice")
    await trio.sleep(2)
    await access.check(REPO, "alice")
    assert len(judge.questions) == 2


async def test_a_yes_is_for_one_credential_and_one_repository(nursery: trio.Nursery) -> None:
    judge = FakeJudge("alice", None)
    access = access_of(judge, nursery)
    await access.check(REPO, "alice")
    for other in ("bob", "", "alice "):
        with pytest.raises(Refused):
            await access.check(REPO, other)
    await access.check(route_to("org/other"), "alice")
    await access.check(REPO, None)
    assert len(judge.questions) == 6


async def test_a_no_is_not_remembered(nursery: trio.Nursery) -> None:
    judge = FakeJudge()
    access = access_of(judge, nursery)
    with pytest.raises(Refused):
        await access.check(REPO, "alice")
    judge.allowed.add("alice")
    await access.check(REPO, "alice")


async def test_overlapping_questions_are_shared_by_equal_credentials_only(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    judge = FakeJudge("alice")
    judge.seconds = 1.0
    access = access_of(judge, nursery)
    refused: list[str] = []

    async def check(who: str) -> None:
        try:
            await access.check(REPO, who)
        except Refused:
            refused.append(who)

    async with trio.open_nursery() as asking:
        for who in ("alice", "bob", "alice", "bob", "alice"):
            asking.start_soon(check, who)
    assert sorted(judge.questions) == [(REPO.key, "alice"), (REPO.key, "bob")]
    assert refused == ["bob", "bob"]


async def test_what_is_forgotten_is_asked_again(nursery: trio.Nursery) -> None:
    judge = FakeJudge("alice")
    access = access_of(judge, nursery)
    await access.check(REPO, "alice")
    access.forget(REPO, "alice")
    await access.check(REPO, "alice")
    assert len(judge.questions) == 2


async def test_a_remembered_grant_carries_the_callers_own_credential(
    nursery: trio.Nursery,
) -> None:
    access = access_of(FakeJudge("alice"), nursery)
    for _ in range(2):
        assert (await access.check(REPO, "alice")).authorization == "alice"


async def test_after_a_redirect_to_another_host_it_carries_none(nursery: trio.Nursery) -> None:
    access = access_of(FakeJudge("alice", crossed_hosts=True), nursery)
    for _ in range(2):
        assert (await access.check(REPO, "alice")).authorization is None


async def test_no_credential_stays_in_memory(nursery: trio.Nursery) -> None:
    """What is remembered holds an HMAC alone."""
    access = access_of(FakeJudge("Bearer hunter2"), nursery)
    await access.check(REPO, "Bearer " + "hunter2")
    gc.collect()
    assert "hunter2" not in repr(vars(access))
    assert [kept.grant.authorization for kept in access._remembered.values()] == [None]


async def test_memory_is_bounded(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goblet_node.access.MAX_REMEMBERED", 10)
    access = access_of(FakeJudge(None), nursery)
    for number in range(25):
        await access.check(route_to(f"org/{number}"), None)
    assert len(access._remembered) == 10


async def test_without_a_lifetime_every_request_is_asked(nursery: trio.Nursery) -> None:
    judge = FakeJudge("alice")
    access = access_of(judge, nursery, lifetime=0)
    await access.check(REPO, "alice")
    await access.check(REPO, "alice")
    assert len(judge.questions) == 2

"""What is remembered of each yes, and what ends it."""

import gc

import pytest

from goblet_node.fill.grants import Grants, Question
from goblet_node.fill.upstream import Grant
from goblet_node.wire.v2_client import Advertisement
from goblet_shared.git_route import Route, parse_target


def route_to(repo: str) -> Route:
    return parse_target(
        method="GET",
        raw_path=f"/upstream.test/{repo}/info/refs".encode(),
        query=b"service=git-upload-pack",
    )


def allow(
    grants: Grants, repo: str, authorization: str | None, *, crossed: bool = False
) -> tuple[Question, Grant]:
    """Have upstream say yes to a question."""
    route = route_to(repo)
    question = grants.question(route, authorization)
    with grants.asking(question) as allowed:
        grant = Grant(
            key=route.key,
            url="http://upstream.test/org/repo",
            authorization=None if crossed else authorization,
            crossed_hosts=crossed,
            advertisement=Advertisement(version=2, features={}),
        )
        return question, allowed(grant)


def test_no_credential_stays_in_memory() -> None:
    grants = Grants(clock=lambda: 0)
    question, _ = allow(grants, "org/repo", "Bearer " + "hunter2")
    gc.collect()
    assert "hunter2" not in repr(vars(grants))
    known = grants.younger(question, 1)
    assert known is not None
    assert known.grant.authorization is None


def test_two_processes_name_one_credential_differently() -> None:
    names = [Grants().question(route_to("org/repo"), "alice")[0] for _ in range(2)]
    assert names[0] != names[1]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("goblet_node.fill.grants.MAX_REMEMBERED", 10)
    grants = Grants(clock=lambda: 0)
    asked = [allow(grants, f"org/{number}", None)[0] for number in range(25)]
    asked += [
        allow(grants, f"org/{'rR'[number & 1]}{'eE'[number // 2 & 1]}po{dot_git}", None)[0]
        for number in range(4)
        for dot_git in ("", ".git")
    ]
    kept = [question for question in asked if grants.younger(question, 1) is not None]
    assert kept == asked[16:25] + asked[-4:]


def test_a_grant_that_crossed_hosts_is_ended_by_its_holder_too() -> None:
    """It carries no credential by which it could be found."""
    grants = Grants(clock=lambda: 0)
    alices, grant = allow(grants, "org/repo", "alice", crossed=True)
    bobs, _ = allow(grants, "org/repo", "bob", crossed=True)
    grants.refused(grant.held_by("alice"))
    assert grants.younger(alices, 1) is None
    assert grants.younger(bobs, 1) is not None


def test_a_no_ends_what_is_under_way_and_a_later_question_counts_again() -> None:
    grants = Grants(clock=lambda: 0)
    _, grant = allow(grants, "org/repo", "alice")
    question = grants.question(route_to("org/Repo.git"), "alice")
    with grants.asking(question) as allowed:
        grants.refused(grant)
        allowed(grant)
    assert grants.younger(question, 1) is None
    with grants.asking(question) as allowed:
        allowed(grant)
    assert grants.younger(question, 1) is not None
    assert grants._asking == {}

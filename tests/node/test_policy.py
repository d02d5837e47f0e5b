"""Which repositories are mirrored, and from which request on."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.fill import policy as policy_module
from goblet_node.fill.policy import (
    FIRST_ROUND,
    MAX_REMEMBERED,
    MirrorPolicy,
    Standing,
    TooLargeToMirror,
    begins_a_fetch,
)
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.requests import Fetch
from goblet_shared import repo_key
from goblet_shared.repo_key import RepoKey

KEY = repo_key.parse("github.com/org/repo")
OTHER = repo_key.parse("github.com/org/other")
A, B = ObjectId(b"a" * 40), ObjectId(b"b" * 40)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def forwarded(policy: MirrorPolicy, times: int, key: RepoKey = KEY) -> None:
    for _ in range(times):
        policy.note_forwarded(key)


def test_the_third_request_has_a_repository_mirrored() -> None:
    policy = MirrorPolicy(after=3, clock=Clock())
    assert policy.standing(KEY, counts=True) is Standing.SELDOM
    forwarded(policy, 1)
    assert policy.standing(KEY, counts=True) is Standing.SELDOM
    forwarded(policy, 1)
    assert policy.standing(KEY, counts=True) is Standing.OFTEN
    assert policy.standing(OTHER, counts=True) is Standing.SELDOM


def test_a_request_that_does_not_count_has_nothing_mirrored() -> None:
    policy = MirrorPolicy(after=2, clock=Clock())
    forwarded(policy, 5)
    assert policy.standing(KEY, counts=False) is Standing.SELDOM


def test_requests_of_long_ago_do_not_count() -> None:
    clock = Clock()
    policy = MirrorPolicy(after=3, within=60, clock=clock)
    forwarded(policy, 1)
    clock.now += 50
    forwarded(policy, 1)
    clock.now += 20
    assert policy.standing(KEY, counts=True) is Standing.SELDOM
    forwarded(policy, 1)
    assert policy.standing(KEY, counts=True) is Standing.OFTEN


def test_none_is_mirrored_for_a_part_of_it_where_that_is_switched_off() -> None:
    policy = MirrorPolicy(after=0, clock=Clock())
    forwarded(policy, 100)
    assert policy.standing(KEY, counts=True) is Standing.SELDOM


def test_the_first_one_can_be_enough() -> None:
    assert MirrorPolicy(after=1, clock=Clock()).standing(KEY, counts=True) is Standing.OFTEN


@pytest.mark.parametrize(
    ("pattern", "is_excluded"),
    [
        ("github.com/org/repo", True),
        ("GitHub.com/Org/REPO", True),
        ("github.com/org/*", True),
        ("github.com/*", True),
        ("*/repo", True),
        ("github.com/org/repo.git", True),
        ("https://github.com/org/repo.git/", True),
        ("*.git", True),
        ("github.com/[n-p]rg/r?po", True),
        ("github.com/org/repo-two", False),
        ("github.com/org/rep", False),
        ("github.com/org", False),
        ("org/*", False),
    ],
)
def test_an_operators_pattern_excludes_what_it_names_whatever_the_case(
    pattern: str, is_excluded: bool
) -> None:
    policy = MirrorPolicy(never=["gitlab.com/x", pattern], clock=Clock())
    assert policy.excludes(KEY) is is_excluded
    assert policy.may_mirror(KEY) is not is_excluded
    assert (policy.standing(KEY, counts=True) is Standing.NEVER) is is_excluded


def test_thousands_of_patterns_cost_a_request_next_to_nothing() -> None:
    """It is asked several times a request, on the event loop."""
    policy = MirrorPolicy(never=[f"github.com/org-{n}/*" for n in range(2000)], clock=Clock())
    assert policy.excludes(RepoKey("github.com/org-1999/x"))
    begun = time.process_time()
    for _ in range(10):
        assert not policy.excludes(KEY)
    assert time.process_time() - begun < 0.1


def test_without_patterns_nothing_is_excluded() -> None:
    assert not MirrorPolicy(clock=Clock()).excludes(KEY)


def test_what_is_too_large_is_tried_again_after_a_while() -> None:
    clock = Clock()
    policy = MirrorPolicy(after=1, too_large_for=60, clock=clock)
    policy.note_too_large(KEY)
    assert policy.standing(KEY, counts=True) is Standing.TOO_LARGE
    assert not policy.may_mirror(KEY)
    assert policy.may_mirror(OTHER)
    clock.now += 60
    assert policy.may_mirror(KEY)
    assert policy.standing(KEY, counts=True) is Standing.OFTEN


def test_too_many_refs_are_too_large() -> None:
    policy = MirrorPolicy(max_refs=10, clock=Clock())
    policy.check_refs(KEY, 10)
    assert policy.may_mirror(KEY)
    with pytest.raises(TooLargeToMirror, match="11 heads and tags"):
        policy.check_refs(KEY, 11)
    assert not policy.may_mirror(KEY)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for a million names does not fill the memory, and the newest ones count."""
    monkeypatch.setattr(policy_module, "MAX_REMEMBERED", 10)
    policy = MirrorPolicy(after=2, clock=Clock())
    keys = [RepoKey(f"github.com/org/{number}") for number in range(11)]
    for key in keys:
        policy.note_forwarded(key)
        policy.note_too_large(key)
    assert policy.may_mirror(keys[0])
    assert not any(map(policy.may_mirror, keys[1:]))
    assert len(policy._asked_at) == len(policy._too_large_at) == 10 < MAX_REMEMBERED


def test_a_clone_begins_a_fetch_and_so_does_any_shallow_one() -> None:
    tips = frozenset({A})
    assert begins_a_fetch(Fetch(wants=(A,), done=True), tips)
    assert begins_a_fetch(Fetch(wants=(A,), filter_spec="blob:none", done=True), tips)
    assert begins_a_fetch(Fetch(wants=(B,), deepen=1, done=True), tips)
    assert begins_a_fetch(Fetch(wants=(B,), deepen=1, filter_spec="tree:0", done=True), tips)


def test_the_files_that_a_partial_clone_fetches_later_begin_nothing() -> None:
    lazy = Fetch(wants=(B,), filter_spec="blob:none", done=True)
    assert not begins_a_fetch(lazy, frozenset({A}))
    assert begins_a_fetch(lazy, None), "nobody knows the tips: it may be a clone"


@given(st.integers(1, 100), st.booleans())
def test_of_a_negotiation_only_the_first_round_counts(count: int, done: bool) -> None:
    haves = tuple(ObjectId(b"%040x" % number) for number in range(count))
    begins = begins_a_fetch(Fetch(wants=(A,), haves=haves, done=done), frozenset({A}))
    assert begins is (count <= FIRST_ROUND and not done)

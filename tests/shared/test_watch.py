"""The loop around discovery and probes."""

import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from goblet_shared.contract import NodeName
from goblet_shared.listing import DiscoveryFailed, Listing
from goblet_shared.members import Member, MemberState
from goblet_shared.membership import Rules
from goblet_shared.ring import Ring
from goblet_shared.watch import MemberView, MemberWatch

A, B, C = map(NodeName, ("a", "b", "c"))
RULES = Rules(rise=2, fall=2, gone_after=60, interval=2, timeout=1)
READY, SUSPECT = MemberState.READY, MemberState.SUSPECT


class Cluster:
    """A source, the nodes' answers, and an observer: what surrounds a watch."""

    def __init__(self, *names: NodeName) -> None:
        self.urls = {name: f"http://{name}:1" for name in names}
        self.says: dict[str, MemberState | None] = {}
        self.hanging: set[str] = set()
        self.probed: list[tuple[float, str]] = []
        self.fails: str | None = None
        self.look_takes = 0.0
        self.failures = 0
        self.seen: list[tuple[tuple[MemberView, ...], int]] = []

    async def look(self) -> Listing:
        await trio.sleep(self.look_takes)
        if self.fails is not None:
            raise DiscoveryFailed(self.fails, ask_again_in=1)
        members = tuple(Member(name=name, url=url) for name, url in self.urls.items())
        return Listing(members=members, ask_again_in=1)

    async def probe(self, member: Member) -> MemberState | None:
        self.probed.append((trio.current_time(), member.url))
        await trio.sleep(math.inf if member.url in self.hanging else 0)
        return self.says.get(member.url, READY)

    def members_changed(self, views: Sequence[MemberView], *, epoch: int) -> None:
        self.seen.append((tuple(views), epoch))

    def discovery_failed(self) -> None:
        self.failures += 1


@asynccontextmanager
async def watching(cluster: Cluster, me: NodeName | None = None) -> AsyncIterator[MemberWatch]:
    watch = MemberWatch(source=cluster, probe=cluster.probe, rules=RULES, observer=cluster, me=me)
    async with trio.open_nursery() as nursery:
        await nursery.start(watch.run)
        yield watch
        nursery.cancel_scope.cancel()


def states(watch: MemberWatch) -> dict[NodeName, MemberState]:
    return {view.name: view.state for view in watch.views}


async def test_it_has_started_when_each_member_was_asked(autojump_clock: MockClock) -> None:
    cluster = Cluster(A, B, C)
    cluster.says["http://b:1"] = MemberState.DRAINING
    cluster.says["http://c:1"] = None
    async with watching(cluster) as watch:
        assert states(watch) == {A: READY, B: MemberState.DRAINING, C: MemberState.JOINING}
        assert watch.ring == Ring.of([A, B, C])
        assert watch.willing([C, B, A]) == (A, B, C)
        assert cluster.seen[-1] == (watch.views, 1)


async def test_a_member_that_hangs_holds_up_no_other_and_is_suspect(
    autojump_clock: MockClock,
) -> None:
    cluster = Cluster(A, B)
    cluster.hanging = {"http://a:1"}
    async with watching(cluster) as watch:
        assert trio.current_time() == pytest.approx(RULES.timeout)
        await trio.sleep(9.5)
        assert [when for when, url in cluster.probed if "b" in url] == pytest.approx(
            [0, 2, 4, 6, 8, 10]
        )
        assert states(watch) == {A: SUSPECT, B: READY}


async def test_one_that_comes_up_while_it_is_watched_is_found_soon(
    autojump_clock: MockClock,
) -> None:
    cluster = Cluster(A)
    cluster.says["http://a:1"] = None
    async with watching(cluster):
        await trio.sleep(8)
        assert [when for when, _ in cluster.probed] == [0, 0.25, 0.75, 1.75, 3.75, 5.75, 7.75]


async def test_a_source_that_does_not_answer_holds_up_the_start_for_one_timeout_alone(
    autojump_clock: MockClock,
) -> None:
    cluster = Cluster(A)
    cluster.look_takes = 5
    async with watching(cluster) as watch:
        assert (trio.current_time(), watch.views) == (RULES.timeout, ())
        await watch.changed()
        assert watch.ring == Ring.of([A])
        assert trio.current_time() == 6


async def test_who_is_listed_later_is_probed_at_once(autojump_clock: MockClock) -> None:
    cluster = Cluster(A)
    async with watching(cluster) as watch:
        await trio.sleep(2.5)
        cluster.urls[B] = "http://b:1"
        await trio.sleep(1)
        assert (3, "http://b:1") in cluster.probed
        assert watch.ring == Ring.of([A, B])
        assert watch.epoch == 2


async def test_who_has_moved_is_asked_at_the_new_address_alone(autojump_clock: MockClock) -> None:
    cluster = Cluster(A)
    async with watching(cluster) as watch:
        cluster.hanging = {"http://a:1"}
        await trio.sleep(2.5)
        cluster.urls[A] = "http://a:2"
        await trio.sleep(1)
        cluster.probed.clear()
        await trio.sleep(10)
        assert {url for _, url in cluster.probed} == {"http://a:2"}
        found = watch.member(A)
        assert found is not None
        assert found.url == "http://a:2"
        assert (states(watch), watch.epoch) == ({A: READY}, 1)


async def test_who_is_gone_is_not_probed_any_more(autojump_clock: MockClock) -> None:
    cluster = Cluster(A, B)
    async with watching(cluster) as watch:
        ring = watch.ring
        del cluster.urls[B]
        await trio.sleep(60.5)
        assert states(watch) == {A: READY, B: SUSPECT}
        assert watch.ring is ring
        await trio.sleep(1)
        assert states(watch) == {A: READY}
        assert (watch.member(B), watch.state(B)) == (None, MemberState.GONE)
        assert watch.ring == Ring.of([A])
        cluster.probed.clear()
        await trio.sleep(10)
        assert {url for _, url in cluster.probed} == {"http://a:1"}


async def test_a_failed_discovery_keeps_the_members_and_is_logged_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = Cluster(A)
    caplog.set_level(logging.INFO)
    async with watching(cluster) as watch:
        caplog.clear()
        cluster.fails = "members.toml: not valid TOML"
        await trio.sleep(100)
        assert states(watch) == {A: READY}
        assert cluster.failures > 50
        cluster.fails = None
        await trio.sleep(5)
    assert [record.getMessage() for record in caplog.records] == [
        "who the members are is not known: members.toml: not valid TOML",
        "who the members are is known again",
    ]


async def test_a_failed_request_is_logged_once_however_often_it_repeats(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with watching(Cluster(A, B)) as watch:
        for _ in range(3):
            watch.note_failure(A, "a: connection refused")
        assert states(watch) == {A: SUSPECT, B: READY}
        watch.note_failure(C, "c: connection refused")
    assert [record.getMessage() for record in caplog.records] == [
        "node a is suspect: a: connection refused"
    ]


async def test_whoever_waits_for_a_change_hears_of_it_and_of_no_news_nothing(
    autojump_clock: MockClock,
) -> None:
    async with watching(Cluster(A, B)) as watch:
        with trio.move_on_after(100) as waiting:
            await watch.changed()
        assert waiting.cancelled_caught
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.changed)
            nursery.start_soon(watch.changed)
            await wait_all_tasks_blocked()
            watch.note_failure(A, "a: connection refused")


async def test_the_node_that_watches_is_what_it_says_and_is_not_probed(
    autojump_clock: MockClock,
) -> None:
    cluster = Cluster(A, B)
    async with watching(cluster, me=A) as watch:
        assert watch.ring == Ring.of([B])
        watch.set_own_state(READY)
        assert watch.ring == Ring.of([A, B])
        watch.set_own_state(MemberState.DRAINING)
        await trio.sleep(10)
        assert states(watch) == {A: MemberState.DRAINING, B: READY}
        assert {url for _, url in cluster.probed} == {"http://b:1"}


async def test_the_node_that_watches_is_itself_again_once_it_is_listed_again(
    autojump_clock: MockClock,
) -> None:
    cluster = Cluster(A, B)
    async with watching(cluster, me=A) as watch:
        watch.set_own_state(READY)
        del cluster.urls[A]
        await trio.sleep(5)
        assert states(watch)[A] is SUSPECT
        cluster.urls[A] = "http://a:1"
        await trio.sleep(6)
        assert states(watch)[A] is READY


async def test_what_was_said_before_the_watch_began_holds(autojump_clock: MockClock) -> None:
    cluster = Cluster(A)
    watch = MemberWatch(source=cluster, probe=cluster.probe, rules=RULES, observer=cluster, me=A)
    watch.set_own_state(READY)
    assert (watch.views, watch.ring.members, watch.epoch) == ((), (), 0)
    async with trio.open_nursery() as nursery:
        await nursery.start(watch.run)
        assert states(watch) == {A: READY}
        nursery.cancel_scope.cancel()


def _while_looking(cluster: Cluster) -> None:
    cluster.look_takes = math.inf


def _while_probing(cluster: Cluster) -> None:
    cluster.hanging = {"http://a:1"}


def _while_waiting(cluster: Cluster) -> None:
    del cluster


@pytest.mark.parametrize("prepare", [_while_looking, _while_probing, _while_waiting])
@pytest.mark.parametrize("after", [0, 0.5, 1.5])
async def test_it_ends_whenever_it_is_cancelled(
    prepare: Callable[[Cluster], None], after: float, autojump_clock: MockClock
) -> None:
    cluster = Cluster(A, B)
    prepare(cluster)
    watch = MemberWatch(source=cluster, probe=cluster.probe, rules=RULES, observer=cluster)
    run: Callable[[], Awaitable[None]] = watch.run
    with trio.move_on_after(after) as running:
        await run()
    assert running.cancelled_caught
    assert trio.current_time() == after


async def test_a_round_of_probes_that_brings_no_news_looks_at_each_member_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(*(NodeName(f"goblet-{number}") for number in range(64)))
    looked = 0

    class Counting(MemberView):
        def __init__(self, **given: Any) -> None:
            nonlocal looked
            looked += 1
            super().__init__(**given)

    async with watching(cluster):
        monkeypatch.setattr("goblet_shared.watch.MemberView", Counting)
        cluster.probed.clear()
        await trio.sleep(2.5)
        assert len(cluster.probed) >= 64
        assert looked <= 3 * 64  # once a listing, and not once a probe

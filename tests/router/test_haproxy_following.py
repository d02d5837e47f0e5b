"""Where HAProxy's placement comes from."""

import json
import logging
from collections.abc import Sequence

import httpx
import pytest
import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from trio.testing import MockClock

from goblet_router.haproxy.following import NoPlacement, RouterRing, WatchedMembers, placement_in
from goblet_router.haproxy.placement import Placement
from goblet_shared.contract import NodeName
from goblet_shared.discovery import ListedMembers
from goblet_shared.members import Member, MemberState, members_of
from goblet_shared.membership import Rules
from goblet_shared.ring import SLOTS, Ring, ring_id
from goblet_shared.watch import MemberView, MemberWatch

NODES = {"a": "http://10.0.0.1:80", "b": "http://10.0.0.2:80", "c": "http://10.0.0.3:80"}


def shown(on_ring: str = "abc", **others: object) -> bytes:
    """Return what a router shows whose ring has these members."""
    members = [
        {"name": name, "url": url, "state": "ready", "is_on_ring": name in on_ring}
        for name, url in NODES.items()
    ]
    ring = ring_id(Ring.of(map(NodeName, on_ring)))
    page = {"ring": ring, "epoch": 3, "slots": SLOTS, "members": members, **others}
    return json.dumps(page).encode()


def test_a_routers_ring_is_taken_with_members_that_are_not_on_it() -> None:
    placement = placement_in(shown("ac"), page="P")
    assert placement.members == members_of(NODES)
    assert placement.ring == Ring.of(map(NodeName, "ac"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"<html>", "P does not show a ring"),
        (b"[]", "P does not show a ring"),
        (b"[" * 100_000, "P does not show a ring"),
        (b'{"members": [{"name": "a b", "url": "http://h:1"}]}', "P does not show a ring"),
        (shown(""), "P shows a ring without members"),
        (shown(ring="123"), "use the version of goblet that the router has"),
        (shown(slots=99), "use the version of goblet that the router has"),
    ],
)
def test_a_page_that_shows_no_ring_of_ours_is_refused(text: bytes, why: str) -> None:
    with pytest.raises(NoPlacement, match=why):
        placement_in(text, page="P")


async def test_a_router_that_cannot_say_now_leaves_the_placement_as_it_was(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    answers = [Response(shown("ab")), Response(status_code=500), Response(b"?"), Response(b"?")]
    answers += [Response(shown("abc"))]

    async def page(_: Request) -> Response:
        return answers.pop(0) if len(answers) > 1 else answers[0]

    transport = httpx.ASGITransport(Router([Route("/-/ring", page)]))
    caplog.set_level(logging.WARNING)
    async with httpx.AsyncClient(transport=transport) as client, trio.open_nursery() as nursery:
        ring = RouterRing("http://router", client, interval=1.0, patience=5.0)
        assert ring.placement is None
        await nursery.start(ring.run)
        assert ring.placement == placement_in(shown("ab"), page="P")
        await ring.changed()
        assert ring.placement == placement_in(shown("abc"), page="P")
        nursery.cancel_scope.cancel()
    assert trio.current_time() >= 4
    # Each trouble once, however often it came.
    assert [message.split(";")[0] for message in caplog.messages] == [
        "the router's http://router/-/ring answers 500",
        "http://router/-/ring does not show a ring: "
        "JSONDecodeError('Expecting value: line 1 column 1 (char 0)')",
    ]


async def test_a_router_that_does_not_answer_is_waited_for_no_longer_than_allowed(
    autojump_clock: MockClock,
) -> None:
    async def page(_: Request) -> Response:
        await trio.sleep_forever()
        raise AssertionError

    transport = httpx.ASGITransport(Router([Route("/-/ring", page)]))
    async with httpx.AsyncClient(transport=transport, timeout=None) as client:
        with pytest.raises(NoPlacement, match="does not answer: TooSlowError"):
            await RouterRing("http://router", client, interval=1.0, patience=2.0).look()
    assert trio.current_time() == pytest.approx(2)


class _Unobserved:
    def members_changed(self, views: Sequence[MemberView], *, epoch: int) -> None: ...
    def discovery_failed(self) -> None: ...


async def test_a_watch_of_our_own_gives_its_members_and_its_ring(autojump_clock: MockClock) -> None:
    states = {NodeName("a"): MemberState.READY, NodeName("b"): MemberState.JOINING}

    async def probe(member: Member) -> MemberState | None:
        await trio.lowlevel.checkpoint()
        return states[member.name]

    members = members_of({name: NODES[name] for name in "ab"})
    rules = Rules(rise=2, fall=2, gone_after=60, interval=1, timeout=1)
    watch = MemberWatch(
        source=ListedMembers(members), probe=probe, rules=rules, observer=_Unobserved()
    )
    following = WatchedMembers(watch)
    assert following.placement is None
    async with trio.open_nursery() as nursery:
        await nursery.start(watch.run)
        only_a = Placement(members=members, ring=Ring.of([NodeName("a")]))
        assert following.placement == only_a
        states[NodeName("b")] = MemberState.READY
        await following.changed()
        assert following.placement == Placement.over(members)
        nursery.cancel_scope.cancel()

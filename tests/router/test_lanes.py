"""Lanes follow the members: who moves gets a new one, who has left none."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from goblet_router.answer import Answer
from goblet_router.body import ReplayableBody
from goblet_router.lane import Ask, Limits
from goblet_router.lanes import Lanes
from goblet_shared.asgi import Message
from goblet_shared.contract import NodeName
from goblet_shared.members import Member, MemberState
from goblet_testing.router import until
from goblet_testing.unruly import DRAINING, unruly_node

NODE = NodeName("goblet-1")


async def nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


@asynccontextmanager
async def some_lanes() -> AsyncIterator[Lanes]:
    lanes = Lanes(
        limits=Limits(connections=10, connect=1.0, first_byte=5.0, idle=5.0),
        tls=lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        on_stale=lambda: None,
    )
    yield lanes
    await lanes.aclose()


async def begin(lanes: Lanes, member: Member) -> Answer:
    body = ReplayableBody(nothing, keep=10, idle=1)
    return await lanes.of(member).begin(Ask(method="GET", target=b"/x", headers=[], body=body))


async def finish(got: Answer) -> None:
    while await got.next_chunk():
        pass
    await got.aclose()


async def test_a_member_has_one_lane_for_as_long_as_it_stays_where_it_is() -> None:
    async with unruly_node() as node, some_lanes() as lanes:
        for _ in range(3):
            await finish(await begin(lanes, Member(name=NODE, url=node.url)))
        await lanes.keep([Member(name=NODE, url=node.url)])
        await finish(await begin(lanes, Member(name=NODE, url=node.url)))
        assert node.connections == 1


async def test_a_node_that_moved_is_asked_at_its_new_address() -> None:
    async with unruly_node() as old, unruly_node() as new, some_lanes() as lanes:
        await finish(await begin(lanes, Member(name=NODE, url=old.url)))
        await finish(await begin(lanes, Member(name=NODE, url=new.url)))
        assert (len(old.seen), len(new.seen)) == (1, 1)
        await lanes.keep([Member(name=NODE, url=new.url)])
        await until(lambda: old.hang_ups == 1)
        assert new.hang_ups == 0


async def test_what_is_under_way_at_a_node_that_left_goes_on() -> None:
    async with unruly_node() as node, some_lanes() as lanes:
        under_way = await begin(lanes, Member(name=NODE, url=node.url))
        await lanes.keep([])
        assert await under_way.next_chunk() == b"hello"
        await finish(under_way)
        await until(lambda: node.hang_ups == 1)


async def test_a_probe_leaves_no_connection_behind() -> None:
    async with unruly_node() as node, some_lanes() as lanes:
        member = Member(name=NODE, url=node.url)
        assert await lanes.probe(member) is MemberState.READY
        node.state = DRAINING
        assert await lanes.probe(member) is MemberState.DRAINING
        await until(lambda: node.hang_ups == 2)

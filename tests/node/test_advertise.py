"""What a client is told of the refs, how old that is, and whether it waits for upstream."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry

from goblet_node.errors import UpstreamDown
from goblet_node.fill.outages import Outages
from goblet_node.fill.refs import Listing, RefsDesk
from goblet_node.fill.stale import StaleRefs
from goblet_node.fill.upstream import Answer, Grant
from goblet_node.metrics import NodeMetrics
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.store import MirrorStore
from goblet_node.serve.advertise import Advertiser
from goblet_node.serve.listed import ListedRefs
from goblet_node.serve.reply import Reply
from goblet_node.wire.requests import LsRefs
from goblet_node.wire.v2_client import parse_advertisement, parse_ls_refs
from goblet_shared.asgi import Message
from goblet_testing.listers import FakeLister, body_of, grant_to

ALL = LsRefs()


class House:
    """An advertiser before an upstream in memory, and what was told and heard."""

    def __init__(self, nursery: trio.Nursery, cache: Path, *, freshness: float = 0) -> None:
        self.lister = FakeLister(body_of("HEAD", "refs/heads/main", "refs/pull/1/head"))
        self.heard_of: list[Listing] = []
        desk = RefsDesk(upstream=self.lister, nursery=nursery, freshness=freshness)
        self.advertiser = Advertiser(
            agent="goblet/test",
            desk=desk,
            stale=StaleRefs(
                desk=desk,
                store=MirrorStore(cache, disk=Disk()),
                confirmed=lambda _: None,
                stale=3600,
                stale_after=10,
                outages=Outages(metrics=NodeMetrics(CollectorRegistry())),
            ),
            listed=ListedRefs(agent="goblet/test", nursery=nursery, memory=1 << 20),
            refresher=self,
            upstream=self,
        )

    async def heard(self, grant: Grant, listing: Listing) -> None:
        self.heard_of.append(listing)

    def forward_info_refs(
        self, grant: Grant, headers: Mapping[str, str]
    ) -> AbstractAsyncContextManager[Answer]:
        raise AssertionError("nothing here is forwarded")

    async def told(self, request: LsRefs | None, *, version: int = 2) -> tuple[bytes, bytes | None]:
        """Return the body that a client is sent, and its age."""
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(dict(message))

        metrics = NodeMetrics(CollectorRegistry())
        reply = Reply(send=send, node="goblet-1", request_id=b"1", metrics=metrics)
        if request is None:
            await self.advertiser.info_refs({}, grant_to(), reply, version=version)
        else:
            await self.advertiser.ls_refs(request, grant_to(), reply)
        headers = dict(sent[0]["headers"])
        body = b"".join(message["body"] for message in sent[1:])
        assert int(headers[b"content-length"]) == len(body)
        return body, headers.get(b"goblet-age")


async def test_an_answer_holds_what_was_asked_for_and_is_heard_of(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    house = House(nursery, tmp_path)
    body, age = await house.told(LsRefs(prefixes=(b"refs/heads/",)))
    assert [ref.name for ref in parse_ls_refs(body)] == [b"refs/heads/main"]
    assert age is None
    assert len(house.heard_of) == 1


async def test_what_is_not_fresh_says_how_old_it_is(
    nursery: trio.Nursery, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    house = House(nursery, tmp_path, freshness=5)
    assert (await house.told(ALL))[1] is None
    await trio.sleep(3.5)
    body, age = await house.told(ALL)
    assert age == b"3"
    assert len(parse_ls_refs(body)) == 3
    assert (await house.told(None, version=0))[1] == b"3"
    assert len(house.lister.asked) == 1
    await trio.sleep(2)
    assert (await house.told(ALL))[1] is None
    assert len(house.lister.asked) == 2


async def test_version_2_is_advertised_without_a_question(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    house = House(nursery, tmp_path)
    body, _ = await house.told(None)
    advertisement = parse_advertisement(body)
    assert advertisement.has("fetch", "shallow")
    assert not advertisement.has("fetch", "filter"), "upstream, which may answer, has none"
    assert house.lister.asked == []


async def test_older_versions_are_told_every_ref(nursery: trio.Nursery, tmp_path: Path) -> None:
    house = House(nursery, tmp_path)
    body, _ = await house.told(None, version=1)
    assert b"version 1" in body
    assert body.count(b"refs/") == 2
    assert house.lister.asked[0][1] is None


@pytest.mark.parametrize(("freshness", "waits"), [(0, True), (5, False)])
async def test_an_answer_waits_for_upstream_unless_it_is_fresh(
    nursery: trio.Nursery, tmp_path: Path, freshness: float, waits: bool
) -> None:
    house = House(nursery, tmp_path, freshness=freshness)
    assert house.advertiser.waits(grant_to(), ALL)
    assert house.advertiser.waits(grant_to(), None, version=0)
    await house.told(ALL)
    assert house.advertiser.waits(grant_to(), ALL) is waits
    assert house.advertiser.waits(grant_to(), None, version=0) is waits
    assert not house.advertiser.waits(grant_to(), None, version=2)
    assert house.advertiser.waits(grant_to(version=0), None, version=2), "it is forwarded"


@pytest.mark.parametrize("version", [0, 2])
async def test_while_upstream_is_down_an_answer_is_what_it_told_last_with_its_age(
    nursery: trio.Nursery,
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
    version: int,
) -> None:
    house = House(nursery, tmp_path)
    request = LsRefs() if version == 2 else None
    before, _ = await house.told(request, version=version)
    house.lister.failure = UpstreamDown("down")
    await trio.sleep(1800.9)
    assert await house.told(request, version=version) == (before, b"1800")
    assert len(house.heard_of) == 1, "a mirror is not brought to what is stale"
    house.lister.failure = None
    assert (await house.told(request, version=version))[1] is None

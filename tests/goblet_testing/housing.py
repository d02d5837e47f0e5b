"""The room `fill` before a real origin, put together as the command line does, in this process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx
import trio
from prometheus_client import CollectorRegistry

from goblet_node.fill.breaker import Breakers, Rules
from goblet_node.fill.policy import MirrorPolicy
from goblet_node.fill.receive import Receiver
from goblet_node.fill.refresh import Copies, Refresher
from goblet_node.fill.refs import Listing, RefsDesk
from goblet_node.fill.retrying import Backoff
from goblet_node.fill.upstream import Grant, Upstream
from goblet_node.metrics import NodeMetrics
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.store import MirrorStore
from goblet_shared.git_route import parse_target
from goblet_shared.upstreams import Upstreams
from goblet_testing.gitcli import refs_of
from goblet_testing.origin import Origin
from goblet_testing.rooms import room_of

REPO = "org/repo"


class House:
    """A refresher with all that it needs, and a grant for one repository: `REPO`, of the origin."""

    def __init__(
        self,
        origin: Origin,
        store: MirrorStore,
        desk: RefsDesk,
        refresher: Refresher,
        upstream: Upstream,
        grant: Grant,
    ) -> None:
        self.origin = origin
        self.repo = origin.root / f"{REPO}.git"
        self.store = store
        self.desk = desk
        self.refresher = refresher
        self.upstream = upstream
        self.grant = grant

    @property
    def mirror(self) -> Mirror:
        """The mirror that there must be."""
        mirror = self.store.get(self.grant.key)
        assert mirror is not None
        return mirror

    async def refresh(self) -> None:
        """Start a refresh and wait for its end; raise what it failed with."""
        refresh = self.refresher.start(self.grant)
        assert refresh is not None
        await refresh.ended.wait()
        if refresh.error is not None:
            raise refresh.error

    async def heard(self, listing: Listing) -> None:
        """Tell the refresher of a listing, and wait for what that starts."""
        await self.refresher.heard(self.grant, listing)
        while (flying := self.refresher.flying(self.grant.key)) is not None:
            await flying.ended.wait()

    def holds_what_the_origin_has(self) -> bool:
        """Whether the mirror has the origin's heads and tags, and HEAD."""
        truth = refs_of(self.origin.url_of(REPO))
        held = {ref.name.decode(): ref.oid.decode() for ref in self.mirror.refs if ref.oid}
        return held == {
            name: oid
            for name, oid in truth.items()
            if not (name.endswith("^{}") or name.startswith("refs/pull/"))
        }


@asynccontextmanager
async def housing(
    origin: Origin,
    directory: Path,
    *,
    policy: MirrorPolicy | None = None,
    copies: Copies | None = None,
) -> AsyncIterator[House]:
    """Put a refresher together as the command line does."""
    metrics = NodeMetrics(CollectorRegistry())
    store = MirrorStore(directory / "cache", disk=Disk())
    store.open()
    async with (
        httpx.AsyncClient(trust_env=False, timeout=httpx.Timeout(None)) as client,
        trio.open_nursery() as nursery,
    ):
        upstream = Upstream(
            questions=client,
            packs=client,
            hosts=Upstreams(allowed=(), mapped={"origin.test": origin.url}),
            question_timeout=10,
            first_byte_timeout=10,
            idle_timeout=10,
            pack_idle_timeout=10,
            agent="goblet/test",
            breakers=Breakers(rules=Rules(failures=0, rest=1), metrics=metrics, random=lambda: 0.5),
            metrics=metrics,
            backoff=Backoff(tries=1),
        )
        desk = RefsDesk(upstream=upstream, nursery=nursery)
        policy = policy or MirrorPolicy()
        refresher = Refresher(
            store=store,
            receiver=Receiver(
                store=store,
                upstream=upstream,
                room=room_of(),
                workers=anyio.CapacityLimiter(1),
                max_object_bytes=1 << 30,
                note_too_large=policy.note_too_large,
                metrics=metrics,
            ),
            desk=desk,
            nursery=nursery,
            retry_after_failure=30,
            policy=policy,
            metrics=metrics,
            copies=copies,
        )
        route = parse_target(
            method="GET",
            raw_path=f"/origin.test/{REPO}.git/info/refs".encode(),
            query=b"service=git-upload-pack",
        )
        yield House(origin, store, desk, refresher, upstream, await upstream.may_read(route, None))
        nursery.cancel_scope.cancel()
    store.close()

"""Nodes beside the one under test: real stores behind the real peer endpoints, on loopback.

Each can be told to misbehave, and notes what it was asked.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs

import httpx
import trio
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from goblet_node.fill.connections import open_client
from goblet_node.fill.copying import Copier
from goblet_node.fill.pace import Pace
from goblet_node.fill.peers import Peers
from goblet_node.fill.policy import MirrorPolicy
from goblet_node.fill.room import Room
from goblet_node.fill.taking import Taker
from goblet_node.metrics import NodeMetrics
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.store import MirrorStore
from goblet_node.peering import build_peering
from goblet_shared.asgi import ASGIApp, Message, Receive, Scope, Send
from goblet_shared.cluster_secret import ClusterSecret
from goblet_shared.contract import NodeName
from goblet_shared.members import Member, MemberState
from goblet_shared.repo_key import RepoKey
from goblet_shared.ring import Ring
from goblet_testing.rooms import room_of
from goblet_testing.serving import serving

SECRET = b"what only members of one cluster know"
ME = NodeName("goblet-9")


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: its method, its path, the name of the file it asks for, and from where on."""

    method: str
    path: str
    name: str
    begin: int


@dataclass(kw_only=True)
class Manners:
    """How a neighbour behaves: well, unless one of these is set.

    Attributes:
        cut_after: Of the next files it sends, after so many bytes the connection is cut.
        spoil: What becomes of a body.
        before: What happens before it answers.
        holds_back: It answers nothing for so many seconds.
        status: It answers everything with this, and a Location that leads astray.
    """

    cut_after: list[int] = field(default_factory=list)
    spoil: Callable[[Asked, bytes], bytes] | None = None
    before: Callable[[Asked], None] = lambda asked: None
    holds_back: float = 0.0
    status: int = 0


class Neighbour:
    """Another node: `store` is what it holds, `asked` what it was asked."""

    def __init__(self, name: NodeName, store: MirrorStore, url: str) -> None:
        self.name = name
        self.store = store
        self.member = Member(name=name, url=url)
        self.manners = Manners()
        self.asked: list[Asked] = []
        self.taken: list[tuple[RepoKey, NodeName]] = []
        self.metrics = NodeMetrics(CollectorRegistry())

    @property
    def files(self) -> list[Asked]:
        """The requests for files."""
        return [asked for asked in self.asked if asked.path == "/-/peer/file"]

    async def copy(
        self, key: RepoKey, source: NodeName, *, pace: Pace | None = None
    ) -> Mirror | None:
        """Note what it was told to take over."""
        self.taken.append((key, source))
        return None

    def app(self, secret: ClusterSecret) -> ASGIApp:
        """Return its endpoints, with its manners before them."""
        taker = Taker(copies=self, at_once=1)
        routes = build_peering(store=self.store, taker=taker, secret=secret, metrics=self.metrics)
        own = Starlette(routes=routes)

        async def unruly(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                asked = _asked(scope)
                self.asked.append(asked)
                self.manners.before(asked)
                await trio.sleep(self.manners.holds_back)
                if self.manners.status:
                    await _astray(send, self.manners.status)
                    return
                if self.manners.cut_after or self.manners.spoil is not None:
                    scope = {**scope, "extensions": {}}
                    send = _meddling(send, asked, self.manners)
            with suppress(ConnectionCut):
                await own(scope, receive, send)

        return unruly


class Neighbourhood:
    """The members of a cluster as the node under test sees them, which is `ME`.

    `states` may be changed; a name that is taken out of it is no member any more.
    """

    def __init__(self, neighbours: Sequence[Neighbour]) -> None:
        self.neighbours = {neighbour.name: neighbour for neighbour in neighbours}
        self.states = {ME: MemberState.READY} | dict.fromkeys(self.neighbours, MemberState.READY)

    @property
    def ring(self) -> Ring:
        return Ring.of(self.states)

    @property
    def views(self) -> "list[Seen]":
        return [Seen(name=name, state=state) for name, state in self.states.items()]

    def member(self, name: NodeName) -> Member | None:
        return self.neighbours[name].member if name in self.states else None


@dataclass(frozen=True)
class Seen:
    """One member as it is seen."""

    name: NodeName
    state: MemberState


@asynccontextmanager
async def neighbourhood(
    directory: Path, *names: str, secret: bytes = SECRET
) -> AsyncIterator[Neighbourhood]:
    """Run neighbours of these names."""
    async with AsyncExitStack() as stack:
        neighbours = []
        for name in names:
            store = MirrorStore(directory / name, disk=Disk())
            store.open()
            stack.callback(store.close)
            neighbour = Neighbour(NodeName(name), store, "")
            server = await stack.enter_async_context(serving(neighbour.app(ClusterSecret(secret))))
            host, port = server.address[:2]
            neighbour.member = Member(name=neighbour.name, url=f"http://{host}:{port}")
            neighbours.append(neighbour)
        yield Neighbourhood(neighbours)


def peers_of(
    members: Neighbourhood, client: httpx.AsyncClient, *, secret: bytes | None = SECRET
) -> Peers:
    """Return who asks these members for the node under test."""
    return Peers(
        me=ME,
        member=members.member,
        secret=None if secret is None else ClusterSecret(secret),
        client=client,
        question_timeout=2.0,
        idle_timeout=2.0,
    )


def peer_client() -> httpx.AsyncClient:
    """Return connections to peers."""
    return open_client(
        most=10, proxy=None, connect_timeout=2.0, write_timeout=2.0, pool_timeout=2.0
    )


class Newcomer:
    """The node under test: a store, and what copies mirrors into it."""

    def __init__(self, store: MirrorStore, copier: Copier, metrics: NodeMetrics) -> None:
        self.store = store
        self.copier = copier
        self._metrics = metrics

    def outcomes(self) -> Mapping[str, int]:
        """Return how often each outcome of a copy was counted."""
        return {
            sample.labels["outcome"]: int(sample.value)
            for family in self._metrics.peer_copies.collect()
            for sample in family.samples
            if sample.name.endswith("_total") and sample.value
        }


@asynccontextmanager
async def newcomer(
    directory: Path,
    members: Neighbourhood,
    *,
    policy: MirrorPolicy | None = None,
    room: Room | None = None,
    disk: Disk | None = None,
    max_mirror_bytes: int | None = None,
    secret: bytes | None = SECRET,
) -> AsyncIterator[Newcomer]:
    """Give the node under test, whose store is below `directory`."""
    store = MirrorStore(directory / "mine", disk=disk or Disk())
    store.open()
    metrics = NodeMetrics(CollectorRegistry())
    try:
        async with peer_client() as client, trio.open_nursery() as nursery:
            copier = Copier(
                me=ME,
                members=members,
                peers=peers_of(members, client, secret=secret),
                store=store,
                room=room or room_of(),
                policy=policy or MirrorPolicy(),
                max_mirror_bytes=max_mirror_bytes,
                nursery=nursery,
                metrics=metrics,
            )
            with trio.fail_after(20):
                yield Newcomer(store, copier, metrics)
            nursery.cancel_scope.cancel()
    finally:
        store.close()


def _asked(scope: Scope) -> Asked:
    query = parse_qs(scope["query_string"].decode())
    said = dict(scope["headers"]).get(b"range", b"bytes=0-")
    return Asked(
        scope["method"],
        scope["path"],
        query.get("name", [""])[0],
        int(said.removeprefix(b"bytes=").removesuffix(b"-")),
    )


def _meddling(send: Send, asked: Asked, manners: Manners) -> Send:
    """Return what sends as a neighbour with these manners does."""
    is_cut = asked.path == "/-/peer/file" and bool(manners.cut_after)
    left = manners.cut_after.pop(0) if is_cut else -1

    async def meddle(message: Message) -> None:
        nonlocal left
        if message["type"] != "http.response.body":
            await send(message)
            return
        body = message.get("body", b"")
        if manners.spoil is not None:
            body = manners.spoil(asked, body)
        if left >= 0:
            body, left = body[:left], left - len(body[:left])
            if not left:
                await send({**message, "body": body, "more_body": True})
                raise ConnectionCut
        await send({**message, "body": body})

    return meddle


class ConnectionCut(Exception):
    """A neighbour was told to cut the connection here."""


async def _astray(send: Send, status: int) -> None:
    headers = [(b"location", b"http://127.0.0.1:9/-/peer/mirror"), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})

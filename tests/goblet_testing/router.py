"""The real router, served by the real server on loopback, inside the test's own process."""

import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import httpx
import trio
from prometheus_client import CollectorRegistry

from goblet_router.cli import serve_router
from goblet_router.config import RouterSettings
from goblet_shared.contract import NodeName
from goblet_shared.repo_key import parse
from goblet_shared.ring import Ring
from goblet_shared.serve import listening_socket
from goblet_testing.unruly import UnrulyNode, unruly_node


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningRouter:
    """A router that answers at `port`."""

    port: int
    registry: CollectorRegistry
    client: httpx.AsyncClient
    stop: trio.Event

    def metric(self, name: str, **labels: str) -> float:
        """Return the present value of a metric; 0 if it was never touched."""
        return self.registry.get_sample_value(f"goblet_router_{name}", labels) or 0.0

    async def connect(self) -> trio.SocketStream:
        """Return a raw connection."""
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def exchange(self, request: bytes) -> bytes:
        """Send raw bytes, and return all that comes until the router closes."""
        stream = await self.connect()
        async with stream:
            await stream.send_all(request)
            received = b""
            while data := await stream.receive_some(64 * 1024):
                received += data
        return received


@asynccontextmanager
async def running_router(
    nodes: Mapping[str, str], **settings: object
) -> AsyncIterator[RunningRouter]:
    """Run a router over `nodes` (name to URL) until the block ends.

    It probes once at its start and then not again, and asks no upstream, unless told.
    """
    quiet: dict[str, object] = {"probe_interval_seconds": 1000.0, "bypass": False}
    given = {**quiet, "connect_seconds": 2.0, **settings}
    listener = listening_socket("127.0.0.1:0")
    port = listener.getsockname()[1]
    registry, stop = CollectorRegistry(), trio.Event()
    chosen = RouterSettings.model_validate({"node": dict(nodes), **given})
    async with trio.open_nursery() as nursery:
        start = partial(serve_router, chosen, listener=listener, registry=registry, stop=stop)
        await nursery.start(start)
        async with http_client(f"http://127.0.0.1:{port}") as client:
            yield RunningRouter(port=port, registry=registry, client=client, stop=stop)
        stop.set()
        nursery.cancel_scope.cancel()


REPO = "github.com/org/repo"
PACK = f"/{REPO}.git/git-upload-pack"
REFS = f"/{REPO}.git/info/refs?service=git-upload-pack"


@dataclass(frozen=True, kw_only=True)
class Stand:
    """A router, and its nodes in the order in which they own REPO."""

    router: RunningRouter
    names: tuple[str, ...]
    nodes: tuple[UnrulyNode, ...]

    async def post(self, body: bytes = b"wants") -> httpx.Response:
        """Ask for a pack of REPO."""
        return await self.router.client.post(PACK, content=body)


@asynccontextmanager
async def stand(count: int = 2, **given_settings: object) -> AsyncIterator[Stand]:
    """Run `count` unruly nodes and a router over them until the block ends."""
    names = owners(REPO, *(f"goblet-{number}" for number in range(1, count + 1)))
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(unruly_node()) for _ in names]
        urls = {name: node.url for name, node in zip(names, nodes, strict=True)}
        router = await stack.enter_async_context(running_router(urls, **given_settings))
        yield Stand(router=router, names=names, nodes=tuple(nodes))


def http_client(base: str) -> httpx.AsyncClient:
    """Return a client for plain HTTP; an ordinary one loads certificates for 50 ms first."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return httpx.AsyncClient(base_url=base, trust_env=False, timeout=10, verify=tls)


def owners(repo: str, *names: str) -> tuple[str, ...]:
    """Return the order in which `names` own a repository."""
    return Ring.of(map(NodeName, names)).owners(parse(repo))


async def until(fact: Callable[[], object]) -> None:
    """Wait until `fact` holds; fail after two seconds."""
    with trio.fail_after(2):
        while not fact():  # noqa: ASYNC110  (what is seen over a socket sets no event here)
            await trio.sleep(0.002)

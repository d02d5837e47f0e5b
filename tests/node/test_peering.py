"""Members are given what a node holds, others nothing; no name that is asked for is a path."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from goblet_node.fill.peers import decode_offer
from goblet_node.fill.taking import Taker
from goblet_node.metrics import NodeMetrics
from goblet_node.mirror.adopt import described
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.merge import JoinJob, join_segments
from goblet_node.mirror.store import MirrorStore
from goblet_node.mirror.view import manifest_of
from goblet_node.peering import build_peering
from goblet_shared.asgi import Message
from goblet_shared.cluster_secret import ClusterSecret
from goblet_shared.contract import NodeName
from goblet_shared.repo_key import RepoKey
from goblet_testing.mirrors import grow, heads
from goblet_testing.neighbours import SECRET, Neighbour
from goblet_testing.serving import Server, read_answer, serving

KEY = RepoKey("origin.test/org/a repo%41")
AFAR = "203.0.113.7"
TARGETS = [
    ("GET", b"/-/peer/mirrors"),
    ("GET", b"/-/peer/mirror?repo=origin.test/org/repo"),
    ("HEAD", b"/-/peer/mirror?repo=origin.test/org/repo"),
    ("GET", b"/-/peer/file?repo=origin.test/org/repo&name=seg"),
    ("GET", b"/-/peer/take"),
    ("POST", b"/-/peer/take"),
]


@dataclass(frozen=True, kw_only=True)
class Answer:
    status: int
    headers: Mapping[bytes, bytes]
    body: bytes


class Node:
    """A node with one mirror, of two segments; `neighbour` notes what it was told to take."""

    def __init__(self, directory: Path) -> None:
        self.store = MirrorStore(directory, disk=Disk())
        self.store.open()
        grow(self.store, KEY, heads(main=b"a"), [b"a"])
        self.mirror = grow(self.store, KEY, heads(main=b"b"), [b"b"])
        self.neighbour = Neighbour(NodeName("goblet-1"), self.store, "")
        self.secret = ClusterSecret(SECRET)
        self.taker = Taker(copies=self.neighbour, at_once=1)
        self.app = Starlette(
            routes=build_peering(
                store=self.store,
                taker=self.taker,
                secret=self.secret,
                metrics=NodeMetrics(CollectorRegistry()),
            )
        )

    async def ask(
        self,
        target: bytes,
        *,
        method: str = "GET",
        body: bytes = b"",
        sender: str = "127.0.0.1",
        headers: Mapping[bytes, bytes] | None = None,
        is_signed: bool = False,
    ) -> Answer:
        """Ask the application itself, as somebody from an address of our choice."""
        sent = dict(headers or {})
        if is_signed:
            sent |= dict([self.secret.header(method, target, body)])
        path, _, query = target.partition(b"?")
        scope = {
            "type": "http",
            "method": method,
            "path": path.decode(),
            "raw_path": path,
            "root_path": "",
            "query_string": query,
            "headers": list(sent.items()),
            "client": (sender, 1234),
            "extensions": {},
        }
        said: list[Message] = []
        asked = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if asked:
                return asked.pop()
            await trio.sleep_forever()
            raise AssertionError("slept for ever")

        async def send(message: Message) -> None:
            said.append(message)

        await self.app(scope, receive, send)
        return Answer(
            status=said[0]["status"],
            headers=dict(said[0]["headers"]),
            body=b"".join(message.get("body", b"") for message in said[1:]),
        )

    def file(self, name: str, *, key: str = KEY) -> bytes:
        return f"/-/peer/file?repo={quote(key)}&name={quote(name)}".encode()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path / "node")
    yield node
    node.store.close()


@pytest.mark.parametrize(("method", "target"), TARGETS)
async def test_who_is_no_member_gets_nothing(method: str, target: bytes, node: Node) -> None:
    answer = await node.ask(target, method=method, sender=AFAR)
    assert answer.status == 403
    assert KEY.encode() not in answer.body
    proof = dict([node.secret.header(method, b"/-/peer/other")])
    assert (await node.ask(target, method=method, sender=AFAR, headers=proof)).status == 403


async def test_a_member_is_told_what_is_held(node: Node) -> None:
    answer = await node.ask(b"/-/peer/mirrors", sender=AFAR, is_signed=True)
    (held,) = json.loads(answer.body)["mirrors"]
    assert held["key"] == KEY
    assert held["bytes"] == node.store.sizes()[KEY]
    assert held["used_at"] == node.store.used_at(KEY)


async def test_a_mirror_is_described_by_its_manifest_refs_and_sizes(node: Node) -> None:
    target = f"/-/peer/mirror?repo={quote(KEY)}".encode()
    head = await node.ask(target, method="HEAD", sender=AFAR, is_signed=True)
    assert (head.status, head.body) == (200, b"")
    answer = await node.ask(target, sender=AFAR, is_signed=True)
    offer = decode_offer(answer.body)
    found = described(offer.manifest, offer.refs, key=KEY, directory=node.mirror.directory)
    assert found == manifest_of(node.mirror)
    assert offer.sizes == {
        path.name: path.stat().st_size for files in node.mirror.files for path in files
    }
    assert offer.used_at == node.store.used_at(KEY)
    absent = b"/-/peer/mirror?repo=origin.test/org/none"
    for method in ("HEAD", "GET"):
        assert (await node.ask(absent, method=method)).status == 404
    assert (await node.ask(b"/-/peer/mirror")).status == 400
    assert (await node.ask(b"/-/peer/mirror?repo=nonsense")).status == 400


async def test_a_refs_file_that_goes_while_it_is_described_is_not_the_end(node: Node) -> None:
    node.mirror.directory.joinpath(node.mirror.current.refs_file).unlink()
    answer = await node.ask(f"/-/peer/mirror?repo={quote(KEY)}".encode())
    assert answer.status == 409


async def test_a_file_is_sent_from_any_byte_on(node: Node) -> None:
    path = node.mirror.files[0].pack
    content = path.read_bytes()
    whole = await node.ask(node.file(path.name), sender=AFAR, is_signed=True)
    assert (whole.status, whole.body) == (200, content)
    for begin in (0, 1, len(content) - 1):
        part = await node.ask(node.file(path.name), headers={b"range": b"bytes=%d-" % begin})
        assert (part.status, part.body) == (206, content[begin:])
        end = len(content) - 1
        assert part.headers[b"content-range"] == b"bytes %d-%d/%d" % (begin, end, end + 1)
        assert part.headers[b"content-length"] == b"%d" % (end + 1 - begin)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"bytes=100000-", 416),
        (b"bytes=0-5", 400),
        (b"bytes=-5", 400),
        (b"bytes=0-,3-", 400),
        (b"bytes=%s-" % (b"9" * 5000), 400),
        ("bytes=\u0663-".encode(), 400),
    ],
)
async def test_no_other_range_is_taken(said: bytes, status: int, node: Node) -> None:
    target = node.file(node.mirror.files[0].pack.name)
    assert (await node.ask(target, headers={b"range": said})).status == status


@pytest.mark.parametrize(
    "name",
    [
        "",
        "manifest.json",
        "../../../lock",
        "/etc/passwd",
        "..",
        "seg-000009-aaaaaaaaaaaa.pack",
        "\0",
    ],
)
async def test_only_files_that_the_manifest_names_are_sent(name: str, node: Node) -> None:
    answer = await node.ask(node.file(name))
    assert answer.status == (404 if name else 400)
    target = node.file(node.mirror.files[0].pack.name, key="origin.test/org/none")
    assert (await node.ask(target)).status == 404
    assert (await node.ask(node.file("seg"), method="PUT")).status == 400


async def test_a_segment_that_was_joined_with_others_is_not_sent_any_more(node: Node) -> None:
    name = node.mirror.files[0].pack.name
    assert (await node.ask(node.file(name))).status == 200
    with node.store.reading(node.mirror):
        scratch = node.store.new_scratch()
        joined = join_segments(JoinJob(segments=node.mirror.files, scratch=scratch))
        node.store.replace(node.mirror, 0, 2, joined)
        assert node.mirror.files[0].pack.exists()
        assert (await node.ask(node.file(name))).status == 404


async def test_a_file_that_is_gone_from_the_disk_is_not_there(node: Node) -> None:
    path = node.mirror.files[0].pack
    path.unlink()
    assert (await node.ask(node.file(path.name))).status == 404


async def test_what_is_handed_over_is_copied_from_who_says_so(node: Node) -> None:
    body = json.dumps({"from": "goblet-7", "keys": [KEY, "origin.test/x/y"]}).encode()
    answer = await node.ask(b"/-/peer/take", method="POST", body=body, sender=AFAR, is_signed=True)
    assert answer.status == 202
    awaited = await node.ask(b"/-/peer/take", sender=AFAR, is_signed=True)
    assert json.loads(awaited.body) == {"awaited": [KEY, "origin.test/x/y"]}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.taker.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert node.neighbour.taken == [(KEY, "goblet-7"), ("origin.test/x/y", "goblet-7")]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"from": "http://evil.example", "keys": []}',
        b'{"from": "a/b", "keys": ["origin.test/x/y"]}',
        b'{"from": "goblet-7", "keys": ["nonsense"]}',
        b'{"from": "goblet-7", "keys": [7]}',
        b'{"from": "goblet-7", "keys": 7}',
        b"[" * 100_000,
        b"\xff",
    ],
)
async def test_nonsense_is_not_taken_over(body: bytes, node: Node) -> None:
    answer = await node.ask(b"/-/peer/take", method="POST", body=body)
    assert answer.status == 400
    assert answer.body.endswith(b"\n")


@asynccontextmanager
async def served(node: Node) -> AsyncIterator[Server]:
    async with serving(node.app) as server:
        yield server


async def test_over_a_real_connection_a_file_is_whole_and_who_leaves_keeps_nothing_held(
    node: Node,
) -> None:
    large = bytes(range(256)) * 8000
    grow(node.store, KEY, heads(main=large), [large])
    mirror = node.store.get(KEY)
    assert mirror is not None
    path = max((files.pack for files in mirror.files), key=lambda path: path.stat().st_size)
    request = b"GET " + node.file(path.name) + b" HTTP/1.1\r\nhost: a\r\nrange: bytes=5-\r\n\r\n"
    async with served(node) as server:
        answer = await read_answer(await server.ask(request))
        assert answer.startswith(b"HTTP/1.1 206")
        assert answer.endswith(path.read_bytes()[5:])
        leaver = await server.ask(request)
        await leaver.receive_some(10)
        await leaver.aclose()
        with trio.fail_after(5):
            # Nothing tells when a lease is given back.
            while node.store.is_in_use(KEY):  # noqa: ASYNC110
                await trio.sleep(0.01)

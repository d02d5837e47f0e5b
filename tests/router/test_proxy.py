"""One request through the router: which node gets it, and what the client sees when nodes fail."""

import socket
from collections.abc import Sequence

import pytest
import trio
from prometheus_client import CollectorRegistry

from goblet_router.config import RouterSettings
from goblet_router.errors import NoNodeAnswered
from goblet_router.metrics import RouterMetrics
from goblet_router.wiring import build_lanes, build_proxy
from goblet_shared.asgi import Message, Scope
from goblet_shared.contract import NodeName
from goblet_shared.git_route import parse_target
from goblet_shared.members import Member, MemberState
from goblet_shared.ring import Ring
from goblet_testing import unruly
from goblet_testing.router import PACK, REFS, REPO, http_client, owners, running_router, stand
from goblet_testing.unruly import Line, Seen, answer, unruly_node


def nobody_listens() -> str:
    """Return a URL that refuses connections."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{bound.getsockname()[1]}"


async def test_the_owner_gets_the_request_and_the_client_its_answer() -> None:
    async with stand() as it:
        it.nodes[0].conduct = answer(b"refs", headers={"Goblet-Cache": "whole", "X-Own": "1"})
        got = await it.router.client.get(REFS, headers={"Git-Protocol": "version=2"})
        assert (got.status_code, got.content) == (200, b"refs")
        assert got.headers["goblet-node"] == it.names[0]
        assert got.headers["goblet-cache"] == "whole"
        assert got.headers["x-own"] == "1"
        (seen,) = it.nodes[0].seen
        assert (seen.method, seen.target) == ("GET", REFS)
        assert seen.header("git-protocol") == "version=2"
        assert seen.header("host") == it.nodes[0].url.removeprefix("http://")
        assert not it.nodes[1].seen


async def test_a_node_sees_the_clients_headers_and_none_of_httpcores() -> None:
    async with stand() as it:
        request = f"GET {REFS} HTTP/1.1\r\nHost: goblet\r\nConnection: close\r\n\r\n".encode()
        await it.router.exchange(request)
        (seen,) = it.nodes[0].seen
        assert {name for name, _ in seen.headers} == {"host", "x-request-id", "x-forwarded-for"}


async def test_an_error_of_the_node_is_the_answer() -> None:
    async with stand() as it:
        headers = {"WWW-Authenticate": 'Basic realm="x"'}
        it.nodes[0].conduct = answer(b"no", status="401 Unauthorized", headers=headers)
        got = await it.router.client.get(REFS)
        assert (got.status_code, got.content) == (401, b"no")
        assert got.headers["www-authenticate"] == 'Basic realm="x"'
        it.nodes[0].conduct = answer(b"full", status="503 Service Unavailable")
        assert (await it.post()).status_code == 503
        assert not it.nodes[1].seen


@pytest.mark.parametrize("conduct", [unruly.reset, unruly.hang_up, unruly.declined])
async def test_the_next_owner_answers_with_the_same_body(conduct: unruly.Conduct) -> None:
    async with stand() as it:
        it.nodes[0].conduct = conduct
        it.nodes[1].conduct = answer(b"pack")
        got = await it.post(b"wants")
        assert (got.status_code, got.content) == (200, b"pack")
        assert got.headers["goblet-node"] == it.names[1]
        assert [bytes(node.seen[0].body) for node in it.nodes] == [b"wants", b"wants"]
        assert it.router.metric("retried_total", to="next node") == 1


async def says_ready_once(listener: trio.SocketListener) -> None:
    """Answer one probe, and refuse connections from then on."""
    async with await listener.accept() as stream:
        await stream.receive_some()
        await listener.aclose()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nready\n")


async def test_a_node_that_refuses_connections_is_passed_over_and_then_asked_last() -> None:
    first, second = owners(REPO, "a", "b")
    (dying,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = dying.socket.getsockname()[1]
    async with unruly_node() as alive, trio.open_nursery() as nursery:
        nursery.start_soon(says_ready_once, dying)
        urls = {first: f"http://127.0.0.1:{port}", second: alive.url}
        async with running_router(urls) as router:
            for _ in range(3):
                assert (await router.client.get(REFS)).headers["goblet-node"] == second
            labels = {"node": first, "kind": "unreachable"}
            assert router.metric("failed_attempts_total", **labels) == 1
            members = (await router.client.get("/-/ring")).json()["members"]
            assert {one["name"]: one["state"] for one in members}[first] == "suspect"


async def test_a_node_that_declines_is_not_suspect() -> None:
    async with stand() as it:
        it.nodes[0].conduct = unruly.declined
        await it.post()
        await it.post()
        assert len(it.nodes[0].seen) == 2


async def test_a_node_that_does_not_begin_to_answer_is_given_up() -> None:
    async with stand(first_byte_seconds=0.1) as it:
        it.nodes[0].conduct = unruly.stall
        assert (await it.post()).headers["goblet-node"] == it.names[1]
        labels = {"node": it.names[0], "kind": "timeout"}
        assert it.router.metric("failed_attempts_total", **labels) == 1


async def test_a_kept_connection_that_the_node_closed_is_replaced_on_the_same_node() -> None:
    async with stand() as it:

        async def once_a_connection(seen: Seen, line: Line) -> None:
            if seen.nth_on_connection > 1:
                await line.stream.aclose()
            else:
                await answer(b"pack")(seen, line)

        node = it.nodes[0]
        node.conduct = once_a_connection
        for _ in range(2):
            got = await it.post(b"wants")
            assert (got.content, got.headers["goblet-node"]) == (b"pack", it.names[0])
        assert [seen.nth_on_connection for seen in node.seen] == [1, 2, 1]
        assert bytes(node.seen[2].body) == b"wants"
        assert it.router.metric("retried_total", to="fresh connection") == 1
        assert it.router.metric("retried_total", to="next node") == 0
        assert not it.nodes[1].seen


async def test_a_new_connection_that_breaks_is_not_tried_again_on_the_same_node() -> None:
    async with stand() as it:
        it.nodes[0].conduct = unruly.reset
        await it.post()
        assert len(it.nodes[0].seen) == 1


async def test_connections_are_kept_and_used_again() -> None:
    async with stand() as it:
        await it.router.client.get("/healthz")
        for _ in range(5):
            await it.post()
        assert {seen.connection for seen in it.nodes[0].seen} == {it.nodes[0].seen[0].connection}


async def test_a_body_beyond_the_replay_limit_is_not_sent_twice() -> None:
    async with stand(replay_bytes=1000) as it:
        it.nodes[0].conduct = unruly.reset
        got = await it.post(b"x" * 1001)
        assert got.status_code == 502
        assert "larger than the 1000 bytes" in got.text
        assert not it.nodes[1].seen
        it.nodes[0].conduct = unruly.reset
        assert (await it.post(b"x" * 1000)).status_code == 200


async def test_a_large_body_still_finds_the_next_owner_if_none_of_it_was_sent() -> None:
    first, second = owners(REPO, "a", "b")
    async with unruly_node() as alive:
        urls = {first: nobody_listens(), second: alive.url}
        async with running_router(urls, replay_bytes=1000) as router:
            got = await router.client.post(PACK, content=b"x" * 100_000)
            assert got.headers["goblet-node"] == second
            assert len(alive.seen[0].body) == 100_000


async def test_when_no_owner_answers_the_client_gets_a_sentence_with_the_reasons() -> None:
    async with stand(3, fallbacks=1) as it:
        for node in it.nodes:
            node.conduct = unruly.reset
        got = await it.post()
        assert got.status_code == 503
        assert got.text.startswith(f"no cache node answered for {REPO} ({it.names[0]}: ")
        assert it.names[1] in got.text
        assert got.headers["goblet-node"] == "none"
        assert it.router.metric("no_owner_total") == 1
        assert not it.nodes[2].seen


async def test_a_router_without_nodes_says_how_to_name_them() -> None:
    async with running_router({}) as router:
        got = await router.client.get(REFS)
        assert (got.status_code, "--node NAME=URL" in got.text) == (503, True)


async def test_hop_by_hop_headers_of_both_sides_stop_at_the_router() -> None:
    async with stand() as it:
        hops = {"Keep-Alive": "timeout=5", "Connection": "X-Hop, keep-alive", "X-Hop": "1"}
        it.nodes[0].conduct = answer(headers=hops)
        got = await it.router.client.get(REFS, headers={**hops, "Proxy-Authorization": "secret"})
        assert got.headers.keys().isdisjoint({"keep-alive", "x-hop"})
        names = {name for name, _ in it.nodes[0].seen[0].headers}
        assert names.isdisjoint({"connection", "keep-alive", "x-hop", "proxy-authorization"})


async def test_a_node_cannot_set_a_cookie_for_the_next_user() -> None:
    async with stand() as it:
        it.nodes[0].conduct = answer(headers={"Set-Cookie": "who=alice; Path=/"})
        base = str(it.router.client.base_url)
        async with http_client(base) as alice:
            assert (await alice.get(REFS)).cookies["who"] == "alice"
        async with http_client(base) as bob:
            await bob.get(REFS)
        assert it.nodes[0].seen[1].header("cookie") is None


@pytest.mark.slow
async def test_a_hundred_requests_at_once_are_all_answered() -> None:
    async with stand(3) as it:
        for node in it.nodes:

            async def echo(seen: Seen, line: Line) -> None:
                await trio.sleep(0.02)
                await answer(bytes(seen.body))(seen, line)

            node.conduct = echo
        answered: list[bool] = []

        async def one(number: int) -> None:
            body = b"%d" % number
            path = f"/github.com/org/repo{number}/git-upload-pack"
            got = await it.router.client.post(path, content=body)
            answered.append(got.content == body)

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(one, number)
        assert answered == [True] * 100
        assert all(node.seen for node in it.nodes)


class Moving:
    """One member, which is somewhere else from the second look on."""

    def __init__(self, *urls: str) -> None:
        self.ring = Ring.of([NodeName("a")])
        self.members = [Member(name=NodeName("a"), url=url) for url in urls]
        self.failures: list[str] = []

    def member(self, name: NodeName, /) -> Member | None:
        return self.members.pop(0) if len(self.members) > 1 else self.members[0]

    def state(self, name: NodeName, /) -> MemberState:
        return MemberState.READY

    def willing(self, owners: Sequence[NodeName], /) -> tuple[NodeName, ...]:
        return tuple(owners)

    def note_failure(self, name: NodeName, why: str, /) -> None:
        self.failures.append(why)


@pytest.mark.parametrize("moves", [False, True])
async def test_a_node_that_has_moved_meanwhile_is_not_suspect_for_its_old_address(
    *, moves: bool
) -> None:
    metrics = RouterMetrics(CollectorRegistry())
    settings = RouterSettings(bypass=False)
    members = Moving("http://127.0.0.1:1", *(["http://127.0.0.1:2"] if moves else []))
    lanes = build_lanes(settings, metrics)
    proxy = build_proxy(settings, members=members, lanes=lanes, metrics=metrics)
    route = parse_target(
        method="GET",
        raw_path=b"/github.com/org/repo/info/refs",
        query=b"service=git-upload-pack",
    )

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_: Message) -> None:
        raise AssertionError("there is nobody to answer")

    scope: Scope = {"method": "GET", "headers": [], "query_string": b"", "client": None}
    with pytest.raises(NoNodeAnswered):
        await proxy.forward(route, scope, receive, send, request_id="x")
    assert len(members.failures) == (not moves)
    await proxy.aclose()

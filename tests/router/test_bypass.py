"""Requests that no node answers: upstream is asked, under the same rules."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from goblet_router.bypass import our_location
from goblet_shared.git_route import parse_target
from goblet_shared.upstreams import Upstreams
from goblet_testing import unruly
from goblet_testing.router import PACK, REFS, RunningRouter, running_router
from goblet_testing.unruly import UnrulyNode, answer, unruly_node

DOWN = {"a": "http://127.0.0.1:1"}


@dataclass(frozen=True, kw_only=True)
class Past:
    """A router whose one node is down, and the upstream github.com."""

    router: RunningRouter
    upstream: UnrulyNode


@asynccontextmanager
async def past(path: str = "", **settings: object) -> AsyncIterator[Past]:
    async with unruly_node() as upstream:
        mapped = {"github.com": upstream.url + path}
        chosen = {"bypass": True, "upstream": mapped, **settings}
        async with running_router(DOWN, **chosen) as router:
            yield Past(router=router, upstream=upstream)


async def test_upstream_answers_for_nodes_that_are_down_and_the_answer_says_so() -> None:
    async with past("/base") as it:
        it.upstream.conduct = answer(b"refs", headers={"Content-Type": "x", "Cache-Control": "y"})
        got = await it.router.client.get(REFS)
        assert (got.status_code, got.content) == (200, b"refs")
        assert got.headers["goblet-cache"] == "bypass"
        assert got.headers["goblet-node"] == "none"
        assert (got.headers["content-type"], got.headers["cache-control"]) == ("x", "y")
        it.upstream.conduct = answer(b"pack")
        assert (await it.router.client.post(PACK, content=b"wants")).content == b"pack"
        refs, pack = it.upstream.seen
        assert refs.target == "/base/org/repo.git/info/refs?service=git-upload-pack"
        assert (pack.target, bytes(pack.body)) == ("/base/org/repo.git/git-upload-pack", b"wants")
        assert it.router.metric("forwarded_total", node="none", outcome="ok") == 2
        assert it.router.metric("no_owner_total") == 2


async def test_upstream_sees_what_it_needs_of_a_client_and_nothing_of_this_house() -> None:
    async with past() as it:
        needed = {"authorization": "Basic eA==", "git-protocol": "version=2", "user-agent": "git/1"}
        ours = {
            "goblet-peer": "1.ab",
            "x-request-id": "job-7",
            "x-forwarded-for": "10.0.0.9",
            "cookie": "a=b",
            "proxy-authorization": "Basic eA==",
        }
        await it.router.client.get(REFS, headers={**needed, **ours})
        (seen,) = it.upstream.seen
        assert seen.header("host") == it.upstream.url.removeprefix("http://")
        assert {name: seen.header(name) for name in needed} == needed
        assert not {name for name, _ in seen.headers} & ours.keys()


async def test_what_upstream_says_of_its_house_stays_there() -> None:
    async with past() as it:
        said = {"Set-Cookie": "who=alice", "Goblet-Cache": "whole", "Goblet-Node": "x", "X-A": "1"}
        it.upstream.conduct = answer(headers=said)
        got = await it.router.client.get(REFS)
        assert (got.headers["goblet-cache"], got.headers["goblet-node"]) == ("bypass", "none")
        assert got.headers.keys().isdisjoint({"set-cookie", "x-a"})


async def test_a_refusal_of_upstream_is_the_answer() -> None:
    async with past() as it:
        challenge = {"WWW-Authenticate": 'Basic realm="x"'}
        it.upstream.conduct = answer(b"no", status="401 Unauthorized", headers=challenge)
        got = await it.router.client.get(REFS)
        assert (got.status_code, got.content) == (401, b"no")
        assert got.headers["www-authenticate"] == 'Basic realm="x"'


async def test_a_host_that_is_not_on_the_list_is_never_asked() -> None:
    async with running_router(DOWN, bypass=True, allow_host=["gitlab.com"]) as router:
        got = await router.client.get(REFS)
        assert (got.status_code, "no cache node answered" in got.text) == (503, True)


@pytest.mark.parametrize(
    ("method", "path", "sentence"),
    [
        ("GET", "/github.com/org/repo/info/refs?service=git-receive-pack", "pushInsteadOf"),
        ("POST", "/github.com/org/repo/git-receive-pack", "pushInsteadOf"),
        ("POST", "/github.com/org/repo/info/lfs/objects/batch", "lfs.url"),
    ],
)
async def test_pushes_and_lfs_are_refused_as_nodes_do(
    method: str, path: str, sentence: str
) -> None:
    async with past() as it:
        got = await it.router.client.request(method, path)
        assert (got.status_code, sentence in got.text) == (403, True)
        assert not it.upstream.seen


async def test_an_upstream_that_is_down_as_well_is_named_beside_the_nodes() -> None:
    async with past() as it:
        it.upstream.conduct = unruly.reset
        got = await it.router.client.get(REFS)
        assert got.status_code == 502
        assert "a: connection refused" in got.text
        assert "github.com: the connection broke" in got.text
        assert it.router.metric("forwarded_total", node="none", outcome="failed") == 1


async def test_with_the_bypass_off_nobody_else_is_asked() -> None:
    async with past(bypass=False) as it:
        assert (await it.router.client.get(REFS)).status_code == 503
        assert not it.upstream.seen


async def test_a_request_that_cannot_be_repeated_is_not_sent_on() -> None:
    async with (
        unruly_node() as node,
        unruly_node() as upstream,
        running_router(
            {"a": node.url}, bypass=True, upstream={"github.com": upstream.url}, replay_bytes=1000
        ) as router,
    ):
        node.conduct = unruly.reset
        got = await router.client.post(PACK, content=b"x" * 5000)
        assert (got.status_code, "larger than the 1000 bytes" in got.text) == (502, True)
        assert not upstream.seen


async def test_an_answer_of_upstream_that_breaks_off_is_cut() -> None:
    async with past() as it:
        it.upstream.conduct = unruly.cut_after(b"half", announced=10)
        request = f"GET {REFS} HTTP/1.1\r\nHost: goblet\r\n\r\n".encode()
        assert (await it.router.exchange(request)).endswith(b"half")
        assert it.router.metric("forwarded_total", node="none", outcome="cut") == 1


async def test_a_renamed_repository_is_found_again_through_the_router() -> None:
    async with past("/base") as it:
        moved = f"{it.upstream.url}/base/new/name.git/info/refs?service=git-upload-pack"
        headers = {"Location": moved}
        it.upstream.conduct = answer(b"", status="301 Moved Permanently", headers=headers)
        got = await it.router.client.get(REFS)
        assert got.status_code == 301
        ours = "/github.com/new/name.git/info/refs?service=git-upload-pack"
        assert got.headers["location"] == ours
        posted = await it.router.client.post(PACK, content=b"x")
        assert (posted.status_code, "present address" in posted.text) == (502, True)


async def test_a_redirect_to_another_host_is_an_error_and_not_followed() -> None:
    async with past() as it:
        headers = {"Location": f"http://evil.example/org/repo.git{REFS[REFS.index('/info') :]}"}
        it.upstream.conduct = answer(b"", status="302 Found", headers=headers)
        got = await it.router.client.get(REFS, headers={"Authorization": "Basic eA=="})
        assert got.status_code == 502
        assert "location" not in got.headers
        assert "evil" not in got.text


UPSTREAMS = Upstreams(
    allowed=["github.com", "gitlab.com"], mapped={"own.example": "https://git.example:8443/x"}
)
QUERY = "?service=git-upload-pack"


@pytest.mark.parametrize(
    ("asked", "location", "ours"),
    [
        ("/github.com/a/b", "/c/d/info/refs", "/github.com/c/d/info/refs"),
        ("/github.com/a/b.git", "/c/d.git/info/refs", "/github.com/c/d.git/info/refs"),
        ("http://github.com/a/b", "https://github.com/c/d/info/refs", "/c/d/info/refs"),
        ("/own.example/a/b", "https://git.example:8443/x/c/info/refs", "/own.example/c/info/refs"),
        ("/own.example/a/b", "/elsewhere/c/info/refs", None),
        ("/github.com/a/b", "https://gitlab.com/a/b/info/refs", None),
        ("/github.com/a/b", "http://github.com/a/b/info/refs", None),
        ("/github.com/a/b", "https://me@github.com/a/b/info/refs", None),
        ("/github.com/a/b", "/login", None),
        ("/github.com/a/b", "/a/%2e%2e/%00/info/refs", None),
        ("/github.com/a/b", "", None),
    ],
)
def test_a_redirect_is_ours_only_if_it_stays_on_the_host(
    asked: str, location: str, ours: str | None
) -> None:
    raw_path = f"{asked}/info/refs".encode()
    route = parse_target(method="GET", raw_path=raw_path, query=QUERY[1:].encode())
    url = UPSTREAMS.repository_url(route.key, dot_git=route.dot_git)
    given = location + QUERY if location.endswith("/info/refs") else location
    expected = None if ours is None else (ours + QUERY).encode()
    assert our_location(given, route, url, UPSTREAMS, raw_path=raw_path) == expected

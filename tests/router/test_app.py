"""What every answer carries, how errors become statuses, and what the log says."""

import logging
import re

import pytest
from prometheus_client import CollectorRegistry

from goblet_router.app import build_app
from goblet_router.metrics import RouterMetrics
from goblet_router.proxy import Proxy
from goblet_shared.asgi import Message, Receive, Scope, Send
from goblet_testing.router import running_router, until
from goblet_testing.unruly import answer, cut_after, unruly_node

REPO = "github.com/org/repo"
REFS = f"/{REPO}/info/refs?service=git-upload-pack"


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "goblet_router.app" and record.levelno >= logging.INFO
    ]


async def test_an_absolute_form_target_is_a_git_route() -> None:
    """A client whose http.proxy we are sends the whole URL."""
    async with unruly_node() as node, running_router({"a": node.url}) as router:
        request = (
            "GET http://GitHub.com/org/repo/info/refs?service=git-upload-pack HTTP/1.1\r\n"
            "Host: github.com\r\nProxy-Connection: keep-alive\r\nConnection: close\r\n\r\n"
        )
        assert (await router.exchange(request.encode())).startswith(b"HTTP/1.1 200")
        assert node.seen[0].target == REFS


async def test_an_absolute_form_of_our_own_pages_is_not_our_own() -> None:
    async with running_router({}) as router:
        request = "GET http://github.com/healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert (await router.exchange(request.encode())).startswith(b"HTTP/1.1 400")


async def test_a_request_id_reaches_the_node_and_comes_back() -> None:
    async with unruly_node() as node, running_router({"a": node.url}) as router:
        node.conduct = answer(headers={"X-Request-Id": "the-nodes"})
        got = await router.client.get(REFS, headers={"X-Request-Id": "job-7"})
        assert got.headers.get_list("x-request-id") == ["job-7"]
        assert node.seen[0].header("x-request-id") == "job-7"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz", 200),
        ("HEAD", "/healthz", 200),
        ("POST", "/healthz", 405),
        ("GET", "/readyz", 503),
        ("GET", "/metrics", 200),
        ("GET", "/-/nothing", 404),
        ("GET", "/-/ring/locate", 400),
        ("GET", "/github.com/org/repo/info/refs", 400),
        ("GET", REFS, 503),
        ("HEAD", REFS, 400),
        ("GET", "/github.com/..%2f/info/refs", 400),
    ],
)
async def test_every_answer_carries_a_request_id_and_names_a_node_or_none(
    method: str, path: str, status: int
) -> None:
    async with running_router({}) as router:
        got = await router.client.request(method, path)
        assert got.status_code == status
        assert re.fullmatch(r"[0-9a-f]{16}", got.headers["x-request-id"])
        assert got.headers["goblet-node"] == "none"
        assert got.headers["date"].endswith("GMT")


async def test_a_refusal_is_one_sentence_of_plain_text_and_leaves_the_connection_usable() -> None:
    async with running_router({}) as router, await router.connect() as stream:
        for _ in range(2):
            await stream.send_all(b"GET /github.com/org/repo/HEAD HTTP/1.1\r\nHost: g\r\n\r\n")
            received = b""
            while not received.endswith(b"\n") or received.endswith(b"\r\n"):
                received += await stream.receive_some(1024)
            head, _, body = received.partition(b"\r\n\r\n")
            assert b"text/plain; charset=utf-8" in head
            assert body.count(b"\n") == 1
            assert b"smart HTTP" in body


async def test_one_line_a_request_says_what_happened(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with unruly_node() as node, running_router({"a": node.url}) as router:
        node.conduct = answer(b"12345", headers={"Goblet-Cache": "whole"})
        await router.client.get(
            f"{REFS}&token=hunter2",
            headers={"X-Request-Id": "job-7", "Authorization": "Basic c2VjcmV0"},
        )
        await router.client.get("/healthz")
        await until(lambda: lines(caplog))
    (line,) = lines(caplog)
    fields = dict(field.split("=", 1) for field in line.split())
    assert float(fields.pop("seconds")) < 5
    assert fields == {
        "method": "GET",
        "key": REPO,
        "endpoint": "info/refs",
        "service": "git-upload-pack",
        "status": "200",
        "bytes": "5",
        "node": "a",
        "cache": "whole",
        "id": "job-7",
    }
    # Everybody's log, but for that of the test's own client.
    said = "".join(one.getMessage() for one in caplog.records if one.name != "httpx")
    assert "hunter2" not in said
    assert "c2VjcmV0" not in said


async def test_a_key_cannot_forge_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running_router({}) as router:
        path = "/github.com/a%20status=200%E2%80%A8b/r/info/refs?service=git-upload-pack"
        await router.client.get(path)
    (line,) = lines(caplog)
    assert "key=github.com/a%20status%3D200%E2%80%A8b/r " in line


async def test_the_user_in_a_refused_target_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with running_router({}) as router:
        request = (
            "GET http://me:hunter2@github.com/o/r/info/refs?service=git-upload-pack HTTP/1.1\r\n"
            "Host: x\r\nConnection: close\r\n\r\n"
        )
        received = await router.exchange(request.encode())
    assert received.startswith(b"HTTP/1.1 400")
    assert b"hunter2" not in received
    assert "hunter2" not in caplog.text


async def test_a_broken_answer_is_logged_once_and_without_a_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with unruly_node() as node, running_router({"a": node.url}) as router:
        node.conduct = cut_after(b"half", announced=10)
        request = f"GET {REFS} HTTP/1.1\r\nHost: goblet\r\n\r\n".encode()
        await router.exchange(request)
    (line,) = lines(caplog)
    assert "status=200 bytes=4" in line
    assert line.endswith("error='a: its answer broke off'")
    assert not any(record.exc_info for record in caplog.records)


class Exploding(Proxy):
    """A proxy with a bug in it, before or after the head of its answer."""

    def __init__(self, *, after_head: bool) -> None:
        self._after_head = after_head

    async def forward(self, *args: object, **_: object) -> None:
        send = args[3]
        if self._after_head:
            assert callable(send)
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError("a secret detail")


async def run_app(*, after_head: bool) -> list[Message]:
    """Return what the application with a bug sends for one git request."""
    sent: list[Message] = []

    async def pages(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("not a page")

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "raw_path": f"/{REPO}/info/refs".encode(),
        "query_string": b"service=git-upload-pack",
        "headers": [(b"x-request-id", b"job-7")],
    }
    metrics = RouterMetrics(CollectorRegistry())
    app = build_app(proxy=Exploding(after_head=after_head), pages=pages, metrics=metrics)
    await app(scope, receive, send)
    return sent


async def test_a_bug_is_a_500_with_the_id_and_its_traceback_once_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    start, body = await run_app(after_head=False)
    assert start["status"] == 500
    assert body["body"] == b"the router failed; its log has why, under job-7\n"
    assert [record.exc_info is not None for record in caplog.records] == [True]


async def test_a_bug_inside_an_answer_leaves_it_without_an_end() -> None:
    (start,) = await run_app(after_head=True)
    assert start["type"] == "http.response.start"


async def test_refusals_are_counted_by_status() -> None:
    async with running_router({}) as router:
        await router.client.get("/github.com/org/repo/HEAD")
        labels = {"endpoint": "none", "status": "400"}
        await until(lambda: router.metric("answers_total", **labels) == 1)


async def test_ensure_goes_to_the_owner_as_it_came() -> None:
    """With the caller's credential, which the owner checks; a proof of membership stays here."""
    target = "/-/ensure?repo=https%3A%2F%2FGitHub.com%2Forg%2Frepo.git&ref=refs/heads/main"
    async with unruly_node() as node, running_router({"a": node.url}) as router:
        node.conduct = answer(b"not yet", status="409 Conflict")
        got = await router.client.post(
            target, headers={"Authorization": "Basic eA==", "Goblet-Peer": "1.x"}
        )
        assert (got.status_code, got.content) == (409, b"not yet")
        assert got.headers["goblet-node"] == "a"
        assert (node.seen[0].method, node.seen[0].target) == ("POST", target)
        assert node.seen[0].header("authorization") == "Basic eA=="
        assert node.seen[0].header("goblet-peer") is None
        # Counted a moment after the client has its answer.
        await until(lambda: router.metric("answers_total", endpoint="ensure", status="409") == 1)


@pytest.mark.parametrize("question", ["", "?repo=h.org/a&repo=h.org/b", "?repo=..", "?ref=main"])
async def test_ensure_of_what_is_not_one_repository_costs_no_node_anything(question: str) -> None:
    async with unruly_node() as node, running_router({"a": node.url}) as router:
        got = await router.client.post(f"/-/ensure{question}")
        assert got.status_code == 400
        assert not node.seen

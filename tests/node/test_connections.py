"""Connections to upstreams: what is kept of an exchange, and requests that are lost."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import trio

from goblet_node.fill import connections
from goblet_node.fill.connections import DEAD_WITHIN, open_client, send
from goblet_testing.unruly import (
    Conduct,
    Line,
    Seen,
    UnrulyNode,
    answer,
    hang_up,
    reset,
    unruly_node,
)


@asynccontextmanager
async def upstream() -> AsyncIterator[tuple[UnrulyNode, httpx.AsyncClient]]:
    client = open_client(most=9, proxy=None, connect_timeout=5, write_timeout=5, pool_timeout=5)
    async with unruly_node() as node, client:
        yield node, client


async def ask(client: httpx.AsyncClient, url: str, body: bytes = b"") -> int:
    """Send a request, read its answer to the end, and return its status."""
    response = await send(client, httpx.Request("POST", url, content=body))
    await response.aread()
    return response.status_code


def first_then(lost: Conduct, *, always: bool = False) -> Conduct:
    """Answer the first request of a connection, do `lost` to others; `always`: then to all."""
    answered = 0

    async def conduct(seen: Seen, line: Line) -> None:
        nonlocal answered
        if seen.nth_on_connection > 1 or (always and answered):
            await lost(seen, line)
        else:
            answered += 1
            await answer()(seen, line)

    return conduct


def ways(node: UnrulyNode) -> list[tuple[int, int]]:
    return [(seen.connection, seen.nth_on_connection) for seen in node.seen]


@pytest.mark.parametrize("lost", [hang_up, reset])
async def test_a_request_lost_on_a_kept_connection_is_sent_once_more(lost: Conduct) -> None:
    async with upstream() as (node, client):
        node.conduct = first_then(lost)
        assert await ask(client, node.url) == 200
        assert await ask(client, node.url, b"question") == 200
    assert ways(node) == [(1, 1), (1, 2), (2, 1)]
    assert node.seen[1].body == node.seen[2].body == b"question"


async def test_a_request_is_sent_no_third_time() -> None:
    async with upstream() as (node, client):
        node.conduct = first_then(hang_up, always=True)
        assert await ask(client, node.url) == 200
        with pytest.raises(httpx.RemoteProtocolError):
            await ask(client, node.url)
    assert ways(node) == [(1, 1), (1, 2), (2, 1)]


async def test_a_request_lost_on_a_new_connection_is_not_repeated() -> None:
    async with upstream() as (node, client):
        node.conduct = hang_up
        with pytest.raises(httpx.RemoteProtocolError):
            await ask(client, node.url)
    assert ways(node) == [(1, 1)]


async def test_a_request_that_was_worked_on_is_not_repeated(
    mock_clock: trio.testing.MockClock,
) -> None:
    async def die_at_work(seen: Seen, line: Line) -> None:
        mock_clock.jump(DEAD_WITHIN + 0.1)
        await hang_up(seen, line)

    async with upstream() as (node, client):
        node.conduct = first_then(die_at_work)
        assert await ask(client, node.url) == 200
        with pytest.raises(httpx.RemoteProtocolError):
            await ask(client, node.url)
    assert ways(node) == [(1, 1), (1, 2)]


async def test_a_request_that_was_answered_is_not_repeated() -> None:
    """The answer is one that httpx cannot read: it looks at where a redirect leads."""
    async with upstream() as (node, client):
        node.conduct = first_then(
            answer(status="301 Moved Permanently", headers={"Location": "https://[::1"})
        )
        assert await ask(client, node.url) == 200
        with pytest.raises(httpx.RemoteProtocolError):
            await ask(client, node.url)
    assert ways(node) == [(1, 1), (1, 2)]


async def test_a_connection_is_kept_no_longer_than_hosts_keep_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with upstream() as (node, client):
        await ask(client, node.url)
        await ask(client, node.url)
        assert node.connections == 1
    monkeypatch.setattr(connections, "KEEPALIVE_EXPIRY", 0.0)
    async with upstream() as (node, client):
        await ask(client, node.url)
        await ask(client, node.url)
        assert node.connections == 2


async def test_a_client_keeps_no_cookie() -> None:
    async with upstream() as (node, client):
        node.conduct = answer(headers={"Set-Cookie": "session=alice; Path=/"})
        await client.get(node.url)
        await client.get(node.url)
    assert [seen.header("cookie") for seen in node.seen] == [None, None]

"""What is read of an upstream's answer, and how much of it at most."""

import gzip
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from goblet_node.errors import UpstreamError
from goblet_node.fill.reading import collect, is_encoded, passed
from goblet_testing.unruly import Conduct, Line, Seen, answer, head, unruly_node


@asynccontextmanager
async def answered(conduct: Conduct) -> AsyncIterator[httpx.Response]:
    async with unruly_node() as node, httpx.AsyncClient(trust_env=False) as client:
        node.conduct = conduct
        async with client.stream("GET", node.url) as response:
            yield response


@pytest.mark.parametrize(("size", "kept"), [(9, 9), (10, 10), (11, 10), (500_000, 10)])
async def test_a_body_is_cut_at_its_limit(size: int, kept: int) -> None:
    async with answered(answer(b"x" * size)) as response:
        assert await collect(response, 10, or_cut=True) == b"x" * kept


async def test_a_body_up_to_its_limit_is_read() -> None:
    async with answered(answer(b"x" * 10)) as response:
        assert await collect(response, 10) == b"x" * 10


async def test_a_body_above_its_limit_is_refused() -> None:
    async with answered(answer(b"x" * 11)) as response:
        with pytest.raises(UpstreamError, match="more than 10 bytes"):
            await collect(response, 10)


async def test_what_was_compressed_twice_is_refused_before_it_is_decoded() -> None:
    bomb = gzip.compress(gzip.compress(bytes(20_000_000)))
    coded = answer(bomb, headers={"Content-Encoding": "gzip, gzip"})
    async with answered(coded) as response:
        tracemalloc.start()
        with pytest.raises(UpstreamError, match="content-encoding 'gzip, gzip'"):
            await collect(response, 10, or_cut=True)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert most < 1_000_000


@pytest.mark.parametrize(
    ("said", "encoded"),
    [([], False), (["identity"], False), (["br"], True), (["Identity", "x-gzip"], True)],
)
async def test_any_coding_but_identity_is_one(said: list[str], encoded: bool) -> None:
    async def conduct(_: Seen, line: Line) -> None:
        lines = "".join(f"Content-Encoding: {one}\r\n" for one in said).encode()
        await line.send(head("200 OK", {"Content-Length": "0"})[:-2] + lines + b"\r\n")

    async with answered(conduct) as response:
        assert is_encoded(response) == encoded


async def test_headers_about_the_connection_are_not_passed_on() -> None:
    said = {"Content-Type": "a/b", "Connection": "x", "Set-Cookie": "a=b", "Retry-After": "5"}
    async with answered(answer(b"hi", headers=said)) as response:
        assert set(passed(response.headers)) == {
            (b"content-length", b"2"),
            (b"content-type", b"a/b"),
            (b"retry-after", b"5"),
        }

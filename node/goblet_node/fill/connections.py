"""Connections to upstreams: how many, how long one is kept, and what if it proves dead."""

import math
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx
import trio

# Hosts close a connection that is idle: Apache after 5 s, nginx after 75 s, unless
# told otherwise. Who lets go before the shortest of them rarely sends a request on
# a connection that is being closed at the other end.
KEEPALIVE_EXPIRY = 4.0
# A connection that was closed says so within a round trip. What fails later was
# being worked on, and asking again at once would have that done twice.
DEAD_WITHIN = 2.0
# What of the time for an answer may be spent on waiting for a connection. Who has none by
# then knows that it is for want of one: it was not upstream that took too long.
_WAITING_FOR_ONE = 0.9


def is_proxy_url(text: str) -> bool:
    """Say whether `open_client` can use this as its proxy."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return False
    is_port = url.port is None or 0 < url.port < 65536
    is_bare = url.path == "/" and not url.query and not url.fragment
    return url.scheme in ("http", "https") and bool(url.host) and is_port and is_bare


def open_client(
    *,
    most: int,
    proxy: str | None,
    connect_timeout: float,
    write_timeout: float,
    pool_timeout: float,
) -> httpx.AsyncClient:
    """Return a client for callers of all kinds, with at most `most` connections; times in seconds.

    Nothing of one caller's exchange is in another's: no cookie is kept. It has no
    read timeout, follows no redirect, and reads nothing of the environment.
    """
    return httpx.AsyncClient(
        trust_env=False,  # a proxy or .netrc of the machine must not meet callers' credentials
        proxy=proxy,
        follow_redirects=False,
        # Or the session that a host gave to one caller would go with another's request.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        limits=httpx.Limits(
            max_connections=most,
            # httpcore counts all connections against this limit: keep them equal.
            max_keepalive_connections=most,
            keepalive_expiry=KEEPALIVE_EXPIRY,
        ),
        timeout=httpx.Timeout(
            connect=connect_timeout, read=None, write=write_timeout, pool=pool_timeout
        ),
    )


async def send(
    client: httpx.AsyncClient, request: httpx.Request, *, deadline: float = math.inf
) -> httpx.Response:
    """Send `request` and return the head of its answer; the caller closes it.

    The caller gives up at `deadline`, in seconds of trio's clock; before it does for want
    of a connection, httpx.PoolTimeout is raised.

    A kept connection may have been closed by upstream a moment ago. A request that
    was lost in that way, before any answer, is sent once more: only for requests
    that change nothing, as all of git's fetch protocol.
    """
    way = _Way()
    request.extensions["trace"] = way.trace
    left = max(0.0, deadline - trio.current_time())
    timeout = client.timeout.as_dict()
    timeout["pool"] = min(timeout["pool"] or math.inf, _WAITING_FOR_ONE * left)
    request.extensions["timeout"] = timeout
    try:
        return await client.send(request, stream=True)
    except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
        # httpx says RemoteProtocolError also of an answer whose Location it cannot read.
        if way.is_new or way.is_answered or trio.current_time() > way.begun + DEAD_WITHIN:
            raise
    return await client.send(request, stream=True)


class _Way:
    """Notes of a request whether a connection was opened for it, and how far it came."""

    def __init__(self) -> None:
        self.is_new = False
        self.is_answered = False
        self.begun = trio.current_time()

    async def trace(self, event: str, _: dict[str, Any]) -> None:
        if event.startswith("connection.connect_"):
            self.is_new = True
        elif event == "http11.send_request_headers.started":
            self.begun = trio.current_time()
        elif event == "http11.receive_response_headers.complete":
            self.is_answered = True

"""Smart HTTP to the origin."""

import random
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import httpx
import trio

from goblet_node.errors import UpstreamError, UpstreamResting, UpstreamTooSlow
from goblet_node.fill.breaker import Breakers
from goblet_node.fill.connections import send
from goblet_node.fill.failures import FINAL, Refused, host_of, refusal_of, translated, unexpected
from goblet_node.fill.reading import Silence, as_sent, collect, in_time, passed
from goblet_node.fill.retrying import USUAL, Backoff, retried
from goblet_node.metrics import NodeMetrics
from goblet_node.wire import v2_client
from goblet_node.wire.fetch_reader import Batch, FetchEvent, FetchReader, PackData
from goblet_node.wire.refs import ObjectId
from goblet_shared.git_route import Route
from goblet_shared.repo_key import RepoKey
from goblet_shared.upstreams import INFO_REFS, Upstreams, origin_of

T = TypeVar("T")

# git itself follows up to 20; more than a few is a loop or a trap.
MAX_REDIRECTS = 5
# An advertisement of protocol v2 is under 1 KiB. An upstream that only speaks
# v0 answers with all of its refs, of which the first line is enough.
MAX_ADVERTISEMENT = 64 * 1024
# 1,000,000 refs of 130 bytes; above that a listing is an attack or a mistake.
MAX_LISTING = 128 * 1024 * 1024
# A listing up to here is read in 4 ms (100,000 refs: 0.43 s); while a longer one is, others go on.
READ_AT_ONCE = 64 * 1024
# The least of a pack that is passed on while more of it is there to be read.
BATCH = 1024 * 1024
POST_TYPE = "application/x-git-upload-pack-request"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Upstream let one credential read one repository, at this URL, and said this of itself.

    `authorization` is what `url` may be asked with: None for an anonymous caller,
    and None when a redirect led to another host, where a credential must not go.
    `age` is how many seconds ago upstream said so, if it cannot be asked now. `holder`
    stands for the credential in what is remembered of it.
    """

    key: RepoKey
    url: str
    authorization: str | None = field(repr=False)
    crossed_hosts: bool
    advertisement: v2_client.Advertisement
    age: float | None = None
    holder: bytes = field(default=b"", repr=False)

    @property
    def can_be_mirrored(self) -> bool:
        """Say whether we speak the repository's protocol and object format."""
        return self.advertisement.speaks_v2 and self.advertisement.object_format == "sha1"

    def held_by(self, authorization: str | None) -> "Grant":
        """Return this grant with the credential that it was asked with."""
        held = None if self.crossed_hosts else authorization
        return self if held == self.authorization else replace(self, authorization=held)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The head of an upstream's answer and its body as it comes, not decoded."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: AsyncGenerator[bytes]


class Upstream:
    """Asks origins, each question with the credential of somebody who may ask it."""

    def __init__(
        self,
        *,
        questions: httpx.AsyncClient,
        packs: httpx.AsyncClient,
        hosts: Upstreams,
        question_timeout: float,
        first_byte_timeout: float,
        idle_timeout: float,
        pack_idle_timeout: float,
        agent: str,
        breakers: Breakers,
        metrics: NodeMetrics,
        refused: Callable[[Grant], None] = lambda _: None,
        backoff: Backoff = USUAL,
        random: Callable[[], float] = random.random,
    ) -> None:
        """Take two open clients that have no read timeout of their own.

        Access checks and refs are asked for with `questions`, which is done with each
        in bounded time. Whatever is passed on at the pace of who reads it goes through
        `packs`: however many stall there, an access check finds a connection.
        `question_timeout` bounds a whole small question with all of its tries,
        `first_byte_timeout` the wait for the head of a pack's answer, `idle_timeout` that
        for each further piece of it, `pack_idle_timeout` that for the next piece of the pack
        itself, whatever is said of its progress meanwhile: all in seconds. `refused` is
        called with each grant that upstream denies again by a 401, 403 or 404, whoever
        waits for that answer still. `random` gives 0 to 1.
        """
        self._questions = questions
        self._packs = packs
        self._hosts = hosts
        self._question_timeout = question_timeout
        self._first_byte_timeout = first_byte_timeout
        self._idle_timeout = idle_timeout
        self._pack_idle_timeout = pack_idle_timeout
        self._agent = agent
        self._breakers = breakers
        self._metrics = metrics
        self._refused = refused
        self._backoff = backoff
        self._random = random

    async def may_read(self, route: Route, authorization: str | None) -> Grant:
        """Ask the repository's info/refs with a caller's own credential.

        Raises Refused with upstream's own answer if it says no, HostNotAllowed,
        and UpstreamError if it cannot say.
        """
        first = self._hosts.repository_url(route.key, dot_git=route.dot_git)
        deadline = trio.current_time() + self._question_timeout

        async def ask() -> Grant:
            with self._translated(first, "access"):
                return await self._grant(route.key, first, authorization, deadline)

        return await self._retried(ask, deadline)

    async def _grant(
        self, key: RepoKey, first: str, authorization: str | None, deadline: float
    ) -> Grant:
        url = first
        for _ in range(MAX_REDIRECTS + 1):
            crossed = origin_of(url) != origin_of(first)
            held = None if crossed else authorization
            request = _info_refs(url, self._headers(held))
            async with self._asked(key, url, request, deadline) as response:
                if response.has_redirect_location:
                    url = self._follow(url, response.headers.get("location", ""))
                    continue
                if response.status_code != 200:
                    raise await refusal_of(response)
                body = await collect(response, MAX_ADVERTISEMENT, or_cut=True)
                return Grant(
                    key=key,
                    url=url,
                    authorization=held,
                    crossed_hosts=crossed,
                    advertisement=v2_client.parse_advertisement(body),
                )
        raise UpstreamError(f"{host_of(first)} redirected {MAX_REDIRECTS} times: giving up")

    async def ls_refs(
        self, grant: Grant, prefixes: Sequence[bytes] | None, *, read: Callable[[bytes], T]
    ) -> T:
        """List the refs that begin with one of `prefixes`, or all; return what `read` makes of it.

        `read` is given the body of an answer and raises what wire.v2_client does; for
        a long one it runs in a thread. Raises Refused and UpstreamError.
        """
        unborn = grant.advertisement.has("ls-refs", "unborn")
        question = v2_client.encode_ls_refs_request(
            prefixes=prefixes, unborn=unborn, agent=self._agent
        )
        deadline = trio.current_time() + self._question_timeout

        async def ask() -> T:
            with self._translated(grant.url, "ls-refs"):
                request = _upload_pack(grant.url, self._headers(grant.authorization), question)
                async with self._asked(grant.key, grant.url, request, deadline) as response:
                    self._hear(grant, response)
                    if response.status_code != 200:
                        raise await refusal_of(response)
                    body = await collect(response, MAX_LISTING)
                    if len(body) <= READ_AT_ONCE:
                        return read(body)
                # Outside of the exchange: upstream's connection need not wait for us.
                return await trio.to_thread.run_sync(read, body)

        return await self._retried(ask, deadline)

    async def fetch(
        self, grant: Grant, *, wants: Sequence[ObjectId], haves: Sequence[ObjectId]
    ) -> AsyncGenerator[FetchEvent]:
        """Yield one pack of all that `wants` reach and `haves` do not, thin where it can be.

        What has come already is yielded at once, in as few pieces as can be: each costs
        whoever takes it more than its bytes do.
        Close the iterator (`aclosing`) to stop the transfer. An end of the iteration
        means that upstream ended the pack as it should; all else is an UpstreamError.
        """
        question = v2_client.encode_fetch_request(wants=wants, haves=haves, agent=self._agent)
        reader = FetchReader()
        request = _upload_pack(grant.url, self._headers(grant.authorization), question)
        async with self._begun(grant, "pack", request) as response:
            with self._translated(grant.url, None):
                silence = Silence(self._idle_timeout, of_pack=self._pack_idle_timeout)
                async with aclosing(in_time(response, as_sent(response), silence)) as chunks:
                    batch = Batch(reader)
                    async for chunk in chunks:
                        failure = batch.take(chunk)
                        if failure or batch.size >= BATCH or not _has_more(response):
                            for event in batch.events():
                                if isinstance(event, PackData):
                                    silence.is_broken()
                                yield event
                        if failure is not None:
                            raise failure
                    for event in batch.events():
                        yield event
                reader.end()

    @asynccontextmanager
    async def forward_post(
        self, grant: Grant, body: bytes, headers: Mapping[str, str]
    ) -> AsyncIterator[Answer]:
        """Pass a client's POST on and give its answer, whatever its status.

        Raises UpstreamError if that is none that git can use.
        """
        request = _upload_pack(grant.url, self._headers(grant.authorization, headers), body)
        async with self._begun(grant, "pack", request, is_clients=True) as response:
            yield self._answer(grant, response)

    @asynccontextmanager
    async def forward_info_refs(
        self, grant: Grant, headers: Mapping[str, str]
    ) -> AsyncIterator[Answer]:
        """Pass a client's GET of info/refs on and give its answer, whatever its status.

        Raises UpstreamError if that is none that git can use.
        """
        request = _info_refs(grant.url, self._headers(grant.authorization, headers))
        async with self._begun(grant, "info-refs", request, is_clients=True) as response:
            yield self._answer(grant, response)

    async def _retried(self, ask: Callable[[], Awaitable[T]], deadline: float) -> T:
        return await retried(ask, deadline=deadline, backoff=self._backoff, random=self._random)

    @asynccontextmanager
    async def _asked(
        self, key: RepoKey, url: str, request: httpx.Request, deadline: float
    ) -> AsyncIterator[httpx.Response]:
        """Ask a small question about a repository, and be done with its answer by `deadline`."""
        # The breaker is told of all that goes wrong, so each of these is within it.
        with self._breakers.watching(url, key), translated(url), trio.fail_at(deadline):
            response = await send(self._questions, request, deadline=deadline)
            try:
                yield response
            finally:
                await response.aclose()

    @asynccontextmanager
    async def _begun(
        self, grant: Grant, question: str, request: httpx.Request, *, is_clients: bool = False
    ) -> AsyncIterator[httpx.Response]:
        """Ask for what may be long, and wait no longer than allowed for its head.

        What is the client's own question gets upstream's answer whatever it is, others
        raise unless its status is 200.
        """
        url, deadline = grant.url, trio.current_time() + self._first_byte_timeout

        async def ask() -> httpx.Response:
            with (
                self._translated(url, question),
                self._breakers.watching(url, grant.key, is_clients=is_clients) as exchange,
                translated(url),
                trio.fail_at(deadline),
            ):
                response = await send(self._packs, request, deadline=deadline)
                self._hear(grant, response)
                if response.status_code >= 500:
                    exchange.says_nothing()  # which is what a client gets as it is
                if is_clients or response.status_code == 200:
                    return response
                try:
                    with trio.fail_after(self._idle_timeout):
                        raise await refusal_of(response)
                finally:
                    await response.aclose()

        response = await self._retried(ask, deadline)
        try:
            yield response
        finally:
            await response.aclose()

    def _hear(self, grant: Grant, response: httpx.Response) -> None:
        if response.status_code in FINAL:
            self._refused(grant)

    def _answer(self, grant: Grant, response: httpx.Response) -> Answer:
        if response.status_code < 200 or response.is_redirect:
            # Bare, for where it leads is not passed on: git would fail without a reason.
            raise unexpected(response)

        async def body() -> AsyncGenerator[bytes]:
            with self._translated(grant.url, None):
                silence = Silence(self._idle_timeout)
                async with aclosing(in_time(response, response.aiter_raw(), silence)) as chunks:
                    async for chunk in chunks:
                        yield chunk

        return Answer(status=response.status_code, headers=passed(response.headers), body=body())

    def _headers(
        self, authorization: str | None, forwarded: Mapping[str, str] | None = None
    ) -> dict[bytes, bytes]:
        """Return the head of a question of our own, or of a client's that is `forwarded`."""
        headers = {
            "user-agent": f"git/{self._agent}",
            "accept": "*/*",
            # A pack does not compress, and of the rest we want no more than we count.
            "accept-encoding": "identity",
        }
        if authorization is not None:
            headers["authorization"] = authorization
        headers |= {"git-protocol": "version=2"} if forwarded is None else forwarded
        # As they were decoded: httpx would take text for ASCII.
        return {name.encode("latin-1"): text.encode("latin-1") for name, text in headers.items()}

    def _follow(self, asked: str, location: str) -> str:
        target = self._hosts.redirected(asked, location)
        if target is None:
            raise UpstreamError(
                f"{host_of(asked)} redirects this repository to an address "
                "that is not among the upstreams of this Goblet"
            )
        return target

    @contextmanager
    def _translated(self, url: str, question: str | None) -> Iterator[None]:
        """Turn what httpx and trio raise into our errors, and count the question if it is one."""
        outcome = "error"
        try:
            with translated(url):
                yield
            outcome = "answered"
        except Refused:
            outcome = "refused"
            raise
        except UpstreamTooSlow:
            outcome = "too-slow"
            raise
        except UpstreamResting:
            outcome = "not-asked"
            raise
        finally:
            if question is not None:
                self._metrics.upstream_requests.labels(question, outcome).inc()


# Not made by the client, which would add what it thinks fit: its cookies, for example.
def _info_refs(url: str, headers: Mapping[bytes, bytes]) -> httpx.Request:
    return httpx.Request("GET", url + INFO_REFS, headers=headers)


def _upload_pack(url: str, headers: Mapping[bytes, bytes], body: bytes) -> httpx.Request:
    kind = {b"content-type": POST_TYPE.encode()}
    return httpx.Request(
        "POST", url + "/git-upload-pack", headers={**kind, **headers}, content=body
    )


def _has_more(response: httpx.Response) -> bool:
    """Say whether the next read of an answer would return at once."""
    stream = response.extensions.get("network_stream")
    return stream is not None and bool(stream.get_extra_info("is_readable"))

"""Smart HTTP to the origin. Every failure of httpx is translated here."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace

import httpx
import trio

from goblet_node.errors import ProtocolError, UpstreamError, UpstreamTooSlow
from goblet_node.fill.hosts import INFO_REFS, Upstreams, origin_of
from goblet_node.metrics import NodeMetrics
from goblet_node.wire import v2_client
from goblet_node.wire.fetch_reader import FetchEvent, FetchReader
from goblet_node.wire.refs import ObjectId, Ref
from goblet_shared.errors import GobletError
from goblet_shared.git_route import Route
from goblet_shared.repo_key import RepoKey

# git itself follows up to 20; more than a few is a loop or a trap.
MAX_REDIRECTS = 5
# An advertisement of protocol v2 is under 1 KiB. An upstream that only speaks
# v0 answers with all of its refs, of which the first line is enough.
MAX_ADVERTISEMENT = 64 * 1024
# 1,000,000 refs of 130 bytes; above that a listing is an attack or a mistake.
MAX_LISTING = 128 * 1024 * 1024
# What a refusal's own text may cost: hosts write one sentence.
MAX_REFUSAL = 4096
# What releasing a connection may take: it only closes a socket.
CLOSE_GRACE = 2.0
POST_TYPE = "application/x-git-upload-pack-request"
# Headers of an answer that say something about its bytes or to its client;
# all others belong to the connection between upstream and us.
PASSED_HEADERS = (
    "content-type",
    "content-encoding",
    "content-length",
    "cache-control",
    "expires",
    "pragma",
    "retry-after",
    "www-authenticate",
)


class Refused(GobletError):
    """Upstream answered the caller's own question with an error; it goes back as it came."""

    def __init__(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        super().__init__(f"upstream answered {status}")
        self.status = status
        self.headers = tuple(headers)
        self.body = body


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Upstream let one credential read one repository, at this URL, and said this of itself.

    `authorization` is what `url` may be asked with: None for an anonymous caller,
    and None when a redirect led to another host, where a credential must not go.
    """

    key: RepoKey
    url: str
    authorization: str | None = field(repr=False)
    crossed_hosts: bool
    advertisement: v2_client.Advertisement

    @property
    def can_be_mirrored(self) -> bool:
        """Say whether we speak the repository's protocol and object format."""
        return self.advertisement.speaks_v2 and self.advertisement.object_format == "sha1"

    def held_by(self, authorization: str | None) -> "Grant":
        """Return this grant with the credential that it was asked with."""
        return replace(self, authorization=None if self.crossed_hosts else authorization)


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
        client: httpx.AsyncClient,
        hosts: Upstreams,
        question_timeout: float,
        first_byte_timeout: float,
        idle_timeout: float,
        agent: str,
        metrics: NodeMetrics,
    ) -> None:
        """Take an open client that has no read timeout of its own.

        `question_timeout` bounds a whole small question, `first_byte_timeout` the
        wait for the head of a pack's answer, `idle_timeout` that for each further
        piece of it: all in seconds.
        """
        self._client = client
        self._hosts = hosts
        self._question_timeout = question_timeout
        self._first_byte_timeout = first_byte_timeout
        self._idle_timeout = idle_timeout
        self._agent = agent
        self._metrics = metrics

    async def may_read(self, route: Route, authorization: str | None) -> Grant:
        """Ask the repository's info/refs with a caller's own credential.

        Raises Refused with upstream's own answer if it says no, HostNotAllowed,
        and UpstreamError if it cannot say.
        """
        first = url = self._hosts.repository_url(route.key, dot_git=route.dot_git)
        with self._translated(url, "access"), trio.fail_after(self._question_timeout):
            for _ in range(MAX_REDIRECTS + 1):
                crossed = origin_of(url) != origin_of(first)
                headers = self._headers(None if crossed else authorization)
                async with self._client.stream("GET", url + INFO_REFS, headers=headers) as response:
                    if response.is_redirect:
                        url = self._follow(url, response.headers.get("location", ""))
                        continue
                    if response.status_code != 200:
                        raise await _refused(response)
                    body = await _collect(response, MAX_ADVERTISEMENT, or_cut=True)
                    return Grant(
                        key=route.key,
                        url=url,
                        authorization=None if crossed else authorization,
                        crossed_hosts=crossed,
                        advertisement=v2_client.parse_advertisement(body),
                    )
            raise UpstreamError(f"{_host(first)} redirected {MAX_REDIRECTS} times: giving up")

    async def ls_refs(self, grant: Grant, prefixes: Sequence[bytes] | None) -> tuple[Ref, ...]:
        """List the refs that begin with one of `prefixes`, or all.

        Raises Refused, UpstreamError, or what wire.v2 says of a malformed listing.
        """
        unborn = grant.advertisement.has("ls-refs", "unborn")
        question = v2_client.encode_ls_refs_request(
            prefixes=prefixes, unborn=unborn, agent=self._agent
        )
        with self._translated(grant.url, "ls-refs"), trio.fail_after(self._question_timeout):
            async with self._client.stream(
                "POST",
                grant.url + "/git-upload-pack",
                headers=self._headers(grant.authorization) | {"content-type": POST_TYPE},
                content=question,
            ) as response:
                if response.status_code != 200:
                    raise await _refused(response)
                return v2_client.parse_ls_refs(await _collect(response, MAX_LISTING))

    async def fetch(
        self, grant: Grant, *, wants: Sequence[ObjectId], haves: Sequence[ObjectId]
    ) -> AsyncGenerator[FetchEvent]:
        """Yield one pack of all that `wants` reach and `haves` do not, thin where it can be.

        Close the iterator (`aclosing`) to stop the transfer. An end of the iteration
        means that upstream ended the pack as it should; all else is an UpstreamError.
        """
        question = v2_client.encode_fetch_request(wants=wants, haves=haves, agent=self._agent)
        reader = FetchReader()
        async with self._post(grant.url, question, self._headers(grant.authorization)) as response:
            if response.status_code != 200:
                raise await _refused(response)
            with self._translated(grant.url, None):
                async with aclosing(self._in_time(response, response.aiter_bytes())) as chunks:
                    async for chunk in chunks:
                        reader.feed(chunk)
                        for event in reader.events():
                            yield event
                reader.end()

    @asynccontextmanager
    async def forward_post(
        self, grant: Grant, body: bytes, headers: Mapping[str, str]
    ) -> AsyncIterator[Answer]:
        """Pass a client's POST on and give its answer, whatever its status."""
        head = self._headers(grant.authorization, protocol=None) | dict(headers)
        async with self._post(grant.url, body, head) as response:
            yield self._answer(grant, response)

    @asynccontextmanager
    async def forward_info_refs(
        self, grant: Grant, headers: Mapping[str, str]
    ) -> AsyncIterator[Answer]:
        """Pass a client's GET of info/refs on and give its answer, whatever its status."""
        head = self._headers(grant.authorization, protocol=None) | dict(headers)
        with self._translated(grant.url, "info-refs"):
            request = self._client.build_request("GET", grant.url + INFO_REFS, headers=head)
            with trio.fail_after(self._first_byte_timeout):
                response = await self._client.send(request, stream=True)
        try:
            yield self._answer(grant, response)
        finally:
            await response.aclose()

    @asynccontextmanager
    async def _post(
        self, url: str, body: bytes, headers: dict[str, str]
    ) -> AsyncIterator[httpx.Response]:
        with self._translated(url, "pack"):
            request = self._client.build_request(
                "POST",
                url + "/git-upload-pack",
                # A pack does not compress; asking for it would only cost.
                headers={"accept-encoding": "identity", "content-type": POST_TYPE} | headers,
                content=body,
            )
            with trio.fail_after(self._first_byte_timeout):
                response = await self._client.send(request, stream=True)
        try:
            yield response
        finally:
            await response.aclose()

    async def _in_time(
        self, response: httpx.Response, chunks: AsyncIterator[bytes]
    ) -> AsyncGenerator[bytes]:
        try:
            while True:
                # No yield inside the deadline: it would bound our consumer too.
                with trio.fail_after(self._idle_timeout):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                yield chunk
        finally:
            await _let_go(response, chunks)

    def _answer(self, grant: Grant, response: httpx.Response) -> Answer:
        async def body() -> AsyncGenerator[bytes]:
            with self._translated(grant.url, None):
                async with aclosing(self._in_time(response, response.aiter_raw())) as chunks:
                    async for chunk in chunks:
                        yield chunk

        return Answer(status=response.status_code, headers=_passed(response.headers), body=body())

    def _headers(
        self, authorization: str | None, *, protocol: str | None = "version=2"
    ) -> dict[str, str]:
        headers = {"user-agent": f"git/{self._agent}"}
        if protocol is not None:
            headers["git-protocol"] = protocol
        if authorization is not None:
            headers["authorization"] = authorization
        return headers

    def _follow(self, asked: str, location: str) -> str:
        target = self._hosts.redirected(asked, location)
        if target is None:
            raise UpstreamError(
                f"{_host(asked)} redirects this repository to an address "
                "that is not among the upstreams of this Goblet"
            )
        return target

    @contextmanager
    def _translated(self, url: str, question: str | None) -> Iterator[None]:
        """Turn what httpx and trio raise into our errors, and count the question if it is one."""
        outcome = "error"
        try:
            yield
            outcome = "answered"
        except Refused:
            outcome = "refused"
            raise
        except (httpx.TimeoutException, trio.TooSlowError) as exc:
            outcome = "too-slow"
            raise UpstreamTooSlow(f"{_host(url)} did not answer in time: try again later") from exc
        except ProtocolError as exc:
            raise UpstreamError(f"{_host(url)} answers what git would not: {exc}") from exc
        except httpx.HTTPError as exc:
            raise UpstreamError(
                f"{_host(url)} could not be asked ({type(exc).__name__}): try again later"
            ) from exc
        finally:
            if question is not None:
                self._metrics.upstream_requests.labels(question, outcome).inc()


async def _collect(response: httpx.Response, limit: int, *, or_cut: bool = False) -> bytes:
    """Read a decoded body of at most `limit` bytes; cut there, or raise UpstreamError."""
    body = bytearray()
    chunks = response.aiter_bytes()
    try:
        async for chunk in chunks:
            body += chunk
            if len(body) > limit:
                if or_cut:
                    break
                raise UpstreamError(f"{response.url.host} sent more than {limit} bytes of refs")
    finally:
        await _let_go(response, chunks)
    return bytes(body[:limit])


async def _refused(response: httpx.Response) -> GobletError:
    """Read an answer that is not 200 into the error that its client should see."""
    status = response.status_code
    if status >= 500:
        return UpstreamError(f"{response.url.host} answered {status}: try again later")
    if status < 400:
        return UpstreamError(f"{response.url.host} answered {status} where git expects 200")
    body = await _collect(response, MAX_REFUSAL, or_cut=True)
    kept = tuple(
        (name, value)
        for name, value in _passed(response.headers)
        if name not in (b"content-encoding", b"content-length")
    )
    return Refused(status, kept, body)


def _passed(headers: httpx.Headers) -> tuple[tuple[bytes, bytes], ...]:
    return tuple(
        (name.lower(), value)
        for name, value in headers.raw
        if name.decode("ascii").lower() in PASSED_HEADERS
    )


def _host(url: str) -> str:
    return httpx.URL(url).host


async def _let_go(response: httpx.Response, chunks: AsyncIterator[bytes]) -> None:
    """Release the connection: kept if the body was read to its end, else closed."""
    with trio.move_on_after(CLOSE_GRACE, shield=True):
        await response.aclose()
        # The body is several generators deep and we hold only the outermost. Dropped
        # half way, the inner ones are left to the garbage collector, of which trio
        # warns. Reading on from the closed connection ends them all.
        with suppress(httpx.HTTPError, httpx.StreamError):
            async for _ in chunks:
                pass

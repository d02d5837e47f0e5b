"""What other members of the cluster are asked: how they are, which mirrors they hold, for files.

The client side of `goblet_node.peering`. Asked by name: the address that answers to a
name is what the cluster's members say it is, so nothing that a peer answers, or a client
asks, leads to any other address.
"""

import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from urllib.parse import urlencode

import httpx
import trio

from goblet_node.errors import UpstreamError
from goblet_node.fill.connections import send
from goblet_node.fill.reading import CLOSE_GRACE, as_sent, let_go
from goblet_shared import members, repo_key
from goblet_shared.cluster_secret import ClusterSecret
from goblet_shared.contract import NodeName
from goblet_shared.errors import BadRequest, GobletError
from goblet_shared.members import Member, MemberState
from goblet_shared.repo_key import RepoKey

# What a node says of its mirrors (100 bytes each), and of one of them: a million refs and
# what its generations differ in.
MAX_LIST = 64 * 1024 * 1024
MAX_OFFER = 256 * 1024 * 1024
# A sentence.
_MAX_WORDS = 2048
# What Python says of JSON with an endless number, or with brackets within brackets.
_TOO_MUCH = (OverflowError, RecursionError)


class PeerFailed(GobletError):
    """Another member could not be asked, or did not give what it was asked for."""

    status = 502


class PeerMoved(PeerFailed):
    """A peer's mirror is not any more what it was offered as: the offer is to be had anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerMirror:
    """A mirror that a peer holds: what it takes on the disk there, when it was used last."""

    key: RepoKey
    bytes: int
    used_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A mirror as a peer offers it, not believed yet.

    Attributes:
        sizes: The name of each file of its log, and how many bytes that has.
        used_at: When it was used last there, in seconds since 1970.
        manifest: Its manifest, as it lies.
        refs: Its refs file, as it lies.
    """

    sizes: Mapping[str, int]
    used_at: float
    manifest: bytes
    refs: bytes

    @property
    def bytes(self) -> int:
        """What the mirror takes on disk."""
        return sum(self.sizes.values()) + len(self.manifest) + len(self.refs)


def encode_offer(offer: Offer) -> bytes:
    """Return an offer as it travels: a line of JSON, the manifest, which is a line, the refs."""
    head = {"files": dict(offer.sizes), "used_at": offer.used_at}
    return json.dumps(head).encode() + b"\n" + offer.manifest + offer.refs


def decode_offer(body: bytes) -> Offer:
    """Return the offer that travelled as `body`.

    Raises:
        ValueError: it is none.
    """
    head, _, rest = body.partition(b"\n")
    manifest, end, refs = rest.partition(b"\n")
    try:
        said = json.loads(head)
        sizes = {str(name): int(size) for name, size in said["files"].items()}
        used_at = float(said["used_at"])
    except (ValueError, AttributeError, KeyError, TypeError, *_TOO_MUCH) as exc:
        raise ValueError("not an offer of a mirror") from exc
    if min(sizes.values(), default=0) < 0:
        raise ValueError("a file has less than no bytes")
    if not 0 <= used_at < math.inf:
        raise ValueError("a use at no time")
    return Offer(sizes=sizes, used_at=used_at, manifest=manifest + end, refs=refs)


class Peers:
    """Asks members, by name."""

    def __init__(
        self,
        *,
        me: NodeName,
        member: Callable[[NodeName], Member | None],
        secret: ClusterSecret | None,
        client: httpx.AsyncClient,
        question_timeout: float,
        idle_timeout: float,
    ) -> None:
        """Ask as `me`, at the address that `member` has for a name.

        An answer must begin within `question_timeout` seconds, and have no pause that is
        longer than `idle_timeout`. `client` goes through no proxy.
        """
        self._me = me
        self._member = member
        self._secret = secret
        self._client = client
        self._question_timeout = question_timeout
        self._idle_timeout = idle_timeout

    async def probe(self, member: Member) -> MemberState | None:
        """Return what a member says that it is; None if it gives no proper answer.

        Its caller bounds the time.
        """
        try:
            async with self._asking(member, "GET", b"/readyz") as response:
                words = await self._read(response, _MAX_WORDS, or_cut=True)
        except PeerFailed:
            return None
        return members.state_said(response.status_code, words)

    async def mirrors(self, node: NodeName) -> tuple[PeerMirror, ...]:
        """Return what `node` holds. Raises PeerFailed."""
        async with self._asking(self._known(node), "GET", b"/-/peer/mirrors") as response:
            await self._expect(node, response, 200)
            body = await self._read(response, MAX_LIST)
        try:
            return await trio.to_thread.run_sync(_mirrors, body)
        except ValueError as exc:
            raise PeerFailed(f"{node} does not say which mirrors it holds: {exc}") from exc

    async def has(self, node: NodeName, key: RepoKey) -> bool:
        """Say whether `node` holds a mirror. Raises PeerFailed."""
        target = _target(b"/-/peer/mirror", repo=key)
        async with self._asking(self._known(node), "HEAD", target) as response:
            if response.status_code != 404:
                await self._expect(node, response, 200)
            await self._read(response, _MAX_WORDS)
            return response.status_code == 200

    async def offer(self, node: NodeName, key: RepoKey) -> Offer | None:
        """Return the mirror that `node` holds as it describes it; None if it holds none.

        Raises PeerFailed.
        """
        target = _target(b"/-/peer/mirror", repo=key)
        async with self._asking(self._known(node), "GET", target) as response:
            if response.status_code == 404:
                return None
            await self._expect(node, response, 200)
            body = await self._read(response, MAX_OFFER)
        try:
            return await trio.to_thread.run_sync(decode_offer, body)
        except ValueError as exc:
            raise PeerFailed(f"{node} does not say what its mirror of {key} is: {exc}") from exc

    @asynccontextmanager
    async def file(
        self, node: NodeName, key: RepoKey, name: str, *, begin: int, size: int
    ) -> AsyncIterator[AsyncGenerator[bytes]]:
        """Give the bytes of a file of a mirror's log from `begin` on, as they come.

        They are as many as are left of `size`, or PeerFailed is raised where they are
        waited for; PeerMoved if the mirror does not have such a file any more.
        """
        target = _target(b"/-/peer/file", repo=key, name=name)
        range_ = ("range", f"bytes={begin}-")
        async with self._asking(self._known(node), "GET", target, headers=[range_]) as response:
            if response.status_code in (404, 409, 416):
                raise PeerMoved(f"{node} does not have {name} of {key} any more")
            await self._expect(node, response, 206)
            if response.headers.get("content-range") != f"bytes {begin}-{size - 1}/{size}":
                raise PeerMoved(f"{node} has another {name} of {key} than it offered")
            async with aclosing(self._pieces(response)) as pieces:
                yield pieces

    async def hand_over(self, node: NodeName, keys: Sequence[RepoKey]) -> None:
        """Tell `node` to copy these from this node, in their order. Raises PeerFailed.

        It does so after it has answered.
        """
        body = json.dumps({"from": self._me, "keys": list(keys)}).encode()
        async with self._asking(self._known(node), "POST", b"/-/peer/take", body=body) as response:
            await self._expect(node, response, 202)
            await self._read(response, _MAX_WORDS)

    async def awaited(self, node: NodeName) -> frozenset[RepoKey]:
        """Return what `node` was told to copy and has not tried yet. Raises PeerFailed."""
        async with self._asking(self._known(node), "GET", b"/-/peer/take") as response:
            await self._expect(node, response, 200)
            body = await self._read(response, MAX_LIST)
        try:
            return await trio.to_thread.run_sync(_awaited, body)
        except ValueError as exc:
            raise PeerFailed(f"{node} does not say what it is to copy: {exc}") from exc

    def _known(self, node: NodeName) -> Member:
        member = self._member(node)
        if member is None:
            raise PeerFailed(f"{node} is not a member of this cluster any more")
        return member

    @asynccontextmanager
    async def _asking(
        self,
        member: Member,
        method: str,
        target: bytes,
        *,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
    ) -> AsyncIterator[httpx.Response]:
        """Give the head of an answer; what goes wrong, in the block too, is a PeerFailed."""
        with _translated(member.name):
            request = self._client.build_request(
                method,
                member.url + target.decode(),
                headers=[("accept-encoding", "identity"), *headers],
                content=body or None,
            )
            if self._secret is not None:
                # Of the target as it travels, which httpx may spell differently.
                name, value = self._secret.header(method, request.url.raw_path, body)
                request.headers[name.decode()] = value.decode()
            with trio.fail_after(self._question_timeout):
                response = await send(self._client, request)
            try:
                yield response
            finally:
                with trio.move_on_after(CLOSE_GRACE, shield=True):
                    await response.aclose()

    async def _read(self, response: httpx.Response, limit: int, *, or_cut: bool = False) -> bytes:
        """Return a body of at most `limit` bytes; raise PeerFailed if it is longer, or cut it."""
        body = bytearray()
        async with aclosing(self._pieces(response)) as pieces:
            async for piece in pieces:
                body += piece
                if len(body) > limit:
                    if or_cut:
                        break
                    raise PeerFailed(f"more than {limit} bytes were answered")
        del body[limit:]
        return bytes(body)

    async def _pieces(self, response: httpx.Response) -> AsyncGenerator[bytes]:
        chunks = as_sent(response)
        try:
            while True:
                with trio.fail_after(self._idle_timeout):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                yield chunk
        finally:
            await let_go(response, chunks)

    async def _expect(self, node: NodeName, response: httpx.Response, status: int) -> None:
        if response.status_code == status:
            return
        if response.status_code == 403:
            raise PeerFailed(f"{node} does not take us for a member: is its cluster secret ours?")
        words = await self._read(response, _MAX_WORDS, or_cut=True)
        said = " ".join(words.decode(errors="replace").split())
        raise PeerFailed(f"{node} answered {response.status_code}: {said[:200]}")


@contextmanager
def _translated(node: NodeName) -> Iterator[None]:
    """Raise what httpx, trio and the readers of its answers raise as a PeerFailed."""
    try:
        yield
    except (httpx.TimeoutException, trio.TooSlowError) as exc:
        raise PeerFailed(f"{node} did not answer in time") from exc
    # UnicodeError: of a host that is none, such as a label of 64 letters.
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as exc:
        raise PeerFailed(f"{node} could not be asked ({type(exc).__name__})") from exc
    except UpstreamError as exc:
        raise PeerFailed(f"{node}: {exc}") from exc


def _target(path: bytes, **query: str) -> bytes:
    return path + b"?" + urlencode(query).encode()


def _mirrors(body: bytes) -> tuple[PeerMirror, ...]:
    """Return the mirrors that a list names. Raises ValueError if it is none."""
    try:
        return tuple(
            PeerMirror(
                key=repo_key.parse(said["key"]),
                bytes=int(said["bytes"]),
                used_at=float(said["used_at"]),
            )
            for said in json.loads(body)["mirrors"]
        )
    except (AttributeError, KeyError, TypeError, *_TOO_MUCH) as exc:
        raise ValueError("not a list of mirrors") from exc
    except BadRequest as exc:
        raise ValueError(str(exc)) from exc


def _awaited(body: bytes) -> frozenset[RepoKey]:
    """Return the repositories that a list names. Raises ValueError if it is none."""
    try:
        return frozenset(repo_key.parse(key) for key in json.loads(body)["awaited"])
    except (AttributeError, KeyError, TypeError, *_TOO_MUCH) as exc:
        raise ValueError("not a list of repositories") from exc
    except BadRequest as exc:
        raise ValueError(str(exc)) from exc

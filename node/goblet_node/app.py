"""The ASGI application of a node: route, access, wire, answer.

The only place where errors become statuses.
"""

import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import TypeVar

import trio

from goblet_node.access import Access
from goblet_node.body import BadEncoding, Bodies, ClientGone, TooManyBodies
from goblet_node.ensure import ENSURE, Ensured, Ensurer, MethodNotAllowed, parse_ensure
from goblet_node.errors import ProtocolError, UpstreamError
from goblet_node.fill.failures import Refused
from goblet_node.fill.upstream import POST_TYPE, Grant
from goblet_node.metrics import NodeMetrics
from goblet_node.serve.advertise import Advertiser
from goblet_node.serve.answer import Answerer
from goblet_node.serve.reply import NOT_TO_BE_KEPT, RESULT, Reply
from goblet_node.serve.sending import Asked
from goblet_node.wire import v0, v2
from goblet_node.wire.answers import Dialect, V2Dialect
from goblet_node.wire.pktline import encode_error
from goblet_node.wire.requests import Fetch, LsRefs
from goblet_shared import asgi, contract, repo_key
from goblet_shared.errors import GobletError
from goblet_shared.git_route import Endpoint, Route, is_own, must_be_served, parse_target
from goblet_shared.parts import ZEROCOPY

log = logging.getLogger(__name__)

_SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_PROBE = b"0000"
# Bodies from here on are read in a thread, 10 ms at the least: others must not wait.
PARSED_AT_ONCE = 256 * 1024
# 200 jobs of a CI send the same bytes, and to read those of an ls-refs takes 35 us.
# So many bodies of so many bytes are remembered for that, with what they say.
REMEMBERED_BODIES = 512
REMEMBERED_BODY = 4096

T = TypeVar("T")


class Node:
    """Answers git requests with the parts that it is given."""

    def __init__(
        self,
        *,
        name: str,
        access: Access,
        advertiser: Advertiser,
        answerer: Answerer,
        ensurer: Ensurer,
        metrics: NodeMetrics,
        own: asgi.ASGIApp,
        bodies: Bodies,
    ) -> None:
        """Answer what git_route does not know with `own`."""
        self._name = name
        self._access = access
        self._advertiser = advertiser
        self._answerer = answerer
        self._ensurer = ensurer
        self._metrics = metrics
        self._own = own
        self._bodies = bodies
        self._parse_v2 = _remembering(_parse_v2)
        self._parse_v0 = _remembering(_parse_v0)

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        """Answer one request; every exception ends here."""
        is_ensure = scope["raw_path"] == ENSURE
        if is_own(scope["raw_path"]) and not is_ensure:
            await self._own(scope, receive, send)
            return
        started = time.monotonic()
        given = asgi.header(scope, contract.REQUEST_ID_HEADER) or b""
        request_id = given if _SANE_REQUEST_ID.fullmatch(given) else _new_request_id()
        reply = Reply(
            send=send,
            node=self._name,
            request_id=request_id,
            metrics=self._metrics,
            takes_files=ZEROCOPY in (scope.get("extensions") or {}),
        )
        route: Route | None = None
        endpoint = "ensure" if is_ensure else "none"
        error = ""
        with self._metrics.in_flight.track_inprogress():
            try:
                if is_ensure:
                    ensured = parse_ensure(method=scope["method"], query=scope["query_string"])
                    route = ensured.route
                    await self._ensure(ensured, scope, receive, reply)
                else:
                    route = parse_target(
                        method=scope["method"],
                        raw_path=scope["raw_path"],
                        query=scope["query_string"],
                    )
                    endpoint = route.endpoint.value
                    await self._answer(route, scope, receive, reply)
                # Here, where nothing watches for the client any more: hypercorn reports
                # the end of an exchange as a disconnect, too.
                await reply.end()
            except ClientGone:
                error = "the client left before its answer was complete"
            except Exception as exc:
                error = await self._fail(exc, reply, request_id)
        self._metrics.requests.labels(endpoint, str(reply.status or 0)).inc()
        log.info(
            "method=%s key=%s endpoint=%s status=%s bytes=%d seconds=%.3f cache=%s id=%s%s%s",
            scope["method"],
            _shown(route),
            endpoint,
            reply.status or "-",
            reply.sent,
            time.monotonic() - started,
            reply.cache or "-",
            request_id.decode(),
            f" note={reply.note!r}" if reply.note else "",
            f" error={error!r}" if error else "",
        )

    async def _answer(
        self, route: Route, scope: asgi.Scope, receive: asgi.Receive, reply: Reply
    ) -> None:
        must_be_served(route)
        grant = await self._access.check(route, _authorization(scope))
        reply.age = grant.age
        await self._serve(route, grant, scope, receive, reply)

    async def _ensure(
        self, ensured: Ensured, scope: asgi.Scope, receive: asgi.Receive, reply: Reply
    ) -> None:
        async def answer() -> None:
            held = await self._ensurer.ensure(ensured, _authorization(scope))
            kind = (b"content-type", b"application/json")
            await reply.whole(200, [kind, *NOT_TO_BE_KEPT], json.dumps(held).encode() + b"\n")

        # A body is dropped as it comes: nothing of it is asked for.
        await _while_there(receive, answer)

    async def _serve(
        self,
        route: Route,
        grant: Grant,
        scope: asgi.Scope,
        receive: asgi.Receive,
        reply: Reply,
    ) -> None:
        if route.endpoint is Endpoint.INFO_REFS:
            await self._info_refs(grant, scope, receive, reply)
            return
        # Nobody is made to wait for a body, nor we to keep one, before the check.
        kind = asgi.header(scope, b"content-type")
        if kind != POST_TYPE.encode():
            raise BadEncoding(f"content-type {kind!r} is not that of a git request")
        encoding = asgi.header(scope, b"content-encoding")
        async with self._bodies.reading(receive, encoding=encoding) as body:
            await self._upload_pack(grant, body, scope, receive, reply)

    async def _info_refs(
        self, grant: Grant, scope: asgi.Scope, receive: asgi.Receive, reply: Reply
    ) -> None:
        version = _version(scope)
        passed = _passed_on(scope, (b"git-protocol", b"accept", b"accept-encoding"))
        await _while_there(
            receive,
            lambda: self._advertiser.info_refs(passed, grant, reply, version=version),
            waits=self._advertiser.waits(grant, None, version=version),
        )

    async def _upload_pack(
        self, grant: Grant, body: bytes, scope: asgi.Scope, receive: asgi.Receive, reply: Reply
    ) -> None:
        if body == _PROBE:
            # What git sends before a body above http.postBuffer, without naming a
            # protocol, to have credentials asked for: upload-pack says nothing to it.
            await reply.whole(200, [RESULT, *NOT_TO_BE_KEPT], b"")
            return
        passed = _passed_on(scope, (b"git-protocol", b"accept"))
        if not grant.can_be_mirrored:
            reply.note = "another protocol or object format"
            await _while_there(receive, lambda: self._answerer.forward(body, passed, grant, reply))
            return
        parse = self._parse_v2 if _version(scope) == 2 else self._parse_v0
        if len(body) < PARSED_AT_ONCE:
            request, dialect = parse(body)
        else:
            request, dialect = await trio.to_thread.run_sync(parse, body)
        if request.object_format != "sha1":
            raise ProtocolError("this repository names its objects with sha1")
        if isinstance(request, LsRefs):
            listing = request
            await _while_there(
                receive,
                lambda: self._advertiser.ls_refs(listing, grant, reply),
                waits=self._advertiser.waits(grant, listing),
            )
        else:
            asked = Asked(fetch=request, dialect=dialect, body=body, headers=passed)
            if not await self._answerer.answer_at_hand(asked, grant, reply):
                await _while_there(receive, lambda: self._answerer.answer(asked, grant, reply))

    async def _fail(self, exc: Exception, reply: Reply, request_id: bytes) -> str:
        """Tell the client what happened, if it can still be told; return it for the log."""
        if not isinstance(exc, GobletError):
            log.error("request %s failed", request_id.decode(), exc_info=exc)
            exc = GobletError(
                f"this node failed: tell its operator, naming request {request_id.decode()}"
            )
        if not reply.is_started:
            if isinstance(exc, Refused):
                await reply.whole(exc.status, exc.headers, exc.body)
            elif isinstance(exc, ProtocolError):
                # git shows an ERR packet word for word, and hides the body of a 400.
                kind = [RESULT, *NOT_TO_BE_KEPT]
                await reply.whole(200, kind, encode_error(str(exc)))
            else:
                await reply.sentence(exc.status, str(exc), _hints(exc))
            await reply.end()
        return str(exc)


async def _while_there(
    receive: asgi.Receive, answer: Callable[[], Awaitable[None]], *, waits: bool = True
) -> None:
    """Answer, unless the client leaves before all was sent: then raise ClientGone.

    What `waits` for nothing is not worth the 50 us of watching the client.
    """
    if not waits:
        await answer()
        return
    is_whole = False
    async with asgi.cancelled_on_disconnect(receive):
        await answer()
        is_whole = True
    if not is_whole:
        raise ClientGone


def _remembering(parse: Callable[[bytes], T]) -> Callable[[bytes], T]:
    """Return `parse`, which is pure, with a memory for bodies that come again and again."""
    known = lru_cache(REMEMBERED_BODIES)(parse)
    return lambda body: known(body) if len(body) <= REMEMBERED_BODY else parse(body)


def _authorization(scope: asgi.Scope) -> str | None:
    credential = asgi.header(scope, b"authorization")
    # Upstream is asked over connections that all callers share.
    if credential is None or asgi.is_of_a_connection(credential):
        return None
    return credential.decode("latin-1")


def _hints(exc: GobletError) -> Sequence[tuple[bytes, bytes]]:
    if isinstance(exc, MethodNotAllowed):
        return [(b"allow", b"POST")]
    is_passing = isinstance(exc, UpstreamError | TooManyBodies)
    return [(b"retry-after", b"5")] if is_passing else []


def _parse_v2(body: bytes) -> tuple[LsRefs | Fetch, Dialect]:
    return v2.parse_request(body), V2Dialect()


def _parse_v0(body: bytes) -> tuple[LsRefs | Fetch, Dialect]:
    return v0.parse_request(body)


def _version(scope: asgi.Scope) -> int:
    """Return the newest protocol version that the client names, as git does; 0 if none."""
    said = (asgi.header(scope, b"git-protocol") or b"").split(b":")
    return max((version for version in (1, 2) if b"version=%d" % version in said), default=0)


def _passed_on(scope: asgi.Scope, names: Sequence[bytes]) -> dict[str, str]:
    found = ((name, asgi.header(scope, name)) for name in names)
    return {name.decode(): value.decode("latin-1") for name, value in found if value is not None}


def _shown(route: Route | None) -> str:
    """Return a repository for the log, percent-encoded: a space in it forges no field."""
    if route is None:
        return "-"
    return f"{repo_key.host_of(route.key)}/{repo_key.url_path(route.key)}"


def _new_request_id() -> bytes:
    return secrets.token_hex(8).encode()

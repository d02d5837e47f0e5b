"""The ASGI application of a node: route, access, wire, answer.

The only place where errors become statuses.
"""

import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing

import trio

from goblet_node.access import Access
from goblet_node.body import BadEncoding, Bodies, ClientGone, TooManyBodies
from goblet_node.errors import ProtocolError, UpstreamError
from goblet_node.fill.refresh import Refresher
from goblet_node.fill.refs import RefsDesk, question_for
from goblet_node.fill.upstream import POST_TYPE, Grant, Refused, Upstream
from goblet_node.metrics import NodeMetrics
from goblet_node.serve.answer import Answerer
from goblet_node.serve.reply import NOT_TO_BE_KEPT, RESULT, Reply
from goblet_node.serve.sending import Asked
from goblet_node.wire import v0, v2
from goblet_node.wire.answers import Dialect, V2Dialect
from goblet_node.wire.pktline import encode_error
from goblet_node.wire.requests import Fetch, LsRefs
from goblet_shared import asgi, contract, repo_key
from goblet_shared.errors import BadRequest, GobletError
from goblet_shared.git_route import Endpoint, Route, is_own, parse_target

log = logging.getLogger(__name__)

# Features of v2 `fetch` that we may offer: those whose requests we read. Offered
# only where upstream has them too, since it may be the one to answer.
KNOWN_FEATURES = ("shallow", "wait-for-done", "filter")
_SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_PROBE = b"0000"
# Bodies from here on are read in a thread, 10 ms at the least: others must not wait.
PARSED_AT_ONCE = 256 * 1024


class NotServed(BadRequest):
    """A git endpoint that a read-only cache does not have."""

    status = 403


class Node:
    """Answers git requests with the parts that it is given."""

    def __init__(
        self,
        *,
        name: str,
        agent: str,
        access: Access,
        desk: RefsDesk,
        refresher: Refresher,
        answerer: Answerer,
        upstream: Upstream,
        metrics: NodeMetrics,
        own: asgi.ASGIApp,
        bodies: Bodies,
    ) -> None:
        """Answer what git_route does not know with `own`."""
        self._name = name
        self._agent = agent
        self._access = access
        self._desk = desk
        self._refresher = refresher
        self._answerer = answerer
        self._upstream = upstream
        self._metrics = metrics
        self._own = own
        self._bodies = bodies

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        """Answer one request; every exception ends here."""
        if is_own(scope["raw_path"]):
            await self._own(scope, receive, send)
            return
        started = time.monotonic()
        given = asgi.header(scope, contract.REQUEST_ID_HEADER) or b""
        request_id = given if _SANE_REQUEST_ID.fullmatch(given) else _new_request_id()
        reply = Reply(send=send, node=self._name, request_id=request_id, metrics=self._metrics)
        route: Route | None = None
        error = ""
        with self._metrics.in_flight.track_inprogress():
            try:
                route = parse_target(
                    method=scope["method"],
                    raw_path=scope["raw_path"],
                    query=scope["query_string"],
                )
                await self._answer(route, scope, receive, reply)
                # Here, where nothing watches for the client any more: hypercorn reports
                # the end of an exchange as a disconnect, too.
                await reply.end()
            except ClientGone:
                error = "the client left before its answer was complete"
            except Exception as exc:
                error = await self._fail(exc, reply, request_id)
        endpoint = route.endpoint.value if route is not None else "none"
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
        if route.endpoint is Endpoint.LFS:
            raise NotServed("this Goblet does not serve LFS: set lfs.url to the git host itself")
        if route.endpoint is Endpoint.RECEIVE_PACK or route.service == "git-receive-pack":
            raise NotServed(
                "pushes do not go through Goblet: "
                "set url.<base>.pushInsteadOf to the git host itself"
            )
        credential = asgi.header(scope, b"authorization")
        authorization = credential.decode("latin-1") if credential is not None else None
        grant = await self._access.check(route, authorization)
        try:
            await self._serve(route, grant, scope, receive, reply)
        except Refused:
            # Upstream changed its mind: what was remembered of it is not true any more.
            self._access.forget(route, authorization)
            raise
        if reply.status in (401, 403, 404):
            self._access.forget(route, authorization)

    async def _serve(
        self,
        route: Route,
        grant: Grant,
        scope: asgi.Scope,
        receive: asgi.Receive,
        reply: Reply,
    ) -> None:
        if route.endpoint is Endpoint.INFO_REFS:
            await _while_there(receive, lambda: self._info_refs(grant, scope, reply))
            return
        # Nobody is made to wait for a body, nor we to keep one, before the check.
        kind = asgi.header(scope, b"content-type")
        if kind != POST_TYPE.encode():
            raise BadEncoding(f"content-type {kind!r} is not that of a git request")
        encoding = asgi.header(scope, b"content-encoding")
        async with self._bodies.reading(receive, encoding=encoding) as body:
            await _while_there(receive, lambda: self._upload_pack(grant, body, scope, reply))

    async def _info_refs(self, grant: Grant, scope: asgi.Scope, reply: Reply) -> None:
        if not grant.can_be_mirrored:
            await self._forward_info_refs(grant, scope, reply)
            return
        version = _version(scope)
        kind = (b"content-type", b"application/x-git-upload-pack-advertisement")
        if version == 2:
            offered = tuple(
                feature for feature in KNOWN_FEATURES if grant.advertisement.has("fetch", feature)
            )
            features = v2.Advertised(
                fetch=offered, server_option=grant.advertisement.has("server-option")
            )
            body = v2.encode_advertisement(agent=self._agent, features=features)
            await reply.whole(200, [kind, *NOT_TO_BE_KEPT], body)
            return
        refs = await self._desk.ask(grant, None)
        await self._refresher.heard(grant, refs)
        await reply.start(200, [kind, *NOT_TO_BE_KEPT])
        for piece in v0.encode_advertisement(refs, agent=self._agent, version=version):
            await reply.send(piece)

    async def _forward_info_refs(self, grant: Grant, scope: asgi.Scope, reply: Reply) -> None:
        passed = _passed_on(scope, (b"git-protocol", b"accept", b"accept-encoding"))
        passed.setdefault("accept-encoding", "identity")
        async with self._upstream.forward_info_refs(grant, passed) as answer:
            await reply.start(answer.status, answer.headers)
            async with aclosing(answer.body) as chunks:
                async for chunk in chunks:
                    await reply.send(chunk)

    async def _upload_pack(
        self, grant: Grant, body: bytes, scope: asgi.Scope, reply: Reply
    ) -> None:
        if body == _PROBE:
            # What git sends before a body above http.postBuffer, without naming a
            # protocol, to have credentials asked for: upload-pack says nothing to it.
            await reply.whole(200, [RESULT, *NOT_TO_BE_KEPT], b"")
            return
        passed = _passed_on(scope, (b"git-protocol", b"accept"))
        if not grant.can_be_mirrored:
            reply.note = "another protocol or object format"
            await self._answerer.forward(body, passed, grant, reply)
            return
        parse = _parse_v2 if _version(scope) == 2 else v0.parse_request
        if len(body) < PARSED_AT_ONCE:
            request, dialect = parse(body)
        else:
            request, dialect = await trio.to_thread.run_sync(parse, body)
        if request.object_format != "sha1":
            raise ProtocolError("this repository names its objects with sha1")
        if isinstance(request, LsRefs):
            await self._ls_refs(grant, request, reply)
        else:
            asked = Asked(fetch=request, dialect=dialect, body=body, headers=passed)
            await self._answerer.answer(asked, grant, reply)

    async def _ls_refs(self, grant: Grant, request: LsRefs, reply: Reply) -> None:
        refs = await self._desk.ask(grant, question_for(request.prefixes))
        await self._refresher.heard(grant, refs)
        await reply.start(200, [RESULT, *NOT_TO_BE_KEPT])
        for piece in v2.encode_ls_refs(refs, request):
            await reply.send(piece)

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


async def _while_there(receive: asgi.Receive, answer: Callable[[], Awaitable[None]]) -> None:
    """Answer, unless the client leaves before all was sent: then raise ClientGone."""
    is_whole = False
    async with asgi.cancelled_on_disconnect(receive):
        await answer()
        is_whole = True
    if not is_whole:
        raise ClientGone


def _hints(exc: GobletError) -> Sequence[tuple[bytes, bytes]]:
    is_passing = isinstance(exc, UpstreamError | TooManyBodies)
    return [(b"retry-after", b"5")] if is_passing else []


def _parse_v2(body: bytes) -> tuple[LsRefs | Fetch, Dialect]:
    return v2.parse_request(body), V2Dialect()


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

"""The ASGI application of a node: route, access, wire, answer.

The only place where errors become statuses.
"""

import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

from goblet_node.access.callers import Callers
from goblet_node.access.check import Access
from goblet_node.body import BadEncoding, Bodies, ClientGone, TooManyBodies
from goblet_node.ensure import ENSURE, Ensurer, MethodNotAllowed, parse_ensure
from goblet_node.errors import ProtocolError, UpstreamError
from goblet_node.fill.failures import Refused
from goblet_node.fill.upstream import POST_TYPE, Grant
from goblet_node.limits import Busy, Limits, TooManyRequests
from goblet_node.metrics import NodeMetrics
from goblet_node.passing import Passing, is_passed_on
from goblet_node.questions import Questions
from goblet_node.serve.advertise import Advertiser
from goblet_node.serve.answer import Answerer
from goblet_node.serve.reply import NOT_TO_BE_KEPT, RESULT, Reply
from goblet_node.serve.sending import Asked
from goblet_node.visit import Visit
from goblet_node.wire.pktline import encode_error
from goblet_node.wire.requests import LsRefs
from goblet_shared import asgi
from goblet_shared.audit import Audit
from goblet_shared.errors import GobletError
from goblet_shared.git_route import Endpoint, Route, is_own, parse_target
from goblet_shared.parts import ZEROCOPY

log = logging.getLogger(__name__)

_PROBE = b"0000"


class Node:
    """Answers git requests with the parts that it is given."""

    def __init__(
        self,
        *,
        name: str,
        callers: Callers,
        limits: Limits,
        access: Access,
        passing: Passing,
        advertiser: Advertiser,
        answerer: Answerer,
        ensurer: Ensurer,
        metrics: NodeMetrics,
        own: asgi.ASGIApp,
        bodies: Bodies,
        audit: Audit,
    ) -> None:
        """Answer what git_route does not know with `own`."""
        self._name = name
        self._callers = callers
        self._limits = limits
        self._access = access
        self._passing = passing
        self._audit = audit
        self._advertiser = advertiser
        self._answerer = answerer
        self._ensurer = ensurer
        self._metrics = metrics
        self._own = own
        self._bodies = bodies
        self._questions = Questions()

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        """Answer one request; every exception ends here."""
        is_ensure = scope["raw_path"] == ENSURE
        if is_own(scope["raw_path"]) and not is_ensure:
            await self._own(scope, receive, send)
            return
        visit = Visit(scope, audit=self._audit)
        reply = Reply(
            send=send,
            node=self._name,
            request_id=visit.request_id,
            metrics=self._metrics,
            takes_files=ZEROCOPY in (scope.get("extensions") or {}),
        )
        with self._metrics.in_flight.track_inprogress():
            try:
                if is_ensure:
                    await self._ensure(visit, scope, receive, reply)
                else:
                    await self._git(visit, scope, receive, reply)
                # Here, where nothing watches for the client any more: hypercorn reports
                # the end of an exchange as a disconnect, too.
                await reply.end()
            except ClientGone:
                visit.error = "the client left before its answer was complete"
            except Exception as exc:
                visit.error = await self._fail(exc, reply, visit.request_id)
        self._metrics.requests.labels(visit.endpoint, str(reply.status or 0)).inc()
        visit.ended(reply)
        log.info("%s", visit.line(reply))

    async def _git(
        self, visit: Visit, scope: asgi.Scope, receive: asgi.Receive, reply: Reply
    ) -> None:
        visit.route = route = parse_target(
            method=scope["method"], raw_path=scope["raw_path"], query=scope["query_string"]
        )
        visit.endpoint = route.endpoint.value
        visit.caller = caller = self._callers.identify(scope)
        with self._limits.entered(caller):
            if is_passed_on(route):
                await self._passing.pass_on(route, caller, scope, receive, reply)
                return
            with _decision(visit):
                grant = await self._access.check(route, caller)
            reply.age = grant.age
            await self._serve(route, grant, scope, receive, reply)

    async def _ensure(
        self, visit: Visit, scope: asgi.Scope, receive: asgi.Receive, reply: Reply
    ) -> None:
        visit.endpoint = "ensure"
        ensured = parse_ensure(method=scope["method"], query=scope["query_string"])
        visit.route = ensured.route
        visit.caller = caller = self._callers.identify(scope)

        async def answer() -> None:
            with _decision(visit):
                grant = await self._access.check(ensured.route, caller)
            held = await self._ensurer.ensure(ensured, grant)
            kind = (b"content-type", b"application/json")
            await reply.whole(200, [kind, *NOT_TO_BE_KEPT], json.dumps(held).encode() + b"\n")

        with self._limits.entered(caller):
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
        request, dialect = await self._questions.read(body, version=_version(scope))
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


@contextmanager
def _decision(visit: Visit) -> Iterator[None]:
    """Have it written down how the block decided."""
    try:
        yield
    except GobletError as exc:
        visit.decided("refused", status=exc.status)
        raise
    visit.decided("allowed")


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


def _hints(exc: GobletError) -> Sequence[tuple[bytes, bytes]]:
    if isinstance(exc, MethodNotAllowed):
        return [(b"allow", b"POST")]
    is_passing = isinstance(exc, UpstreamError | TooManyBodies | TooManyRequests | Busy)
    return [(b"retry-after", b"5")] if is_passing else []


def _version(scope: asgi.Scope) -> int:
    """Return the newest protocol version that the client names, as git does; 0 if none."""
    said = (asgi.header(scope, b"git-protocol") or b"").split(b":")
    return max((version for version in (1, 2) if b"version=%d" % version in said), default=0)


def _passed_on(scope: asgi.Scope, names: Sequence[bytes]) -> dict[str, str]:
    found = ((name, asgi.header(scope, name)) for name in names)
    return {name.decode(): value.decode("latin-1") for name, value in found if value is not None}

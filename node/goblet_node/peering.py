"""What other members of the cluster ask of a node: which mirrors it holds, and their files.

The server side of `fill.peers`. Everything here is for members alone: whoever asks proves
that it knows the cluster's secret. No name that is asked for ever touches the disk: it
is looked for among those that the mirror's manifest has at this moment.
"""

import json
import logging
import os
import re
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from goblet_node.admin import holdings
from goblet_node.body import Bodies, ClientGone
from goblet_node.errors import MirrorDamaged
from goblet_node.fill.peers import Offer, encode_offer
from goblet_node.fill.taking import Taker
from goblet_node.metrics import NodeMetrics
from goblet_node.mirror.disk import read_file, reading
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.manifest import encode_manifest
from goblet_node.mirror.store import MirrorMoved, MirrorStore
from goblet_node.mirror.view import manifest_of
from goblet_shared import asgi, members, repo_key
from goblet_shared.cluster_secret import ClusterSecret, check_administrator
from goblet_shared.contract import NodeName
from goblet_shared.errors import BadRequest, GobletError
from goblet_shared.parts import ZEROCOPY, FileSpan, cut, size_of
from goblet_shared.repo_key import RepoKey
from goblet_shared.sendfile import send_copied

log = logging.getLogger(__name__)

_RANGE = re.compile(rb"bytes=([0-9]{1,18})-")
# A list of as many mirrors as may wait, at 100 bytes each.
_MAX_TOLD = 16 * 1024 * 1024
_TOLD_IDLE = 10.0
# As `serve.reply` has it: a client that leaves must not count for all of a large file.
_MESSAGE = 16 << 20
# A mirror that changes while it is described is described anew.
_TRIES = 3


class NotThere(GobletError):
    """The mirror or the file that was asked for is not, or not any more, one of this node."""

    status = 404


class BeyondItsEnd(GobletError):
    """A file has no byte at the position from which on it was asked for."""

    status = 416


class ChangesTooOften(GobletError):
    """A mirror changed each time that it was looked at."""

    status = 409


def build_peering(
    *, store: MirrorStore, taker: Taker, secret: ClusterSecret | None, metrics: NodeMetrics
) -> list[BaseRoute]:
    """Return the routes `/-/peer/...`: mirrors, mirror, file and take."""
    bodies = Bodies(limit=_MAX_TOLD, budget=4 * _MAX_TOLD, idle=_TOLD_IDLE)

    async def list_mirrors(request: Request) -> Response:
        check_administrator(request.scope, secret)
        return JSONResponse({"mirrors": holdings(store)})

    async def describe(request: Request) -> Response:
        check_administrator(request.scope, secret)
        key = _key_of(request.scope)
        if store.get(key) is None:
            raise NotThere(f"there is no mirror of {key} here")
        if request.method == "HEAD":
            return Response()
        offer = await trio.to_thread.run_sync(_described, store, key)
        return Response(offer, media_type="application/octet-stream")

    async def take(request: Request) -> Response:
        if request.method != "POST":
            check_administrator(request.scope, secret)
            return JSONResponse({"awaited": sorted(taker.awaited)})
        async with bodies.reading(request.receive, encoding=None) as body:
            check_administrator(request.scope, secret, body)
            source, keys = await trio.to_thread.run_sync(_told, body)
        taker.take(source, keys)
        log.info("%s hands over %d mirrors", source, len(keys))
        return JSONResponse({"noted": len(keys)}, status_code=202)

    return [
        Route("/-/peer/mirrors", partial(_answered, list_mirrors)),
        Route("/-/peer/mirror", partial(_answered, describe)),
        Route("/-/peer/take", partial(_answered, take), methods=["GET", "POST"]),
        Route("/-/peer/file", _Files(store=store, secret=secret, metrics=metrics)),
    ]


async def _answered(
    endpoint: Callable[[Request], Awaitable[Response]], request: Request
) -> Response:
    try:
        return await endpoint(request)
    except GobletError as exc:
        return PlainTextResponse(f"{exc}\n", status_code=exc.status)
    except ClientGone:
        return Response(status_code=400)  # which nobody will see


class _Files:
    """Sends files of mirrors' logs, from any byte on, without reading them for it."""

    def __init__(
        self, *, store: MirrorStore, secret: ClusterSecret | None, metrics: NodeMetrics
    ) -> None:
        self._store = store
        self._secret = secret
        self._metrics = metrics

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        """Answer one request; an answer that cannot be ended is cut off, which its client sees."""
        has_begun = False

        async def begin_and_send(message: asgi.Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._answer(scope, receive, begin_and_send)
        except GobletError as exc:
            if has_begun:
                log.warning("a file for another member was cut off: %s", exc)
            else:
                await asgi.send_text(send, exc.status, str(exc))

    async def _answer(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        check_administrator(scope, self._secret)
        if scope["method"] != "GET":
            raise BadRequest("ask with GET")
        key, name = _key_of(scope), _asked(scope, "name")
        begin = _begin_of(scope)
        mirror = self._store.get(key)
        path = None if mirror is None else _files(mirror).get(name)
        if mirror is None or path is None:
            raise NotThere(f"the mirror of {key} has no file {name!r} now")
        with self._store.reading(mirror):
            file = await trio.to_thread.run_sync(_open, path)
            try:
                await self._send(file, begin or 0, begin is not None, scope, receive, send)
            finally:
                os.close(file)

    async def _send(
        self,
        file: int,
        begin: int,
        is_part: bool,
        scope: asgi.Scope,
        receive: asgi.Receive,
        send: asgi.Send,
    ) -> None:
        size = os.fstat(file).st_size
        if begin >= size:
            raise BeyondItsEnd(f"the file has {size} bytes, none from {begin} on")
        headers = [
            (b"content-type", b"application/octet-stream"),
            (b"content-length", b"%d" % (size - begin)),
        ]
        if is_part:
            headers.append((b"content-range", b"bytes %d-%d/%d" % (begin, size - 1, size)))
        takes_files = ZEROCOPY in (scope.get("extensions") or {})
        is_whole = False
        async with asgi.cancelled_on_disconnect(receive):
            status = 206 if is_part else 200
            await send({"type": "http.response.start", "status": status, "headers": headers})
            span = FileSpan(file=file, offset=begin, count=size - begin)
            for batch in cut([span], _MESSAGE):
                if takes_files:
                    await send({"type": ZEROCOPY, "parts": batch, "more_body": True})
                else:
                    await send_copied(send, batch)
                self._metrics.peer_sent_bytes.inc(size_of(batch))
            is_whole = True
        if is_whole:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _described(store: MirrorStore, key: RepoKey) -> bytes:
    """Return a mirror as an offer, as it travels."""
    for _ in range(_TRIES):
        mirror = store.get(key)
        if mirror is None:
            raise NotThere(f"there is no mirror of {key} here")
        try:
            with store.reading(mirror):
                return encode_offer(_offer(mirror, used_at=store.used_at(key)))
        except (MirrorMoved, MirrorDamaged):
            continue  # its refs file goes with the next commit, whoever reads it
    raise ChangesTooOften(f"the mirror of {key} cannot be described: ask again")


def _offer(mirror: Mirror, *, used_at: float) -> Offer:
    sizes = {}
    for name, path in _files(mirror).items():
        with reading(path):
            sizes[name] = path.stat().st_size
    return Offer(
        sizes=sizes,
        used_at=used_at,
        manifest=encode_manifest(manifest_of(mirror)),
        refs=read_file(mirror.directory / mirror.current.refs_file),
    )


def _files(mirror: Mirror) -> dict[str, Path]:
    return {path.name: path for files in mirror.files for path in files}


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotThere(f"{path.name!r} is gone") from None
    except OSError as exc:
        raise GobletError(f"{path.name!r} cannot be read ({exc.strerror})") from exc


def _key_of(scope: asgi.Scope) -> RepoKey:
    return repo_key.parse(_asked(scope, "repo"))


def _asked(scope: asgi.Scope, name: str) -> str:
    """Return the one value that a request's query has for `name`."""
    query: bytes = scope["query_string"]
    values = parse_qs(query.decode("latin-1")).get(name, [])
    if len(values) != 1:
        raise BadRequest(f"name one {name}: {scope['path']}?{name}=...")
    return values[0]


def _begin_of(scope: asgi.Scope) -> int | None:
    """Return from which byte on a file is asked for; None if all of it is, and no part."""
    said = asgi.header(scope, b"range")
    if said is None:
        return None
    match = _RANGE.fullmatch(said)
    if match is None:
        raise BadRequest("ask for one range of bytes that has no end: bytes=N-")
    return int(match[1])


def _told(body: bytes) -> tuple[NodeName, list[RepoKey]]:
    """Return from whom which mirrors are to be copied. Raises BadRequest."""
    try:
        said = json.loads(body)
        source, keys = said["from"], said["keys"]
        if not (isinstance(source, str) and members.is_node_name(source)):
            raise BadRequest("the name of a node is expected as 'from'")
        return NodeName(source), [repo_key.parse(key) for key in keys]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise BadRequest('want {"from": NAME, "keys": [HOST/PATH, ...]}') from exc

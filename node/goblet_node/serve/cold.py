"""Answers while the mirror cannot give them: what its first fetch receives, or upstream's own."""

from collections.abc import Mapping
from contextlib import aclosing

import trio

from goblet_node.errors import ProtocolError, UpstreamError
from goblet_node.fill.failures import Refused
from goblet_node.fill.spool import Follower, Spool
from goblet_node.fill.upstream import Answer, Grant, Upstream
from goblet_node.serve.negotiate import negotiate
from goblet_node.serve.pieces import SLICE
from goblet_node.serve.production import Production
from goblet_node.serve.reply import RESULT, Reply
from goblet_node.serve.selecting import KEEPALIVE_AFTER
from goblet_node.serve.selection import Selection
from goblet_node.serve.sending import Asked, Sending, Straight
from goblet_node.wire.answer_check import AnswerCheck
from goblet_node.wire.answers import Dialect, SideBand, V2Dialect
from goblet_node.wire.requests import Fetch
from goblet_shared.errors import GobletError
from goblet_shared.parts import size_of

# What a refusal's own text may cost: hosts write one sentence.
_MAX_REFUSAL = 4096
_PLAIN = (b"", b"identity")
# What comes before a pack: a line for each commit at which history is cut.
_MAX_HEAD = 1 << 20


class Cold:
    """Answers from what upstream sends, while it sends it."""

    def __init__(self, *, upstream: Upstream) -> None:
        self._upstream = upstream

    async def forward(
        self, body: bytes, headers: Mapping[str, str], grant: Grant, reply: Reply
    ) -> None:
        """Let upstream answer a POST, and pass its answer on as it comes."""
        async with self._upstream.forward_post(grant, body, headers) as answer:
            cache = "forwarded" if answer.status == 200 else None
            await reply.start(answer.status, answer.headers, cache=cache)
            async with aclosing(answer.body) as chunks:
                async for chunk in chunks:
                    await reply.send(chunk)

    async def make(self, asked: Asked, grant: Grant, production: Production) -> None:
        """Let upstream answer a fetch for all who ask the same.

        What is given is whole packets. If they are not a whole and sound answer, the
        production is not worth keeping. Raises Refused with upstream's own words if
        it says no, UpstreamError.
        """
        check = AnswerCheck(asked.dialect, tells_boundary=asked.fetch.has_depth)
        async with (
            self._upstream.forward_post(grant, asked.body, asked.headers) as answer,
            aclosing(answer.body) as chunks,
        ):
            await _expect_success(answer)
            head = b""
            try:
                async for chunk in chunks:
                    packets = check.take(chunk)
                    if not production.is_started:
                        head += packets
                        # An answer that breaks off before its pack is a status, since
                        # no packet could tell what happened between those of a section.
                        if not check.has_head and len(head) < _MAX_HEAD:
                            continue
                        await production.start(cache="forwarded")
                        packets = head
                    if packets:
                        await production.send(packets)
                check.end()
            except ProtocolError as exc:
                raise UpstreamError(f"upstream answers what git would not: {exc}") from exc
        production.is_good = check.is_good

    async def follow(self, asked: Asked, spool: Spool, reply: Reply) -> str | None:
        """Send what a first fetch receives; return why not, if nothing was sent."""
        turn = negotiate(asked.fetch, asked.dialect, common=(), shallow=(), ready=lambda _: False)
        sending = Sending(asked.fetch, asked.dialect, Straight(reply), cache="cold")
        with spool.following() as follower:
            with trio.move_on_after(KEEPALIVE_AFTER):
                while not (spool.size or spool.said or spool.ended):
                    await spool.changed()
            if spool.error is not None:
                # It may have been refused for the sake of whoever came first.
                return f"the first fetch failed: {told_as(spool.error)}"
            await sending.begin(Selection(turn=turn))
            if turn.has_pack:
                await self._copy(asked, spool, follower, reply)
                if spool.error is not None:
                    raise told_as(spool.error)
                await reply.send(asked.dialect.end)
        return None

    async def _copy(self, asked: Asked, spool: Spool, follower: Follower, reply: Reply) -> None:
        """Send what a spool holds and what comes, until it has ended."""
        said = 0
        while True:
            if said < len(spool.said):
                text, said = b"".join(spool.said[said:]), len(spool.said)
                if not asked.fetch.no_progress:
                    await reply.send(asked.dialect.progress(text))
            elif follower.is_behind:
                part = follower.part(SLICE)
                await reply.send_parts(asked.dialect.framed([part]))
                follower.taken(size_of([part]))
            elif spool.ended:
                return
            else:
                with trio.move_on_after(KEEPALIVE_AFTER) as silence:
                    await spool.changed()
                if silence.cancelled_caught:
                    await reply.send(asked.dialect.keepalive)


def is_forwarded_for_all(fetch: Fetch, dialect: Dialect) -> bool:
    """Whether upstream's answer to a fetch is worth recording, and can be judged.

    A plain clone's is not: its repository is being fetched, or is too large to be kept.
    """
    is_part = fetch.has_depth or fetch.filter_spec is not None
    has_pack = isinstance(dialect, V2Dialect) or fetch.done
    return is_part and has_pack and not fetch.haves and dialect.side_band is not SideBand.NONE


def told_as(error: Exception) -> GobletError:
    """Return what a client may be told of an error, which another task may have met."""
    return error if isinstance(error, GobletError) else GobletError("this node failed: try again")


async def _expect_success(answer: Answer) -> None:
    """Raise what upstream said instead of an answer that all who asked may have."""
    if answer.status in range(400, 500):
        raise Refused(answer.status, _without_length(answer), await _words(answer))
    headers = dict(answer.headers)
    coding = headers.get(b"content-encoding", b"").lower()
    if answer.status != 200:
        raise UpstreamError(f"upstream answered {answer.status}: try again later")
    if headers.get(b"content-type") != RESULT[1] or coding not in _PLAIN:
        raise UpstreamError("upstream answers what git would not: it is no answer to a fetch")


def _without_length(answer: Answer) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in answer.headers if name != b"content-length"]


async def _words(answer: Answer) -> bytes:
    """Return the beginning of a refusal's text."""
    words = b""
    async for chunk in answer.body:
        words += chunk[: _MAX_REFUSAL - len(words)]
        if len(words) == _MAX_REFUSAL:
            break
    return words

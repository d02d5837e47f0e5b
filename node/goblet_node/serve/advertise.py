"""Tell a client what the refs are, and what may be asked, in either dialect."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Protocol

from goblet_node.fill.refs import Listing, Question, RefsDesk, question_for
from goblet_node.fill.stale import StaleRefs
from goblet_node.fill.upstream import Answer, Grant
from goblet_node.serve.listed import ListedRefs
from goblet_node.serve.reply import NOT_TO_BE_KEPT, RESULT, Reply
from goblet_node.wire import v2
from goblet_node.wire.requests import LsRefs

# Features of v2 `fetch` that we may offer: those whose requests we read. Offered
# only where upstream has them too, since it may be the one to answer.
KNOWN_FEATURES = ("shallow", "wait-for-done", "filter")
_ADVERTISEMENT = (b"content-type", b"application/x-git-upload-pack-advertisement")


class Hearer(Protocol):
    """Who brings mirrors to what their upstream lists: the Refresher."""

    async def heard(self, grant: Grant, listing: Listing) -> None:
        """Take note of what upstream said."""


class Forwarder(Protocol):
    """Who can let upstream answer: the Upstream."""

    def forward_info_refs(
        self, grant: Grant, headers: Mapping[str, str]
    ) -> AbstractAsyncContextManager[Answer]:
        """Ask upstream with these headers of a client."""
        ...


class Advertiser:
    """Answers info/refs and ls-refs, and has a mirror brought to what it tells."""

    def __init__(
        self,
        *,
        agent: str,
        desk: RefsDesk,
        stale: StaleRefs,
        listed: ListedRefs,
        refresher: Hearer,
        upstream: Forwarder,
    ) -> None:
        """Call ourselves `agent`."""
        self._agent = agent
        self._desk = desk
        self._stale = stale
        self._listed = listed
        self._refresher = refresher
        self._upstream = upstream

    def waits(self, grant: Grant, question: LsRefs | None, *, version: int = 2) -> bool:
        """Say whether an answer would wait for upstream, so that its client may leave meanwhile.

        `question` is None for info/refs.
        """
        if not grant.can_be_mirrored:
            return True
        if question is None:
            return version != 2 and self._desk.fresh(grant.key, None) is None
        return self._desk.fresh(grant.key, question_for(question.prefixes)) is None

    async def info_refs(
        self, headers: Mapping[str, str], grant: Grant, reply: Reply, *, version: int
    ) -> None:
        """Answer info/refs; forward it, with these headers, where another protocol is spoken."""
        if not grant.can_be_mirrored:
            await self._forward(headers, grant, reply)
        elif version == 2:
            features = v2.Advertised(
                fetch=tuple(
                    name for name in KNOWN_FEATURES if grant.advertisement.has("fetch", name)
                ),
                server_option=grant.advertisement.has("server-option"),
            )
            body = v2.encode_advertisement(agent=self._agent, features=features)
            await reply.whole(200, [_ADVERTISEMENT, *NOT_TO_BE_KEPT], body)
        else:
            listing = await self._listing(grant, None, reply)
            body = await self._listed.advertisement(listing, version=version)
            await reply.whole(200, [_ADVERTISEMENT, *NOT_TO_BE_KEPT], body)

    async def ls_refs(self, request: LsRefs, grant: Grant, reply: Reply) -> None:
        """Answer version 2's ls-refs."""
        listing = await self._listing(grant, question_for(request.prefixes), reply)
        body = await self._listed.ls_refs(listing, request)
        await reply.whole(200, [RESULT, *NOT_TO_BE_KEPT], body)

    async def _listing(self, grant: Grant, question: Question, reply: Reply) -> Listing:
        """Return what upstream says its refs are; have the reply say how old that is."""
        listing, is_stale = self._desk.fresh(grant.key, question), False
        # Whatever let the caller in: it is the refs that the answer tells.
        reply.age = None
        if listing is None:
            listing, is_stale = await self._stale.ask(grant, question)
            if is_stale:
                reply.age = self._desk.age_of(listing)
                reply.note = "stale: upstream is down"
        else:
            reply.age = self._desk.age_of(listing)
        if not is_stale:
            await self._refresher.heard(grant, listing)
        return listing

    async def _forward(self, headers: Mapping[str, str], grant: Grant, reply: Reply) -> None:
        reply.age = None  # what let the caller in may be old, what upstream says now is not
        passed = {"accept-encoding": "identity", **headers}
        async with self._upstream.forward_info_refs(grant, passed) as answer:
            await reply.start(answer.status, answer.headers)
            async with aclosing(answer.body) as chunks:
                async for chunk in chunks:
                    await reply.send(chunk)

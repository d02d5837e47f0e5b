"""What an upstream's refs are now: asked once per repository however many overlap."""

from collections.abc import Iterable

import trio

from goblet_node.fill.flights import Flights
from goblet_node.fill.upstream import Grant, Refused, Upstream
from goblet_node.wire.refs import Ref
from goblet_shared.repo_key import RepoKey

# What a mirror holds. Other refs (refs/pull/*, refs/merge-requests/*,
# refs/changes/*) can be a hundred times as many: listed when asked for, not held.
MIRRORED = (b"HEAD", b"refs/heads/", b"refs/tags/")

Question = tuple[bytes, ...] | None
"""Prefixes to ask for; None asks for every ref."""


def question_for(prefixes: Iterable[bytes]) -> Question:
    """Return the widest question that many callers share and that covers `prefixes`.

    Always asks for all that a mirror holds, so that clones, fetches of any branch
    and refreshes ask the same. Prefixes that no ref can have (git asks for `main`
    besides `refs/heads/main`) are left out.
    """
    wanted = tuple(prefixes)
    if not wanted:
        return None
    beyond = {
        prefix
        for prefix in wanted
        if not prefix.startswith(MIRRORED)
        and (prefix.startswith(b"refs/") or b"refs/".startswith(prefix))
    }
    return MIRRORED + tuple(sorted(beyond))


def is_mirrored(ref: Ref) -> bool:
    """Say whether a mirror holds this ref."""
    return ref.name == b"HEAD" or ref.name.startswith(MIRRORED[1:])


def mirrored(refs: Iterable[Ref]) -> tuple[Ref, ...]:
    """Return the refs that a mirror holds, by name: two equal listings make equal tuples."""
    return tuple(sorted((ref for ref in refs if is_mirrored(ref)), key=lambda ref: ref.name))


class RefsDesk:
    """Answers what the refs are now, with one upstream question for all who overlap."""

    def __init__(self, *, upstream: Upstream, nursery: trio.Nursery) -> None:
        self._upstream = upstream
        self._flights: Flights[tuple[RepoKey, Question], tuple[Ref, ...]] = Flights(nursery)

    async def ask(self, grant: Grant, question: Question) -> tuple[Ref, ...]:
        """Return at least the refs that `question` covers, as upstream has them now.

        Every caller holds a grant, so all may see the answer. If upstream refuses
        the credential that the question went out with, those who joined ask again
        with their own.
        """
        key = (grant.key, question)
        while True:
            leads = key not in self._flights
            try:
                return await self._flights.join(
                    key, lambda: self._upstream.ls_refs(grant, question)
                )
            except Refused:
                if leads:
                    raise

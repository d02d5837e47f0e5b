"""May this caller read this repository? The upstream decides, for every request.

Its *yes* is remembered for a short time under an HMAC of the credential, with a
key that lives only in this process: what is remembered can neither be read back
nor compared with anything outside it.
"""

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import trio

from goblet_node.fill.flights import Flights
from goblet_node.fill.upstream import Grant
from goblet_node.metrics import NodeMetrics
from goblet_shared.git_route import Route
from goblet_shared.repo_key import RepoKey

# About 60 MB of grants at the worst; the oldest go first.
MAX_REMEMBERED = 65536

_Question = tuple[RepoKey, bool, bytes]


class Judge(Protocol):
    """Who knows whether a credential may read a repository: the upstream."""

    async def may_read(self, route: Route, authorization: str | None) -> Grant:
        """Return a grant, or raise what says why there is none."""
        ...


@dataclass(frozen=True, slots=True)
class _Remembered:
    grant: Grant  # without its credential
    until: float


class Access:
    """Checks callers, and forgets what it learned soon."""

    def __init__(
        self,
        *,
        judge: Judge,
        nursery: trio.Nursery,
        lifetime: float,
        metrics: NodeMetrics,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        """Remember a *yes* for `lifetime` seconds; 0 asks upstream every time."""
        self._judge = judge
        self._lifetime = lifetime
        self._metrics = metrics
        self._clock = clock
        self._hmac_key = secrets.token_bytes(32)
        self._flights: Flights[_Question, Grant] = Flights(nursery)
        # All mutable state, newest last. Changed only between awaits.
        self._remembered: OrderedDict[_Question, _Remembered] = OrderedDict()

    async def check(self, route: Route, authorization: str | None) -> Grant:
        """Return the caller's grant.

        Overlapping questions with one and the same credential share one answer;
        those of different credentials never do. Raises what the judge does.
        """
        question = self._question(route, authorization)
        remembered = self._remembered.get(question)
        if remembered is not None and self._clock() < remembered.until:
            self._metrics.access.labels("remembered").inc()
            return remembered.grant.held_by(authorization)
        try:
            grant = await self._flights.join(
                question, lambda: self._ask(question, route, authorization)
            )
        except Exception:
            self._metrics.access.labels("refused").inc()
            raise
        self._metrics.access.labels("allowed").inc()
        return grant

    def forget(self, route: Route, authorization: str | None) -> None:
        """Have the next request of this caller ask upstream again."""
        self._remembered.pop(self._question(route, authorization), None)

    async def _ask(self, question: _Question, route: Route, authorization: str | None) -> Grant:
        asked_at = self._clock()
        self._remembered.pop(question, None)
        grant = await self._judge.may_read(route, authorization)
        if self._lifetime > 0:
            while len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.popitem(last=False)
            # From the time of asking: upstream may have decided that early.
            self._remembered[question] = _Remembered(grant.held_by(None), asked_at + self._lifetime)
        return grant

    def _question(self, route: Route, authorization: str | None) -> _Question:
        # A caller without a credential is not one with an empty one.
        said = b"" if authorization is None else b"=" + authorization.encode("latin-1")
        return route.key, route.dot_git, hmac.digest(self._hmac_key, said, hashlib.sha256)

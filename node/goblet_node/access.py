"""May this caller read this repository? The upstream decides, for every request.

Its *yes* is remembered for a short time under an HMAC of the credential, with a
key that lives only in this process: what is remembered can neither be read back
nor compared with anything outside it.

A *yes* has a second, longer lifetime, which counts only while the upstream is down:
then it may stand in for the answer that cannot be had. A *no* ends both.
"""

import hashlib
import hmac
import math
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import trio

from goblet_node.errors import UpstreamDown
from goblet_node.fill.failures import Refused
from goblet_node.fill.flights import Flights
from goblet_node.fill.outages import Outages
from goblet_node.fill.patience import DOUBTED, in_time_or_old
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
    asked_at: float
    is_doubted: bool = False  # upstream failed since


class Access:
    """Checks callers, and forgets what it learned soon."""

    def __init__(
        self,
        *,
        judge: Judge,
        nursery: trio.Nursery,
        lifetime: float,
        metrics: NodeMetrics,
        outages: Outages,
        stale: float = 0.0,
        stale_after: float = math.inf,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        """Remember a *yes* for `lifetime` seconds; 0 asks upstream every time.

        While upstream is down, or takes longer than `stale_after` seconds, one that is
        less than `stale` seconds old counts still; with 0 none does.
        """
        self._judge = judge
        self._lifetime = lifetime
        self._stale = stale
        self._stale_after = stale_after
        self._metrics = metrics
        self._outages = outages
        self._clock = clock
        self._hmac_key = secrets.token_bytes(32)
        self._flights: Flights[_Question, Grant] = Flights(nursery)
        # All mutable state, newest last. Changed only between awaits.
        self._remembered: OrderedDict[_Question, _Remembered] = OrderedDict()

    async def check(self, route: Route, authorization: str | None) -> Grant:
        """Return the caller's grant, with its age if upstream is down.

        Overlapping questions with one and the same credential share one answer;
        those of different credentials never do. Raises what the judge does.
        """
        question = self._question(route, authorization)
        remembered = self._younger(question, self._lifetime)
        if remembered is not None:
            self._metrics.access.labels("remembered").inc()
            return remembered.grant.held_by(authorization)
        try:
            grant = await in_time_or_old(
                lambda: self._flights.join(
                    question, lambda: self._ask(question, route, authorization)
                ),
                lambda why: self._stand_in(question, authorization, why),
                patience=self._patience(question),
            )
        except Exception:
            self._metrics.access.labels("refused").inc()
            raise
        self._metrics.access.labels("allowed" if grant.age is None else "stale").inc()
        return grant

    def forget(self, route: Route, authorization: str | None) -> None:
        """Have the next request of this caller ask upstream again, in either spelling."""
        for dot_git in (False, True):
            spelled = replace(route, dot_git=dot_git)
            self._remembered.pop(self._question(spelled, authorization), None)

    async def _ask(self, question: _Question, route: Route, authorization: str | None) -> Grant:
        asked_at = self._clock()
        try:
            grant = await self._judge.may_read(route, authorization)
        except UpstreamDown:
            self._doubt(question)
            raise
        except Refused as exc:
            # "Too many requests" says nothing of this caller; all else ends what was.
            if exc.status != 429:
                self.forget(route, authorization)
            raise
        except Exception:
            self.forget(route, authorization)
            raise
        self._remembered.pop(question, None)
        if self._lifetime > 0 or self._stale > 0:
            while len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.popitem(last=False)
            # From the time of asking: upstream may have decided that early.
            self._remembered[question] = _Remembered(grant.held_by(None), asked_at)
        return grant

    def _younger(self, question: _Question, age: float) -> _Remembered | None:
        known = self._remembered.get(question)
        return known if known is not None and self._clock() < known.asked_at + age else None

    def _patience(self, question: _Question) -> float:
        """Return how much longer to wait for upstream, whose question may be under way."""
        known = self._younger(question, self._stale)
        if known is None:
            return math.inf
        most = min(DOUBTED, self._stale_after) if known.is_doubted else self._stale_after
        return most - self._flights.age(question)

    async def _stand_in(
        self, question: _Question, authorization: str | None, why: UpstreamDown | None
    ) -> Grant | None:
        # Looked at only now: a *no* that came meanwhile has ended it.
        known = self._younger(question, self._stale)
        if known is None:
            return None
        self._doubt(question)
        age = self._clock() - known.asked_at
        self._outages.stale(known.grant.key, "access", age=age, why=why)
        return replace(known.grant.held_by(authorization), age=age)

    def _doubt(self, question: _Question) -> None:
        known = self._remembered.get(question)
        if known is not None and not known.is_doubted:
            self._remembered[question] = replace(known, is_doubted=True)

    def _question(self, route: Route, authorization: str | None) -> _Question:
        # A caller without a credential is not one with an empty one.
        said = b"" if authorization is None else b"=" + authorization.encode("latin-1")
        return route.key, route.dot_git, hmac.digest(self._hmac_key, said, hashlib.sha256)

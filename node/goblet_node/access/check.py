"""May this caller read this repository? The upstream decides, for every request.

Its *yes* is remembered for a short time, see fill/grants.py. It has a second, longer
lifetime, which counts only while the upstream is down: then it may stand in for the
answer that cannot be had. A *no* ends both.
"""

import math
from dataclasses import replace
from typing import Protocol

import trio

from goblet_node.access.callers import Caller
from goblet_node.errors import UpstreamDown
from goblet_node.fill.failures import Refused
from goblet_node.fill.flights import Flights
from goblet_node.fill.grants import Grants, Question
from goblet_node.fill.outages import Outages
from goblet_node.fill.patience import DOUBTED, in_time_or_old
from goblet_node.fill.upstream import Grant
from goblet_node.metrics import NodeMetrics
from goblet_shared.git_route import Route


class Judge(Protocol):
    """Who knows whether a credential may read a repository: the upstream."""

    async def may_read(self, route: Route, authorization: str | None) -> Grant:
        """Return a grant, or raise what says why there is none."""
        ...


class Access:
    """Checks callers, and forgets what it learned soon."""

    def __init__(
        self,
        *,
        judge: Judge,
        grants: Grants,
        nursery: trio.Nursery,
        lifetime: float,
        metrics: NodeMetrics,
        outages: Outages,
        stale: float = 0.0,
        stale_after: float = math.inf,
    ) -> None:
        """Remember a *yes* for `lifetime` seconds; 0 asks upstream every time.

        While upstream is down, or takes longer than `stale_after` seconds, one that is
        less than `stale` seconds old counts still; with 0 none does. `grants` hears of
        each *no* that is given later, too.
        """
        self._judge = judge
        self._grants = grants
        self._lifetime = lifetime
        self._stale = stale
        self._stale_after = stale_after
        self._metrics = metrics
        self._outages = outages
        self._flights: Flights[Question, Grant] = Flights(nursery)

    async def check(self, route: Route, caller: Caller) -> Grant:
        """Return the caller's grant, with its age if upstream is down.

        Overlapping questions with one and the same credential share one answer;
        those of different credentials never do. Raises what the judge does.
        """
        authorization = caller.authorization
        question = self._grants.question(route, authorization)
        remembered = self._grants.younger(question, self._lifetime)
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

    async def _ask(self, question: Question, route: Route, authorization: str | None) -> Grant:
        with self._grants.asking(question) as allowed:
            try:
                return allowed(await self._judge.may_read(route, authorization))
            except UpstreamDown:
                self._grants.doubt(question)
                raise
            except Exception as exc:
                # "Too many requests" says nothing of this caller; all else ends what was.
                if not (isinstance(exc, Refused) and exc.status == 429):
                    self._grants.end(question)
                raise

    def _patience(self, question: Question) -> float:
        """Return how much longer to wait for upstream, whose question may be under way."""
        known = self._grants.younger(question, self._stale)
        if known is None:
            return math.inf
        most = min(DOUBTED, self._stale_after) if known.is_doubted else self._stale_after
        return most - self._flights.age(question)

    async def _stand_in(
        self, question: Question, authorization: str | None, why: UpstreamDown | None
    ) -> Grant | None:
        # Looked at only now: a *no* that came meanwhile has ended it.
        known = self._grants.younger(question, self._stale)
        if known is None:
            return None
        self._grants.doubt(question)
        age = self._grants.clock() - known.asked_at
        self._outages.stale(known.grant.key, "access", age=age, why=why)
        return replace(known.grant.held_by(authorization), age=age)

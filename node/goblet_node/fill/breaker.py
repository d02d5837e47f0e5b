"""A circuit breaker per upstream: one that fails again and again is left alone for a moment.

After Michael Nygard, "Release It!" (2007). Who would wait for an upstream that is
down learns at once that it is, and an upstream that comes back is not met by
everybody at the same moment.
"""

import enum
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

import httpx
import trio

from goblet_node.errors import UpstreamDown, UpstreamResting
from goblet_node.metrics import NodeMetrics
from goblet_shared.errors import GobletError
from goblet_shared.repo_key import RepoKey

log = logging.getLogger(__name__)

# How many repositories must be in a row of failures that are answers. One repository
# that its host cannot read gives 500 for ever, and says nothing of the others there.
_REPOSITORIES = 2
# Of how many repositories of an upstream it is remembered that it answered for them.
_ANSWERED_FOR = 16_384


class State(enum.Enum):
    """Whether an upstream is asked."""

    CLOSED = "closed"
    HALF_OPEN = "half-open"
    OPEN = "open"


class Fact(enum.Enum):
    """What a breaker hears of."""

    ANSWERED = enum.auto()
    FAILED_ENOUGH = enum.auto()
    RESTED = enum.auto()


NEXT: dict[State, dict[Fact, State]] = {
    State.CLOSED: {Fact.FAILED_ENOUGH: State.OPEN},
    State.OPEN: {Fact.RESTED: State.HALF_OPEN, Fact.ANSWERED: State.CLOSED},
    # A probe of which nothing was heard for as long as a rest makes room for the next.
    State.HALF_OPEN: {
        Fact.RESTED: State.HALF_OPEN,
        Fact.ANSWERED: State.CLOSED,
        Fact.FAILED_ENOUGH: State.OPEN,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """When a breaker opens, and for how long: 0 failures are never enough."""

    failures: int
    rest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """What is known of one upstream. A value: each fact makes a new one.

    `turn` counts how often the state changed: a failure counts only in the turn in which
    its question was asked. `failures` are those in a row, `about` up to `_REPOSITORIES` of
    the repositories that were asked about, `is_unreachable` that a connection failed
    among them. `until` is when a rest ends.
    """

    state: State = State.CLOSED
    turn: int = 0
    failures: int = 0
    about: frozenset[RepoKey] = field(default=frozenset())
    is_unreachable: bool = False
    until: float = 0.0

    def asked(self, *, now: float, rest: float) -> tuple["Breaker", bool]:
        """Return what is known afterwards, and whether upstream may be asked now.

        `rest` is in how many seconds the next may be, if this is a probe.
        """
        if self.state is State.CLOSED:
            return self, True
        if now < self.until:
            return self, False
        return replace(self._after(Fact.RESTED), until=now + rest), True

    def answered(self) -> "Breaker":
        """Return what is known once a question was answered, whenever it was asked."""
        if self.state is State.CLOSED and not self.failures:
            return self
        closed = self if self.state is State.CLOSED else self._after(Fact.ANSWERED)
        return replace(closed, failures=0, about=frozenset(), is_unreachable=False)

    def failed(
        self,
        key: RepoKey,
        *,
        turn: int,
        is_unreachable: bool,
        now: float,
        rest: float,
        rules: Rules,
    ) -> "Breaker":
        """Return what is known once a question about a repository failed.

        `turn` is that in which it was asked, `is_unreachable` says that it could not be,
        `rest` for how long to ask no more if this was enough.
        """
        if turn != self.turn or self.state is State.OPEN or not rules.failures:
            return self
        about = self.about if len(self.about) >= _REPOSITORIES else self.about | {key}
        heard = replace(
            self,
            failures=self.failures + 1,
            about=about,
            is_unreachable=self.is_unreachable or is_unreachable,
        )
        is_the_host = heard.is_unreachable or len(about) >= _REPOSITORIES
        is_enough = heard.failures >= rules.failures and is_the_host
        if self.state is State.CLOSED and not is_enough:
            return heard
        return replace(heard._after(Fact.FAILED_ENOUGH), until=now + rest)

    def _after(self, fact: Fact) -> "Breaker":
        return replace(self, state=NEXT[self.state][fact], turn=self.turn + 1)


class Exchange:
    """One question that is watched."""

    def __init__(self) -> None:
        self.is_silent = False

    def says_nothing(self) -> None:
        """Have its end taken for neither an answer nor a failure."""
        self.is_silent = True


class Breakers:
    """The breakers of all upstreams, which are as many as the allow-list names."""

    def __init__(
        self,
        *,
        rules: Rules,
        metrics: NodeMetrics,
        random: Callable[[], float],
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        """Rest for half to one and a half of what `rules` say; `random` gives 0 to 1."""
        self._rules = rules
        self._metrics = metrics
        self._random = random
        self._clock = clock
        # All mutable state, by host and port: the breakers, and the repositories that were
        # answered for, the latest last. Changed only between awaits.
        self._known: dict[str, Breaker] = {}
        self._answered_for: dict[str, OrderedDict[RepoKey, None]] = {}

    @contextmanager
    def watching(self, url: str, key: RepoKey, *, is_clients: bool = False) -> Iterator[Exchange]:
        """Take note of how the exchange in the block goes; it is about a repository.

        Of one whose question is the client's own (`is_clients`) only that upstream cannot be
        reached is held against it: the client may have asked for what takes for ever. So
        it is with a repository that upstream has never answered for, once it has for any:
        the client may have invented it. An exchange that is cancelled says nothing.

        Raises:
            UpstreamResting: upstream is not to be asked now.
        """
        host = urlsplit(url).netloc
        turn = self._admit(host)
        exchange = Exchange()
        try:
            yield exchange
        except UpstreamDown as exc:
            is_unreachable = _is_unreachable(exc)
            counts = not is_clients and self._may_have(host, key)
            if not _is_ours(exc) and (is_unreachable or counts):
                self._failed(host, key, turn, exc, is_unreachable=is_unreachable)
            raise
        except GobletError:
            self._answered(host)
            raise
        else:
            if not exchange.is_silent:
                self._answered(host)
                self._note_answered_for(host, key)

    def _may_have(self, host: str, key: RepoKey) -> bool:
        answered_for = self._answered_for.get(host)
        return answered_for is None or key in answered_for

    def _note_answered_for(self, host: str, key: RepoKey) -> None:
        answered_for = self._answered_for.setdefault(host, OrderedDict())
        answered_for[key] = None
        answered_for.move_to_end(key)
        if len(answered_for) > _ANSWERED_FOR:
            answered_for.popitem(last=False)

    def _admit(self, host: str) -> int:
        before = self._known.get(host, Breaker())
        breaker, may = before.asked(now=self._clock(), rest=self._rest())
        self._keep(host, breaker)
        if not may:
            left = max(1, round(breaker.until - self._clock()))
            raise UpstreamResting(
                f"{urlsplit(f'//{host}').hostname} failed {breaker.failures} times in a row "
                f"and is not asked for {left} s: try again later"
            )
        return breaker.turn

    def _answered(self, host: str) -> None:
        before = self._known.get(host, Breaker())
        self._keep(host, before.answered())
        if before.state is not State.CLOSED:
            log.warning("%s answers again", host)

    def _failed(
        self, host: str, key: RepoKey, turn: int, failure: UpstreamDown, *, is_unreachable: bool
    ) -> None:
        before = self._known.get(host, Breaker())
        breaker = before.failed(
            key,
            turn=turn,
            is_unreachable=is_unreachable,
            now=self._clock(),
            rest=self._rest(),
            rules=self._rules,
        )
        self._keep(host, breaker)
        if before.state is State.CLOSED and breaker.state is State.OPEN:
            self._metrics.breaker_opened.labels(host).inc()
            log.warning(
                "%s is left alone after %d failures in a row, but for a question about "
                "every %g s: %s",
                host,
                breaker.failures,
                self._rules.rest,
                failure,
            )

    def _keep(self, host: str, breaker: Breaker) -> None:
        if self._known.get(host) is breaker:
            return
        self._known[host] = breaker
        self._metrics.breaker_state.labels(host).set(_GAUGE[breaker.state])

    def _rest(self) -> float:
        return self._rules.rest * (0.5 + self._random())


_GAUGE = {State.CLOSED: 0, State.HALF_OPEN: 1, State.OPEN: 2}


def _is_unreachable(failure: UpstreamDown) -> bool:
    return isinstance(failure.__cause__, httpx.ConnectError | httpx.ConnectTimeout)


def _is_ours(failure: UpstreamDown) -> bool:
    """Say whether it is we who have no connection left: clients that stall can bring that about."""
    return isinstance(failure.__cause__, httpx.PoolTimeout)

"""Which nodes can be expected to answer: the pure rules, and the loop that probes them."""

import enum
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import trio

from goblet_router.metrics import RouterMetrics
from goblet_shared.contract import NodeName

_log = logging.getLogger(__name__)


class Standing(enum.Enum):
    """What the router thinks of a node."""

    JOINING = "joining"
    """Nothing is known yet."""
    READY = "ready"
    SUSPECT = "suspect"
    """Probes or a request failed: it is asked last, but it is asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """A node's standing, and how many probes in a row have spoken against it."""

    standing: Standing = Standing.JOINING
    contrary: int = 0


def after_probe(pulse: Pulse, *, is_ready: bool, rise: int, fall: int) -> Pulse:
    """Return the pulse after one probe.

    A node that joins is believed at its first good probe. A suspect node needs
    `rise` good ones in a row, a ready node falls after `fall` bad ones.
    """
    if is_ready == (pulse.standing is Standing.READY):
        return Pulse(standing=pulse.standing)
    contrary = pulse.contrary + 1
    if is_ready:
        needed = 1 if pulse.standing is Standing.JOINING else rise
        return _turned(pulse.standing, Standing.READY, contrary, needed)
    if pulse.standing is Standing.READY:
        return _turned(pulse.standing, Standing.SUSPECT, contrary, fall)
    return Pulse(standing=pulse.standing)


def after_failed_request(pulse: Pulse) -> Pulse:
    """Return the pulse after a request failed: suspect at once.

    A refused connection is better evidence than a probe, and the next request
    should not have to find out again.
    """
    return Pulse(standing=Standing.SUSPECT)


def in_order_of_trust(
    owners: Sequence[NodeName], standing: Callable[[NodeName], Standing]
) -> tuple[NodeName, ...]:
    """Return the owners with the suspects last; within each group the ring's order stays."""
    return tuple(sorted(owners, key=lambda node: standing(node) is Standing.SUSPECT))


def _turned(now: Standing, then: Standing, contrary: int, needed: int) -> Pulse:
    if contrary >= needed:
        return Pulse(standing=then)
    return Pulse(standing=now, contrary=contrary)


class Health:
    """The standing of every member, from probes and from requests that failed."""

    def __init__(
        self, nodes: Iterable[NodeName], *, rise: int, fall: int, metrics: RouterMetrics
    ) -> None:
        # All mutable state. Changed only by _turn, which has no await.
        self._pulses = {node: Pulse() for node in nodes}
        self._rise = rise
        self._fall = fall
        self._metrics = metrics
        for node in self._pulses:
            metrics.node_ready.labels(node).set(0)

    def standing(self, node: NodeName) -> Standing:
        """Return what is thought of `node` now."""
        return self._pulses[node].standing

    def willing(self, owners: Sequence[NodeName]) -> tuple[NodeName, ...]:
        """Return the owners in the order in which to ask them."""
        return in_order_of_trust(owners, self.standing)

    @property
    def has_ready(self) -> bool:
        """Whether any node is ready."""
        return any(pulse.standing is Standing.READY for pulse in self._pulses.values())

    def note_failure(self, node: NodeName, why: str) -> None:
        """Take note that a request to `node` failed; `why` goes to the log if it is news."""
        self._turn(node, after_failed_request(self._pulses[node]), why)

    def note_probe(self, node: NodeName, *, is_ready: bool) -> None:
        """Take note of one probe."""
        pulse = after_probe(self._pulses[node], is_ready=is_ready, rise=self._rise, fall=self._fall)
        self._turn(node, pulse, "probed at /readyz")

    async def watch(
        self, probe: Callable[[NodeName], Awaitable[bool]], *, interval: float, patience: float
    ) -> None:
        """Probe every node once an interval, for ever; a probe over `patience` seconds is bad.

        An exception of `probe` ends the watch: it should answer False instead.
        """
        async with trio.open_nursery() as nursery:
            for node in self._pulses:
                nursery.start_soon(self._watch_one, node, probe, interval, patience)

    async def _watch_one(
        self,
        node: NodeName,
        probe: Callable[[NodeName], Awaitable[bool]],
        interval: float,
        patience: float,
    ) -> None:
        while True:
            is_ready = False
            with trio.move_on_after(patience):
                is_ready = await probe(node)
            self.note_probe(node, is_ready=is_ready)
            await trio.sleep(interval)

    def _turn(self, node: NodeName, pulse: Pulse, why: str) -> None:
        before = self._pulses[node].standing
        self._pulses[node] = pulse
        if pulse.standing is before:
            return
        self._metrics.node_ready.labels(node).set(pulse.standing is Standing.READY)
        level = logging.WARNING if pulse.standing is Standing.SUSPECT else logging.INFO
        _log.log(level, "node %s is %s: %s", node, pulse.standing.value, why)

"""What the router counts. No label grows with repositories, refs or clients."""

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from goblet_shared.members import MemberState
from goblet_shared.watch import MemberView

# From a warm answer on loopback (about a millisecond) to a cold upstream.
_FIRST_BYTE_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class RouterMetrics:
    """The router's counters, registered in the registry given and nowhere else."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.answers = Counter(
            "goblet_router_answers_total",
            "Git requests that ended, by endpoint and the status the client got "
            "(499: it left first; 400 with endpoint none: not a request we understand).",
            ["endpoint", "status"],
            registry=registry,
        )
        self.forwarded = Counter(
            "goblet_router_forwarded_total",
            "Answers of nodes that were passed on: ok, error (status 500 and above), "
            "cut (the node broke off inside), client-gone (the client left inside).",
            ["node", "outcome"],
            registry=registry,
        )
        self.failed_attempts = Counter(
            "goblet_router_failed_attempts_total",
            "Attempts at a node that brought no answer, by why.",
            ["node", "kind"],
            registry=registry,
        )
        self.retried = Counter(
            "goblet_router_retried_total",
            "Requests sent again: on a fresh connection to the same node, or to the next node.",
            ["to"],
            registry=registry,
        )
        self.spread = Counter(
            "goblet_router_spread_total",
            "Requests that went to another node than their first, because many for the "
            "same repository were under way.",
            registry=registry,
        )
        self.redirected = Counter(
            "goblet_router_redirected_total",
            "Clients that were sent to a node, in redirect mode.",
            ["node"],
            registry=registry,
        )
        self.no_owner = Counter(
            "goblet_router_no_owner_total",
            "Requests that no owner answered.",
            registry=registry,
        )
        self.in_flight = Gauge(
            "goblet_router_in_flight",
            "Git requests now between a client and a node.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.response_bytes = Counter(
            "goblet_router_response_bytes_total",
            "Bytes of answer bodies passed on to clients.",
            ["node"],
            registry=registry,
        )
        self.first_byte = Histogram(
            "goblet_router_first_byte_seconds",
            "From the request to the head of the node's answer, retries included.",
            buckets=_FIRST_BYTE_BUCKETS,
            registry=registry,
        )


class MemberMetrics(Collector):
    """The members, as a watch last saw them.

    A collector, so that a node that is gone leaves no labels behind. With several
    workers it shows what the one that was asked sees, as /-/ring does; failures are
    counted over all.
    """

    def __init__(self, registry: CollectorRegistry, *, scraped: CollectorRegistry) -> None:
        """Count in `registry`, and show the members in `scraped`, which may be the same."""
        self._discovery_failures = Counter(
            "goblet_router_discovery_failures_total",
            "Times that it could not be found out who the nodes are: those of before stay.",
            registry=registry,
        )
        # All mutable state: what was seen last.
        self._epoch = 0
        self._views: Sequence[MemberView] = ()
        scraped.register(self)

    def members_changed(self, views: Sequence[MemberView], *, epoch: int) -> None:
        """Show these members from now on."""
        self._views, self._epoch = views, epoch

    def discovery_failed(self) -> None:
        """Count that it could not be found out who the members are."""
        self._discovery_failures.inc()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of this moment."""
        yield GaugeMetricFamily(
            "goblet_router_ring_epoch",
            "How often the ring has changed since the router started.",
            value=self._epoch,
        )
        states = GaugeMetricFamily(
            "goblet_router_member_state",
            "1 for the state that the node is in, 0 for all others.",
            labels=["node", "state"],
        )
        for view in self._views:
            for state in MemberState:
                if state is not MemberState.GONE:
                    states.add_metric([view.name, state.value], float(view.state is state))
        yield states

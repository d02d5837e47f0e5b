"""The node's metrics. No label grows with repositories, refs or callers."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge


class NodeMetrics:
    """Every metric of one node, on the registry that it is given."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.requests = Counter(
            "goblet_node_requests_total",
            "Git requests answered, by endpoint and status.",
            ["endpoint", "status"],
            registry=registry,
        )
        self.in_flight = Gauge(
            "goblet_node_in_flight",
            "Git requests being answered now.",
            registry=registry,
        )
        self.sent_bytes = Counter(
            "goblet_node_sent_bytes_total",
            "Bytes of answers to git requests handed to the connection.",
            registry=registry,
        )
        self.packs = Counter(
            "goblet_node_packs_total",
            "Answers that carry a pack, by how they came about (the Goblet-Cache header).",
            ["cache"],
            registry=registry,
        )
        self.upstream_requests = Counter(
            "goblet_node_upstream_requests_total",
            "Requests to upstreams, by what was asked and how it went.",
            ["question", "outcome"],
            registry=registry,
        )
        self.access = Counter(
            "goblet_node_access_total",
            "Access checks: allowed by upstream, remembered, or refused.",
            ["verdict"],
            registry=registry,
        )
        self.refreshes = Counter(
            "goblet_node_refreshes_total",
            "Refreshes of mirrors that ended, by outcome.",
            ["outcome"],
            registry=registry,
        )
        self.received_bytes = Counter(
            "goblet_node_received_bytes_total",
            "Bytes of packs received from upstreams into mirrors.",
            registry=registry,
        )
        self._mirrors = Gauge(
            "goblet_node_mirrors",
            "Repositories that this node holds a mirror of.",
            registry=registry,
        )

    def count_mirrors_with(self, count: Callable[[], float]) -> None:
        """Have the gauge of mirrors ask `count` each time it is read."""
        self._mirrors.set_function(count)

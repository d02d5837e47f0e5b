"""What the router counts. No label grows with repositories, refs or clients."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

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
        self.no_owner = Counter(
            "goblet_router_no_owner_total",
            "Requests that no owner answered.",
            registry=registry,
        )
        self.in_flight = Gauge(
            "goblet_router_in_flight",
            "Git requests now between a client and a node.",
            registry=registry,
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
        self.node_ready = Gauge(
            "goblet_router_node_ready",
            "1 while the node passes its probes and no request to it failed since, else 0.",
            ["node"],
            registry=registry,
        )

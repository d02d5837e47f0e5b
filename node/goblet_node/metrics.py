"""The node's metrics. No label grows with repositories, refs or callers."""

from collections import Counter as Counted
from collections.abc import Callable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from goblet_shared.members import MemberState
from goblet_shared.watch import MemberView


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
            "Requests to upstreams, tries each, by what was asked and how it went; not-asked is "
            "one that was not sent, since upstream is left alone for a moment.",
            ["question", "outcome"],
            registry=registry,
        )
        self.access = Counter(
            "goblet_node_access_total",
            "Access checks: allowed by upstream, remembered, stale (remembered for longer, while "
            "upstream is down), or refused.",
            ["verdict"],
            registry=registry,
        )
        self.breaker_state = Gauge(
            "goblet_node_upstream_breaker_state",
            "Whether an upstream is asked: 0 as ever, 2 not at all since it failed again and "
            "again, 1 while one question tries it.",
            ["host"],
            registry=registry,
        )
        self.breaker_opened = Counter(
            "goblet_node_upstream_breaker_opened_total",
            "How often an upstream was left alone, since it failed again and again.",
            ["host"],
            registry=registry,
        )
        self.stale_answers = Counter(
            "goblet_node_stale_answers_total",
            "Times that what upstream said before it failed stood in for its answer: for a "
            "caller's access, or for the refs.",
            ["of"],
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
        self.peer_copies = Counter(
            "goblet_node_peer_copies_total",
            "Mirrors that other members were asked for, by what came of it: copied, failed at one "
            "of them, refused by this node for want of room or by its limits, or absent: nobody "
            "had it.",
            ["outcome"],
            registry=registry,
        )
        self.peer_received_bytes = Counter(
            "goblet_node_peer_received_bytes_total",
            "Bytes of mirrors received from other members.",
            registry=registry,
        )
        self.peer_sent_bytes = Counter(
            "goblet_node_peer_sent_bytes_total",
            "Bytes of mirrors handed to connections of other members.",
            registry=registry,
        )
        self.tidied = Counter(
            "goblet_node_tidied_total",
            "Mirrors that were seen to while it was quiet, by what came of it: segments joined, "
            "the log renewed, left as it is because it is not worn, or failed.",
            ["outcome"],
            registry=registry,
        )
        self._mirrors = Gauge(
            "goblet_node_mirrors",
            "Repositories that this node holds a mirror of.",
            registry=registry,
        )
        self._state = Gauge(
            "goblet_node_state",
            "1 for what the node says that it is: joining, ready or draining; 0 for the others.",
            ["state"],
            registry=registry,
        )
        self._members = Gauge(
            "goblet_node_members",
            "Members of the cluster as this node sees them, itself included, by state.",
            ["state"],
            registry=registry,
        )
        self._discovery_failures = Counter(
            "goblet_node_discovery_failures_total",
            "Times that it could not be found out who the members of the cluster are.",
            registry=registry,
        )
        self.recorded = Counter(
            "goblet_node_recorded_answers_total",
            "Answers made for all who ask the same, by what became of them: kept, not kept, "
            "failed, or abandoned because nobody followed any more.",
            ["outcome"],
            registry=registry,
        )
        self.evictions = Counter(
            "goblet_node_evictions_total",
            "Mirrors, and batches of recordings, that were deleted to make room.",
            ["kind"],
            registry=registry,
        )
        self.evicted_bytes = Counter(
            "goblet_node_evicted_bytes_total",
            "Bytes of mirrors and recordings that were deleted to make room.",
            ["kind"],
            registry=registry,
        )
        self.no_room = Counter(
            "goblet_node_no_room_total",
            "Claims of disk space that were refused, because all else was in use.",
            registry=registry,
        )
        self._disk_bytes = Gauge(
            "goblet_node_disk_bytes",
            "Bytes of the cache's disk: taken by mirrors, taken by recordings, "
            "claimed by writes under way.",
            ["kind"],
            registry=registry,
        )
        self._disk_cap = Gauge(
            "goblet_node_disk_cap_bytes",
            "The most that goblet_node_disk_bytes may be in all.",
            registry=registry,
        )

    def show_state(self, state: MemberState) -> None:
        """Have the gauge of states say this one alone."""
        for each in (MemberState.JOINING, MemberState.READY, MemberState.DRAINING):
            self._state.labels(each.value).set(each is state)

    def members_changed(self, views: Sequence[MemberView], *, epoch: int) -> None:
        """Have the gauges of members say how many of these there are in each state."""
        counts = Counted(view.state for view in views)
        for state in MemberState:
            if state is not MemberState.GONE:
                self._members.labels(state.value).set(counts[state])

    def discovery_failed(self) -> None:
        """Count that it could not be found out who the members are."""
        self._discovery_failures.inc()

    def count_disk_with(self, bytes_of: Mapping[str, Callable[[], float]], *, cap: int) -> None:
        """Have the gauge of each kind of disk use ask its function each time it is read."""
        for kind, count in bytes_of.items():
            self._disk_bytes.labels(kind).set_function(count)
        self._disk_cap.set(cap)

    def count_mirrors_with(self, count: Callable[[], float]) -> None:
        """Have the gauge of mirrors ask `count` each time it is read."""
        self._mirrors.set_function(count)

    def requests_in_flight(self) -> int:
        """Return how many git requests are being answered now."""
        (found,) = self.in_flight.collect()
        return int(found.samples[0].value)

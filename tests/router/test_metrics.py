"""The metrics are what the README promises, and none of them grows with repositories."""

import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from goblet_router.metrics import MemberMetrics, RouterMetrics
from goblet_shared.contract import NodeName
from goblet_shared.members import MemberState
from goblet_shared.watch import MemberView

README = Path(__file__).parents[2] / "router" / "README.md"


def documented() -> dict[str, set[str]]:
    """Return the names and labels of the README's table."""
    rows = re.findall(r"^\| `(goblet_router_\w+)` \| ([^|]*)\|", README.read_text(), re.M)
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}


def view(name: str, state: MemberState) -> MemberView:
    return MemberView(name=NodeName(name), url=f"http://{name}:1", state=state, is_on_ring=True)


def members_shown(*views: MemberView) -> CollectorRegistry:
    """Return a registry whose metrics are about these members."""
    registry = CollectorRegistry()
    MemberMetrics(registry, scraped=registry).members_changed(views, epoch=3)
    return registry


def test_the_readme_lists_every_metric_with_its_labels_and_no_other() -> None:
    metrics = vars(RouterMetrics(CollectorRegistry())).values()
    real: dict[str, set[str]] = {}
    for metric in metrics:
        (family,) = metric.describe()
        total = "_total" if family.type == "counter" else ""
        real[family.name + total] = set(metric._labelnames)
    for family in members_shown(view("a", MemberState.READY)).collect():
        total = "_total" if family.type == "counter" else ""
        real[family.name + total] = set(family.samples[0].labels)
    assert documented() == real


def test_no_label_can_grow_with_repositories_or_clients() -> None:
    labels = set().union(*documented().values())
    assert labels == {"node", "outcome", "kind", "to", "endpoint", "status", "state"}


def test_two_routers_in_one_process_count_apart() -> None:
    one, other = CollectorRegistry(), CollectorRegistry()
    RouterMetrics(one).no_owner.inc()
    RouterMetrics(other)
    assert one.get_sample_value("goblet_router_no_owner_total") == 1
    assert other.get_sample_value("goblet_router_no_owner_total") == 0


def test_each_member_is_in_one_state_and_whoever_is_gone_leaves_no_label() -> None:
    registry = CollectorRegistry()
    metrics = MemberMetrics(registry, scraped=registry)
    metrics.members_changed([view("a", MemberState.READY), view("b", MemberState.READY)], epoch=1)
    metrics.members_changed([view("a", MemberState.SUSPECT)], epoch=2)
    states = {
        (sample.labels["node"], sample.labels["state"]): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "goblet_router_member_state"
    }
    assert states == {
        ("a", "joining"): 0, ("a", "ready"): 0, ("a", "suspect"): 1, ("a", "draining"): 0,
    }  # fmt: skip
    assert registry.get_sample_value("goblet_router_ring_epoch") == 2


def test_failures_are_counted_apart_from_what_is_shown() -> None:
    counted, scraped = CollectorRegistry(), CollectorRegistry()
    MemberMetrics(counted, scraped=scraped).discovery_failed()
    name = "goblet_router_discovery_failures_total"
    assert counted.get_sample_value(name) == 1
    assert scraped.get_sample_value(name) is None

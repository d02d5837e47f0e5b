"""The metrics are what the README promises, and none of them grows with repositories."""

import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from goblet_router.metrics import RouterMetrics

README = Path(__file__).parents[2] / "router" / "README.md"


def documented() -> dict[str, set[str]]:
    """Return the names and labels of the README's table."""
    rows = re.findall(r"^\| `(goblet_router_\w+)` \| ([^|]*)\|", README.read_text(), re.M)
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}


def test_the_readme_lists_every_metric_with_its_labels_and_no_other() -> None:
    metrics = vars(RouterMetrics(CollectorRegistry())).values()
    real = {}
    for metric in metrics:
        (family,) = metric.describe()
        total = "_total" if family.type == "counter" else ""
        real[family.name + total] = set(metric._labelnames)
    assert documented() == real


def test_no_label_can_grow_with_repositories_or_clients() -> None:
    labels = set().union(*documented().values())
    assert labels == {"node", "outcome", "kind", "to", "endpoint", "status"}


def test_two_routers_in_one_process_count_apart() -> None:
    one, other = CollectorRegistry(), CollectorRegistry()
    RouterMetrics(one).no_owner.inc()
    RouterMetrics(other)
    assert one.get_sample_value("goblet_router_no_owner_total") == 1
    assert other.get_sample_value("goblet_router_no_owner_total") == 0

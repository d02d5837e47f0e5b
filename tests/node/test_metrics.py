"""The table of metrics in the README is the metrics."""

import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from goblet_node.metrics import NodeMetrics

README = Path(__file__).parents[2] / "node" / "README.md"


def test_the_readme_names_every_metric_with_its_labels_and_no_other() -> None:
    rows = re.findall(r"^\| `(goblet_node_\w+)` \|([\w, ]*)\|", README.read_text(), re.MULTILINE)
    documented = {name: tuple(re.findall(r"\w+", labels)) for name, labels in rows}
    metrics = NodeMetrics(CollectorRegistry())
    metrics.count_mirrors_with(lambda: 3)
    collected = {
        metric._name + ("_total" if metric._type == "counter" else ""): metric._labelnames
        for metric in vars(metrics).values()
        if hasattr(metric, "_labelnames")
    }
    assert documented == collected
    assert metrics.registry.get_sample_value("goblet_node_mirrors") == 3

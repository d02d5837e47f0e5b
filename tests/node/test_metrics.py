"""The table of metrics in the README is the metrics."""

import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from goblet_node.metrics import NodeMetrics
from goblet_shared.contract import NodeName
from goblet_shared.members import MemberState
from goblet_shared.watch import MemberView

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


def test_members_are_counted_by_state_and_those_that_left_one_no_more() -> None:
    metrics = NodeMetrics(CollectorRegistry())

    def seen(*states: MemberState) -> dict[str, float | None]:
        views = [
            MemberView(
                name=NodeName(f"goblet-{rank}"), url="http://n", state=state, is_on_ring=True
            )
            for rank, state in enumerate(states)
        ]
        metrics.members_changed(views, epoch=1)
        gauge = "goblet_node_members"
        return {
            state.value: metrics.registry.get_sample_value(gauge, {"state": state.value})
            for state in MemberState
        }

    ready, draining = MemberState.READY, MemberState.DRAINING
    none = {"joining": 0, "ready": 0, "suspect": 0, "draining": 0, "gone": None}
    assert seen(ready, ready, draining) == {**none, "ready": 2, "draining": 1}
    assert seen(ready) == {**none, "ready": 1}

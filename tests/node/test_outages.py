"""What an operator reads of an outage."""

import logging

import pytest
from prometheus_client import CollectorRegistry

from goblet_node.errors import UpstreamDown
from goblet_node.fill import outages as outages_module
from goblet_node.fill.outages import Outages
from goblet_node.metrics import NodeMetrics
from goblet_shared.repo_key import RepoKey

ONE, OTHER = RepoKey("upstream.test/org/one"), RepoKey("upstream.test/org/other")


def test_an_outage_is_told_once_a_repository_and_so_is_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = CollectorRegistry()
    outages = Outages(metrics=NodeMetrics(registry))
    with caplog.at_level(logging.WARNING):
        outages.over(ONE)
        for _ in range(3):
            outages.stale(ONE, "refs", age=61.9, why=UpstreamDown("upstream.test answered 500"))
            outages.stale(OTHER, "access", age=5, why=None)
        outages.over(ONE)
        outages.over(ONE)
    assert [record.message for record in caplog.records] == [
        f"{ONE} is served as its upstream had it 61 s ago: upstream.test answered 500",
        f"{OTHER} is served as its upstream had it 5 s ago: it has not answered yet",
        f"{ONE} is served as its upstream has it, again",
    ]
    counted = registry.get_sample_value
    assert counted("goblet_node_stale_answers_total", {"of": "refs"}) == 3
    assert counted("goblet_node_stale_answers_total", {"of": "access"}) == 3


def test_what_was_told_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages_module, "MAX_TOLD", 10)
    outages = Outages(metrics=NodeMetrics(CollectorRegistry()))
    for number in range(35):
        outages.stale(RepoKey(f"upstream.test/org/{number}"), "refs", age=0, why=None)
    assert len(outages._told) <= 10

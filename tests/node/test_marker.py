"""What a cache root remembers of its node."""

import logging
from pathlib import Path

import pytest

from goblet_node.cluster.marker import Marker
from goblet_node.mirror.disk import Disk
from goblet_shared.contract import NodeName
from goblet_testing.faults import Fault, FaultDisk, Kind


def marker(root: Path, name: str = "goblet-1", disk: Disk | None = None) -> Marker:
    return Marker(root / "was-ready", NodeName(name), disk=disk or Disk())


def test_a_node_that_was_ready_is_known_under_its_name_alone(tmp_path: Path) -> None:
    assert not marker(tmp_path).is_set()
    marker(tmp_path).set()
    assert marker(tmp_path).is_set()
    assert not marker(tmp_path, "goblet-2").is_set()
    marker(tmp_path, "goblet-2").set()
    assert not marker(tmp_path).is_set()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"goblet-12\n"])
def test_a_marker_that_says_something_else_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "was-ready").write_bytes(content)
    assert not marker(tmp_path).is_set()


def test_a_disk_that_refuses_is_logged_and_costs_the_next_join_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, limbo = tmp_path / "root", tmp_path / "limbo"
    root.mkdir()
    limbo.mkdir()
    disk = FaultDisk(limbo, fault=Fault(step=0, kind=Kind.REFUSED))
    with caplog.at_level(logging.WARNING):
        marker(root, disk=disk).set()
    assert "the next start will join anew" in caplog.text
    assert not marker(root).is_set()

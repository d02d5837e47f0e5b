"""What makes a node a member of a cluster, and how it begins then."""

from pathlib import Path
from typing import Any

import pytest

from goblet_node.clustering import MEMBERS_NOTICE, is_member, marker_of, notice_of
from goblet_node.config import NodeSettings

ALONE: dict[str, Any] = {}
ITSELF = {"node": {"goblet-1": "http://127.0.0.1:1"}}
OTHERS = {"node": {"goblet-1": "http://127.0.0.1:1", "goblet-2": "http://127.0.0.1:2"}}
FILE = {"members_file": Path("members.toml")}
DNS = {"members_dns": "srv:_http._tcp.goblet.test"}


def settings(root: Path, **given: Any) -> NodeSettings:
    return NodeSettings(name="goblet-1", cache_root=root, **given)


@pytest.mark.parametrize(
    ("given", "is_one"),
    [(ALONE, False), (ITSELF, False), (OTHERS, True), (FILE, True), (DNS, True)],
)
def test_a_member_is_who_may_have_others_and_only_routers_of_those_need_notice(
    tmp_path: Path, given: dict[str, Any], is_one: bool
) -> None:
    alone_or_not = settings(tmp_path, **given)
    assert is_member(alone_or_not) == is_one
    assert notice_of(alone_or_not) == (MEMBERS_NOTICE if is_one else 0)
    assert notice_of(settings(tmp_path, **given, drain_notice_seconds=1.5)) == 1.5


def test_the_usual_notice_outlasts_what_routers_need(tmp_path: Path) -> None:
    usual = settings(tmp_path)
    assert usual.probe_interval_seconds + usual.probe_timeout_seconds < MEMBERS_NOTICE


def test_the_marker_is_beside_the_mirrors_and_holds_the_nodes_name(tmp_path: Path) -> None:
    marker_of(settings(tmp_path)).set()
    assert [path.name for path in tmp_path.iterdir()] == ["was-ready"]
    assert (tmp_path / "was-ready").read_text() == "goblet-1\n"

"""A node that is added while clients clone: nobody waits for it, and upstream does not notice."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from goblet_testing.asks import ask
from goblet_testing.fleet import Fleet, until
from goblet_testing.load import Load
from goblet_testing.many import held_by, make_many, urls, warm

pytestmark = [pytest.mark.system, pytest.mark.slow]

REPOS = 16
NEW = "goblet-4"


@pytest.fixture(scope="module")
def repos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, ...]]:
    root = tmp_path_factory.mktemp("many")
    return root, make_many(root, REPOS)


@pytest.fixture
def fleet(repos: tuple[Path, tuple[str, ...]], tmp_path: Path) -> Iterator[Fleet]:
    root, names = repos
    with Fleet(tmp_path, root=root) as fleet:
        warm(fleet, names)
        yield fleet


def test_a_fourth_node_joins_under_load_without_a_pack_from_upstream_and_restarts_ready(
    fleet: Fleet, repos: tuple[Path, tuple[str, ...]]
) -> None:
    _, names = repos
    with Load(urls(fleet, names), clients=2) as load:
        load.wait_for(10)
        packs = len(fleet.origin.packs())
        node = fleet.add_node(NEW)
        node.wait_ready()
        at_ready = set(held_by(fleet, NEW))
        fleet.wait_settled()
        settled = len(load.got)
        load.wait_for(2 * REPOS)
    owned = {name for name in names if fleet.owners(name)[0] == NEW}
    assert owned, "the new node owns nothing: take other names"
    assert at_ready == owned, "it copied just what it owns, before it said that it is ready"
    assert load.failures == []
    assert len(fleet.origin.packs()) == packs, "upstream was asked for a pack"
    of_new = {got.repo for got in load.got[settled:] if got.node == NEW}
    assert of_new == owned
    assert {got.cache for got in load.got} <= {"whole", "recorded"}

    fleet.kill(NEW)
    node = fleet.restart(NEW)
    said = until(lambda: _readyz(node.base), what="an answer of the restarted node")
    assert said == "ready\n"
    assert set(held_by(fleet, NEW)) == owned


def _readyz(base: str) -> str:
    try:
        return ask(f"{base}/readyz").text
    except OSError:
        return ""

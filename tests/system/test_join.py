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
# A mirror takes about half a second.
SLOWLY = ["--join-copies", "1", "--copy-bytes-per-second", "20KB"]


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
    """It is killed while it joins, and goes on where it stopped."""
    _, names = repos
    with Load(urls(fleet, names), clients=2) as load:
        load.wait_for(10)
        packs = len(fleet.origin.packs())
        fleet.add_node(NEW, flags=SLOWLY)
        before = until(lambda: held_by(fleet, NEW), what="a first mirror of the new node")
        assert _readyz(fleet.node_url(NEW)).startswith("joining: ")
        fleet.kill(NEW)
        node = fleet.restart(NEW, flags=())
        node.wait_ready()
        copied = _copied(node.base)
        at_ready = set(held_by(fleet, NEW))
        fleet.wait_settled()
        settled = len(load.got)
        load.wait_for(2 * REPOS)
    owned = {name for name in names if fleet.owners(name)[0] == NEW}
    assert owned, "the new node owns nothing: take other names"
    assert 0 < copied <= len(owned) - len(before), "what it had was copied again"
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


def _copied(base: str) -> float:
    """Return how many mirrors a node has copied from others since it started."""
    name = 'goblet_node_peer_copies_total{outcome="copied"} '
    lines = ask(f"{base}/metrics").text.splitlines()
    return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))

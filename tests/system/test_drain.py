"""A node that goes while clients clone: no request is lost, and no repository turns cold."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from goblet_testing.asks import ask
from goblet_testing.fleet import Fleet, until
from goblet_testing.load import Load
from goblet_testing.many import held_by, make_many, urls, warm
from goblet_testing.processes import Service

pytestmark = [pytest.mark.system, pytest.mark.slow]

REPOS = 14
# Routers here probe five times a second.
FLAGS = ["--drain-notice-seconds", "1"]
ENDED_WITHIN = 20.0


@pytest.fixture(scope="module")
def repos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, ...]]:
    root = tmp_path_factory.mktemp("many")
    return root, make_many(root, REPOS)


@pytest.fixture
def fleet(repos: tuple[Path, tuple[str, ...]], tmp_path: Path) -> Iterator[Fleet]:
    root, names = repos
    with Fleet(tmp_path, root=root, node_flags=FLAGS) as fleet:
        warm(fleet, names)
        yield fleet


def exit_code(node: Service) -> int | None:
    """Return how a node ended by itself; None if it has not in time."""
    try:
        return node.process.wait(ENDED_WITHIN)
    except subprocess.TimeoutExpired:
        return None


def test_nodes_drain_under_load_one_after_the_other_until_one_holds_it_all(
    fleet: Fleet, repos: tuple[Path, tuple[str, ...]]
) -> None:
    """The first is told by a signal, the second by a request.

    Only every other repository is cloned meanwhile: the rest is held by who it was handed to.
    """
    _, names = repos
    busy = names[::2]
    first, second, last = fleet.names
    owned = {name for name in names if fleet.owners(name)[0] == first}
    assert owned.difference(busy)
    assert owned.intersection(busy)
    heir = {name: fleet.owners(name)[1] for name in owned}
    with Load(urls(fleet, busy), clients=3) as load:
        load.wait_for(10)
        packs = len(fleet.origin.packs())

        fleet.terminate(first)
        until(lambda: fleet.states()[first] == "draining", what="the router's notice")
        said = ask(f"{fleet.node_url(first)}/readyz")
        assert said.status == 404
        assert said.text.startswith("draining")
        assert exit_code(fleet.node(first)) == 0
        for name in owned:
            assert name in held_by(fleet, heir[name]), f"{heir[name]} did not take {name}"
        fleet.remove(first)
        load.wait_for(REPOS)

        begun = ask(f"{fleet.node_url(second)}/-/drain", method="POST")
        assert begun.status == 202
        assert exit_code(fleet.node(second)) == 0
        assert set(held_by(fleet, last)) == set(names)
        gone = len(load.got)
        load.wait_for(REPOS)
    assert load.failures == []
    assert len(fleet.origin.packs()) == packs, "upstream was asked for a pack"
    assert {got.node for got in load.got[gone + 3 :]} == {last}

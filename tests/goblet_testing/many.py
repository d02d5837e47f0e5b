"""Many small repositories before a fleet, warm on the nodes that own them."""

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from goblet_testing import asks
from goblet_testing.asks import ask
from goblet_testing.fleet import Fleet, until
from goblet_testing.repos import make_repo

_AT_ONCE = 4


def make_many(
    root: Path, count: int, *, commits: int = 8, files: int = 4, folder: str = "many"
) -> tuple[str, ...]:
    """Make `count` equal repositories in a folder below `root`, and return their names."""
    names = tuple(f"{folder}/repo-{number}" for number in range(count))
    template = root / f"{names[0]}.git"
    make_repo(template, commits=commits, files=files)
    for name in names[1:]:
        shutil.copytree(template, root / f"{name}.git", symlinks=True)
    return names


def urls(fleet: Fleet, names: tuple[str, ...]) -> Mapping[str, str]:
    """Return each repository's clone URL at the first router."""
    return {name: fleet.url(name) for name in names}


def warm(fleet: Fleet, names: tuple[str, ...]) -> None:
    """Clone each through the router; return when its owner holds a mirror of it."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        list(threads.map(_clone, urls(fleet, names).values()))
    until(
        lambda: sum(mirrors(fleet, node) for node in fleet.names) >= len(names),
        60,
        what="a mirror of each repository",
    )


def _clone(url: str) -> None:
    listed = asks.ls_refs(url, "HEAD", "refs/heads/", "refs/tags/")
    answer = asks.fetch(url, sorted(set(listed.refs.values())))
    if answer.status != 200:
        raise ValueError(f"{url}: {answer.status} {answer.text}")


def mirrors(fleet: Fleet, node: str) -> int:
    """Return how many mirrors a node holds."""
    held: int = status(fleet, node)["mirrors"]
    return held


def status(fleet: Fleet, node: str) -> dict[str, int]:
    """Return what a node says of itself."""
    found: dict[str, int] = json.loads(ask(f"{fleet.node_url(node)}/-/status").body)
    return found


def held_by(fleet: Fleet, node: str) -> Mapping[str, int]:
    """Return the names and bytes of the repositories that a node holds a mirror of."""
    listed = json.loads(ask(f"{fleet.node_url(node)}/-/mirrors").body)["mirrors"]
    return {one["key"].partition("/")[2]: one["bytes"] for one in listed}

"""Routers that know nothing of each other place every repository alike."""

import http.client
import json
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from goblet_testing.processes import START_LIMIT, Service, router_command

pytestmark = pytest.mark.system

# Nobody answers there: who is on the ring must not depend on who is up.
NODES = {f"goblet-{number}": f"http://127.0.0.1:{number}" for number in range(1, 6)}
REPOS = [f"github.com/org-{number % 7}/repo-{number}" for number in range(200)]


def start(directory: Path, name: str, flags: Sequence[str]) -> Service:
    listener = socket.create_server(("127.0.0.1", 0), backlog=16)
    command = [*router_command(listener=listener), *flags]
    return Service(command, log_file=directory / f"{name}.log", listener=listener)


def answers(router: Service, paths: Sequence[str]) -> Iterator[Any]:
    """Return what a router says to each question, all on one connection."""
    connection = http.client.HTTPConnection(
        router.base.removeprefix("http://"), timeout=START_LIMIT
    )
    try:
        for path in paths:
            connection.request("GET", path)
            yield json.loads(connection.getresponse().read())
    finally:
        connection.close()


def test_routers_with_the_same_members_from_other_sources_have_the_same_ring(
    tmp_path: Path,
) -> None:
    file = tmp_path / "members.toml"
    file.write_text("[nodes]\n" + "".join(f'{name} = "{url}"\n' for name, url in NODES.items()))
    backwards = [f"--node={name}={url}" for name, url in reversed(NODES.items())]
    paths = ["/-/ring", *(f"/-/ring/locate?repo={repo}" for repo in REPOS)]
    with ExitStack() as stack:
        # Both start at once: a router takes most of a second to come up.
        routers = [
            stack.enter_context(start(tmp_path, "list", backwards)),
            stack.enter_context(start(tmp_path, "file", ["--members-file", str(file)])),
        ]
        (ring, *one), (other_ring, *other) = (list(answers(each, paths)) for each in routers)
        for router in routers:
            router.check_log()
    assert ring["ring"] == other_ring["ring"]
    assert [member["name"] for member in ring["members"]] == list(NODES)
    assert one == other
    assert {place["owners"][0] for place in one} == set(NODES)

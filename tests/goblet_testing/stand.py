"""An origin and one node before it, for tests that ask what clients see.

The promise under test is that a warm mirror answers alone: `answers_alone` holds
the node to it by the origin's own log.
"""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from goblet_testing import asks
from goblet_testing.origin import Origin
from goblet_testing.processes import Service, start_node
from goblet_testing.seen import Seen

HOST = "origin.test"
"""The name under which the node knows the origin."""
MIRRORED = ("HEAD", "refs/heads/", "refs/tags/")
"""What a mirror holds, as prefixes."""
_NODE = "goblet/"
_WARM_WITHIN = 20.0
_POLL = 0.03
_NOT_OURS = ("forwarded", "cold", None)


class Stand:
    """An origin whose repositories may be changed, and a node in front of it."""

    def __init__(self, origin: Origin, node: Service, directory: Path) -> None:
        self.origin = origin
        self.node = node
        self.directory = directory

    def url(self, name: str, *, user: str | None = None) -> str:
        """Return the clone URL at the node, with the credential of `user` in it if given."""
        url = self.node.url(f"{HOST}/{name}")
        if user is not None:
            url = url.replace("://", f"://{user}:{self.origin.users[user]}@", 1)
        return url

    def direct(self, name: str) -> str:
        """Return its clone URL at the origin itself."""
        return self.origin.url_of(name)

    def repo(self, name: str) -> Path:
        """Return where the origin keeps the repository."""
        return self.origin.root / f"{name}.git"

    def copy(self, name: str, template: str) -> Path:
        """Give the origin a repository `name` that begins as a copy of `template`."""
        return Path(shutil.copytree(self.repo(template), self.repo(name), symlinks=True))

    def packs(self, name: str) -> list[Seen]:
        """Return the node's requests for packs of this repository, as the origin saw them.

        Whatever client asked the node, its own name is on what it asks in turn.
        """
        packs = self.origin.packs()
        return [seen for seen in packs if seen.repo == name and _NODE in (seen.agent or "")]

    def warm(self, name: str, *, user: str | None = None) -> None:
        """Return when the node's mirror holds the repository as it is now, for all or `user`.

        Known by its answer to a full clone, which then is its own.

        Raises:
            TimeoutError: it was not its own within `_WARM_WITHIN` seconds.
        """
        url, credential = self.url(name), None
        if user is not None:
            credential = (user, self.origin.users[user])
        refs = asks.ls_refs(url, *MIRRORED, user=credential).refs
        wants = sorted(set(refs.values()) - {"unborn"})
        deadline = time.monotonic() + _WARM_WITHIN
        cache: str | None = "none"
        while time.monotonic() < deadline:
            cache = asks.fetch(url, wants, user=credential).cache
            if cache not in _NOT_OURS:
                return
            time.sleep(_POLL)
        raise TimeoutError(f"{name} is still {cache}\n{self.node.log[-3000:]}")

    def check_log(self, *, since: int = 0) -> None:
        """Hold the node's log, from its character `since` on, to having no traceback in it."""
        self.node.check_log(since=since)

    @contextmanager
    def answers_alone(self, name: str) -> Iterator[None]:
        """Hold the node to answering the block without asking the origin for a pack of `name`."""
        before = len(self.packs(name))
        yield
        asked = self.packs(name)[before:]
        assert asked == [], f"{len(asked)} pack requests reached the origin: {asked}"


@contextmanager
def start_stand(
    directory: Path, *, users: Mapping[str, str] | None = None, flags: Sequence[str] = ()
) -> Iterator[Stand]:
    """Run an origin before `directory`/root and a node before it.

    Leaving holds the node's log to having no traceback in it.
    """
    root = directory / "root"
    root.mkdir(exist_ok=True)
    with (
        Origin(root, users=users) as origin,
        start_node(
            "goblet-1", directory=directory, upstreams={HOST: origin.url}, flags=flags
        ) as node,
    ):
        stand = Stand(origin, node, directory)
        yield stand
        stand.check_log()

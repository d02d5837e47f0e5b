"""What clients get while upstream is down, broken or slow, and what it hears of them meanwhile."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from goblet_testing import asks, repos
from goblet_testing.asks import Answer
from goblet_testing.faults_on_cue import Fault
from goblet_testing.gitcli import git
from goblet_testing.origin import Origin
from goblet_testing.processes import Service, start_node
from goblet_testing.stand import HOST, MIRRORED, Stand

pytestmark = [pytest.mark.system, pytest.mark.slow]

USERS = {"alice": "wonder", "bob": "builder"}
ALICE, BOB = (("alice", "wonder"), ("bob", "builder"))
PUBLIC, PRIVATE = "org/public", "org/private"
FLAGS = ["--access-seconds", "0", "--breaker-failures", "3", "--breaker-seconds", "0.5"]
FLAGS += ["--stale-after-seconds", "0.5", "--retry-refresh-seconds", "0"]


class Town:
    """An origin that can go down and come back at the same address, and what is before it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._port = 0
        self._running = ExitStack()
        self.private: dict[str, set[str]] = {PRIVATE: {"alice"}}
        self.up()

    def up(self) -> None:
        """Run the origin, anew."""
        listen = ("127.0.0.1", self._port)
        origin = Origin(self._root, listen=listen, users=USERS, private=self.private)
        self.origin = self._running.enter_context(origin)
        self._port = urlsplit(self.origin.url).port or 0

    def down(self) -> None:
        """End the origin: whoever connects is refused."""
        self._running.close()

    @contextmanager
    def node(self, name: str, directory: Path, *flags: str) -> Iterator[Service]:
        """Run a node before the origin, and hold its log to having no traceback in it."""
        upstreams = {HOST: self.origin.url}
        with start_node(name, directory=directory, upstreams=upstreams, flags=flags) as node:
            yield node
            node.check_log()


@pytest.fixture
def town(tmp_path: Path) -> Iterator[Town]:
    """An origin with a repository for all and one for alice."""
    for name in (PUBLIC, PRIVATE):
        repos.make_repo(tmp_path / f"root/{name}.git", commits=8)
    town = Town(tmp_path / "root")
    yield town
    town.down()


def warm(town: Town, node: Service, *names: str) -> None:
    """Return when the node's mirrors of these hold what the origin has; alice knows of all."""
    for name in names:
        told = ensure(node, name, user=ALICE if name in town.private else None)
        assert told.status == 200, told.text
        listed = refs(node, name, user=ALICE if name in town.private else None)
        assert listed.status == 200


def refs(node: Service, name: str, *, user: tuple[str, str] | None = None) -> Answer:
    return asks.ls_refs(node.url(f"{HOST}/{name}"), *MIRRORED, user=user)


def ensure(
    node: Service, name: str, *more: str, user: tuple[str, str] | None = None, method: str = "POST"
) -> Answer:
    query = "&".join([f"repo={HOST}/{name}", *more])
    return asks.ask(f"{node.base}/-/ensure?{query}", method=method, user=user)


def fails(url: str, into: Path) -> str:
    """Clone in vain; return what git says."""
    done = git("clone", "--quiet", url, into, check=False)
    assert done.returncode != 0
    assert not into.exists()
    return done.stderr


def until(fact: Callable[[], bool], within: float = 20.0) -> None:
    deadline = time.monotonic() + within
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_while_upstream_is_gone_clones_go_on_for_those_who_may_and_within_the_bound(
    town: Town, tmp_path: Path
) -> None:
    with (
        town.node("patient", tmp_path, *FLAGS) as node,
        town.node("strict", tmp_path, *FLAGS, "--stale-seconds", "1") as strict,
    ):
        since = time.monotonic()
        warm(town, node, PUBLIC, PRIVATE)
        warm(town, strict, PUBLIC)
        tip = refs(node, PUBLIC).refs["refs/heads/main"]
        town.down()

        git("clone", "--quiet", node.url(f"{HOST}/{PUBLIC}"), tmp_path / "c")
        git("fsck", "--strict", cwd=tmp_path / "c")
        assert git("rev-parse", "origin/main", cwd=tmp_path / "c").stdout.strip() == tip
        told = refs(node, PRIVATE, user=ALICE)
        assert told.status == 200
        assert 0 <= int(told.headers["goblet-age"]) <= time.monotonic() - since + 1
        # Who was not allowed before is not now, nor is what was never seen; all at once.
        began = time.monotonic()
        for user in (BOB, None):
            assert refs(node, PRIVATE, user=user).status == 502
        assert refs(node, "org/unseen").status == 502
        unknown = asks.fetch(node.url(f"{HOST}/{PUBLIC}"), ["c0ffee" * 6 + "c0ff"])
        assert unknown.status == 502
        assert "is not asked for" in unknown.text
        assert ensure(node, PUBLIC).status == 502
        assert time.monotonic() - began < 10
        assert node.log.count(f"{HOST}/{PUBLIC} is served as its upstream had it") == 1
        metrics = node.metrics()
        assert metrics['goblet_node_stale_answers_total{of="refs"}'] >= 2
        assert metrics[f'goblet_node_upstream_breaker_state{{host="{_netloc(town)}"}}'] > 0

        # Past the bound it is told, so that git shows it.
        until(lambda: refs(strict, PUBLIC).status == 502)
        said = fails(strict.url(f"{HOST}/{PUBLIC}"), tmp_path / "too-late")
        assert "remote: 127.0.0.1 failed" in said or "could not be asked" in said
        assert "error: 502" in said

        # It comes back, with a commit that came meanwhile, and without a restart here.
        repos.commit(tmp_path / f"root/{PUBLIC}.git", files={"new": "new\n"})
        town.up()
        until(lambda: "goblet-age" not in refs(node, PUBLIC).headers)
        assert refs(node, PUBLIC).refs["refs/heads/main"] != tip
        git("clone", "--quiet", node.url(f"{HOST}/{PUBLIC}"), tmp_path / "again")

        # Who lost the permission does not get it back by an outage.
        town.origin.private[PRIVATE] = {"bob"}
        assert refs(node, PRIVATE, user=ALICE).status == 403
        town.down()
        assert refs(node, PRIVATE, user=ALICE).status == 502

    # Nothing of it outlives the node.
    with town.node("patient", tmp_path, *FLAGS) as node:
        assert refs(node, PUBLIC).status == 502


def test_a_broken_upstream_is_not_hammered_and_a_slow_one_is_not_waited_for(
    town: Town, tmp_path: Path
) -> None:
    town.private.clear()
    town.origin.private.clear()
    with town.node("patient", tmp_path, *FLAGS) as node:
        warm(town, node, PUBLIC, PRIVATE)
        town.origin.misbehave(Fault(status=500))
        town.origin.clear_log()
        began = time.monotonic()
        for number in range(60):
            told = refs(node, (PUBLIC, PRIVATE)[number % 2])
            assert (told.status, "goblet-age" in told.headers) == (200, True)
        took = time.monotonic() - began
        # A row of three, those under way, and a probe for each rest of a quarter second at least.
        assert len(town.origin.log) <= 8 + took / 0.25
        town.origin.behave()
        until(lambda: "goblet-age" not in refs(node, PUBLIC).headers)
        assert "answers again" in node.log

        town.origin.misbehave(Fault(hold=True))
        for name in (PUBLIC, PRIVATE, PUBLIC):
            began = time.monotonic()
            git("clone", "--quiet", node.url(f"{HOST}/{name}"), tmp_path / str(began))
            assert time.monotonic() - began < 10
        town.origin.behave()
        until(lambda: "goblet-age" not in refs(node, PUBLIC).headers)


def test_a_job_can_insist(town: Town, tmp_path: Path) -> None:
    with town.node("patient", tmp_path, *FLAGS, "--freshness-seconds", "60") as node:
        warm(town, node, PUBLIC, PRIVATE)
        old = refs(node, PUBLIC).refs["refs/heads/main"]
        repos.commit(tmp_path / f"root/{PUBLIC}.git", files={"new": "new\n"})
        new = git("rev-parse", "main", cwd=tmp_path / f"root/{PUBLIC}.git").stdout.strip()
        assert refs(node, PUBLIC).refs["refs/heads/main"] == old, "it is fresh enough for most"
        told = ensure(node, PUBLIC, "ref=refs/heads/main", f"commit={new}")
        said = json.loads(told.text)
        assert said.pop("seconds") >= 0
        assert said == {
            "repo": f"{HOST}/{PUBLIC}",
            "refs": {"refs/heads/main": new},
            "commits": [new],
        }
        assert refs(node, PUBLIC).refs["refs/heads/main"] == new
        stand = Stand(town.origin, node, tmp_path)
        with stand.answers_alone(PUBLIC):
            git("clone", "--quiet", node.url(f"{HOST}/{PUBLIC}"), tmp_path / "c")
        for user, status in ((ALICE, 200), (BOB, 403), (None, 401)):
            assert ensure(node, PRIVATE, user=user).status == status
        assert ensure(node, PUBLIC, "ref=refs/heads/nowhere").status == 404
        wrong = ensure(node, PUBLIC, method="GET")
        assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
        assert ensure(node, PUBLIC, method="HEAD").status == 405
        assert ensure(node, "").status == 400
        assert ensure(node, "org/nowhere").status == 404
        asked = node.metrics()['goblet_node_requests_total{endpoint="ensure",status="200"}']
        assert asked == 4
        assert f"method=POST key={HOST}/{PUBLIC} endpoint=ensure status=200" in node.log


def _netloc(town: Town) -> str:
    return urlsplit(town.origin.url).netloc

"""What is moved when a node joins or leaves, and what do clients see of it?

Starts a host with many small repositories, three nodes that hold them and a router, and
has clients clone them all the time while one more node is added, or the first one goes.
A node is added in three ways: it copies what it will own before it is ready (as it does);
it is ready at once and asks the others when it is asked (with `--join-seconds 0.01`); it
knows nobody, so that all it owns is cold. One goes in two: it drains, or is killed. Prints
what was moved beside the least that could be, what upstream was asked for, how long
clones took (stderr) and one JSON line.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from goblet_shared.contract import NodeName
from goblet_shared.repo_key import parse
from goblet_shared.ring import SLOTS, Ring, moves
from goblet_testing.benching import HOST, Verdict, parser_of, report
from goblet_testing.fleet import Fleet
from goblet_testing.load import Got, Load
from goblet_testing.many import held_by, make_many, urls, warm
from goblet_testing.measuring import Spread
from goblet_testing.plotting import bars

FIRST = "goblet-1"
NODES, REPOS, CLIENTS, SECONDS = 3, 90, 4, 6.0
GONE_WITHIN = 60.0
# Commits of the repositories: they differ in size.
SIZES = (4, 16, 64)
NOT_OF_A_MIRROR = ("cold", "forwarded", "bypass")

Held = Mapping[tuple[str, str], int]
"""What nodes hold: node and repository -> bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What a change of the members moved.

    Attributes:
        least: The share of everything that had to: what the node will own, or owned.
        slots: The share of the slots whose owner changed.
        repos: The share of the repositories whose owner changed.
        repo_bytes: What their mirrors take.
        copied: The mirrors that nodes have now and had not before.
        copied_bytes: What those take.
    """

    least: float
    slots: float
    repos: float
    repo_bytes: int
    copied: int
    copied_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What clients and upstream saw of it, from its beginning on.

    Attributes:
        packs: Requests for packs that reached upstream.
        clones: Clones that ended.
        failed: Those of them that failed.
        cold: Those that no mirror answered.
        median_ms: What one took.
        p99_ms: What one in a hundred took at the least.
    """

    packs: int
    clones: int
    failed: int
    cold: int
    median_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change: how it was made, how long until routers had taken it for done, its effect."""

    way: str
    seconds: float
    moved: Moved
    seen: Seen

    @property
    def line(self) -> str:
        """Return it for people."""
        moved, seen = self.moved, self.seen
        return (
            f"{self.way:16} {self.seconds:6.2f} s  moved {moved.repos:6.1%} of the repositories, "
            f"{moved.slots:6.1%} of the slots (at least {moved.least:.1%})  "
            f"copied {moved.copied:3} mirrors, {moved.copied_bytes / 1e6:6.2f} MB  "
            f"upstream {seen.packs:3} packs  clones {seen.clones:4}, {seen.failed} failed, "
            f"{seen.cold:3} cold  median {seen.median_ms:6.1f} ms  p99 {seen.p99_ms:7.1f} ms"
        )


def main() -> int:
    """Run the bench, print its line, and return its exit code."""
    parser = parser_of(__doc__)
    parser.add_argument("--nodes", type=int, default=NODES, help="how many nodes at first")
    parser.add_argument("--repos", type=int, default=REPOS, help="how many repositories")
    parser.add_argument("--clients", type=int, default=CLIENTS, help="how many clone at once")
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="how long they go on after a change"
    )
    parser.add_argument("--only", choices=WAYS, action="append", help="one way; repeat it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="goblet-rebalance-") as directory:
        measure(Path(directory), options)
    return 0


def measure(directory: Path, options: argparse.Namespace) -> None:
    """Change the members in every way and print what was found."""
    root = directory / "root"
    names = tuple(
        name
        for number, commits in enumerate(SIZES)
        for name in make_many(
            root, options.repos // len(SIZES), commits=commits, folder=f"size-{number}"
        )
    )
    found = [
        Bench(directory / f"fleet-{number}", root, names, options).run(way)
        for number, way in enumerate(options.only or WAYS)
    ]
    for change in found:
        print(change.line, file=sys.stderr)
    report(
        "rebalance",
        {
            "nodes": options.nodes,
            "repos": len(names),
            "clients": options.clients,
            "changes": {change.way: asdict(change) for change in found},
        },
        verdicts=[verdict for change in found for verdict in judge(change)],
        plot=options.plot,
        svg=lambda: bars(
            "Clones while the members change",
            "milliseconds",
            {
                change.way: {"median": change.seen.median_ms, "p99": change.seen.p99_ms}
                for change in found
            },
        ),
    )


class Bench:
    """One fleet, and what is done to it."""

    def __init__(
        self, directory: Path, root: Path, names: tuple[str, ...], options: argparse.Namespace
    ) -> None:
        self._directory = directory
        self._root = root
        self._names = names
        self._nodes: int = options.nodes
        self._clients: int = options.clients
        self._seconds: float = options.seconds

    def run(self, way: str) -> Change:
        """Change the members in this way, under load."""
        self._directory.mkdir()
        flags = ["--gone-after-seconds", "1"]
        with Fleet(
            self._directory,
            nodes=self._nodes,
            root=self._root,
            node_flags=flags,
            router_flags=flags,
        ) as fleet:
            warm(fleet, self._names)
            ring, held = Ring.of(map(NodeName, fleet.names)), self._held(fleet)
            packs = len(fleet.origin.packs())
            with Load(urls(fleet, self._names), clients=self._clients) as load:
                load.wait_for(self._clients)
                begun = time.monotonic()
                WAYS[way](fleet)
                seconds = time.monotonic() - begun
                time.sleep(self._seconds)
            return Change(
                way=way,
                seconds=round(seconds, 2),
                moved=self._moved(fleet, ring, held),
                seen=seen(load.since(begun), len(fleet.origin.packs()) - packs),
            )

    def _moved(self, fleet: Fleet, old: Ring, before: Held) -> Moved:
        new, after = Ring.of(map(NodeName, fleet.names)), self._held(fleet)
        keys = {name: parse(f"{HOST}/{name}") for name in self._names}
        repos = [name for name, key in keys.items() if old.owners(key)[0] != new.owners(key)[0]]
        sizes = {name: size for (_, name), size in {**before, **after}.items()}
        copied = [one for one in after if one not in before]
        return Moved(
            least=1 / max(len(old.members), len(new.members)),
            slots=len(moves(old, new)) / SLOTS,
            repos=len(repos) / len(self._names),
            repo_bytes=sum(sizes[name] for name in repos),
            copied=len(copied),
            copied_bytes=sum(after[one] for one in copied),
        )

    def _held(self, fleet: Fleet) -> Held:
        """Return what the members hold."""
        return {
            (node, name): size
            for node in fleet.names
            for name, size in held_by(fleet, node).items()
        }


def seen(got: Sequence[Got], packs: int) -> Seen:
    """Return what clients got, who caused so many requests for packs."""
    spread = Spread.of(one.seconds for one in got)
    return Seen(
        packs=packs,
        clones=len(got),
        failed=sum(1 for one in got if one.failure),
        cold=sum(1 for one in got if one.cache in NOT_OF_A_MIRROR),
        median_ms=round(spread.median * 1e3, 1),
        p99_ms=round(spread.p99 * 1e3, 1),
    )


def join(fleet: Fleet, flags: Sequence[str] = ()) -> None:
    """Add a node; return when the routers prefer it for what it owns."""
    fleet.add_node(next_name(fleet), flags).wait_ready()
    fleet.wait_settled()


def next_name(fleet: Fleet) -> str:
    """Return the name of the next node."""
    return f"goblet-{len(fleet.names) + 1}"


def join_knowing_nobody(fleet: Fleet) -> None:
    """Add a node that is told of no other."""
    alone = fleet.directory / "alone.json"
    own = "http://127.0.0.1:9"  # which is never asked
    alone.write_text(json.dumps({"nodes": {next_name(fleet): own}}))
    join(fleet, ["--members-file", str(alone)])


def drain(fleet: Fleet) -> None:
    """Have a node go by itself; return when the routers have forgotten it."""
    fleet.terminate(FIRST)
    fleet.node(FIRST).process.wait(GONE_WITHIN)
    fleet.remove(FIRST)
    fleet.wait_settled()


def kill(fleet: Fleet) -> None:
    """End a node as a crash would; return when the routers have forgotten it."""
    fleet.kill(FIRST)
    fleet.remove(FIRST)
    fleet.wait_settled()


WAYS: Mapping[str, Callable[[Fleet], None]] = {
    "join, warm": join,
    "join, on demand": lambda fleet: join(fleet, ["--join-seconds", "0.01"]),
    "join, no peers": join_knowing_nobody,
    "leave, drained": drain,
    "leave, killed": kill,
}


def judge(change: Change) -> list[Verdict]:
    """Return what a change is held to."""
    found = []

    def at_most(limit: float, measured: float, what: str) -> None:
        figure = f"{change.way}: {what}"
        found.append(Verdict(figure=figure, measured=measured, limit=limit, is_least=False))

    at_most(1.25, change.moved.slots / change.moved.least, "slots moved, times the least")
    if change.way in ("join, warm", "leave, drained"):
        at_most(0, change.seen.packs, "requests for packs at upstream")
        at_most(0, change.seen.failed, "clones that failed")
    return found


if __name__ == "__main__":
    sys.exit(main())

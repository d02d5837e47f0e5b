"""How many repositories a second does one process place, and how soon is a new ring there?

A key that is parsed goes to its slot, and the slot to its owners. A router builds a ring at
every change of its members: the first one ranks the slots of every node, later ones those
of the newcomer alone. CPU time of one process; prints one JSON line.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from goblet_shared.contract import NodeName
from goblet_shared.repo_key import parse
from goblet_shared.ring import SLOTS, Ring
from goblet_testing.benching import Verdict, parser_of, report
from goblet_testing.plotting import bars

SIZES = (3, 10, 64)
LEAST = 200_000
# Names that no ring had before: what is remembered of others does not help with them.
_FRESH = count()


def main() -> int:
    """Run the bench, print its line, and return its exit code."""
    parser = parser_of(__doc__)
    parser.add_argument("--repos", type=int, default=20_000, help="how many keys are looked up")
    parser.add_argument("--rounds", type=int, default=5, help="how often; the best round counts")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="nodes on the ring")
    options = parser.parse_args()
    rows = [measure(size, repos=options.repos, rounds=options.rounds) for size in options.sizes]
    verdicts = [
        Verdict(
            figure=f"owners of a parsed key a second, {row['nodes']:.0f} nodes",
            measured=row["owners_per_second"],
            limit=LEAST,
            is_least=True,
        )
        for row in rows
    ]
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report(
        "lookup",
        {"n": options.repos * options.rounds, "rings": rows, "max_rss_mb": round(rss, 1)},
        verdicts=verdicts,
        plot=options.plot,
        svg=lambda: bars(
            "A new ring",
            "CPU ms",
            {
                f"{row['nodes']:.0f} nodes": {
                    name: row[name] for name in row if name.endswith("_ms")
                }
                for row in rows
            },
        ),
    )
    return 0 if all(verdict.passes for verdict in verdicts) else 1


def measure(size: int, *, repos: int, rounds: int) -> dict[str, float]:
    """Return what a ring of `size` nodes takes to build and to ask."""
    keys = [parse(f"github.com/org-{number % 97}/repo-{number}") for number in range(repos)]
    ring = Ring.of(new_names(size))

    def look_up() -> None:
        for key in keys:
            ring.owners(key)

    every_order = cpu_seconds(lambda: [ring.order(slot) for slot in range(SLOTS)])
    firsts, nexts = [], []
    for _ in range(rounds):
        names = list(new_names(size))
        more = [*names, *new_names(1)]
        firsts.append(cpu_seconds(lambda names=names: Ring.of(names).placement))  # type: ignore[misc]
        nexts.append(cpu_seconds(lambda names=more: Ring.of(names).placement))  # type: ignore[misc]
    return {
        "nodes": size,
        "owners_per_second": round(repos / min(cpu_seconds(look_up) for _ in range(rounds))),
        "first_ring_ms": ms(min(firsts)),
        "next_ring_ms": ms(min(nexts)),
        "every_order_ms": ms(every_order),
    }


def new_names(number: int) -> Iterator[NodeName]:
    """Give so many names that nobody had yet."""
    for _ in range(number):
        yield NodeName(f"bench-{next(_FRESH)}")


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return what a call takes of this process."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def ms(seconds: float) -> float:
    """Return seconds as they are printed."""
    return round(seconds * 1e3, 2)


if __name__ == "__main__":
    sys.exit(main())

"""How evenly are slots, and repositories, spread over 3 to 64 nodes, and how many slots move?

The fullest node's load over the mean: of the ring's slots, and of 1,000 to 1,000,000
repositories that are asked for equally often, or as Zipf's law has it (the r-th most wanted
1/r times as often as the first). Beside ours: plain uhashring; HAProxy's `hash-type
consistent` (src/lb_chash.c of HAProxy 2.6: 16 points a server of weight 1, at a mixed
server id; the key by sdbm, mixed alike; the nearest point in either direction); rendezvous
hashing (Thaler, Ravishankar, 1998). Then, of our slots alone, how many move when a node
joins. Prints a table to stderr and one JSON line.
"""

import hashlib
import resource
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import numpy.typing as npt
from uhashring import HashRing

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from goblet_shared.contract import NodeName
from goblet_shared.ring import SLOTS, Ring, moves
from goblet_testing.benching import Verdict, parser_of, report
from goblet_testing.plotting import lines

SIZES = (3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 56, 64)
REPOS = 1_000_000
OURS = "goblet"
EQUALLY = "equally"

Numbers = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.intp]


class Keys:
    """The keys of repositories, hashed once in every way that a method needs."""

    def __init__(self, count: int) -> None:
        names = [f"github.com/org-{n % 997:03}/repo-{n:07}".encode() for n in range(count)]
        self.slots: Indices = np.fromiter((crc32(name) % SLOTS for name in names), np.intp, count)
        digests = b"".join(hashlib.md5(name).digest()[:8] for name in names)
        self.md5: Numbers = np.frombuffer(digests, dtype=">u8").astype(np.uint64)
        letters = np.frombuffer(b"".join(names), dtype=np.uint8).reshape(count, -1)
        self.haproxy = _mixed(_sdbm(letters))


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """What the fullest of some nodes has, times the mean, by every method."""

    nodes: int
    repos: int
    asked: str
    fullest: Mapping[str, float]

    def line(self) -> dict[str, object]:
        """Return it as it is printed."""
        return {"nodes": self.nodes, "repos": self.repos, "asked": self.asked, **self.fullest}


def main() -> int:
    """Run the bench, print its line, and return its exit code."""
    parser = parser_of(__doc__)
    parser.add_argument("--repos", type=int, default=REPOS, help="the most repositories")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="nodes on the ring")
    options = parser.parse_args()
    keys = Keys(options.repos)
    counts = [1000 * 10**power for power in range(4) if 1000 * 10**power <= options.repos]
    slots = {size: slots_of(names_of(size)) for size in options.sizes}
    repos = [row for size in options.sizes for row in spread(keys, size, counts)]
    joins = {size: moved_share(size) for size in range(4, max(options.sizes) + 1)}
    fullest = max(row[OURS] for row in slots.values())
    verdicts = [
        Verdict(figure="fullest node, slots", measured=fullest, limit=1.1, is_least=False),
        Verdict(
            figure="slots moved by a join, of 1/(N+1)",
            measured=max(joins.values()),
            limit=1.25,
            is_least=False,
        ),
        Verdict(
            figure="share of sizes at which a node's slots go to their rank 1 when it leaves",
            measured=sum(map(is_successor, options.sizes)) / len(options.sizes),
            limit=1.0,
            is_least=True,
        ),
    ]
    show(slots, repos)
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report(
        "ring_distribution",
        {
            "n": options.repos,
            "slots": slots,
            "repositories": [row.line() for row in repos],
            "moved_by_a_join": {size: round(share, 3) for size, share in joins.items()},
            "max_rss_mb": round(rss, 1),
        },
        verdicts=verdicts,
        plot=options.plot,
        svg=lambda: lines(
            f"Fullest of N nodes, {counts[-1]} repositories",
            "nodes",
            "times the mean",
            {
                method: [
                    (row.nodes, row.fullest[method])
                    for row in repos
                    if row.repos == counts[-1] and row.asked == EQUALLY
                ]
                for method in METHODS
            },
        ),
    )
    return 0 if all(verdict.passes for verdict in verdicts) else 1


def names_of(size: int) -> list[NodeName]:
    """Return the names of so many nodes."""
    return [NodeName(f"goblet-{number}") for number in range(1, size + 1)]


def slots_of(names: Sequence[NodeName]) -> dict[str, float]:
    """Return what the fullest node has of the slots, times the mean: with and without the bound."""
    plain = HashRing(nodes=list(names))
    loads = {
        OURS: Counter(Ring.of(names).placement),
        "uhashring": Counter(plain.get_node(str(slot)) for slot in range(SLOTS)),
    }
    return {
        method: round(max(load.values()) * len(names) / SLOTS, 3) for method, load in loads.items()
    }


def moved_share(size: int) -> float:
    """Return how many slots move when the last of `size` nodes joins, over 1/`size` of all."""
    names = names_of(size)
    return len(moves(Ring.of(names[:-1]), Ring.of(names))) * size / SLOTS


def is_successor(size: int) -> bool:
    """Say whether a node's slots go to their first successors when it leaves."""
    names = names_of(size)
    old, new = Ring.of(names), Ring.of(names[1:])
    return all(
        new.placement[slot] == old.order(slot)[1]
        for slot, owner in enumerate(old.placement)
        if owner == names[0]
    )


def spread(keys: Keys, size: int, counts: Sequence[int]) -> list[Spread]:
    """Return the fullest node's load over the mean, a row for each number of repositories."""
    owners = {method: place(keys, names_of(size)) for method, place in METHODS.items()}
    rows = []
    for count in counts:
        # Who is wanted most has nothing to do with its name.
        zipf = np.random.default_rng(count).permutation(1.0 / np.arange(1, count + 1))
        for asked, weights in ((EQUALLY, np.ones(count)), ("by Zipf", zipf)):
            fullest = {}
            for method, placed in owners.items():
                loads = np.bincount(placed[:count], weights=weights, minlength=size)
                fullest[method] = round(float(loads.max() * size / weights.sum()), 3)
            rows.append(Spread(nodes=size, repos=count, asked=asked, fullest=fullest))
    return rows


def by_ours(keys: Keys, names: Sequence[NodeName]) -> Indices:
    """Return the index of each key's owner on our ring."""
    index = {name: number for number, name in enumerate(names)}
    table = np.array([index[name] for name in Ring.of(names).placement], dtype=np.intp)
    return table[keys.slots]


def by_uhashring(keys: Keys, names: Sequence[NodeName]) -> Indices:
    """Return the same by uhashring as it is, over the keys themselves."""
    points = HashRing(nodes=list(names)).get_points()
    index = {name: number for number, name in enumerate(names)}
    places = np.array([point >> 64 for point, _ in points], dtype=np.uint64)
    owners = np.array([index[NodeName(str(name))] for _, name in points], dtype=np.intp)
    return owners[np.searchsorted(places, keys.md5, side="right") % len(owners)]


def by_haproxy(keys: Keys, names: Sequence[NodeName]) -> Indices:
    """Return the same by HAProxy's consistent hashing, with server ids from 1 on."""
    each, range_of_ids = 16, 4096
    ids = np.arange(1, len(names) + 1, dtype=np.uint32).repeat(each) * np.uint32(range_of_ids)
    points = _mixed(ids + np.tile(np.arange(each, dtype=np.uint32), len(names)))
    sequence = np.argsort(points, kind="stable")
    places = points[sequence]
    after = np.searchsorted(places, keys.haproxy, side="left") % len(places)
    before = (after - 1) % len(places)
    is_before = keys.haproxy - places[before] <= places[after] - keys.haproxy
    return (sequence // each)[np.where(is_before, before, after)]


def by_rendezvous(keys: Keys, names: Sequence[NodeName]) -> Indices:
    """Return the same by the highest of all nodes' hashes with the key."""
    best = np.zeros(len(keys.md5), dtype=np.uint64)
    owners = np.zeros(len(keys.md5), dtype=np.intp)
    for number, name in enumerate(names):
        seed = np.frombuffer(hashlib.md5(name.encode()).digest()[:8], dtype=np.uint64)[0]
        weights = _splitmix(keys.md5 ^ seed)
        is_better = weights > best
        owners[is_better] = number
        np.maximum(best, weights, out=best)
    return owners


METHODS: Mapping[str, Callable[[Keys, Sequence[NodeName]], Indices]] = {
    OURS: by_ours,
    "uhashring": by_uhashring,
    "HAProxy": by_haproxy,
    "rendezvous": by_rendezvous,
}


def show(slots: Mapping[int, Mapping[str, float]], repos: Sequence[Spread]) -> None:
    """Print the tables to stderr."""
    print("fullest node, slots, times the mean", file=sys.stderr)
    for size, row in slots.items():
        print(f"{size:5} nodes  {_line(row)}", file=sys.stderr)
    print("fullest node, repositories, times the mean", file=sys.stderr)
    for one in repos:
        what = f"{one.nodes:5} nodes {one.repos:8} {one.asked:8}"
        print(f"{what}  {_line(one.fullest)}", file=sys.stderr)


def _line(row: Mapping[str, float]) -> str:
    return "  ".join(f"{method} {value:.3f}" for method, value in row.items())


def _sdbm(letters: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    found = np.zeros(len(letters), dtype=np.uint32)
    for column in letters.T:
        found = column + (found << np.uint32(6)) + (found << np.uint32(16)) - found
    return found


def _mixed(given: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Mix as full_hash() of HAProxy's include/haproxy/tools.h does: Jenkins', times a prime."""
    a = given
    a = (a + np.uint32(0x7ED55D16)) + (a << np.uint32(12))
    a = (a ^ np.uint32(0xC761C23C)) ^ (a >> np.uint32(19))
    a = (a + np.uint32(0x165667B1)) + (a << np.uint32(5))
    a = (a + np.uint32(0xD3A2646C)) ^ (a << np.uint32(9))
    a = (a + np.uint32(0xFD7046C5)) + (a << np.uint32(3))
    a = (a ^ np.uint32(0xB55A4F09)) ^ (a >> np.uint32(16))
    mixed: npt.NDArray[np.uint32] = a * np.uint32(3221225473)
    return mixed


def _splitmix(given: Numbers) -> Numbers:
    """Mix as SplitMix64 does (Steele, Lea, Flood, 2014)."""
    x = given + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


if __name__ == "__main__":
    sys.exit(main())

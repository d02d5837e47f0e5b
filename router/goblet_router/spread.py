"""Which owner gets a request while its repository is asked for more than one node should bear.

Bounded loads as in "Consistent Hashing with Bounded Loads" (Mirrokni, Thorup,
Zadimoghaddam, SODA 2018) and HAProxy's `hash-balance-factor`: no node has more than a
factor times the mean of what is under way. There any key whose node is full goes to the
next. Here only a repository does that loads its owner itself, and that a node is known to
hold: a small one on a busy node stays where its mirror is, because another node would
first have to copy it, and one that nobody holds is filled by one node, not by all.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile

from goblet_shared.contract import NodeName
from goblet_shared.repo_key import RepoKey

# How many repositories are remembered as held, some 10 MB of names; the oldest go first.
MAX_HELD = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class SpreadRules:
    """When a repository uses several nodes."""

    factor: float
    """The bound of a node: so many times the mean of what is under way. 0: never spread."""
    after: int
    """So many requests of one repository are under way before it leaves its owner."""
    cool: float
    """Seconds for which a node was not needed before the repository leaves it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How many requests a node has: for all repositories, and for the one in question."""

    of_all: int
    of_it: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Width:
    """Over how many nodes a repository is spread, and when it last needed so many."""

    nodes: int
    needed_at: float


def width_needed(shares: Sequence[Share], factor: float) -> int:
    """Return how many of the first nodes have room for a repository's requests and one more.

    Each has room up to the bound, beside what is there of others. All of them together
    always have enough, for a factor of 1 and above.
    """
    bound = factor * (1 + sum(share.of_all for share in shares)) / len(shares)
    wanted = 1 + sum(share.of_it for share in shares)
    room = 0.0
    for width, share in enumerate(shares, start=1):
        room += max(0.0, bound - (share.of_all - share.of_it))
        if room >= wanted:
            return width
    return len(shares)


def settled(before: Width, needed: int, *, now: float, cool: float) -> Width:
    """Return the width that follows: wider at once, narrower by one node each `cool` seconds.

    Each node that a repository comes to has to copy it, so a lull between two rushes
    should not send it away.
    """
    if needed >= before.nodes:
        return Width(nodes=needed, needed_at=now)
    steps = min(int((now - before.needed_at) / cool), before.nodes - needed)
    if steps <= 0:
        return before
    return Width(nodes=before.nodes - steps, needed_at=before.needed_at + steps * cool)


class Spread:
    """What this router has under way, and so in which order it asks a repository's owners.

    Other routers bound their own share of the load in the same way.
    """

    def __init__(self, rules: SpreadRules, *, clock: Callable[[], float]) -> None:
        self._rules = rules
        self._clock = clock
        # All mutable state: requests under way by node, the same by repository, the
        # repositories that use several nodes, and those that a node was seen to hold, the
        # latest last. Changed without an await.
        self._nodes: Counter[NodeName] = Counter()
        self._repos: dict[RepoKey, Counter[NodeName]] = {}
        self._widths: dict[RepoKey, Width] = {}
        self._held: OrderedDict[RepoKey, None] = OrderedDict()

    def order(
        self,
        key: RepoKey,
        willing: Sequence[NodeName],
        *,
        is_ready: Callable[[NodeName], bool],
    ) -> tuple[NodeName, ...]:
        """Return the nodes to ask: one of the first that are ready, then the others as they came.

        `willing` begins with those that are ready. A hot repository's request goes to
        that of its first nodes which has the least under way, the earliest of equals.
        """
        owners = tuple(willing)
        width = self._width(key, owners, is_ready)
        if width == 1:
            return owners
        chosen = min(owners[:width], key=self._nodes.__getitem__)
        return (chosen, *(node for node in owners if node != chosen))

    def note_held(self, key: RepoKey, *, is_held: bool) -> None:
        """Take note whether a node answered from a mirror of the repository, or had none.

        If it had none, the repository is back at its first owner at once: each other
        node would have to fetch it too.
        """
        self._held.pop(key, None)
        if not is_held:
            self._widths.pop(key, None)
        else:
            self._held[key] = None
            if len(self._held) > MAX_HELD:
                self._held.popitem(last=False)

    @contextmanager
    def under_way(self, key: RepoKey, node: NodeName) -> Iterator[None]:
        """Count a request at `node` for as long as the block runs."""
        of_repo = self._repos.setdefault(key, Counter())
        self._nodes[node] += 1
        of_repo[node] += 1
        try:
            yield
        finally:
            _take_one(self._nodes, node)
            _take_one(of_repo, node)
            if not of_repo:
                del self._repos[key]

    def _width(
        self, key: RepoKey, owners: Sequence[NodeName], is_ready: Callable[[NodeName], bool]
    ) -> int:
        of_repo = self._repos.get(key) or Counter[NodeName]()
        is_hot = (
            self._rules.factor > 0 and key in self._held and of_repo.total() >= self._rules.after
        )
        before = self._widths.get(key)
        if before is None and not is_hot:
            return 1
        ready = list(takewhile(is_ready, owners))
        if len(ready) < 2:
            return 1
        now = self._clock()
        needed = 1
        if is_hot:
            shares = [Share(of_all=self._nodes[node], of_it=of_repo[node]) for node in ready]
            needed = width_needed(shares, self._rules.factor)
        before = before or Width(nodes=1, needed_at=now)
        width = settled(before, needed, now=now, cool=self._rules.cool)
        self._remember(key, width, now)
        return min(width.nodes, len(ready))

    def _remember(self, key: RepoKey, width: Width, now: float) -> None:
        if key not in self._widths and width.nodes > 1:
            # Those that nobody has asked for since they were hot.
            cold = [
                other
                for other, old in self._widths.items()
                if settled(old, 1, now=now, cool=self._rules.cool).nodes == 1
            ]
            for other in cold:
                del self._widths[other]
        if width.nodes > 1:
            self._widths[key] = width
        else:
            self._widths.pop(key, None)


def _take_one(counts: Counter[NodeName], node: NodeName) -> None:
    counts[node] -= 1
    if not counts[node]:
        del counts[node]

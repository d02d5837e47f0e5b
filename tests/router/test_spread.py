"""Which owner a hot repository's requests go to: bounded, steady, and back home in the end."""

from contextlib import ExitStack
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_router.spread import MAX_HELD, Share, Spread, SpreadRules, Width, settled, width_needed
from goblet_shared.contract import NodeName
from goblet_shared.repo_key import RepoKey

HOT, OTHER = RepoKey("h.org/hot"), RepoKey("h.org/other")
NODES = tuple(NodeName(f"goblet-{number}") for number in range(1, 9))
RULES = SpreadRules(factor=1.25, after=4, cool=10.0)


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Router:
    """A spread, what is under way in it, and where the last request went."""

    def __init__(self, nodes: tuple[NodeName, ...] = NODES[:3], rules: SpreadRules = RULES) -> None:
        self.clock = Clock()
        self.nodes = nodes
        self.ready = set(nodes)
        self.spread = Spread(rules, clock=self.clock)
        for key in (HOT, OTHER):
            self.spread.note_held(key, is_held=True)
        self.under_way: list[tuple[RepoKey, NodeName, ExitStack]] = []

    def order(self, key: RepoKey = HOT) -> tuple[NodeName, ...]:
        willing = sorted(self.nodes, key=lambda node: node not in self.ready)
        return self.spread.order(key, willing, is_ready=self.ready.__contains__)

    def begin(self, key: RepoKey = HOT, *, at: NodeName | None = None) -> NodeName:
        node = at or self.order(key)[0]
        request = ExitStack()
        request.enter_context(self.spread.under_way(key, node))
        self.under_way.append((key, node, request))
        return node

    def end(self, nth: int) -> None:
        self.under_way.pop(nth)[2].close()

    def end_all(self) -> None:
        while self.under_way:
            self.end(0)

    def load(self, node: NodeName, key: RepoKey | None = None) -> int:
        return sum(at == node and key in (None, of) for of, at, _ in self.under_way)


def test_a_repository_stays_with_its_owner_until_enough_of_it_is_under_way() -> None:
    router = Router()
    assert [router.begin() for _ in range(5)] == [*NODES[:1] * 4, NODES[1]]


def test_a_repository_that_no_node_was_seen_to_hold_stays_with_its_owner() -> None:
    """It is filled once: others would have nothing to copy, and ask upstream as well."""
    router = Router()
    router.spread.note_held(HOT, is_held=False)
    assert {router.begin() for _ in range(20)} == {NODES[0]}
    router.spread.note_held(HOT, is_held=True)
    assert router.begin() == NODES[1]


def test_a_hot_repository_that_is_held_no_more_is_back_at_its_owner_at_once() -> None:
    """As when it was purged: each of its nodes would ask upstream for it."""
    router = Router()
    for _ in range(20):
        router.begin()
    router.spread.note_held(HOT, is_held=False)
    assert {router.begin() for _ in range(5)} == {NODES[0]}


def test_of_many_repositories_those_that_were_held_last_are_remembered() -> None:
    router = Router()
    for number in range(MAX_HELD):
        router.spread.note_held(RepoKey(f"h.org/{number}"), is_held=True)
    assert {router.begin() for _ in range(20)} == {NODES[0]}


def test_eight_at_once_on_three_nodes_share_them() -> None:
    """No node has more than 1.25 times the mean, which is 2.67: three at the most."""
    router = Router()
    for _ in range(8):
        router.begin()
    for _ in range(100):
        router.end(0)
        router.begin()
    assert sorted(router.load(node) for node in NODES[:3]) == [2, 3, 3]


def test_a_small_repository_stays_on_a_node_that_another_one_has_made_busy() -> None:
    router = Router()
    for _ in range(30):
        router.begin(OTHER, at=NODES[0])
    assert [router.begin() for _ in range(4)] == list(NODES[:1] * 4)


def test_a_hot_repository_keeps_off_nodes_that_others_have_made_busy() -> None:
    router = Router()
    for _ in range(20):
        router.begin(OTHER, at=NODES[1])
    for _ in range(20):
        router.begin()
    assert router.load(NODES[1], HOT) == 0
    assert router.load(NODES[2], HOT) > 0


def test_with_a_factor_of_0_nothing_ever_leaves_its_owner() -> None:
    router = Router(rules=SpreadRules(factor=0, after=1, cool=1))
    assert {router.begin() for _ in range(50)} == {NODES[0]}


def test_a_lone_node_gets_everything() -> None:
    router = Router(NODES[:1])
    assert {router.begin() for _ in range(50)} == {NODES[0]}


def test_nodes_that_are_not_ready_get_nothing_while_one_is() -> None:
    router = Router()
    router.ready = {NODES[1]}
    assert {router.begin() for _ in range(20)} == {NODES[1]}
    router.ready = set()
    assert router.order() == NODES[:3]


def test_it_spreads_at_once_and_comes_back_one_node_at_a_time() -> None:
    router = Router()
    for _ in range(12):
        router.begin()
    router.end_all()
    # The owner is busy with something else, so that another is chosen while there is one.
    for _ in range(2):
        router.begin(OTHER, at=NODES[0])
    router.begin(OTHER, at=NODES[1])
    seen = []
    for router.clock.now in (9.9, 10.0, 19.9, 20.0):
        seen.append(router.order()[0])
    assert seen == [NODES[2], NODES[1], NODES[1], NODES[0]]


def test_a_lull_that_is_short_changes_nothing() -> None:
    router = Router()
    for rush in range(5):
        router.clock.now = rush * 9.0
        for _ in range(12):
            router.begin()
        assert all(router.load(node) for node in NODES[:3])
        router.end_all()


def test_repositories_that_were_hot_once_are_forgotten() -> None:
    router = Router()
    for number in range(50):
        router.clock.now += 100.0
        key = RepoKey(f"h.org/{number}")
        router.spread.note_held(key, is_held=True)
        for _ in range(8):
            router.begin(key)
        router.end_all()
    state = vars(router.spread)
    assert len(state["_widths"]) == 1
    assert not state["_repos"]
    assert not state["_nodes"]


def test_one_that_fails_is_no_longer_counted() -> None:
    router = Router()
    with pytest.raises(OSError, match="down"), router.spread.under_way(HOT, NODES[0]):
        raise OSError("down")
    assert not vars(router.spread)["_nodes"]


factors = st.floats(1, 3, allow_nan=False)
loads = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 40)).map(
        lambda pair: Share(of_all=sum(pair), of_it=pair[0])
    ),
    min_size=1,
    max_size=8,
)


@given(loads, factors)
def test_so_many_nodes_have_room_and_one_fewer_has_not(shares: list[Share], factor: float) -> None:
    bound = factor * (1 + sum(share.of_all for share in shares)) / len(shares)
    wanted = 1 + sum(share.of_it for share in shares)

    def room(width: int) -> float:
        return sum(max(0.0, bound - share.of_all + share.of_it) for share in shares[:width])

    width = width_needed(shares, factor)
    assert 1 <= width <= len(shares)
    assert room(width) >= wanted - 1e-6
    assert width == 1 or room(width - 1) < wanted + 1e-6


@given(
    st.integers(1, 9), st.integers(1, 9), st.floats(0, 1000), st.floats(0, 1000), st.floats(0.1, 99)
)
def test_a_width_never_drops_below_its_need_nor_faster_than_one_a_while(
    nodes: int, needed: int, since: float, later: float, cool: float
) -> None:
    before = Width(nodes=nodes, needed_at=since)
    now = since + later
    after = settled(before, needed, now=now, cool=cool)
    assert after.nodes >= needed
    assert after.nodes <= max(nodes, needed)
    assert nodes - after.nodes <= later / cool + 1e-6
    assert settled(after, needed, now=now, cool=cool).nodes == after.nodes


steps = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.sampled_from([HOT, OTHER, RepoKey("h.org/third")])),
        st.tuples(st.just("end"), st.integers(0, 1000)),
        st.tuples(st.just("wait"), st.floats(0, 30)),
        st.tuples(st.just("turn"), st.integers(0, 7)),
    ),
    max_size=80,
)


def played(nodes: int, script: list[tuple[str, object]], *, factor: float = 1.25) -> list[str]:
    """Play a script, hold each step to the laws, and return where requests went."""
    router = Router(NODES[:nodes], SpreadRules(factor=factor, after=3, cool=10.0))
    went = []
    for what, how in script:
        if what == "end" and router.under_way:
            assert isinstance(how, int)
            router.end(how % len(router.under_way))
        elif what == "wait":
            assert isinstance(how, float)
            router.clock.now += how
        elif what == "turn":
            assert isinstance(how, int)
            router.ready ^= {NODES[how % nodes]}
        elif what == "begin":
            key = RepoKey(str(how))
            order = router.order(key)
            assert sorted(order) == sorted(NODES[:nodes])
            ready = [node for node in router.nodes if node in router.ready]
            assert order[0] in ready or not ready
            if order[0] != (ready or router.nodes)[0]:
                total = 1 + sum(router.load(node) for node in ready)
                assert router.load(order[0]) < ceil(factor * total / len(ready))
            went.append(str(router.begin(key, at=order[0])))
    router.end_all()
    router.clock.now += 1000
    assert {router.order(key)[0] for key in (HOT, OTHER)} == {
        min(router.nodes, key=lambda node: (node not in router.ready, node))
    }
    return went


@given(st.integers(1, 8), steps)
def test_whatever_happens_loads_are_bounded_and_everything_comes_home(
    nodes: int, script: list[tuple[str, object]]
) -> None:
    assert played(nodes, script) == played(nodes, script)

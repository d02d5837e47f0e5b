"""A ring written down, and ids that stay with their names."""

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from goblet_router.haproxy.placement import Placement, rank_maps, server_ids
from goblet_shared.contract import NodeName
from goblet_shared.members import members_of
from goblet_shared.ring import SLOTS, Ring

names = st.from_regex(r"[a-z][a-z0-9.-]{0,8}", fullmatch=True).map(NodeName)


def ring_of(*members: str) -> Ring:
    return Ring.of(map(NodeName, members))


def columns(maps: tuple[Mapping[int, NodeName], ...], slot: int) -> tuple[str, ...]:
    return tuple(of[slot] for of in maps if slot in of)


def test_the_maps_are_the_ring_rank_by_rank() -> None:
    ring = ring_of("a", "b", "c")
    maps = rank_maps(ring, 3)
    assert all(columns(maps, slot) == ring.order(slot) for slot in range(SLOTS))


def test_ranks_that_there_are_no_nodes_for_are_empty() -> None:
    maps = rank_maps(ring_of("a", "b"), 4)
    assert [len(of) for of in maps] == [SLOTS, SLOTS, 0, 0]


def test_for_a_node_that_is_left_out_its_successors_move_up() -> None:
    ring = ring_of("a", "b", "c")
    maps = rank_maps(ring, 3, without={NodeName("b")})
    for slot in range(SLOTS):
        assert columns(maps, slot) == tuple(name for name in ring.order(slot) if name != "b")


def test_all_members_are_on_the_ring_of_a_placement_over_them() -> None:
    members = members_of({"b": "http://h:2", "a": "http://h:1"})
    placement = Placement.over(reversed(members))
    assert placement.members == members
    assert placement.ring == ring_of("a", "b")


@given(st.sets(names, min_size=1, max_size=30), st.sets(names, max_size=30))
def test_ids_are_distinct_and_a_name_that_comes_changes_no_other(
    some: set[NodeName], more: set[NodeName]
) -> None:
    ids = server_ids(some)
    assert len(set(ids.values())) == len(some)
    assert all(0 < number < 2**20 for number in ids.values())
    later = server_ids(some | more, ids)
    assert {name: later[name] for name in some} == ids
    assert len(set(later.values())) == len(some | more)


def test_the_later_of_two_names_with_one_checksum_takes_the_next_id() -> None:
    # Found by trying: their CRC-32 agree modulo 2**20 - 1.
    seen: dict[int, NodeName] = {}
    for number in range(100_000):
        name = NodeName(f"goblet-{number}")
        alone = server_ids([name])[name]
        if alone in seen:
            first, second = sorted([seen[alone], name])
            assert server_ids([second, first]) == {first: alone, second: alone % (2**20 - 1) + 1}
            return
        seen[alone] = name
    raise AssertionError("no two names collide")

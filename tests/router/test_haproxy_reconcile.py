"""What must be done to a running HAProxy, decided from facts alone."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import pytest

from goblet_router.haproxy.placement import Placement, rank_maps
from goblet_router.haproxy.reconcile import (
    AddServer,
    DeleteServer,
    MoveServer,
    PutOut,
    ReplaceMap,
    Seen,
    Step,
    TakeBack,
    steps,
    told,
)
from goblet_router.haproxy.render import BACKENDS
from goblet_router.haproxy.runtime import SeenServer
from goblet_router.haproxy.settings import HAProxySettings
from goblet_shared.contract import NodeName
from goblet_shared.members import members_of
from goblet_shared.ring import Ring

SETTINGS = HAProxySettings(ranks=2)
NAMES = [NodeName(f"n{number}") for number in range(5)]


def placement_of(*names: str, port: int = 80) -> Placement:
    return Placement.over(members_of({name: f"http://{name}.example:{port}" for name in names}))


PLACEMENTS = (
    placement_of("n0"),
    placement_of("n0", "n1", "n2"),
    placement_of("n0", "n2", port=81),
    placement_of("n1"),
)


def addresses_of(placement: Placement) -> dict[NodeName, str]:
    return {member.name: f"10.0.0.{member.name[1:]}" for member in placement.members}


def todo(
    placement: Placement,
    seen: Seen,
    addresses: dict[NodeName, str] | None = None,
    settings: HAProxySettings = SETTINGS,
) -> tuple[Step, ...]:
    if addresses is None:
        addresses = addresses_of(placement)
    return steps(placement, seen, addresses=addresses, settings=settings)


def empty() -> Seen:
    return Seen(servers={backend: {} for backend in BACKENDS}, maps=({},) * SETTINGS.ranks)


def after(seen: Seen, taken: Sequence[Step], *, deleted: bool = True) -> Seen:
    """Return what a HAProxy has that took these steps."""
    servers = {backend: dict(of) for backend, of in seen.servers.items()}
    maps = list(seen.maps)
    for step in taken:
        if isinstance(step, ReplaceMap):
            maps[step.rank] = dict(step.of)
            continue
        of = servers[step.backend]
        match step:
            case AddServer():
                assert step.name not in of
                of[step.name] = SeenServer(
                    name=step.name,
                    number=step.number,
                    address=step.address,
                    port=step.port,
                    host=None,
                    weight=100,
                    is_in_maintenance=False,
                )
            case MoveServer():
                of[step.name] = replace(of[step.name], address=step.address, port=step.port)
            case TakeBack():
                of[step.name] = replace(of[step.name], weight=100, is_in_maintenance=False)
            case PutOut():
                of[step.name] = replace(of[step.name], weight=0, is_in_maintenance=True)
            case DeleteServer():
                assert of[step.name].is_in_maintenance
                if deleted:
                    del of[step.name]
    return Seen(servers=servers, maps=tuple(maps))


def running(placement: Placement) -> Seen:
    return after(empty(), todo(placement, empty()))


@pytest.mark.parametrize("deleted", [True, False])
@pytest.mark.parametrize(("old", "new"), [*permutations(PLACEMENTS, 2)])
def test_from_any_placement_to_any_other_no_map_ever_names_a_server_that_is_not_used(
    old: Placement, new: Placement, deleted: bool
) -> None:
    seen = running(old)
    taken = todo(new, seen)
    for count in range(len(taken) + 1):
        between = after(seen, taken[:count], deleted=deleted)
        named = {name for of in between.maps for name in of.values()}
        for backend in BACKENDS:
            servers = between.servers[backend]
            assert named <= {name for name in servers if not servers[name].is_in_maintenance}


@pytest.mark.parametrize(("old", "new"), [*permutations(PLACEMENTS, 2)])
def test_interrupted_anywhere_what_is_left_to_do_leads_to_the_same_end(
    old: Placement, new: Placement
) -> None:
    seen = running(old)
    taken = todo(new, seen)
    end = after(seen, taken)
    assert todo(new, end) == ()
    for count in range(0, len(taken), 3):
        between = after(seen, taken[:count])
        assert after(between, todo(new, between)) == end


def test_a_haproxy_that_places_right_is_left_alone() -> None:
    placement = placement_of("n1", "n2", "n3")
    assert todo(placement, running(placement)) == ()


def test_a_server_that_has_connections_still_is_put_out_once_and_deleted_later() -> None:
    old, new = placement_of("n1", "n2"), placement_of("n1")
    taken = todo(new, running(old))
    out = [step for step in taken if isinstance(step, PutOut)]
    assert {(step.backend, step.name) for step in out} == {(each, "n2") for each in BACKENDS}
    between = after(running(old), taken, deleted=False)
    assert todo(new, between) == tuple(
        DeleteServer(backend=each, name=NAMES[2]) for each in BACKENDS
    )
    # It is a member again before that.
    assert todo(old, between)[:2] == tuple(
        TakeBack(backend=each, name=NAMES[2]) for each in BACKENDS
    )


def test_what_an_operator_took_out_stays_out() -> None:
    placement = placement_of("n1", "n2")
    seen = running(placement)
    for backend in BACKENDS:
        servers = dict(seen.servers[backend])
        servers[NAMES[1]] = replace(servers[NAMES[1]], is_in_maintenance=True)
        seen = replace(seen, servers={**seen.servers, backend: servers})
    assert todo(placement, seen) == ()


def test_a_name_that_cannot_be_resolved_gets_no_server_and_its_successors_stand_in() -> None:
    old, new = placement_of("n1"), placement_of("n1", "n2")
    taken = todo(new, running(old), addresses_of(old))
    assert taken == ()
    # Whoever has a server keeps it, and its place.
    assert todo(new, running(new), addresses_of(old)) == ()


def test_a_server_stays_where_it_is_while_its_name_cannot_be_resolved() -> None:
    placement = placement_of("n1", "n2")
    assert todo(placement, running(placement), {}) == ()


def test_an_address_that_haproxy_resolves_itself_is_left_to_it() -> None:
    placement = placement_of("n1")
    seen = running(placement)
    servers = {
        backend: {name: replace(server, address="10.9.9.9", host="n1.example")}
        for backend, of in seen.servers.items()
        for name, server in of.items()
    }
    seen = replace(seen, servers=servers)
    resolving = HAProxySettings(ranks=2, name_servers=["system"])
    assert todo(placement, seen, settings=resolving) == ()
    moves = todo(placement, seen)
    assert {type(step) for step in moves} == {MoveServer}
    moved = todo(placement_of("n1", port=99), seen, settings=resolving)
    assert [step.address for step in moved if isinstance(step, MoveServer)] == ["10.9.9.9"] * 2


def test_a_member_that_is_not_on_the_ring_has_servers_and_no_slots() -> None:
    members = placement_of("n1", "n2").members
    placement = Placement(members=members, ring=Ring.of([NAMES[1]]))
    seen = after(empty(), todo(placement, empty()))
    assert set(seen.servers["goblet"]) == {"n1", "n2"}
    assert seen.maps == rank_maps(placement.ring, 2)


def test_every_step_can_be_told() -> None:
    old, new = placement_of("n1", "n2"), placement_of("n1", "n3", port=99)
    out = after(running(old), todo(placement_of("n1"), running(old)), deleted=False)
    taken = {*map(told, todo(new, running(old))), *map(told, todo(old, out))}
    assert {sentence.split(" ")[0] for sentence in taken} == {
        "added", "server", "replaced", "deleted",
    }  # fmt: skip
    assert "server goblet/n1 is at 10.0.0.1:99 now" in taken

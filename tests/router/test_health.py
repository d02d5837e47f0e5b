"""When a node is believed, suspected and forgiven."""

from collections.abc import Sequence

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from trio.testing import MockClock

from goblet_router.health import (
    Health,
    Pulse,
    Standing,
    after_failed_request,
    after_probe,
    in_order_of_trust,
)
from goblet_router.metrics import RouterMetrics
from goblet_shared.contract import NodeName

A, B, C = map(NodeName, ("a", "b", "c"))
probes = st.lists(st.booleans(), max_size=20)


def probed(pulse: Pulse, *results: bool, rise: int = 2, fall: int = 2) -> Pulse:
    for is_ready in results:
        pulse = after_probe(pulse, is_ready=is_ready, rise=rise, fall=fall)
    return pulse


def standing_after(start: Standing, *results: bool) -> Standing:
    return probed(Pulse(standing=start), *results).standing


def test_a_joining_node_is_believed_at_its_first_good_probe() -> None:
    assert standing_after(Standing.JOINING, False, False, True) is Standing.READY


def test_a_ready_node_falls_after_two_bad_probes_in_a_row() -> None:
    assert standing_after(Standing.READY, False, True, False) is Standing.READY
    assert standing_after(Standing.READY, False, False) is Standing.SUSPECT


def test_a_suspect_node_rises_after_two_good_probes_in_a_row() -> None:
    assert standing_after(Standing.SUSPECT, True, False, True) is Standing.SUSPECT
    assert standing_after(Standing.SUSPECT, True, True) is Standing.READY


@pytest.mark.parametrize("standing", Standing)
def test_one_failed_request_makes_any_node_suspect(standing: Standing) -> None:
    assert after_failed_request(Pulse(standing=standing)).standing is Standing.SUSPECT


@given(probes, st.integers(1, 4), st.integers(1, 4))
def test_a_standing_only_turns_after_enough_probes_that_agree(
    results: Sequence[bool], rise: int, fall: int
) -> None:
    pulse = Pulse(standing=Standing.READY)
    for number, is_ready in enumerate(results):
        before = pulse.standing
        pulse = after_probe(pulse, is_ready=is_ready, rise=rise, fall=fall)
        if pulse.standing is not before:
            needed = rise if pulse.standing is Standing.READY else fall
            assert list(results[number + 1 - needed : number + 1]) == [is_ready] * needed


@given(st.permutations([A, B, C]), st.sets(st.sampled_from([A, B, C])))
def test_suspects_come_last_and_none_is_left_out(
    owners: Sequence[NodeName], suspects: set[NodeName]
) -> None:
    order = in_order_of_trust(
        owners, lambda node: Standing.SUSPECT if node in suspects else Standing.READY
    )
    trusted = [node for node in owners if node not in suspects]
    assert list(order) == [*trusted, *(node for node in owners if node in suspects)]


def health() -> tuple[Health, CollectorRegistry]:
    registry = CollectorRegistry()
    return Health([A, B], rise=2, fall=2, metrics=RouterMetrics(registry)), registry


def ready(registry: CollectorRegistry, node: NodeName) -> float | None:
    return registry.get_sample_value("goblet_router_node_ready", {"node": node})


async def test_probing_finds_the_ready_and_drops_them_again(autojump_clock: MockClock) -> None:
    watched, registry = health()
    answering = {A}

    async def probe(node: NodeName) -> bool:
        return node in answering

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: watched.watch(probe, interval=2, patience=1))
        assert not watched.has_ready
        await trio.sleep(1)
        assert (watched.standing(A), watched.standing(B)) == (Standing.READY, Standing.JOINING)
        assert (ready(registry, A), ready(registry, B)) == (1, 0)
        answering.clear()
        await trio.sleep(4)
        assert watched.standing(A) is Standing.SUSPECT
        assert ready(registry, A) == 0
        nursery.cancel_scope.cancel()


async def test_a_probe_that_hangs_is_a_bad_probe_and_holds_up_no_other(
    autojump_clock: MockClock,
) -> None:
    watched, _ = health()

    async def probe(node: NodeName) -> bool:
        if node == A:
            await trio.sleep_forever()
        return True

    watched.note_probe(A, is_ready=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: watched.watch(probe, interval=2, patience=1))
        await trio.sleep(0.5)
        assert watched.standing(B) is Standing.READY
        await trio.sleep(5)
        assert watched.standing(A) is Standing.SUSPECT
        nursery.cancel_scope.cancel()


def test_a_failed_request_is_logged_once_however_often_it_repeats(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watched, _ = health()
    for _ in range(3):
        watched.note_failure(A, "a: connection refused")
    assert [record.getMessage() for record in caplog.records] == [
        "node a is suspect: a: connection refused"
    ]

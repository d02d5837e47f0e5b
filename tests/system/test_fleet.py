"""The fleet that other tests stand on keeps what it promises."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from goblet_testing import asks, repos
from goblet_testing.fleet import Fleet, Seat, until
from goblet_testing.gitcli import clone, fsck
from goblet_testing.processes import is_live, live_process
from goblet_testing.stand import HOST

pytestmark = [pytest.mark.system]


@pytest.fixture
def seat() -> Iterator[Seat]:
    seat = Seat()
    yield seat
    seat.give_up()


def test_a_seat_refuses_while_nobody_listens_and_can_be_taken_again(seat: Seat) -> None:
    for _ in range(2):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", seat.port))
        with seat.listen() as listener, socket.create_connection(("127.0.0.1", seat.port)):
            listener.accept()[0].close()


def test_a_seat_is_not_given_to_whoever_asks_for_any_port(seat: Seat) -> None:
    with seat.listen(), pytest.raises(OSError, match="in use"):
        seat.listen()
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(200)]
    assert seat.port not in [other.getsockname()[1] for other in taken]
    for other in taken:
        other.close()


def test_until_says_what_did_not_come() -> None:
    with pytest.raises(TimeoutError, match=r"^the end did not come within 0\.05 s: 0$"):
        until(lambda: 0, within=0.05, what="the end")
    assert until(lambda: "here") == "here"


@pytest.mark.slow
def test_nodes_die_return_join_and_leave_under_routers_that_agree(tmp_path: Path) -> None:
    with Fleet(tmp_path, nodes=2, routers=2, node_flags=["--workers", "1"]) as fleet:
        repos.make_repo(fleet.origin.root / "org/repo.git", commits=5)
        fsck(clone(fleet.url("org/repo"), tmp_path / "clone"))
        first, second = fleet.owners("org/repo")
        url = fleet.node_url(first)
        fleet.kill(first)
        assert live_process(fleet.node(first).pid) is None
        assert asks.info_refs(fleet.url("org/repo")).node == second
        again = fleet.restart(first)
        assert again.base == url
        fleet.wait_settled()
        assert asks.info_refs(fleet.url("org/repo")).node == first

        third = fleet.add_node("goblet-3")
        fleet.wait_settled()
        assert fleet.names == ["goblet-1", "goblet-2", "goblet-3"]
        assert sorted(fleet.owners("org/repo")) == fleet.names
        assert [fleet.states(number) for number in (0, 1)] == [
            dict.fromkeys(fleet.names, "ready")
        ] * 2
        fleet.terminate("goblet-3")
        assert third.end() == 0
        fleet.remove("goblet-3")
        until(lambda: "goblet-3" not in fleet.states() or fleet.states()["goblet-3"] != "ready")
        assert asks.info_refs(fleet.routers[1].url(f"{HOST}/org/repo")).status == 200
        pids = [fleet.node(name).pid for name in fleet.names]
        lives = [live for pid in pids if (live := live_process(pid)) is not None]
        assert len(lives) == 2
    assert not any(map(is_live, lives))


@pytest.mark.slow
def test_a_traceback_in_any_log_fails_the_block_that_caused_it(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match=r"in goblet-1.log: .*\nTraceback \("),
        Fleet(tmp_path, nodes=1, node_flags=["--workers", "1"]),
        (tmp_path / "goblet-1.log").open("a") as log,
    ):
        log.write("what it was about\nTraceback (most recent call last):\n")

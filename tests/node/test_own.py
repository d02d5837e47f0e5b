"""A node's own endpoints, asked as an ASGI application."""

import httpx
import pytest
from prometheus_client import CollectorRegistry

from goblet_node.cluster.life import Fact, Life
from goblet_node.metrics import NodeMetrics
from goblet_node.own import build_own
from goblet_shared.cluster_secret import ClusterSecret
from goblet_shared.members import MemberState

SECRET = ClusterSecret(b"s" * 32)
ELSEWHERE = "192.0.2.1"


class Own:
    """The endpoints of a node, and a client at `address`."""

    def __init__(
        self,
        state: MemberState = MemberState.READY,
        *,
        address: str = "127.0.0.1",
        secret: ClusterSecret | None = SECRET,
    ) -> None:
        metrics = NodeMetrics(CollectorRegistry())
        self.life = Life(state, observers=[metrics.show_state])
        app = build_own(
            registry=metrics.registry,
            life=self.life,
            status=lambda: {"name": "goblet-1"},
            secret=secret,
        )
        transport = httpx.ASGITransport(app=app, client=(address, 1))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://n")


@pytest.mark.parametrize(
    ("state", "status", "body"),
    [
        (MemberState.JOINING, 503, "joining: 1 of 2 mirrors copied\n"),
        (MemberState.READY, 200, "ready: 1 of 2 mirrors copied\n"),
        (MemberState.DRAINING, 404, "draining: 1 of 2 mirrors copied\n"),
    ],
)
async def test_readyz_says_the_state_and_how_far_it_is(
    state: MemberState, status: int, body: str
) -> None:
    own = Own(state)
    own.life.report("1 of 2 mirrors copied")
    got = await own.client.get("/readyz")
    assert (got.status_code, got.text) == (status, body)


async def test_status_and_metrics_say_the_same() -> None:
    own = Own(MemberState.JOINING)
    own.life.report("1 of 2 mirrors copied")
    status = (await own.client.get("/-/status")).json()
    assert status == {
        "name": "goblet-1",
        "state": "joining",
        "progress": "1 of 2 mirrors copied",
    }
    own.life.happens(Fact.JOINED)
    metrics = (await own.client.get("/metrics")).text
    assert 'goblet_node_state{state="ready"} 1.0' in metrics
    assert 'goblet_node_state{state="joining"} 0.0' in metrics
    assert 'goblet_node_state{state="draining"} 0.0' in metrics


async def test_a_drain_may_be_asked_for_again_and_again() -> None:
    own = Own()
    for _ in range(2):
        got = await own.client.post("/-/drain")
        assert (got.status_code, got.text) == (202, "draining\n")
    assert own.life.state is MemberState.DRAINING


async def test_only_members_may_ask_for_a_drain_from_elsewhere() -> None:
    own = Own(address=ELSEWHERE)
    refused = await own.client.post("/-/drain")
    assert refused.status_code == 403
    assert own.life.sentence == "ready"
    name, value = SECRET.header("POST", b"/-/drain")
    taken = await own.client.post("/-/drain", headers={name.decode(): value.decode()})
    assert taken.status_code == 202
    assert own.life.sentence == "draining"


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded"])
async def test_what_a_proxy_on_this_machine_passed_on_drains_nothing(header: str) -> None:
    own = Own()
    got = await own.client.post("/-/drain", headers={header: ELSEWHERE})
    assert got.status_code == 403
    assert own.life.state is MemberState.READY


async def test_nobody_elsewhere_drains_a_node_that_has_no_secret() -> None:
    own = Own(address=ELSEWHERE, secret=None)
    assert (await own.client.post("/-/drain")).status_code == 403
    assert own.life.state is MemberState.READY


async def test_a_drain_is_not_something_to_look_at() -> None:
    own = Own()
    assert (await own.client.get("/-/drain")).status_code == 405
    assert own.life.state is MemberState.READY

"""The router's own pages."""

import pytest

from goblet_router.pages import ring_id
from goblet_shared.contract import NodeName
from goblet_shared.repo_key import parse
from goblet_shared.ring import Ring, slot_of
from goblet_testing.router import owners, running_router
from goblet_testing.unruly import unruly_node


def ring(*names: str) -> Ring:
    return Ring.of(map(NodeName, names))


def test_the_id_of_a_ring_depends_on_its_members_alone() -> None:
    assert ring_id(ring("a", "b")) == ring_id(ring("b", "a", "a"))
    assert len({ring_id(one) for one in (ring(), ring("a"), ring("a", "b"), ring("ab"))}) == 4


async def test_the_router_is_ready_once_a_node_is() -> None:
    async with unruly_node() as node, unruly_node() as other:
        node.is_ready = other.is_ready = False
        urls = {"a": node.url, "b": other.url}
        async with running_router(urls, probe_interval_seconds=0.02) as router:
            assert (await router.client.get("/readyz")).status_code == 503
            assert (await router.client.get("/healthz")).status_code == 200
            other.is_ready = True
            while (await router.client.get("/readyz")).status_code != 200:
                pass
            ring_page = (await router.client.get("/-/ring")).json()
            assert ring_page == {
                "ring": ring_id(ring("a", "b")),
                "slots": 4096,
                "members": [{"name": "a", "state": "joining"}, {"name": "b", "state": "ready"}],
            }


@pytest.mark.parametrize(
    "repo", ["github.com/org/repo", "https://GitHub.com/org/repo.git", "github.com/org/repo/"]
)
async def test_locate_names_the_owners_of_every_spelling(repo: str) -> None:
    async with running_router({"a": "http://h:1", "b": "http://h:2"}) as router:
        got = await router.client.get("/-/ring/locate", params={"repo": repo})
        assert got.json() == {
            "key": "github.com/org/repo",
            "slot": slot_of(parse("github.com/org/repo")),
            "owners": list(owners("github.com/org/repo", "a", "b")),
        }


@pytest.mark.parametrize("query", ["", "?repo=", "?repo=../x", "?repo=h.org/a&repo=h.org/b"])
async def test_locate_refuses_what_is_not_one_repository(query: str) -> None:
    async with running_router({}) as router:
        got = await router.client.get(f"/-/ring/locate{query}")
        assert got.status_code == 400
        assert got.text.count("\n") == 1


async def test_the_index_says_how_to_wire_a_client() -> None:
    async with running_router({}) as router:
        got = await router.client.get("/", headers={"Host": "goblet.example:8080"})
        assert (
            "url.http://goblet.example:8080/github.com/.insteadOf https://github.com/" in got.text
        )
        assert got.text.count("\n") == 1


async def test_a_host_that_a_shell_would_run_is_not_repeated() -> None:
    async with running_router({}) as router:
        got = await router.client.get("/", headers={"Host": "$(reboot)"})
        assert "reboot" not in got.text
        assert "http://HOST:PORT/" in got.text


async def test_metrics_are_of_this_router_alone() -> None:
    async with running_router({"a": "http://127.0.0.1:1"}) as router:
        await router.client.get("/github.com/org/repo/HEAD")
        text = (await router.client.get("/metrics")).text
        assert 'goblet_router_answers_total{endpoint="none",status="400"} 1.0' in text
        assert 'goblet_router_node_ready{node="a"} 0.0' in text
        assert "org" not in text

"""The router's own pages."""

import json
from pathlib import Path

import pytest
import trio

from goblet_shared.contract import NodeName
from goblet_shared.repo_key import parse
from goblet_shared.ring import Ring, ring_id, slot_of
from goblet_testing.router import RunningRouter, owners, running_router, stand, until
from goblet_testing.unruly import DRAINING, JOINING, READY, unruly_node


def ring(*names: str) -> Ring:
    return Ring.of(map(NodeName, names))


async def ready(router: RunningRouter) -> None:
    """Return once the router says that it is ready."""
    with trio.fail_after(5):
        while (await router.client.get("/readyz")).status_code != 200:  # noqa: ASYNC110
            await trio.sleep(0.005)


async def test_the_router_is_ready_once_a_node_is() -> None:
    async with unruly_node() as node, unruly_node() as other:
        node.state = other.state = JOINING
        urls = {"a": node.url, "b": other.url}
        async with running_router(urls, probe_interval_seconds=0.02) as router:
            assert (await router.client.get("/readyz")).status_code == 503
            assert (await router.client.get("/healthz")).status_code == 200
            other.state = READY
            await ready(router)


async def test_the_ring_page_shows_every_member_and_who_is_on_the_ring() -> None:
    async with unruly_node() as node, unruly_node() as other:
        node.state = JOINING
        urls = {"a": node.url, "b": other.url, "c": "http://127.0.0.1:1"}
        async with running_router(urls) as router:
            shown = (await router.client.get("/-/ring")).json()
            assert shown.pop("epoch") <= 2
            assert shown == {
                "ring": ring_id(ring("b", "c")),
                "slots": 4096,
                "members": [
                    {"name": "a", "url": node.url, "state": "joining", "is_on_ring": False},
                    {"name": "b", "url": other.url, "state": "ready", "is_on_ring": True},
                    {"name": "c", "url": urls["c"], "state": "joining", "is_on_ring": True},
                ],
            }


async def test_a_node_that_drains_is_asked_last_and_keeps_its_place() -> None:
    async with stand(2, probe_interval_seconds=0.02) as stood:
        stood.nodes[0].state = DRAINING
        name = "goblet_router_member_state"
        labels = {"node": stood.names[0], "state": "draining"}
        await until(lambda: stood.router.registry.get_sample_value(name, labels))
        assert (await stood.post()).headers["goblet-node"] == stood.names[1]
        assert (await stood.router.client.get("/-/ring")).json()["epoch"] == 1


async def test_nodes_that_a_file_lists_come_and_move_and_go(tmp_path: Path) -> None:
    file = tmp_path / "members.json"

    def write(**urls: str) -> None:
        (tmp_path / "new").write_text(json.dumps({"nodes": urls}))
        (tmp_path / "new").rename(file)

    async def shown(router: RunningRouter) -> dict[str, str]:
        members = (await router.client.get("/-/ring")).json()["members"]
        return {member["name"]: member["url"] for member in members if member["is_on_ring"]}

    async with unruly_node() as node, unruly_node() as other:
        write(a=node.url)
        async with running_router(
            {},
            members_file=file,
            members_poll_seconds=0.01,
            probe_interval_seconds=0.02,
            gone_after_seconds=0.1,
        ) as router:
            assert await shown(router) == {"a": node.url}
            for urls in (
                {"a": node.url, "b": other.url},
                {"a": other.url, "b": node.url},
                {"b": node.url},
            ):
                write(**urls)
                with trio.fail_after(5):
                    while await shown(router) != urls:  # noqa: ASYNC110
                        await trio.sleep(0.01)
            assert (await router.client.get("/github.com/org/repo/info/refs")).status_code == 400
            answer = await router.client.post("/github.com/org/repo/git-upload-pack")
            assert answer.headers["goblet-node"] == "b"
            assert node.seen
            assert not other.seen


async def test_a_router_without_a_file_yet_serves_nobody_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "members.toml"
    async with running_router({}, members_file=file, members_poll_seconds=0.01) as router:
        assert (await router.client.get("/readyz")).status_code == 503
        assert f"{file}: cannot be read" in caplog.text
        assert router.metric("discovery_failures_total") >= 1
        async with unruly_node() as node:
            file.write_text(f'[nodes]\na = "{node.url}"\n')
            await ready(router)


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
        assert 'goblet_router_member_state{node="a",state="ready"} 0.0' in text
        assert "goblet_router_ring_epoch 1.0" in text
        assert "org" not in text

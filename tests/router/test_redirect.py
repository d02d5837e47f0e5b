"""Which requests are redirected, and where to."""

import pytest
import trio

from goblet_router.redirect import CredentialsNotRedirected, Redirects
from goblet_shared.contract import NodeName
from goblet_shared.git_route import Route, parse_target
from goblet_testing.router import PACK, REFS, running_router, stand
from goblet_testing.unruly import JOINING, answer, unruly_node

NODE = NodeName("goblet-2")
PLAIN = Redirects(advertised={}, with_credentials=False)


def route(target: str, method: str = "GET") -> Route:
    path, _, query = target.partition("?")
    return parse_target(method=method, raw_path=path.encode(), query=query.encode())


@pytest.mark.parametrize(
    ("target", "method", "may"),
    [
        (REFS, "GET", True),
        (PACK, "POST", False),
        ("/github.com/org/repo/info/refs?service=git-receive-pack", "GET", False),
        ("/github.com/org/repo/info/lfs/locks", "GET", False),
        ("http://github.com/org/repo/info/refs?service=git-upload-pack", "GET", False),
    ],
)
def test_only_the_first_question_of_a_clone_is_redirected(
    target: str, method: str, may: bool
) -> None:
    raw_path = target.partition("?")[0].encode()
    assert PLAIN.may_redirect(route(target, method), raw_path=raw_path) is may


def test_the_question_is_kept_so_that_git_takes_the_rest_for_the_repositorys_address() -> None:
    asked = route("/GitHub.com/o%20rg/r.git/info/refs?x=1&service=git-upload-pack")
    assert PLAIN.location(asked, NODE, "http://10.0.0.2:8081") == (
        b"http://10.0.0.2:8081/github.com/o%20rg/r.git/info/refs?service=git-upload-pack"
    )


def test_a_node_that_is_advertised_elsewhere_is_named_there() -> None:
    redirects = Redirects(advertised={NODE: "https://two.example/"}, with_credentials=False)
    location = redirects.location(route(REFS), NODE, "http://10.0.0.2:8081")
    assert location.startswith(b"https://two.example/github.com/")


@pytest.mark.parametrize("name", [b"Authorization", b"cookie", b"PRIVATE-TOKEN", b"job-token"])
def test_a_credential_is_not_sent_elsewhere_unless_that_is_configured(name: bytes) -> None:
    fields = [(b"accept", b"*/*"), (name, b"secret")]
    with pytest.raises(CredentialsNotRedirected, match="--redirect-credentials") as caught:
        PLAIN.must_be_bare(fields)
    assert caught.value.status == 403
    assert "secret" not in str(caught.value)
    PLAIN.must_be_bare(fields[:1])
    Redirects(advertised={}, with_credentials=True).must_be_bare(fields)


async def test_a_client_is_sent_to_the_owner_and_its_later_questions_still_pass() -> None:
    async with stand(mode="redirect", probe_interval_seconds=0.02) as it:
        with trio.fail_after(5):
            # Until it is known to be ready, it answers through the router.
            while (got := await it.router.client.get(REFS)).status_code == 200:
                pass
        assert got.status_code == 307
        assert got.headers["location"] == it.nodes[0].url + REFS
        assert got.headers["cache-control"] == "no-store"
        assert got.headers["goblet-node"] == "none"
        assert it.router.metric("redirected_total", node=it.names[0]) == 1
        it.nodes[0].conduct = answer(b"pack")
        assert (await it.post()).content == b"pack"
        refused = await it.router.client.get(REFS, headers={"Authorization": "Basic eA=="})
        assert (refused.status_code, refused.text.count("\n")) == (403, 1)
        # One that does not go to a node by itself is no leak.
        posted = await it.router.client.post(PACK, headers={"Authorization": "Basic eA=="})
        assert posted.status_code == 200


async def test_nobody_is_sent_to_a_node_that_may_not_answer() -> None:
    async with unruly_node() as node:
        node.state = JOINING
        async with running_router({"a": node.url}, mode="redirect") as router:
            assert (await router.client.get(REFS)).status_code == 200
    async with running_router({}, mode="redirect") as router:
        assert (await router.client.get(REFS)).status_code == 503

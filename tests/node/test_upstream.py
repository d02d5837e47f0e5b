"""What a node asks of a real origin, and what it makes of answers that are wrong."""

import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio
from prometheus_client import CollectorRegistry

from goblet_node.errors import UpstreamError, UpstreamTooSlow
from goblet_node.fill.hosts import Upstreams
from goblet_node.fill.upstream import Grant, Refused, Upstream
from goblet_node.metrics import NodeMetrics
from goblet_node.wire.fetch_reader import PackData
from goblet_node.wire.refs import ObjectId
from goblet_shared.git_route import Route, parse_target
from goblet_testing import repos
from goblet_testing.faults_on_cue import Fault
from goblet_testing.gitcli import git, refs_of
from goblet_testing.origin import Origin

pytestmark = pytest.mark.slow

REPO = "org/repo"
ALICE = "Basic YWxpY2U6d29uZGVy"  # alice:wonder


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repos.make_repo(tmp_path_factory.mktemp("template") / "repo.git", commits=20)


@pytest.fixture
def origin(template: Path, tmp_path: Path) -> Iterator[Origin]:
    shutil.copytree(template, tmp_path / "root" / f"{REPO}.git")
    with Origin(tmp_path / "root", users={"alice": "wonder"}) as origin:
        yield origin


@asynccontextmanager
async def asking(origin: Origin, *, seconds: float = 10.0) -> AsyncIterator[Upstream]:
    """An upstream client of this origin, all of whose limits are `seconds`."""
    async with httpx.AsyncClient(trust_env=False, timeout=httpx.Timeout(None)) as client:
        yield Upstream(
            client=client,
            hosts=Upstreams(allowed=(), mapped={"origin.test": origin.url}),
            question_timeout=seconds,
            first_byte_timeout=seconds,
            idle_timeout=seconds,
            agent="goblet/test",
            metrics=NodeMetrics(CollectorRegistry()),
        )


def route(repo: str = REPO, *, dot_git: bool = True) -> Route:
    spelling = ".git" if dot_git else ""
    return parse_target(
        method="GET",
        raw_path=f"/origin.test/{repo}{spelling}/info/refs".encode(),
        query=b"service=git-upload-pack",
    )


async def pack_of(upstream: Upstream, grant: Grant, origin: Origin) -> bytes:
    """Fetch everything, as a cold mirror does."""
    wants = sorted({ref.oid for ref in await upstream.ls_refs(grant, None) if ref.oid})
    pack = b""
    async with aclosing(upstream.fetch(grant, wants=wants, haves=())) as events:
        async for event in events:
            pack += event.data if isinstance(event, PackData) else b""
    return pack


async def test_a_repository_is_granted_listed_and_fetched(origin: Origin, tmp_path: Path) -> None:
    async with asking(origin) as upstream:
        grant = await upstream.may_read(route(), None)
        assert grant.can_be_mirrored
        refs = await upstream.ls_refs(grant, None)
        pack = await pack_of(upstream, grant, origin)
    listed = {ref.name.decode(): ref.oid.decode() for ref in refs if ref.oid}
    truth = refs_of(origin.url_of(REPO))
    assert listed == {name: oid for name, oid in truth.items() if not name.endswith("^{}")}
    (tmp_path / "got.pack").write_bytes(pack)
    git("init", "--quiet", "--bare", tmp_path / "judge")
    git("index-pack", "--strict", tmp_path / "got.pack", cwd=tmp_path / "judge")


async def test_the_clients_spelling_of_dot_git_goes_upstream(origin: Origin) -> None:
    async with asking(origin) as upstream:
        for dot_git in (True, False):
            await upstream.may_read(route(dot_git=dot_git), None)
    assert [seen.path.split("/info")[0] for seen in origin.log] == [f"/{REPO}.git", f"/{REPO}"]


async def test_a_refusal_is_upstreams_own(origin: Origin) -> None:
    origin.private[REPO] = {"alice"}
    async with asking(origin) as upstream:
        assert (await upstream.may_read(route(), ALICE)).authorization == ALICE
        with pytest.raises(Refused) as refused:
            await upstream.may_read(route(), None)
    assert refused.value.status == 401
    assert dict(refused.value.headers)[b"www-authenticate"] == b'Basic realm="origin"'


async def test_a_grant_does_not_show_its_credential(origin: Origin) -> None:
    async with asking(origin) as upstream:
        assert ALICE not in repr(await upstream.may_read(route(), ALICE))


async def test_a_redirect_on_the_same_host_keeps_the_credential(origin: Origin) -> None:
    shutil.copytree(origin.root / f"{REPO}.git", origin.root / "new/home.git")
    origin.private["new/home"] = {"alice"}
    origin.misbehave(Fault(redirect_to=f"{origin.url}/new/home.git"), repo=REPO)
    async with asking(origin) as upstream:
        grant = await upstream.may_read(route(), ALICE)
        assert grant.url == f"{origin.url}/new/home.git"
        assert await pack_of(upstream, grant, origin)


async def test_a_redirect_in_circles_is_given_up(origin: Origin) -> None:
    origin.misbehave(Fault(redirect_to=f"{origin.url}/{REPO}.git"), repo=REPO)
    async with asking(origin) as upstream:
        with pytest.raises(UpstreamError, match="redirected"):
            await upstream.may_read(route(), None)
    assert len(origin.log) <= 6


@pytest.mark.parametrize(
    "fault",
    [Fault(status=500), Fault(status=503), Fault(html=True), Fault(cut_after=20)],
    ids=["500", "503", "html", "cut"],
)
@pytest.mark.parametrize("kind", ["info-refs", "ls-refs", "fetch"])
async def test_every_wrong_answer_is_an_upstream_error(
    origin: Origin, fault: Fault, kind: str
) -> None:
    async with asking(origin) as upstream:
        origin.misbehave(fault, kind=kind)  # type: ignore[arg-type]
        with pytest.raises(UpstreamError) as failed:
            await pack_of(upstream, await upstream.may_read(route(), None), origin)
    assert "\n" not in str(failed.value)
    assert "127.0.0.1" in str(failed.value)


@pytest.mark.parametrize("kind", ["info-refs", "ls-refs", "fetch"])
async def test_an_upstream_that_stalls_is_too_slow(origin: Origin, kind: str) -> None:
    async with asking(origin, seconds=0.3) as upstream:
        origin.misbehave(Fault(stall_after=10), kind=kind)  # type: ignore[arg-type]
        with trio.fail_after(5), pytest.raises(UpstreamTooSlow):
            await pack_of(upstream, await upstream.may_read(route(), None), origin)
    origin.behave()


async def test_an_upstream_that_is_not_there_is_told(origin: Origin, tmp_path: Path) -> None:
    with Origin(tmp_path) as gone:
        pass
    async with asking(gone) as upstream:
        with pytest.raises(UpstreamError, match="could not be asked"):
            await upstream.may_read(route(), None)


async def test_a_want_that_upstream_lacks_is_told_in_its_words(origin: Origin) -> None:
    async with asking(origin) as upstream:
        grant = await upstream.may_read(route(), None)
        nowhere = [ObjectId(b"1" * 40)]
        async with aclosing(upstream.fetch(grant, wants=nowhere, haves=())) as events:
            with pytest.raises(UpstreamError, match="not our ref"):
                await anext(events)


async def test_questions_are_counted_by_their_outcome(origin: Origin) -> None:
    origin.private[REPO] = {"alice"}
    async with asking(origin) as upstream:
        with pytest.raises(Refused):
            await upstream.may_read(route(), None)
        await upstream.may_read(route(), ALICE)
        counted = upstream._metrics.registry.get_sample_value
    name = "goblet_node_upstream_requests_total"
    assert counted(name, {"question": "access", "outcome": "refused"}) == 1
    assert counted(name, {"question": "access", "outcome": "answered"}) == 1

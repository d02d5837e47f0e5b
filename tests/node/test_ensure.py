"""What may be asked to be here, and that it is, by what a real origin has at that moment."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.ensure import (
    MAX_NAMED,
    Ensured,
    Ensurer,
    MethodNotAllowed,
    NotMirrored,
    NotUpstream,
    NotYet,
    parse_ensure,
)
from goblet_node.errors import UpstreamDown
from goblet_node.fill.failures import Refused
from goblet_node.fill.policy import MirrorPolicy
from goblet_node.wire.refs import ObjectId
from goblet_shared.errors import BadRequest
from goblet_testing import repos
from goblet_testing.faults_on_cue import Fault
from goblet_testing.gitcli import git
from goblet_testing.housing import REPO, House, housing
from goblet_testing.origin import Origin

OID = b"0123456789abcdef" * 2 + b"01234567"


def parse(query: bytes) -> Ensured:
    return parse_ensure(method="POST", query=query)


def test_refs_and_commits_are_named_as_often_as_need_be() -> None:
    asked = parse(
        b"repo=GitHub.com/org/repo.git&ref=refs/heads/main&ref=HEAD&ref=HEAD"
        b"&commit=%b&commit=%b" % (OID, OID.upper())
    )
    assert asked.route.key == "github.com/org/repo"
    assert asked.route.dot_git
    assert asked.refs == (b"refs/heads/main", b"HEAD")
    assert asked.commits == (OID,)
    assert parse(b"repo=https%3A%2F%2Fgithub.com%2Forg%2Frepo").route.key == "github.com/org/repo"


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        (b"", "want repo=HOST/PATH, once"),
        (b"repo=a.test/b&repo=a.test/c", "want repo=HOST/PATH, once"),
        (b"repo=a.test/../b", "empty, '.' or '..'"),
        (b"repo=%ff", "not UTF-8"),
        (b"repo=a.test/b&ref=main", "want refs/heads/NAME"),
        (b"repo=a.test/b&commit=c0ffee", "want 40 hexadecimal digits"),
        (b"repo=a.test/b&branch=main", "want repo, ref, commit"),
        (b"repo=a.test/b" + b"&ref=HEAD" * (MAX_NAMED + 1), "want at most"),
    ],
)
def test_what_cannot_be_meant_is_told(query: bytes, sentence: str) -> None:
    with pytest.raises(BadRequest, match=sentence):
        parse(query)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
def test_only_a_post_may_cause_work(method: str) -> None:
    with pytest.raises(MethodNotAllowed):
        parse_ensure(method=method, query=b"repo=a.test/b")


@given(st.binary())
def test_no_query_does_harm(query: bytes) -> None:
    told = ""
    try:
        parse(b"repo=a.test/b&" + query)
    except BadRequest as exc:
        told = str(exc)
    assert "\n" not in told


# From here on with a real origin.


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repos.make_repo(tmp_path_factory.mktemp("template") / "repo.git", commits=5)


class Insisting:
    """An ensurer, and the house that it stands in."""

    def __init__(self, house: House, ensurer: Ensurer) -> None:
        self.house = house
        self.origin = house.origin
        self.ensurer = ensurer

    def id_of(self, rev: str) -> str:
        return git("rev-parse", rev, cwd=self.house.repo).stdout.strip()

    async def ensure(
        self, *, refs: tuple[str, ...] = (), commits: tuple[str, ...] = ()
    ) -> dict[str, object]:
        words = [f"repo=origin.test/{REPO}.git"]
        words += [f"ref={ref}" for ref in refs] + [f"commit={oid}" for oid in commits]
        ensured = parse("&".join(words).encode())
        grant = await self.house.upstream.may_read(ensured.route, None)
        return dict(await self.ensurer.ensure(ensured, grant))


@asynccontextmanager
async def insisting(
    template: Path, directory: Path, *, within: float = 20, policy: MirrorPolicy | None = None
) -> AsyncIterator[Insisting]:
    shutil.copytree(template, directory / "root" / f"{REPO}.git")
    with Origin(directory / "root") as origin:
        async with housing(origin, directory, policy=policy) as house:
            yield Insisting(
                house,
                Ensurer(
                    desk=house.desk,
                    refresher=house.refresher,
                    store=house.store,
                    within=within,
                ),
            )


@pytest.mark.slow
async def test_a_cold_repository_is_warm_afterwards_and_a_push_is_in_it(
    template: Path, tmp_path: Path
) -> None:
    async with insisting(template, tmp_path) as here:
        assert (await here.ensure())["refs"] == {}
        assert here.house.holds_what_the_origin_has()
        repos.commit(here.house.repo, files={"new": "new\n"})
        pushed = here.id_of("main")
        said = await here.ensure(refs=("refs/heads/main",), commits=(pushed,))
        assert said["refs"] == {"refs/heads/main": pushed}
        assert said["commits"] == [pushed]
        assert said["repo"] == f"origin.test/{REPO}"
        assert here.house.holds_what_the_origin_has()
        packs = len(here.origin.packs())
        await here.ensure(refs=("refs/heads/main",), commits=(pushed,))
        assert len(here.origin.packs()) == packs == 2


@pytest.mark.slow
async def test_a_commit_that_no_mirrored_ref_reaches_is_brought(
    template: Path, tmp_path: Path
) -> None:
    async with insisting(template, tmp_path) as here:
        repos.commit(here.house.repo, files={"new": "new\n"})
        hidden = here.id_of("main")
        git("update-ref", "refs/pull/7/head", hidden, cwd=here.house.repo)
        git("update-ref", "refs/heads/main", f"{hidden}~1", cwd=here.house.repo)
        assert (await here.ensure(refs=("refs/pull/7/head",)))["refs"] == {
            "refs/pull/7/head": hidden
        }
        assert here.house.mirror.missing([ObjectId(hidden.encode())]) == []
        await here.ensure(commits=(hidden,))


@pytest.mark.slow
async def test_what_upstream_lacks_is_told(template: Path, tmp_path: Path) -> None:
    async with insisting(template, tmp_path) as here:
        with pytest.raises(NotUpstream, match="does not have 'refs/heads/nowhere'"):
            await here.ensure(refs=("HEAD", "refs/heads/nowhere"))
        with pytest.raises(NotUpstream, match="not our ref c0ffee"):
            await here.ensure(commits=("c0ffee" * 6 + "c0ff",))


@pytest.mark.slow
async def test_an_outage_and_a_refusal_are_told_whatever_is_here(
    template: Path, tmp_path: Path
) -> None:
    async with insisting(template, tmp_path) as here:
        await here.ensure()
        here.origin.misbehave(Fault(status=500), times=1)
        with pytest.raises(UpstreamDown):
            await here.ensure()
        here.origin.private[REPO] = set()
        with pytest.raises(Refused):
            await here.ensure()


@pytest.mark.slow
async def test_a_refresh_that_failed_a_moment_ago_is_tried_again_for_who_insists(
    template: Path, tmp_path: Path
) -> None:
    async with insisting(template, tmp_path) as here:
        here.origin.misbehave(Fault(status=500), kind="fetch", times=1)
        with pytest.raises(UpstreamDown):
            await here.ensure()
        assert here.house.refresher.start(here.house.grant) is None
        await here.ensure()
        assert here.house.holds_what_the_origin_has()


@pytest.mark.slow
async def test_what_is_not_here_in_time_goes_on_coming(template: Path, tmp_path: Path) -> None:
    async with insisting(template, tmp_path, within=0.5) as here:
        here.origin.hold_fetches()
        with pytest.raises(NotYet, match="ask again"):
            await here.ensure()
        flying = here.house.refresher.flying(here.house.grant.key)
        assert flying is not None
        here.origin.release()
        await flying.ended.wait()
        assert here.house.holds_what_the_origin_has()


@pytest.mark.slow
async def test_a_repository_that_is_never_mirrored_cannot_be_ensured(
    template: Path, tmp_path: Path
) -> None:
    policy = MirrorPolicy(never=[f"origin.test/{REPO}"])
    async with insisting(template, tmp_path, policy=policy) as here:
        with pytest.raises(NotMirrored):
            await here.ensure()
    assert here.origin.packs() == []

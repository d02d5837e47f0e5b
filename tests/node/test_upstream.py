"""What a node asks of a real origin, and what it makes of answers that are wrong."""

import gzip
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio
from prometheus_client import CollectorRegistry

from goblet_node.errors import UpstreamDown, UpstreamError, UpstreamResting, UpstreamTooSlow
from goblet_node.fill.breaker import Breakers, Rules
from goblet_node.fill.connections import open_client
from goblet_node.fill.failures import Refused
from goblet_node.fill.retrying import Backoff
from goblet_node.fill.upstream import Grant, Upstream
from goblet_node.metrics import NodeMetrics
from goblet_node.wire import v2_client
from goblet_node.wire.fetch_reader import PackData, Progress
from goblet_node.wire.pktline import encode
from goblet_node.wire.refs import ObjectId
from goblet_shared.git_route import Route, parse_target
from goblet_shared.repo_key import RepoKey
from goblet_shared.upstreams import INFO_REFS, Upstreams
from goblet_testing import repos
from goblet_testing.faults_on_cue import Fault
from goblet_testing.gitcli import git, refs_of
from goblet_testing.origin import Origin
from goblet_testing.unruly import Conduct, Line, Seen, UnrulyNode, answer, head, unruly_node

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
async def asking(
    origin: Origin | UnrulyNode,
    *,
    seconds: float = 10.0,
    pack_seconds: float = 10.0,
    most: int = 10,
    path: str = "",
    tries: int = 1,
    failures: int = 0,
    denied: list[Grant] | None = None,
) -> AsyncIterator[Upstream]:
    """An upstream client of this origin, all of whose limits are `seconds` but that of a pack."""
    metrics = NodeMetrics(CollectorRegistry())
    open_one = partial(
        open_client,
        most=most,
        proxy=None,
        connect_timeout=seconds,
        write_timeout=seconds,
        pool_timeout=seconds,
    )
    async with open_one() as questions, open_one() as packs:
        yield Upstream(
            questions=questions,
            packs=packs,
            hosts=Upstreams(allowed=(), mapped={"origin.test": origin.url + path}),
            question_timeout=seconds,
            first_byte_timeout=seconds,
            idle_timeout=seconds,
            pack_idle_timeout=pack_seconds,
            agent="goblet/test",
            breakers=Breakers(
                rules=Rules(failures=failures, rest=60), metrics=metrics, random=lambda: 0.5
            ),
            metrics=metrics,
            refused=([] if denied is None else denied).append,
            backoff=Backoff(tries=tries, first=0.01),
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
    refs = await upstream.ls_refs(grant, None, read=v2_client.parse_ls_refs)
    wants = sorted({ref.oid for ref in refs if ref.oid})
    pack = b""
    async with aclosing(upstream.fetch(grant, wants=wants, haves=())) as events:
        async for event in events:
            pack += event.data if isinstance(event, PackData) else b""
    return pack


async def test_a_repository_is_granted_listed_and_fetched(origin: Origin, tmp_path: Path) -> None:
    async with asking(origin) as upstream:
        grant = await upstream.may_read(route(), None)
        assert grant.can_be_mirrored
        refs = await upstream.ls_refs(grant, None, read=v2_client.parse_ls_refs)
        pack = await pack_of(upstream, grant, origin)
    listed = {ref.name.decode(): ref.oid.decode() for ref in refs if ref.oid}
    truth = refs_of(origin.url_of(REPO))
    assert listed == {name: oid for name, oid in truth.items() if not name.endswith("^{}")}
    (tmp_path / "got.pack").write_bytes(pack)
    git("init", "--quiet", "--bare", tmp_path / "judge")
    git("index-pack", "--strict", tmp_path / "got.pack", cwd=tmp_path / "judge")


async def test_what_has_come_is_passed_on_while_upstream_pauses(origin: Origin) -> None:
    """However small it is: somebody may be waiting for it."""
    async with asking(origin) as upstream:
        grant = await upstream.may_read(route(), None)
        refs = await upstream.ls_refs(grant, None, read=v2_client.parse_ls_refs)
        origin.misbehave(Fault(stall_after=2000), kind="fetch")
        events = upstream.fetch(grant, wants=sorted({r.oid for r in refs if r.oid}), haves=())
        with trio.fail_after(10):
            async with aclosing(events):
                first = await anext(events)
    assert isinstance(first, Progress)
    origin.behave()


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


@pytest.mark.parametrize(("status", "ends"), [(401, True), (403, True), (404, True), (429, False)])
async def test_whoever_waits_for_it_each_denial_of_a_grant_is_heard(
    origin: Origin, status: int, ends: bool
) -> None:
    denied: list[Grant] = []
    async with asking(origin, denied=denied) as upstream:
        grant = await upstream.may_read(route(), None)
        origin.misbehave(Fault(status=status))
        with pytest.raises(Refused):
            await upstream.ls_refs(grant, None, read=v2_client.parse_ls_refs)
        with pytest.raises(Refused):
            await anext(upstream.fetch(grant, wants=[ObjectId(b"0" * 40)], haves=()))
        async with upstream.forward_post(grant, b"0000", {}) as answer:
            assert answer.status == status
        async with upstream.forward_info_refs(grant, {}) as answer:
            assert answer.status == status
    assert denied == [grant] * 4 * ends


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


async def test_clients_that_stall_forwarded_answers_hold_up_no_access_check(
    origin: Origin,
) -> None:
    async with asking(origin, most=1, seconds=2.0) as upstream:
        grant = await upstream.may_read(route(), None)
        refs = await upstream.ls_refs(grant, None, read=v2_client.parse_ls_refs)
        wants = sorted({ref.oid for ref in refs if ref.oid})
        body = v2_client.encode_fetch_request(wants=wants, haves=(), agent="git/test")
        headers = {"git-protocol": "version=2"}
        async with upstream.forward_post(grant, body, headers) as unread:
            assert unread.status == 200
            assert await upstream.may_read(route(), None) == grant
            assert await upstream.ls_refs(grant, None, read=v2_client.parse_ls_refs) == refs
            await unread.body.aclose()
        async with upstream.forward_info_refs(grant, {}) as unread:
            assert await upstream.may_read(route(), None) == grant
            await unread.body.aclose()


# From here on the origin is unruly: no git, but bytes that no git would send.

ADVERTISEMENT = encode(b"version 2\n") + encode(b"ls-refs\n") + encode(b"fetch\n") + b"0000"
POSTED = "POST /org/repo.git/git-upload-pack"


def telling(conducts: dict[str, Conduct]) -> Conduct:
    """Advertise version 2, and do to POSTs what `conducts` says of the first word in them."""

    async def conduct(seen: Seen, line: Line) -> None:
        if seen.method == "GET":
            await answer(ADVERTISEMENT)(seen, line)
            return
        command = "ls-refs" if b"command=ls-refs" in seen.body else "fetch"
        await conducts.get(command, answer(b"0000"))(seen, line)

    return conduct


async def fetch_one(upstream: Upstream, grant: Grant) -> None:
    async with aclosing(upstream.fetch(grant, wants=[ObjectId(b"1" * 40)], haves=())) as events:
        async for _ in events:
            pass


async def test_our_own_questions_ask_for_answers_as_they_are() -> None:
    async with unruly_node() as node, asking(node) as upstream:
        node.conduct = telling({})
        grant = await upstream.may_read(route(), None)
        await upstream.ls_refs(grant, None, read=v2_client.parse_ls_refs)
        with pytest.raises(UpstreamError):
            await fetch_one(upstream, grant)
    assert [seen.header("accept-encoding") for seen in node.seen] == ["identity"] * 3


@pytest.mark.parametrize("question", ["info-refs", "ls-refs", "fetch"])
async def test_an_encoded_answer_to_our_own_question_is_refused(question: str) -> None:
    sealed = {"Content-Encoding": "gzip"}
    asked: dict[str, Callable[[Upstream, Grant], Awaitable[object]]] = {
        "info-refs": lambda upstream, grant: upstream.may_read(route(), None),
        "ls-refs": lambda upstream, grant: upstream.ls_refs(
            grant, None, read=v2_client.parse_ls_refs
        ),
        "fetch": fetch_one,
    }
    async with unruly_node() as node, asking(node) as upstream:
        node.conduct = telling({})
        grant = await upstream.may_read(route(), None)
        body = ADVERTISEMENT if question == "info-refs" else b"0000"
        node.conduct = answer(gzip.compress(body), headers=sealed)
        with pytest.raises(UpstreamError, match="content-encoding 'gzip'"):
            await asked[question](upstream, grant)


async def test_a_forwarded_answer_stays_encoded() -> None:
    page = gzip.compress(ADVERTISEMENT)
    async with unruly_node() as node, asking(node) as upstream:
        node.conduct = telling({})
        grant = await upstream.may_read(route(), None)
        node.conduct = answer(page, headers={"Content-Encoding": "gzip"})
        async with upstream.forward_info_refs(grant, {"accept-encoding": "gzip"}) as forwarded:
            assert b"".join([chunk async for chunk in forwarded.body]) == page
            assert dict(forwarded.headers)[b"content-encoding"] == b"gzip"
    assert node.seen[-1].header("accept-encoding") == "gzip"


async def test_a_refusal_keeps_its_status_if_its_words_are_encoded() -> None:
    async with unruly_node() as node, asking(node) as upstream:
        node.conduct = answer(
            gzip.compress(b"go away"),
            status="401 Unauthorized",
            headers={"Content-Encoding": "gzip", "WWW-Authenticate": "Basic"},
        )
        with pytest.raises(Refused) as refused:
            await upstream.may_read(route(), None)
    assert (refused.value.status, refused.value.body) == (401, b"")
    assert refused.value.headers == ((b"www-authenticate", b"Basic"),)


async def test_a_refused_fetch_that_is_cut_is_an_upstream_error() -> None:
    async def cut(_: Seen, line: Line) -> None:
        await line.send(head("403 Forbidden", {"Content-Length": "100"}) + b"because")
        await line.stream.aclose()

    async with unruly_node() as node, asking(node) as upstream:
        node.conduct = telling({"fetch": cut})
        grant = await upstream.may_read(route(), None)
        with pytest.raises(UpstreamError, match="could not be asked"):
            await fetch_one(upstream, grant)


async def test_headers_go_upstream_byte_for_byte() -> None:
    """As ASGI decodes them: a character for each byte."""
    typed = "Bearer gär".encode().decode("latin-1")
    async with unruly_node() as node, asking(node) as upstream:
        node.conduct = telling({})
        grant = await upstream.may_read(route(), typed)
        async with upstream.forward_post(grant, b"0000", {"accept": typed}) as forwarded:
            assert forwarded.status == 200
            await forwarded.body.aclose()
        async with upstream.forward_info_refs(grant, {"accept": typed}) as forwarded:
            assert forwarded.status == 200
            await forwarded.body.aclose()
    assert [seen.header("authorization") for seen in node.seen] == ["Bearer gär"] * 3
    assert [seen.header("accept") for seen in node.seen] == ["*/*", "Bearer gär", "Bearer gär"]


async def test_no_callers_cookie_goes_with_anothers_question() -> None:
    async with unruly_node() as node, asking(node) as upstream:
        node.conduct = answer(ADVERTISEMENT, headers={"Set-Cookie": "session=alice; Path=/"})
        await upstream.may_read(route(), ALICE)
        await upstream.may_read(route(), None)
    assert [seen.header("cookie") for seen in node.seen] == [None, None]


@pytest.mark.parametrize(
    "location",
    [
        "https://127.0.0.1:99999/a" + INFO_REFS,
        "https://[::1" + INFO_REFS,
        "/a\tb" + INFO_REFS,
        "/" + 70_000 * "a" + INFO_REFS,
        "/a?x=" + INFO_REFS,
    ],
    ids=["port", "address", "tab", "long", "query"],
)
async def test_a_redirect_that_leads_nowhere_is_an_upstream_error(location: str) -> None:
    async with unruly_node() as node, asking(node) as upstream:
        node.conduct = answer(b"", status="301 Moved", headers={"Location": location})
        with pytest.raises(UpstreamError):
            await upstream.may_read(route(), None)
    assert len(node.seen) == 1


async def test_a_url_that_httpx_refuses_is_an_upstream_error() -> None:
    async with unruly_node() as node, asking(node, path="/a\x01") as upstream:
        with pytest.raises(UpstreamError, match="cannot be asked"):
            await upstream.may_read(route(), None)


async def test_a_redirect_to_nowhere_is_told_by_its_status() -> None:
    async with unruly_node() as node, asking(node) as upstream:
        node.conduct = answer(b"", status="304 Not Modified")
        with pytest.raises(UpstreamError, match="answered 304"):
            await upstream.may_read(route(), None)


@pytest.mark.parametrize("status", ["101 Switching", "302 Found", "304 Not Modified"])
async def test_a_forwarded_answer_that_git_cannot_use_is_an_upstream_error(status: str) -> None:
    async with unruly_node() as node, asking(node) as upstream:
        node.conduct = telling({})
        grant = await upstream.may_read(route(), None)
        node.conduct = answer(b"", status=status, headers={"Location": "/b" + INFO_REFS})
        with pytest.raises(UpstreamError) as post:
            async with upstream.forward_post(grant, b"0000", {}):
                pass
        with pytest.raises(UpstreamError) as get:
            async with upstream.forward_info_refs(grant, {}):
                pass
    assert post.value.status == get.value.status == 502


async def test_a_question_lost_on_a_kept_connection_is_asked_again() -> None:
    """As when the host closes the connection while the question is on its way."""
    lost: list[str] = []

    async def forgetful(seen: Seen, line: Line) -> None:
        if seen.nth_on_connection > 1 and len(lost) < 3:
            lost.append(f"{seen.method} {seen.target}")
            await line.stream.aclose()
        else:
            await telling({})(seen, line)

    async with unruly_node() as node, asking(node) as upstream:
        node.conduct = forgetful
        grant = await upstream.may_read(route(), None)
        assert await upstream.may_read(route(), None) == grant
        assert await upstream.ls_refs(grant, None, read=v2_client.parse_ls_refs) == ()
        for _ in range(2):
            async with upstream.forward_post(grant, b"0000", {}) as forwarded:
                assert b"".join([chunk async for chunk in forwarded.body]) == b"0000"
    assert lost == ["GET /org/repo.git" + INFO_REFS, POSTED, POSTED]


# An upstream that fails and comes back.


@pytest.mark.parametrize("question", ["info-refs", "ls-refs", "fetch"])
async def test_a_question_that_fails_once_is_asked_again(origin: Origin, question: str) -> None:
    async with asking(origin, tries=2) as upstream:
        origin.misbehave(Fault(status=500), kind=question, times=1)  # type: ignore[arg-type]
        assert await pack_of(upstream, await upstream.may_read(route(), None), origin)
    assert [seen.status for seen in origin.log].count(500) == 1


async def test_an_upstream_that_fails_again_and_again_is_asked_so_often_and_no_more(
    origin: Origin,
) -> None:
    async with asking(origin, tries=3) as upstream:
        origin.misbehave(Fault(status=500))
        with pytest.raises(UpstreamDown, match="answered 500"):
            await upstream.may_read(route(), None)
        assert len(origin.log) == 3
        origin.behave()
        origin.misbehave(Fault(status=404))
        with pytest.raises(Refused):
            await upstream.may_read(route(), None)
    assert len(origin.log) == 4


async def test_upstream_is_asked_again_when_it_says_and_not_if_that_is_too_late(
    origin: Origin,
) -> None:
    async with asking(origin, tries=2, seconds=5) as upstream:
        origin.misbehave(Fault(status=429, retry_after=1), times=1)
        began = trio.current_time()
        await upstream.may_read(route(), None)
        assert trio.current_time() - began >= 1
        origin.misbehave(Fault(status=503, retry_after=30))
        with pytest.raises(UpstreamDown):
            await upstream.may_read(route(), None)
    assert len(origin.log) == 3


async def test_an_upstream_that_is_gone_is_left_alone(tmp_path: Path) -> None:
    with Origin(tmp_path) as gone:
        pass
    async with asking(gone, failures=2) as upstream:
        for _ in range(2):
            with pytest.raises(UpstreamDown, match="could not be asked"):
                await upstream.may_read(route(), None)
        with pytest.raises(UpstreamResting, match="is not asked for"):
            await upstream.may_read(route(), None)
        counted = upstream._metrics.registry.get_sample_value
    name = "goblet_node_upstream_requests_total"
    assert counted(name, {"question": "access", "outcome": "not-asked"}) == 1


async def test_an_error_that_is_passed_on_to_a_client_does_not_end_an_outage(
    origin: Origin,
) -> None:
    async with asking(origin, failures=2) as upstream:
        grant = await upstream.may_read(route(), None)
        other = replace(grant, key=RepoKey("origin.test/org/other"))
        await upstream.ls_refs(other, None, read=v2_client.parse_ls_refs)
        origin.misbehave(Fault(status=500))
        for asked in (grant, other):
            async with upstream.forward_post(grant, b"0000", {}) as answer:
                assert answer.status == 500
            with pytest.raises(UpstreamDown):
                await upstream.ls_refs(asked, None, read=v2_client.parse_ls_refs)
        with pytest.raises(UpstreamResting):
            await upstream.ls_refs(grant, None, read=v2_client.parse_ls_refs)


async def test_a_host_that_hangs_does_not_have_another_left_alone(origin: Origin) -> None:
    """Though it takes all the connections that there are, so that nobody can ask that one."""
    held = trio.Event()

    async def hang(_: Seen, __: Line) -> None:
        held.set()
        await trio.sleep_forever()

    async with unruly_node() as hanging, asking(origin, seconds=1, most=1, failures=1) as upstream:
        hanging.conduct = hang
        grant = await upstream.may_read(route(), None)
        stuck = replace(grant, url=f"{hanging.url}/org/repo")
        async with trio.open_nursery() as nursery:

            async def wait(asked: Grant) -> None:
                with pytest.raises(UpstreamTooSlow):
                    await upstream.ls_refs(asked, None, read=v2_client.parse_ls_refs)

            nursery.start_soon(wait, stuck)
            await held.wait()
            for number in range(3):
                key = RepoKey(f"origin.test/org/{number}")
                nursery.start_soon(wait, replace(grant, key=key))
        assert await upstream.may_read(route(), None) == grant


async def test_an_upstream_that_tells_of_its_progress_for_ever_is_too_slow() -> None:
    async def chatter(_: Seen, line: Line) -> None:
        await line.send(head("200 OK", {"Transfer-Encoding": "chunked"}))
        packets = encode(b"packfile\n")
        while True:
            await line.send(b"%x\r\n%b\r\n" % (len(packets), packets))
            packets = encode(b"\x02Counting objects...\r") + encode(b"\x01")
            await trio.sleep(0.05)

    async with unruly_node() as node, asking(node, pack_seconds=0.3) as upstream:
        node.conduct = telling({"fetch": chatter})
        grant = await upstream.may_read(route(), None)
        with trio.fail_after(5), pytest.raises(UpstreamTooSlow):
            await fetch_one(upstream, grant)


async def test_a_pack_that_comes_slowly_is_waited_for() -> None:
    """Longer in all than it may be silent, but never silent so long."""

    async def trickle(_: Seen, line: Line) -> None:
        await line.send(head("200 OK", {"Transfer-Encoding": "chunked"}))
        for packet in (encode(b"packfile\n"), *[encode(b"\x01PACK")] * 8, b"0000"):
            await line.send(b"%x\r\n%b\r\n" % (len(packet), packet))
            await trio.sleep(0.1)
        await line.send(b"0\r\n\r\n")

    async with unruly_node() as node, asking(node, pack_seconds=0.5) as upstream:
        node.conduct = telling({"fetch": trickle})
        await fetch_one(upstream, await upstream.may_read(route(), None))

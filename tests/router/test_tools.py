"""The commands that look at a cluster; tests/system/test_tools.py has those that change one."""

import json
import re
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import trio
from trio.testing import MockClock
from typer.testing import CliRunner, Result

from goblet_router.asking import Asker, AskFailed, Cluster, Listed, asker, credential_for
from goblet_router.cli import app
from goblet_shared.contract import NodeName
from goblet_shared.members import Member
from goblet_shared.repo_key import parse
from goblet_shared.ring import Ring, moves, ring_id, slot_of
from goblet_testing.router import running_router
from goblet_testing.unruly import unruly_node

NAMES = [NodeName(name) for name in ("a", "b", "c")]
NODES = [f"--node={name}" for name in NAMES]
KEY = parse("github.com/org/repo")


def goblet(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_several_repositories_are_located_at_once() -> None:
    repos = [KEY, "https://GitHub.com/org/other.git"]
    got = goblet("ring", "locate", *repos, *NODES)
    assert [line.split()[0] for line in got.stdout.splitlines()] == [KEY, "github.com/org/other"]
    (told, _) = json.loads(goblet("ring", "locate", *repos, *NODES, "--json").stdout)
    assert told == {"key": KEY, "slot": slot_of(KEY), "owners": list(Ring.of(NAMES).owners(KEY))}


def test_show_tells_programs_what_it_tells_people() -> None:
    told = json.loads(goblet("ring", "show", "--node", "a=http://h:1", *NODES[1:], "--json").stdout)
    assert told["ring"] == ring_id(Ring.of(NAMES))
    assert sum(member["slots"] for member in told["members"]) == 4096
    assert told["members"][0]["url"] == "http://h:1"


def test_a_ring_without_members_is_shown_as_one() -> None:
    ring = Cluster(members=(Listed(name=NAMES[0], is_on_ring=False),)).ring
    assert ring == Ring.of([])


@pytest.mark.slow
async def test_a_running_router_says_who_the_members_are() -> None:
    async with unruly_node() as one, running_router({"a": one.url, "b": "http://127.0.0.1:1"}) as r:
        url = one.url
        got = await trio_run("ring", "show", "--router", f"http://127.0.0.1:{r.port}")
        located = await trio_run("ring", "locate", KEY, "--router", f"http://127.0.0.1:{r.port}/")
    assert got.exit_code == 0, got.stderr
    assert re.match(rf"ring {ring_id(Ring.of(NAMES[:2]))}, 4096 slots, epoch \d+\n", got.stdout)
    assert f"  {url}\n" in got.stdout
    assert located.stdout.split()[3:] == list(Ring.of(NAMES[:2]).owners(KEY))


async def trio_run(*arguments: str) -> Result:
    """Run a command in a thread, where it may have a loop of its own."""
    return await trio.to_thread.run_sync(lambda: goblet(*arguments))


def test_a_diff_without_nodes_to_ask_counts_slots_and_says_so() -> None:
    got = goblet("ring", "diff", *NODES[:2], "--node=c=http://127.0.0.1:1", "--add", "d", "--json")
    assert got.exit_code == 0
    told = json.loads(got.stdout)
    wanted = moves(Ring.of(NAMES), Ring.of([*NAMES, NodeName("d")]))
    assert {one["slot"]: (one["from"], one["to"]) for one in told["slots"]} == wanted
    assert set(told["unasked"]) == {"a", "b", "c"}
    assert got.stderr.count("not counted") == 3
    assert told["repositories"] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["diff", *NODES], "joins or leaves"),
        (["diff", *NODES, "--add", "a"], "already"),
        (["diff", *NODES, "--remove", "z"], "not on the ring"),
        (["diff", *NODES, "--add", "no/name"], "not a node's name"),
        (["show", "--node", "a=ftp://h"], "--node"),
        (["show", "--router", "ftp://h"], "--router"),
        (["show", "--router", "http://u:secret@h"], "--router"),
        (["locate", "git@github.com:a/b", *NODES], "REPO"),
    ],
)
def test_a_wrong_argument_is_a_usage_error_that_names_it(arguments: list[str], said: str) -> None:
    got = goblet("ring", *arguments)
    assert got.exit_code == 2
    words = " ".join(got.output.replace("│", " ").split())
    assert said in words
    assert "secret" not in words


@pytest.mark.parametrize(
    "arguments",
    [
        ["ring", "show"],
        ["ring", "drain", "a"],
        ["warm", KEY],
        ["purge", KEY],
    ],
)
def test_a_router_that_does_not_answer_is_one_sentence_and_exit_code_1(
    arguments: list[str],
) -> None:
    got = goblet(*arguments, "--router", "http://127.0.0.1:1")
    assert got.exit_code == 1
    assert "127.0.0.1:1" in got.stderr
    assert "Traceback" not in got.output


def test_a_node_without_an_address_can_be_neither_drained_nor_purged() -> None:
    assert "no node a with an address" in goblet("ring", "drain", "a", *NODES).stderr
    assert "address is known" in goblet("purge", KEY, *NODES).stderr


def test_a_node_that_cannot_be_purged_may_hold_it_still() -> None:
    got = goblet("purge", KEY, "--node=a=http://127.0.0.1:1")
    assert got.exit_code == 1
    assert "may be held still by a: " in got.stderr


def told(status: int, body: object) -> httpx.AsyncClient:
    """Give a client that gets this answer, whomever it asks."""
    answer = httpx.Response(status, content=json.dumps(body))
    return httpx.AsyncClient(transport=httpx.MockTransport(lambda _: answer))


MEMBER = {"name": "a", "url": "http://h:1", "state": "ready", "is_on_ring": True}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"members": [MEMBER]},
        {"members": [MEMBER], "epoch": "many"},
        {"members": 7, "epoch": 1},
        {"members": ["a"], "epoch": 1},
        *({"members": [MEMBER | wrong], "epoch": 1} for wrong in (
            {"name": "a\x1b[2J"}, {"name": 7}, {"url": 7}, {"url": "file:///x"},
            {"state": ["ready"]}, {"state": "ready\x1b[2J"},
        )),
    ],
)  # fmt: skip
async def test_what_no_router_of_ours_says_is_not_believed(body: object) -> None:
    async with told(200, body) as client:
        with pytest.raises(AskFailed, match="not that of a Goblet router"):
            await Asker(client, secret=None, patience=1).cluster("http://r:1")


@pytest.mark.parametrize(
    "mirror",
    [7, {}, {"key": "h.org/x", "bytes": float("inf")}, {"key": "h.org/x", "bytes": "x"},
     {"key": "h.org/\x1b[2J", "bytes": 1}, {"key": "x", "bytes": 1}],
)  # fmt: skip
async def test_what_no_node_says_of_its_mirrors_is_not_believed(mirror: object) -> None:
    async with told(200, {"mirrors": [mirror]}) as client:
        ask = Asker(client, secret=None, patience=1)
        with pytest.raises(AskFailed, match="not that of a node"):
            await ask.mirrors(Member(name=NAMES[0], url="http://h:1"))


@pytest.mark.parametrize("body", [{}, {"was_held": True}, {"was_held": True, "bytes": "x"}])
async def test_what_no_node_says_of_a_purge_is_not_believed(body: object) -> None:
    async with told(200, body) as client:
        ask = Asker(client, secret=None, patience=1)
        with pytest.raises(AskFailed, match="not that of a node"):
            await ask.purge(Member(name=NAMES[0], url="http://h:1"), KEY)


async def test_a_repository_that_takes_longer_than_its_owner_waits_is_asked_for_again(
    autojump_clock: MockClock,
) -> None:
    answers = [httpx.Response(504, text="ask again"), httpx.Response(200, json={})]
    async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _: answers.pop(0))) as client:
        await Asker(client, secret=None, patience=900).ensure("http://r:1", KEY)
    assert not answers
    slow = httpx.MockTransport(lambda _: httpx.Response(504, text="ask again"))
    async with httpx.AsyncClient(transport=slow) as client:
        with pytest.raises(AskFailed, match="not warm after 9 s: ask again"):
            await Asker(client, secret=None, patience=9).ensure("http://r:1", KEY)


async def drips(stream: trio.SocketStream) -> None:
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    with suppress(trio.BrokenResourceError):
        while True:
            await stream.send_all(b" ")
            await trio.sleep(0.01)


async def test_an_answer_that_comes_drop_by_drop_is_not_waited_for() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    node = Member(name=NAMES[0], url=f"http://127.0.0.1:{listener.socket.getsockname()[1]}")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, drips, [listener])
        with trio.fail_after(5):
            async with asker(secret=None, patience=0.1) as ask:
                with pytest.raises(AskFailed, match=r"a: .*no answer in 0.1 s"):
                    await ask.mirrors(node)
        nursery.cancel_scope.cancel()


@pytest.fixture
def git_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Give git no configuration but what the test sets, and a helper that would ask."""
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_ASKPASS", f"touch {tmp_path}/asked; echo")
    return monkeypatch


async def test_the_credential_is_what_git_has_for_the_routers_address(
    git_home: pytest.MonkeyPatch,
) -> None:
    helper = "!f() { grep -q ^host=h:1; echo username=ann; echo password=p=w; }; f"
    git_home.setenv("GIT_CONFIG_COUNT", "1")
    git_home.setenv("GIT_CONFIG_KEY_0", "credential.http://h:1.helper")
    git_home.setenv("GIT_CONFIG_VALUE_0", helper)
    assert await credential_for("http://h:1", KEY) == "Basic YW5uOnA9dw=="
    assert await credential_for("http://elsewhere:1", KEY) is None


async def test_without_a_helper_there_is_no_credential_and_nobody_is_asked(
    git_home: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert await credential_for("http://h:1", KEY) is None
    assert not (tmp_path / "asked").exists()


async def test_without_git_there_is_no_credential(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert await credential_for("http://h:1", KEY) is None

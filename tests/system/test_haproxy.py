"""Real HAProxy places every repository as the Python ring does, in every state it has detected."""

import getpass
import grp
import logging
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import quote, urlencode

import httpx
import pytest
import trio

from goblet_router.haproxy.files import write_files
from goblet_router.haproxy.placement import Placement
from goblet_router.haproxy.render import BACKENDS, map_name, render
from goblet_router.haproxy.runtime import RuntimeApi, map_in
from goblet_router.haproxy.settings import HAProxySettings
from goblet_router.haproxy.sync import Sync
from goblet_shared import repo_key
from goblet_shared.contract import NodeName
from goblet_shared.members import members_of
from goblet_shared.ring import Ring
from goblet_testing.asks import ask
from goblet_testing.fleet import Fleet, until
from goblet_testing.gitcli import clone, fsck, refs_of
from goblet_testing.haproxy import HAProxy, NamedServers, ask_all, missing_haproxy
from goblet_testing.processes import Running
from goblet_testing.repos import make_repo
from goblet_testing.spellings import SPELLINGS, Asked, ask_for, repos
from goblet_testing.stand import HOST

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.skipif(
        missing_haproxy() is not None and os.environ.get("CI") != "true",
        reason=str(missing_haproxy()),
    ),
]

ROOT = Path(__file__).parents[2]
THREE = ("goblet-1", "goblet-2", "goblet-3")
DRAINING = (404, "draining: 3 of 4 mirrors handed over\n")
JOINING = (503, "joining: 3 of 4 mirrors copied\n")


@pytest.fixture
def haproxy(tmp_path: Path) -> Iterator[HAProxy]:
    with HAProxy(tmp_path / "haproxy") as haproxy:
        yield haproxy


@pytest.fixture
def nodes() -> Iterator[NamedServers]:
    with NamedServers(THREE) as nodes:
        yield nodes


def settings_for(haproxy: HAProxy, **others: object) -> HAProxySettings:
    return HAProxySettings.model_validate(
        {
            "listen": haproxy.listen,
            "stats_listen": haproxy.stats_listen,
            "socket": haproxy.socket,
            "probe_interval_seconds": 0.1,
            **others,
        }
    )


def placement_of(nodes: NamedServers, names: Collection[str] = THREE) -> Placement:
    return Placement.over(members_of({name: nodes.url(name) for name in names}))


def start(haproxy: HAProxy, placement: Placement, settings: HAProxySettings) -> None:
    write_files(haproxy.directory, render(placement, settings))
    haproxy.start()


@contextmanager
def syncing(haproxy: HAProxy, *flags: str) -> Iterator[Running]:
    """Run `goblet haproxy sync`, which writes the files at once."""
    command = [sys.executable, "-m", "goblet_router", "haproxy", "sync", str(haproxy.directory)]
    command += ["--listen", haproxy.listen, "--stats-listen", haproxy.stats_listen]
    command += ["--socket", str(haproxy.socket), "--sync-seconds", "0.2"]
    command += ["--members-poll-seconds", "0.1", *flags]
    with Running(command, log_file=haproxy.directory.parent / "sync.log") as running:
        last = haproxy.directory / map_name(3)
        until(lambda: last.exists() or running.process.poll() is not None)
        if running.process.poll() is not None:
            raise running.failed("did not write the files")
        yield running
    assert "Traceback (" not in running.log


def in_state(backends: Sequence[str], name: str, state: str) -> dict[str, str]:
    return {f"{backend}/{name}": state for backend in backends}


def disagreements(
    haproxy: HAProxy, asked: Sequence[Asked], ring: Ring, out: Collection[str] = ()
) -> list[str]:
    """Return a line for each request that did not reach the first owner that is not `out`."""
    got = ask_all(haproxy.port, [one.request for one in asked])
    wanted = [next(name for name in ring.owners(one.key) if name not in out) for one in asked]
    return [
        f"{one.request!r} reached {name}, not {want}"
        for one, name, want in zip(asked, got, wanted, strict=True)
        if name != want
    ]


@pytest.mark.parametrize(
    ("count", "is_each"),
    [(500, False), pytest.param(10_000, True, marks=pytest.mark.soak)],
)
def test_every_repository_in_every_spelling_reaches_the_node_that_the_ring_names(
    haproxy: HAProxy, nodes: NamedServers, tmp_path: Path, count: int, is_each: bool
) -> None:
    file = tmp_path / "members.json"

    def list_members(*names: str) -> Ring:
        urls = ", ".join(f'"{name}": "{nodes.url(name)}"' for name in names)
        aside = tmp_path / "aside"
        aside.write_text(f'{{"nodes": {{{urls}}}}}')
        aside.replace(file)
        return Ring.of(map(NodeName, names))

    def wait_for_ring(ring: Ring) -> None:
        wanted = {slot: ring.order(slot)[0] for slot in range(4096)}
        until(lambda: map_in(haproxy.ask(f"show map {map_name(0)}")) == wanted)

    everything = [[ask_for(repo, spelling) for spelling in SPELLINGS] for repo in repos(count)]
    # By default, once every spelling of each, and then others of them each time.
    rounds = iter(range(100))

    def disagree(ring: Ring, *out: str) -> list[str]:
        turn = next(rounds)
        asked = [
            one
            for number, spelled in enumerate(everything)
            for at, one in enumerate(spelled)
            if turn == 0 or is_each or (number + at + turn) % 6 == 0
        ]
        return disagreements(haproxy, asked, ring, out)

    three = list_members(*THREE)
    flags = ["--probe-interval-seconds", "0.1", "--gone-after-seconds", "0.3"]
    with syncing(haproxy, "--members-file", str(file), *flags):
        haproxy.start()
        assert disagree(three) == []

        nodes.stop("goblet-2")
        haproxy.wait_for(in_state(BACKENDS, "goblet-2", "DOWN"))
        assert disagree(three, "goblet-2") == []
        nodes.start("goblet-2")
        haproxy.wait_for(in_state(BACKENDS, "goblet-2", "UP"))
        assert disagree(three) == []

        nodes.state["goblet-1"] = DRAINING
        haproxy.wait_for({"goblet/goblet-1": "DOWN", "goblet_draining/goblet-1": "NOLB"})
        assert disagree(three, "goblet-1") == []
        nodes.state["goblet-2"] = JOINING
        haproxy.wait_for(in_state(BACKENDS, "goblet-2", "DOWN"))
        assert disagree(three, "goblet-1", "goblet-2") == []
        nodes.state["goblet-3"] = DRAINING
        haproxy.wait_for({"goblet/goblet-3": "DOWN"})
        # Nobody is ready: those that drain answer still, in the ring's order.
        assert disagree(three, "goblet-2") == []
        nodes.state.update(dict.fromkeys(THREE, (200, "ready\n")))
        for name in THREE:
            haproxy.wait_for(in_state(BACKENDS, name, "UP"))

        nodes.start("goblet-4")
        four = list_members(*THREE, "goblet-4")
        wait_for_ring(four)
        haproxy.wait_for(in_state(BACKENDS, "goblet-4", "UP"))
        assert disagree(four) == []
        nodes.state["goblet-4"] = DRAINING
        haproxy.wait_for({"goblet/goblet-4": "DOWN"})
        assert disagree(four, "goblet-4") == []
        nodes.state["goblet-4"] = (200, "ready\n")
        haproxy.wait_for({"goblet/goblet-4": "UP"})

        left = list_members("goblet-2", "goblet-3", "goblet-4")
        wait_for_ring(left)
        until(lambda: haproxy.states().get("goblet/goblet-1", "MAINT").startswith("MAINT"))
        assert disagree(left) == []

        # What is on disk says the same: a HAProxy that starts now needs no sync.
        haproxy.stop()
        haproxy.start()
        wait_for_ring(left)
        assert disagree(left) == []


def test_until_a_death_is_detected_any_live_node_answers_and_then_the_right_one(
    haproxy: HAProxy, nodes: NamedServers
) -> None:
    placement = placement_of(nodes)
    # Only requests find out: the checks come too late.
    start(haproxy, placement, settings_for(haproxy, probe_interval_seconds=60))
    asked = [ask_for(repo, "POST .git") for repo in repos(300)]
    assert disagreements(haproxy, asked, placement.ring) == []
    nodes.stop("goblet-3")
    mine = [one for one in asked if placement.ring.owners(one.key)[0] == "goblet-3"]
    begun = time.monotonic()
    (first,) = ask_all(haproxy.port, [mine[0].request])
    assert first != "goblet-3"
    # HAProxy pauses for a second before it tries the same server again: it did not.
    assert time.monotonic() - begun < 2
    assert disagreements(haproxy, asked, placement.ring, {"goblet-3"}) == []


def test_a_connection_that_a_node_closes_in_that_moment_loses_no_request(
    haproxy: HAProxy, nodes: NamedServers
) -> None:
    placement = placement_of(nodes)
    start(haproxy, placement, settings_for(haproxy))
    nodes.cuts_left = 2
    asked = [ask_for(repo, "POST") for repo in repos(60)]
    assert set(ask_all(haproxy.port, [one.request for one in asked])) == set(THREE)
    assert nodes.cuts_left == 0


def test_a_node_with_as_many_requests_as_it_may_have_is_passed_over(
    haproxy: HAProxy, nodes: NamedServers
) -> None:
    placement = placement_of(nodes)
    start(haproxy, placement, settings_for(haproxy, most_requests=2))
    one = ask_for("github.com/org/hot", "GET")
    first, second, third = placement.ring.owners(one.key)
    nodes.held = {name: [] for name in THREE}
    url = f"{haproxy.base}/github.com/org/hot/info/refs?service=git-upload-pack"
    # The last finds everyone full, and goes where it belongs.
    wanted: list[str] = [first, first, second, second, third, third, first]
    with ThreadPoolExecutor(len(wanted)) as threads:
        answers = []
        for turn, name in enumerate(wanted):
            before = len(nodes.held[name])
            answers.append(threads.submit(ask, url))
            until(partial(_has_grown, nodes.held[name], before), what=f"request {turn} at {name}")
        for name in THREE:
            nodes.let_go(name)
        assert [answer.result().node for answer in answers] == wanted


def _has_grown(held: Sequence[object], before: int) -> bool:
    return len(held) > before


def test_sync_brings_a_running_haproxy_to_a_placement_and_then_does_nothing(
    haproxy: HAProxy, nodes: NamedServers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    nodes.start("goblet-4")
    settings = settings_for(haproxy)
    start(haproxy, placement_of(nodes, ["goblet-1", "goblet-2"]), settings)
    asked = [ask_for(repo, "GET .git") for repo in repos(200)]
    ask_all(haproxy.port, [one.request for one in asked])  # connections that idle then

    # goblet-1 is where goblet-4 was, goblet-2 is no member any more, two are new.
    urls = {"goblet-1": nodes.url("goblet-4"), "goblet-3": nodes.url("goblet-3")}
    placement = Placement.over(members_of({**urls, "goblet-5": nodes.url("goblet-1")}))
    sync = Sync(Fixed(placement), RuntimeApi(haproxy.socket), directory=haproxy.directory,
                settings=settings)  # fmt: skip
    assert trio.run(sync.turn)
    haproxy.wait_for({name: "UP" for member in placement.members
                      for name in in_state(BACKENDS, member.name, "UP")})  # fmt: skip
    answers = {"goblet-1": "goblet-4", "goblet-3": "goblet-3", "goblet-5": "goblet-1"}
    got = ask_all(haproxy.port, [one.request for one in asked])
    assert got == [answers[placement.ring.owners(one.key)[0]] for one in asked]

    def deleted() -> bool:
        return trio.run(sync.turn) and "goblet/goblet-2" not in haproxy.states()

    until(deleted, what="server goblet-2 deleted once its connections were closed")
    caplog.clear()
    assert trio.run(sync.turn)
    assert caplog.messages == []

    # Whom an operator takes out stays out; who was put out from here comes back.
    haproxy.ask("disable server goblet/goblet-3")
    for backend in BACKENDS:
        haproxy.ask(f"set server {backend}/goblet-5 weight 0; disable server {backend}/goblet-5")
    assert trio.run(sync.turn)
    haproxy.wait_for({"goblet/goblet-3": "MAINT", "goblet/goblet-5": "UP"})


class Fixed:
    """A placement that does not change."""

    def __init__(self, placement: Placement) -> None:
        self.placement = placement

    async def changed(self) -> None:
        await trio.sleep_forever()


def test_haproxy_answers_for_itself_and_keeps_from_nodes_what_is_not_for_them(
    haproxy: HAProxy, nodes: NamedServers
) -> None:
    placement = placement_of(nodes)
    start(haproxy, placement, settings_for(haproxy))
    assert ask(f"{haproxy.base}/healthz").status == 200
    assert ask(f"{haproxy.base}/readyz").text == "ready\n"
    assert "insteadOf" in ask(f"{haproxy.base}/").text
    assert "haproxy_server_status" in ask(f"http://{haproxy.stats_listen}/metrics").text
    assert ask(f"http://{haproxy.stats_listen}/").status == 200

    nodes.must_record = True
    for path in ("/-/mirrors", "/-/drain", "/-/peer/mirrors", "/-/status", "/-/", "/metrics"):
        answer = ask(haproxy.base + path)
        assert answer.status in (403, 404), path
        assert answer.text.endswith("\n")
    raw = "CONNECT github.com:443 HTTP/1.1\r\nHost: github.com:443\r\n\r\n"
    assert b" 405 " in raw_answer(haproxy, raw)
    raw = "GET http://h.example/-/mirrors HTTP/1.1\r\nHost: h.example\r\n\r\n"
    assert b" 403 " in raw_answer(haproxy, raw)
    raw = "GET http://me:secret@h.example/a/b/info/refs HTTP/1.1\r\nHost: h.example\r\n\r\n"
    assert b" 400 " in raw_answer(haproxy, raw)
    assert nodes.served == []

    target = f"{haproxy.base}/github.com/org/repo/info/refs?service=git-upload-pack"
    ask(target, headers={"Goblet-Peer": "1.2", "X-Request-Id": "mine"})
    ((name, head),) = nodes.served
    assert name == placement.ring.owners(repo_key.parse("github.com/org/repo"))[0]
    seen = head.lower()
    assert b"goblet-peer" not in seen
    assert b"x-request-id: mine" in seen
    # So that no node takes what comes through HAProxy for an administrator's.
    assert b"x-forwarded-for: 127.0.0.1" in seen

    for name in THREE:
        nodes.stop(name)
        haproxy.wait_for(in_state(BACKENDS, name, "DOWN"))
    assert ask(f"{haproxy.base}/readyz").status == 503
    answer = ask(target)
    assert (answer.status, answer.node) == (503, "none")
    assert answer.text.startswith("no cache node answers")


def test_the_log_has_a_line_for_each_request_without_credentials_and_none_that_is_forged(
    haproxy: HAProxy, nodes: NamedServers
) -> None:
    placement = placement_of(nodes)
    start(haproxy, placement, settings_for(haproxy))
    targets = {
        "/h.example/Org/Repo.git/info/refs?token=secret": '"h.example/org/repo"',
        "/h.example/a%0Ab%22%20node=forged/info/refs": '"h.example/a_b__node=forged"',
        "/me:secret@h.example/a/b/info/refs": '""',
        "/me%3Asecret%40h.example/a/b/info/refs": '""',
        "/-/ensure?repo=https://me:secret@h.example/a/b": '""',
        "http://me:secret@h.example/a/b/info/refs": '""',
    }
    for target in targets:
        head = f"Host: h.example\r\nAuthorization: Basic secret\r\n{CLOSE}"
        raw_answer(haproxy, f"GET {target} HTTP/1.1\r\n{head}\r\n")
    lines: list[str] = []

    def told() -> bool:
        lines.extend(haproxy.requests_told().splitlines())
        return len(lines) >= len(targets)

    until(told)
    shown = [line.split(" slot=")[0] for line in lines]
    assert shown == [f"127.0.0.1 GET {key}" for key in targets.values()]
    assert not any("secret" in line for line in lines)


CLOSE = "Connection: close\r\n"


def raw_answer(haproxy: HAProxy, request: str) -> bytes:
    with socket.create_connection(("127.0.0.1", haproxy.port), timeout=10) as connection:
        connection.sendall(request.encode())
        return connection.recv(65536)


def test_ensure_reaches_the_owner_of_the_repository_in_its_query(
    haproxy: HAProxy, nodes: NamedServers
) -> None:
    placement = placement_of(nodes)
    start(haproxy, placement, settings_for(haproxy))
    for repo in (*repos(60), "https://GitHub.com:443/Org/Ré%70o.git/", "http://h.example:80/a/b"):
        query = urlencode({"ref": "refs/heads/main", "repo": repo})
        answer = ask(f"{haproxy.base}/-/ensure?{query}", method="POST")
        assert answer.node == placement.ring.owners(repo_key.parse(repo))[0], repo


def test_clients_and_nodes_are_spoken_to_with_tls_also_nodes_that_come_later(
    haproxy: HAProxy, nodes: NamedServers, tmp_path: Path
) -> None:
    pem, bundle = certificate(tmp_path)
    settings = settings_for(haproxy, certificate=bundle, ca_file=str(pem))
    start(haproxy, placement_of(nodes, ["goblet-1"]), settings)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(bundle)
    nodes.start("goblet-4", tls=server)
    port = nodes.url("goblet-4").rpartition(":")[2]
    urls = {"goblet-1": nodes.url("goblet-1"), "goblet-4": f"https://localhost:{port}"}
    placement = Placement.over(members_of(urls))
    sync = Sync(Fixed(placement), RuntimeApi(haproxy.socket), directory=haproxy.directory,
                settings=settings)  # fmt: skip
    assert trio.run(sync.turn)
    for backend in BACKENDS:
        haproxy.wait_for({f"{backend}/goblet-4": "UP"})
    trusting = ssl.create_default_context(cafile=pem)

    def agrees(repo: str) -> bool:
        url = f"https://localhost:{haproxy.port}/{repo}/info/refs?service=git-upload-pack"
        answer = client.get(url)
        owner = placement.ring.owners(repo_key.parse(repo))[0]
        return (answer.http_version, answer.headers["goblet-node"]) == ("HTTP/2", owner)

    with httpx.Client(verify=trusting, http2=True, trust_env=False) as client:
        assert all(agrees(f"h.example/a/{number}") for number in range(12))
        # The file on disk has the same servers.
        haproxy.stop()
        haproxy.start()
        haproxy.wait_for({"goblet/goblet-4": "UP"})
    with httpx.Client(verify=trusting, http2=True, trust_env=False) as client:
        assert all(agrees(f"h.example/a/{number}") for number in range(12))


def certificate(directory: Path) -> tuple[Path, Path]:
    """Make a certificate for localhost; return it, and a file that also has its key."""
    pem, key, bundle = (directory / name for name in ("cert.pem", "key.pem", "bundle.pem"))
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(pem)]
    subprocess.run(command, check=True, capture_output=True)
    bundle.write_bytes(pem.read_bytes() + key.read_bytes())
    return pem, bundle


def test_http2_clients_reach_the_same_node(haproxy: HAProxy, nodes: NamedServers) -> None:
    placement = placement_of(nodes)
    start(haproxy, placement, settings_for(haproxy))
    with httpx.Client(http1=False, http2=True, trust_env=False) as client:
        for repo in repos(16):
            path = quote(repo.partition("/")[2], safe="/")
            target = f"/{repo.partition('/')[0]}/{path}.git/git-upload-pack"
            answer = client.post(haproxy.base + target, content=b"0000")
            assert answer.http_version == "HTTP/2"
            owner = placement.ring.owners(repo_key.parse(repo))[0]
            assert answer.headers["goblet-node"] == owner, repo


SEED = """\
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend front
    bind {listen}
    default_backend goblet_shards
backend goblet_shards
    balance uri whole
    hash-type consistent
"""


def test_the_readme_has_the_numbers_that_are_measured_here(
    haproxy: HAProxy, nodes: NamedServers
) -> None:
    """The share of repositories whose GET and POST reach one node, the seed's way and ours."""
    names = [f"github.com/org{number % 37}/repo-{number}" for number in range(600)]
    pairs = {
        "GET and POST": ["GET", "POST"],
        "with and without .git": ["GET", "POST", "GET .git", "POST .git"],
    }

    def share(spellings: Sequence[str]) -> str:
        got = [
            ask_all(haproxy.port, [ask_for(name, spelling).request for name in names])
            for spelling in spellings
        ]
        together = sum(len(set(of_one)) == 1 for of_one in zip(*got, strict=True))
        return f"{together / len(names):.1%}"

    servers = [
        f"    server {name} {nodes.url(name).removeprefix('http://')} check\n" for name in THREE
    ]
    haproxy.directory.mkdir()
    config = haproxy.directory / "haproxy.cfg"
    config.write_text(SEED.format(listen=haproxy.listen) + "".join(servers))
    haproxy.start()
    theirs = {what: share(spellings) for what, spellings in pairs.items()}
    haproxy.stop()
    start(haproxy, placement_of(nodes), settings_for(haproxy))
    ours = {what: share(spellings) for what, spellings in pairs.items()}

    assert set(ours.values()) == {"100.0%"}
    readme = (ROOT / "haproxy/README.md").read_text()
    for what in pairs:
        assert f"| {what} | {theirs[what]} | {ours[what]} |" in readme, (what, theirs, ours)


def test_haproxy_accepts_the_file_with_every_option(haproxy: HAProxy) -> None:
    nodes = {"a": "https://127.0.0.1", "b": "http://[::1]:8080", "c.d-e_f": "http://no.invalid:80"}
    settings = settings_for(
        haproxy,
        most_requests=7,
        ranks=64,
        name_servers=["system", "127.0.0.1:53"],
        run_as=":".join((getpass.getuser(), grp.getgrgid(os.getgid()).gr_name)),
    )
    start(haproxy, Placement.over(members_of(nodes)), settings)
    assert ask(f"{haproxy.base}/healthz").status == 200


def test_git_clones_through_haproxy_from_real_nodes_also_when_the_owner_has_just_died(
    haproxy: HAProxy, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    source = make_repo(root / "org/small.git")
    with (
        Fleet(tmp_path, root=root, nodes=2) as fleet,
        # A death is not found out by checks before the test ends.
        syncing(haproxy, "--router", fleet.router.base, "--probe-interval-seconds", "60"),
    ):
        haproxy.start()
        url = f"{haproxy.base}/{HOST}/org/small"
        first = clone(f"{url}.git", tmp_path / "first", "--mirror")
        fsck(first)
        assert refs_of(first) == refs_of(source)
        refs = f"{url}/info/refs?service=git-upload-pack"
        owner = fleet.owners("org/small")[0]
        assert ask(refs).node == owner
        assert ask(f"{haproxy.base}/-/mirrors").status == 403
        ensured = ask(f"{haproxy.base}/-/ensure?repo={HOST}/org/small", method="POST")
        assert (ensured.status, ensured.node) == (200, owner)
        fleet.kill(owner)
        again = clone(url, tmp_path / "again", "--mirror")
        fsck(again)
        assert refs_of(again) == refs_of(source)

"""What a user of git reads when something goes wrong: one sentence that says what it was."""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from goblet_testing import asks, repos
from goblet_testing.faults_on_cue import Fault
from goblet_testing.gitcli import git
from goblet_testing.origin import Origin
from goblet_testing.processes import start_node
from goblet_testing.stand import HOST, Stand, start_stand

pytestmark = [pytest.mark.system, pytest.mark.slow]

TEMPLATE = "org/template"
USERS = {"alice": "wonder", "bob": "builder"}
EVERY_VERSION = pytest.mark.parametrize("version", ["0", "2"])


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """An origin with alice and bob, and a node; each test has repositories of its own."""
    directory = tmp_path_factory.mktemp("errors")
    repos.make_repo(directory / f"root/{TEMPLATE}.git", commits=25)
    flags = ["--access-seconds", "0", "--retry-refresh-seconds", "0", "--breaker-failures", "0"]
    with start_stand(directory, users=USERS, flags=flags) as stand:
        yield stand


@pytest.fixture
def name(request: pytest.FixtureRequest, stand: Stand) -> Iterator[str]:
    """Make a repository of the test's own, at an origin that behaves again afterwards."""
    name = "org/" + re.sub("[^a-z0-9_]+", "-", request.node.name)
    stand.copy(name, TEMPLATE)
    yield name
    stand.origin.behave()
    stand.origin.private.pop(name, None)


def read_by_user(tmp_path: Path, version: str, *words: str | Path) -> str:
    """Run a git command that must fail; return what it wrote for its user to read."""
    env = {"GIT_CONFIG_PARAMETERS": f"'protocol.version'='{version}'"}
    where = tmp_path / "client"
    if not where.exists():
        git("init", "--quiet", where)
    done = git(*words, cwd=where, env=env, check=False, timeout=60)
    assert done.returncode != 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def with_user(url: str, user: str, password: str) -> str:
    """Return the URL with a credential in it."""
    return url.replace("://", f"://{user}:{password}@", 1)


def as_if_here(stand: Stand, name: str, said: str) -> str:
    """Return what the origin had git say, with the node's URL in place of its own."""
    return said.replace(stand.direct(name), stand.url(name))


@EVERY_VERSION
def test_a_host_beside_the_list(stand: Stand, tmp_path: Path, version: str) -> None:
    said = read_by_user(tmp_path, version, "fetch", stand.node.url("evil.test/org/repo"))
    assert "remote: host 'evil.test' is not among the upstreams of this Goblet" in said
    assert "--upstream evil.test=" in said
    assert "error: 403" in said


@EVERY_VERSION
def test_a_path_that_is_no_repository(stand: Stand, tmp_path: Path, version: str) -> None:
    said = read_by_user(tmp_path, version, "fetch", stand.node.url(f"{HOST}"))
    assert "remote: " in said
    assert "error: 400" in said


@EVERY_VERSION
def test_a_repository_that_is_not_there(stand: Stand, tmp_path: Path, version: str) -> None:
    url = stand.url("org/nowhere")
    said = read_by_user(tmp_path, version, "fetch", url)
    assert f"repository '{url}/' not found" in said


@EVERY_VERSION
def test_a_private_repository_without_a_credential(
    stand: Stand, name: str, tmp_path: Path, version: str
) -> None:
    """git asks for one, which is what the 401 and its WWW-Authenticate are for."""
    stand.origin.private[name] = {"alice"}
    said = read_by_user(tmp_path, version, "fetch", stand.url(name))
    assert "could not read Username" in said


@EVERY_VERSION
def test_a_private_repository_with_a_wrong_password(
    stand: Stand, name: str, tmp_path: Path, version: str
) -> None:
    stand.origin.private[name] = {"alice"}
    said, direct = (
        read_by_user(tmp_path, version, "fetch", with_user(url, "alice", "wrong"))
        for url in (stand.url(name), stand.direct(name))
    )
    assert "Authentication failed" in said
    assert said == as_if_here(stand, name, direct)


@EVERY_VERSION
def test_a_private_repository_of_others(
    stand: Stand, name: str, tmp_path: Path, version: str
) -> None:
    stand.origin.private[name] = {"alice"}
    said, direct = (
        read_by_user(tmp_path, version, "fetch", with_user(url, "bob", "builder"))
        for url in (stand.url(name), stand.direct(name))
    )
    assert "error: 403" in said
    assert said == as_if_here(stand, name, direct)


@EVERY_VERSION
def test_a_private_repository_that_its_host_hides(
    stand: Stand, name: str, tmp_path: Path, version: str
) -> None:
    stand.origin.private[name] = {"alice"}
    stand.origin.refusal = 404
    try:
        url = with_user(stand.url(name), "bob", "builder")
        assert "not found" in read_by_user(tmp_path, version, "fetch", url)
    finally:
        stand.origin.refusal = 403


@EVERY_VERSION
def test_an_upstream_that_is_down(stand: Stand, tmp_path: Path, version: str) -> None:
    with Origin(tmp_path) as gone:
        address = gone.url
    upstreams = {HOST: address}
    with start_node("goblet-2", directory=tmp_path, upstreams=upstreams) as node:
        said = read_by_user(tmp_path, version, "fetch", node.url(f"{HOST}/org/repo"))
    assert "remote: 127.0.0.1 could not be asked (ConnectError): try again later" in said
    assert "error: 502" in said


@EVERY_VERSION
@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (Fault(status=500), "remote: 127.0.0.1 answered 500: try again later"),
        (Fault(html=True), "remote: 127.0.0.1 answers what git would not"),
        (Fault(redirect_to="http://elsewhere.test/x"), "is not among the upstreams"),
        (Fault(status=429, retry_after=700), "error: 429"),
    ],
    ids=["broken", "captive", "redirecting", "busy"],
)
def test_an_upstream_that_fails(
    stand: Stand, name: str, tmp_path: Path, version: str, fault: Fault, sentence: str
) -> None:
    stand.origin.misbehave(fault, kind="info-refs", repo=name)
    assert sentence in read_by_user(tmp_path, version, "fetch", stand.url(name))


@pytest.mark.soak
@EVERY_VERSION
def test_an_upstream_that_is_cut_in_the_middle_of_a_pack(
    stand: Stand, name: str, tmp_path: Path, version: str
) -> None:
    for kind in ("fetch", "v0"):
        stand.origin.misbehave(Fault(cut_after=20_000), kind=kind, repo=name)
    said = read_by_user(tmp_path, version, "clone", stand.url(name), tmp_path / "c")
    assert "127.0.0.1 could not be asked" in said
    assert "try again later" in said
    assert not (tmp_path / "c").exists()


@EVERY_VERSION
def test_an_upstream_that_sends_a_damaged_pack(
    stand: Stand, name: str, tmp_path: Path, version: str
) -> None:
    """The first client follows it as it arrives, and git notices; nobody else gets it."""
    stand.origin.misbehave(Fault(corrupt_pack_at=20_000), kind="fetch", repo=name, times=1)
    said = read_by_user(tmp_path, version, "clone", stand.url(name), tmp_path / "c")
    assert re.search("inflate|corrupt|invalid|bad object", said)
    deadline = time.monotonic() + 20
    while f"refresh of {HOST}/{name} failed" not in stand.node.log:
        assert time.monotonic() < deadline, stand.node.log[-2000:]
        time.sleep(0.02)
    git("clone", "--quiet", stand.url(name), tmp_path / "again")


@EVERY_VERSION
@pytest.mark.parametrize("is_warm", [True, False], ids=["warm", "cold"])
def test_an_object_that_nobody_has(
    stand: Stand, name: str, tmp_path: Path, version: str, is_warm: bool
) -> None:
    if is_warm:
        stand.warm(name)
    said = read_by_user(tmp_path, version, "fetch", stand.url(name), "c0ffee" * 6 + "c0ff")
    assert f"remote error: upload-pack: not our ref {'c0ffee' * 6}c0ff" in said


@EVERY_VERSION
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--shallow-since=2099-01-01"], "no commits selected for shallow requests"),
        (["--shallow-exclude=nowhere"], "deepen-not is not a ref: 'nowhere'"),
        (["--filter=sparse:oid=main:x"], "sparse:oid filters are not supported here"),
    ],
    ids=["since", "exclude", "sparse"],
)
def test_a_request_that_cannot_be_met(
    stand: Stand, name: str, tmp_path: Path, version: str, words: list[str], sentence: str
) -> None:
    stand.warm(name)
    read_by_user(tmp_path, version, "remote", "set-url", "origin", "x")  # there is none yet
    git("remote", "add", "origin", stand.url(name), cwd=tmp_path / "client")
    said = read_by_user(tmp_path, version, "fetch", *words, "origin", "main")
    assert f"remote error: {sentence}" in said


def test_a_request_that_upstream_breaks_off_before_the_pack(
    stand: Stand, name: str, tmp_path: Path
) -> None:
    """Cold: git's own server dies within the section that would say where history ends."""
    read_by_user(tmp_path, "2", "remote", "set-url", "origin", "x")  # there is none yet
    git("remote", "add", "origin", stand.url(name), cwd=tmp_path / "client")
    said = read_by_user(tmp_path, "2", "fetch", "--shallow-since=2099-01-01", "origin", "main")
    assert "502" in said


@EVERY_VERSION
def test_a_push(stand: Stand, name: str, tmp_path: Path, version: str) -> None:
    shutil.copytree(stand.repo(name), tmp_path / "client")
    said = read_by_user(tmp_path, version, "push", stand.url(name), "main:refs/heads/new")
    assert "remote: pushes do not go through Goblet: set url.<base>.pushInsteadOf" in said


def test_a_tunnel(stand: Stand, tmp_path: Path) -> None:
    """A client that takes the node for its HTTPS proxy."""
    proxy = f"http.proxy={stand.node.base}"
    said = read_by_user(tmp_path, "2", "-c", proxy, "fetch", "https://github.com/org/repo")
    assert "CONNECT tunnel failed, response 400" in said


def test_an_ancient_client(stand: Stand, name: str, tmp_path: Path) -> None:
    """The dumb protocol, as git before 1.6.6 speaks it, and as git does if told to."""
    git("init", "--quiet", tmp_path / "client")
    env = {"GIT_SMART_HTTP": "0"}
    done = git("fetch", stand.url(name), cwd=tmp_path / "client", env=env, check=False)
    assert done.returncode != 0
    assert "remote: only git's smart HTTP protocol is served here" in done.stderr


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"hello", "pkt-line length b'hell': want 4 hex digits"),
        (b"0009done\n0000", "unknown capability 'done'"),
        (b"000cagent=x\n0000", "no command requested"),
        (b"0015command=nonsense\n0000", "unknown command 'nonsense'"),
        (b"0012command=fetch\n0001", "does not end with a flush packet"),
        (b"0012command=fetch\n0001000bwant x\n0000", "expected a sha1 object id"),
    ],
)
def test_a_malformed_request(stand: Stand, name: str, body: bytes, sentence: str) -> None:
    """git shows the text of an ERR packet as a remote error, word for word."""
    answer = asks.post(stand.url(name), body)
    assert answer.status == 200
    assert re.fullmatch(r"[0-9a-f]{4}ERR [^\n]+\n?", answer.text)
    assert sentence in answer.text


@pytest.mark.parametrize(
    ("spoil", "status", "sentence"),
    [
        ({"Content-Encoding": "br"}, 415, "want gzip"),
        ({"Content-Encoding": "gzip"}, 400, "says that it is gzip, and is not"),
        ({"Content-Type": "text/plain"}, 415, "is not that of a git request"),
    ],
)
def test_a_body_that_is_not_gits(
    stand: Stand, name: str, spoil: dict[str, str], status: int, sentence: str
) -> None:
    answer = asks.post(stand.url(name), b"hello", headers=spoil)
    assert answer.status == status
    assert answer.headers["content-type"].startswith("text/plain")
    assert sentence in answer.text
    assert answer.text.count("\n") == 1


CREDENTIAL_SHOWN = re.compile("wonder|builder|d29uZGVy")


def test_no_error_shows_a_credential(stand: Stand, name: str, tmp_path: Path) -> None:
    stand.origin.private[name] = {"bob"}
    url = with_user(stand.url(name), "alice", "wonder")
    told: list[Callable[[], None]] = [
        lambda: stand.origin.misbehave(Fault(status=500), repo=name, times=1),
        lambda: stand.origin.misbehave(Fault(html=True), repo=name, times=1),
        lambda: None,
    ]
    for make_it_so in told:
        make_it_so()
        answer = asks.info_refs(stand.url(name), user=("alice", "wonder"))
        assert answer.status >= 400
        assert not CREDENTIAL_SHOWN.search(answer.text)
        read_by_user(tmp_path, "2", "fetch", url)
    assert not CREDENTIAL_SHOWN.search(stand.node.log)

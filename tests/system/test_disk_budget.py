"""A node on a disk that is too small: every clone works, and what it keeps stays below its cap."""

import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from goblet_testing import asks, repos
from goblet_testing.faults_on_cue import Fault
from goblet_testing.gitcli import clone, fsck, git
from goblet_testing.origin import Origin
from goblet_testing.processes import Service, start_node

pytestmark = [pytest.mark.system, pytest.mark.slow]

HOST = "origin.test"
MB = 1024 * 1024
HUGE = 12
"""Megabytes of a repository that is larger than most caps here."""
# What a repository has beside its blobs, and what is claimed ahead of it.
SLACK = 2 * MB
SETTLED_WITHIN = 20.0


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Repositories `org/a`, `org/b`, `org/c` of 4 MB each, and `org/huge`."""
    root = tmp_path_factory.mktemp("root")
    for seed, name in enumerate("abc"):
        repos.make_blobs(root / f"org/{name}.git", megabytes=4, seed=seed)
    repos.make_blobs(root / "org/huge.git", megabytes=HUGE)
    return root


@pytest.fixture
def origin(root: Path) -> Iterator[Origin]:
    with Origin(root) as origin:
        yield origin


@contextmanager
def running(origin: Origin, directory: Path, *flags: str) -> Iterator[Service]:
    upstreams = {HOST: origin.url}
    with start_node("goblet-1", directory=directory, upstreams=upstreams, flags=flags) as node:
        yield node
        assert "Traceback" not in node.log, node.log[-5000:]


def disk(node: Service) -> dict[str, int]:
    """Return what the node says of its disk, and of how many mirrors it has."""
    said = json.loads(asks.ask(f"{node.base}/-/status").body)
    kinds: dict[str, int] = said["disk"]
    return kinds | {"count": said["mirrors"]}


def settled(node: Service, *, mirrors: int) -> dict[str, int]:
    """Return what the node says once nothing is written and it has so many mirrors."""
    try:
        wait_until(lambda: disk(node)["claimed"] == 0 and disk(node)["count"] == mirrors)
    except TimeoutError:
        raise TimeoutError(f"{disk(node)}\n{node.log[-3000:]}") from None
    return disk(node)


def cloned(node: Service, name: str, dest: Path) -> str:
    """Clone a repository, hold it to being whole, and return how the node says it answered."""
    since = len(node.log)
    clone(node.url(f"{HOST}/{name}"), dest)
    fsck(dest)
    shutil.rmtree(dest)
    return cache_words(node, since)[-1]


def cache_words(node: Service, since: int = 0) -> list[str]:
    """Return how packs came about, as the node's log has it, in order of their ends."""
    words = [word for line in node.log[since:].splitlines() for word in line.split()]
    return [
        word.removeprefix("cache=")
        for word in words
        if word.startswith("cache=") and word != "cache=-"
    ]


def bytes_below(path: Path) -> int:
    """Return what the files below `path` take, or took a moment ago."""
    total = 0
    for directory, _, files in os.walk(path):
        for file in files:
            try:
                total += (Path(directory) / file).stat().st_blocks * 512
            except FileNotFoundError:
                continue
    return total


class Peak:
    """The most that a folder took while the block ran, looked at every few milliseconds."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.bytes = 0

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self.bytes = max(self.bytes, bytes_below(self._path))


def test_a_repository_larger_than_the_cap_is_cloned_and_then_forwarded(
    origin: Origin, tmp_path: Path
) -> None:
    cache = tmp_path / "goblet-1"
    with running(origin, tmp_path, "--cache-bytes", f"{8 * MB}") as node:
        with Peak(cache) as peak:
            assert cloned(node, "org/huge", tmp_path / "first") == "cold"
        assert 4 * MB < peak.bytes <= 8 * MB
        assert settled(node, mirrors=0)["mirrors"] == 0
        assert cloned(node, "org/huge", tmp_path / "second") == "forwarded"
        assert node.metrics()["goblet_node_no_room_total"] > 0
        assert bytes_below(cache / "scratch") == bytes_below(cache / "mirrors") == 0


def test_all_who_follow_what_finds_no_room_get_it_at_once(origin: Origin, tmp_path: Path) -> None:
    with running(origin, tmp_path, "--cache-bytes", f"{8 * MB}") as node:
        origin.hold_fetches()
        url = node.url(f"{HOST}/org/huge")
        dests = [tmp_path / str(number) for number in range(4)]
        clients = [subprocess.Popen(["git", "clone", "-q", url, str(dest)]) for dest in dests]
        try:
            # All four have asked for the pack, and wait, when its first byte comes.
            origin.wait_until_held(1)
            wait_until(lambda: node.log.count("endpoint=git-upload-pack") >= 4)
            wait_until(lambda: node.metrics()["goblet_node_in_flight"] == 4)
        finally:
            origin.release()
            codes = [client.wait() for client in clients]
        assert codes == [0] * 4
        for dest in dests:
            fsck(dest)
        assert cache_words(node) == ["cold"] * 4
        assert len(origin.packs()) == 1
        settled(node, mirrors=0)


def test_a_slow_client_of_what_finds_no_room_gets_the_bytes_that_were_meant(
    origin: Origin, root: Path, tmp_path: Path
) -> None:
    """What it has not read yet may be megabytes in the kernel, which must not change there."""
    oid = repos.oid_of(root / "org/huge.git", "main")
    with running(origin, tmp_path, "--cache-bytes", f"{3 * MB}") as node:
        url = node.url(f"{HOST}/org/huge")
        asks.ls_refs(url, "refs/heads/", "HEAD")
        body = slowly(
            f"{url}/git-upload-pack",
            asks.command_body("fetch", ["ofs-delta", f"want {oid}", "done"]),
        )
        answer = asks.Answer(status=200, headers={}, body=body, is_complete=True)
        assert cache_words(node) == ["cold"]
    assert len(answer.pack) > HUGE * MB
    assert hashlib.sha1(answer.pack[:-20]).digest() == answer.pack[-20:]


def slowly(url: str, body: bytes) -> bytes:
    """Return the answer to a fetch, of which a little is read at a time, and after a while."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    kind = {"content-type": "application/x-git-upload-pack-request", "git-protocol": "version=2"}
    connection.request("POST", parts.path, body=body, headers=kind)
    response = connection.getresponse()
    assert response.status == 200
    got = bytearray()
    while piece := response.read(MB):
        got += piece
        time.sleep(0.05)
    connection.close()
    return bytes(got)


def wait_until(is_so: Callable[[], object]) -> None:
    """Return when it is so.

    Raises:
        TimeoutError: it was not within `SETTLED_WITHIN`.
    """
    deadline = time.monotonic() + SETTLED_WITHIN
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError("it is not so still")
        time.sleep(0.03)


def test_what_was_not_used_the_longest_makes_way(origin: Origin, tmp_path: Path) -> None:
    cap = 2 * (4 * MB) + SLACK
    with running(origin, tmp_path, "--cache-bytes", f"{cap}") as node:
        for count, name in enumerate("ab", 1):
            assert cloned(node, f"org/{name}", tmp_path / name) == "cold"
            settled(node, mirrors=count)
        assert cloned(node, "org/a", tmp_path / "again") == "whole"
        assert cloned(node, "org/c", tmp_path / "c") == "cold"
        assert settled(node, mirrors=2)["mirrors"] <= cap
        assert cloned(node, "org/a", tmp_path / "again") == "whole"
        assert cloned(node, "org/c", tmp_path / "again") == "whole"
        assert node.metrics()['goblet_node_evictions_total{kind="mirror"}'] == 1
        assert cloned(node, "org/b", tmp_path / "b") == "cold"
        settled(node, mirrors=2)
    # A restart knows what there is, and a smaller cap is kept from the start.
    with running(origin, tmp_path, "--cache-bytes", f"{cap}") as node:
        assert settled(node, mirrors=2)["mirrors"] > 8 * MB
        assert cloned(node, "org/b", tmp_path / "b") == "whole"
    with running(origin, tmp_path, "--cache-bytes", f"{5 * MB}") as node:
        assert 4 * MB < settled(node, mirrors=1)["mirrors"] <= 5 * MB
        assert cloned(node, "org/b", tmp_path / "b") == "whole"


def test_many_cold_clones_at_once_with_room_for_one(origin: Origin, tmp_path: Path) -> None:
    """Whoever finds no room is passed through; nobody fails, and the cap is kept."""
    cap = 4 * MB + SLACK
    cache = tmp_path / "goblet-1"
    with running(origin, tmp_path, "--cache-bytes", f"{cap}") as node:
        failures: list[BaseException] = []

        def one(name: str) -> None:
            try:
                clone(node.url(f"{HOST}/org/{name}"), tmp_path / name)
                fsck(tmp_path / name)
            except BaseException as exc:
                failures.append(exc)

        with Peak(cache) as peak:
            threads = [threading.Thread(target=one, args=(name,)) for name in "abc"]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert failures == []
        assert peak.bytes <= cap
        wait_until(lambda: disk(node)["claimed"] == 0)
        assert disk(node)["mirrors"] <= cap


def test_a_mirror_that_grows_past_its_limit_stays_what_it_was(
    origin: Origin, root: Path, tmp_path: Path
) -> None:
    shutil.copytree(root / "org/a.git", root / "org/grows.git")
    repo = root / "org/grows.git"
    with running(origin, tmp_path, "--max-mirror-bytes", f"{5 * MB}") as node:
        assert cloned(node, "org/grows", tmp_path / "before") == "cold"
        held = settled(node, mirrors=1)["mirrors"]
        old = repos.oid_of(repo, "main")
        grow(repo, tmp_path / "work", megabytes=3)
        assert cloned(node, "org/grows", tmp_path / "after") == "forwarded"
        assert settled(node, mirrors=1)["mirrors"] == held
        # What it has it answers, and what it lacks is forwarded without a further attempt.
        assert asks.fetch(node.url(f"{HOST}/org/grows"), [old]).cache in ("whole", "selected")
        packs = len(origin.packs())
        assert cloned(node, "org/grows", tmp_path / "after") == "forwarded"
        assert len(origin.packs()) == packs + 1


def grow(repo: Path, work: Path, *, megabytes: int) -> None:
    """Add a commit with blobs that do not compress."""
    git("clone", "-q", str(repo), str(work))
    for number in range(megabytes):
        (work / f"new-{number}").write_bytes(os.urandom(MB))
    git("add", "-A", cwd=work)
    git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "grows", cwd=work)
    git("push", "-q", "origin", "HEAD:main", cwd=work)


def test_a_cap_that_cannot_be_kept_is_refused_at_the_start(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "goblet_node", "--name", "n", "--listen", "127.0.0.1:0"]
    command += ["--cache-root", str(tmp_path / "cache"), "--cache-bytes"]
    for cap, sentence in (("1EB", "1000000000000000000 cannot be kept"), ("0%", "want 1% to 100%")):
        ended = subprocess.run([*command, cap], capture_output=True, text=True, timeout=60)
        assert ended.returncode != 0
        assert sentence in " ".join(ended.stderr.replace("│", " ").split())
        assert "Traceback" not in ended.stderr


def test_a_node_that_is_killed_while_it_receives_has_its_room_back(
    origin: Origin, tmp_path: Path
) -> None:
    cache = tmp_path / "goblet-1"
    flags = ("--cache-bytes", f"{18 * MB}")
    with start_node(
        "goblet-1", directory=tmp_path, upstreams={HOST: origin.url}, flags=flags
    ) as node:
        cloned(node, "org/a", tmp_path / "a")
        held = settled(node, mirrors=1)["mirrors"]
        origin.misbehave(Fault(stall_after=6 * MB), kind="fetch")
        client = subprocess.Popen(
            ["git", "clone", "-q", node.url(f"{HOST}/org/huge"), str(tmp_path / "huge")],
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: bytes_below(cache / "scratch") > 5 * MB)
        assert disk(node)["claimed"] > 5 * MB
        node.stop(number=signal.SIGKILL)
        client.wait()
    origin.behave()
    assert bytes_below(cache / "scratch") > 5 * MB
    with running(origin, tmp_path, *flags) as node:
        assert settled(node, mirrors=1)["mirrors"] == held
        assert bytes_below(cache / "scratch") == 0
        assert cloned(node, "org/huge", tmp_path / "huge") == "cold"
        settled(node, mirrors=2)


@pytest.mark.parametrize("free", [3 * MB, 6 * MB])
def test_a_file_system_that_is_full_before_the_cap_loses_the_write_alone(
    origin: Origin, tmp_path: Path, free: int
) -> None:
    with on_small_disk(origin, tmp_path, size=16 * MB, free=free) as node:
        assert cloned(node, "org/huge", tmp_path / "huge") == "cold"
        settled(node, mirrors=0)
        if free > 5 * MB:
            assert cloned(node, "org/a", tmp_path / "a") == "cold"
            settled(node, mirrors=1)
        assert cloned(node, "org/b", tmp_path / "b") == "cold"
        settled(node, mirrors=1 if free > 5 * MB else 0)
        assert "Traceback" not in node.log, node.log[-5000:]


@contextmanager
def on_small_disk(origin: Origin, directory: Path, *, size: int, free: int) -> Iterator[Service]:
    """Run a node whose cache root is a file system of its own, most of which others have taken."""
    place = directory / "small"
    place.mkdir()
    shell = (
        f"mount -t tmpfs -o size={size} none {place} && "
        f'head -c {size - free} /dev/zero > {place}/others && exec "$@"'
    )
    in_namespace = ["unshare", "--mount", "sh", "-c", shell, "sh"]
    if not can_mount(in_namespace):
        pytest.skip("mounting a file system of one's own is not allowed here")
    shutil.rmtree(place)
    place.mkdir()
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    command: Sequence[str] = [
        *(sys.executable, "-m", "goblet_node", "--name", "goblet-1"),
        *("--listen", f"fd://{listener.fileno()}"),
        *("--cache-root", str(place / "cache"), "--cache-bytes", "100%"),
        *("--upstream", f"{HOST}={origin.url}"),
    ]
    log_file = directory / "small.log"
    with Service([*in_namespace, *command], log_file=log_file, listener=listener) as node:
        node.wait_ready()
        yield node


def can_mount(in_namespace: Sequence[str]) -> bool:
    try:
        return subprocess.run([*in_namespace, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False

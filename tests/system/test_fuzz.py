"""Whatever arrives at a running node, it answers or hangs up, and is then as it was before."""

import http.client
import os
import random
import socket
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import pytest

from goblet_node.serve.recordings import MAX_OPEN
from goblet_testing import asks, repos
from goblet_testing.fuzz import Questions, Shot, request_seeds, shots
from goblet_testing.gitcli import clone, fsck, git
from goblet_testing.processes import descendants
from goblet_testing.stand import HOST, Stand, start_stand

pytestmark = [pytest.mark.system, pytest.mark.slow]

NAME = "org/target"
LARGEST = 4 << 20
"""The largest body that the node under fire takes, in bytes."""
PATIENCE = 30.0
"""Seconds without a byte after which an answer counts as a hang."""
ROOM = 150 << 20
"""Bytes by which the node may grow: one body as large as it takes, read in every way, and noise."""


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """An origin and a node whose mirror of the target is warm."""
    directory = tmp_path_factory.mktemp("fuzz")
    repos.make_repo(directory / f"root/{NAME}.git", commits=40)
    flags = ["--max-request-bytes", str(LARGEST), "--workers", "2"]
    with start_stand(directory, flags=flags) as stand:
        stand.warm(NAME)
        yield stand


@pytest.fixture
def unharmed(stand: Stand, tmp_path: Path) -> Iterator[None]:
    """Hold the node to being afterwards as it was before: memory, files, tasks, and its work."""
    clone(stand.url(NAME), tmp_path / "before", "--depth=3")
    memory, files = resident(stand.node.pid), len(open_files(stand))
    said = len(stand.node.log)
    yield
    wait_idle(stand)
    deadline = time.monotonic() + 10
    # Connections to the origin may have become as many as were ever needed at once.
    while len(open_files(stand)) > files + 10 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(open_files(stand)) <= files + 10, open_files(stand)
    assert resident(stand.node.pid) - memory < ROOM
    assert len(descendants(stand.node.pid)) <= 2
    scratch = stand.directory / "goblet-1/scratch"
    while list(scratch.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)  # an answer is synced to the disk when its clients have it
    assert list(scratch.iterdir()) == []
    stand.check_log(since=said)
    for depth in ("1", "9999"):
        dest = clone(stand.url(NAME), tmp_path / f"after-{depth}", f"--depth={depth}")
        fsck(dest)


def wait_idle(stand: Stand) -> None:
    """Return when the node answers nobody any more."""
    deadline = time.monotonic() + PATIENCE
    while stand.node.metrics()["goblet_node_in_flight"] != 0:
        assert time.monotonic() < deadline, f"still in flight\n{stand.node.log[-2000:]}"
        time.sleep(0.05)


def resident(pid: int) -> int:
    """Return the memory of the process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files(stand: Stand) -> list[str]:
    """Return what the node has open, but for the recordings that it keeps open to be quick.

    It keeps as many as it pleases below a bound of its own, more with each question.
    """
    opened = []
    for link in Path(f"/proc/{stand.node.pid}/fd").iterdir():
        with suppress(OSError):  # closed since it was listed
            opened.append(os.readlink(link))
    recordings = f"{stand.directory}/goblet-1/recordings/"
    kept = [name for name in opened if name.startswith(recordings)]
    assert len(kept) <= MAX_OPEN
    return [name for name in opened if not name.startswith(recordings)]


class Gun:
    """Sends requests over one connection for as long as that works, then over the next."""

    def __init__(self, stand: Stand) -> None:
        self._address = ("127.0.0.1", int(stand.node.base.rpartition(":")[2]))
        self._line: socket.socket | None = None

    def fire(self, shot: Shot) -> int:
        """Send one request and return the status of its answer, 0 if there is none.

        Raises:
            TimeoutError: neither an answer nor a hang-up came.
        """
        for is_fresh in (self._line is None, True):
            if self._line is None:
                self._line = socket.create_connection(self._address, timeout=PATIENCE)
            try:
                return self._exchange(self._line, shot)
            except (ConnectionError, http.client.HTTPException):
                self.close()
                # A connection that was kept may have been closed meanwhile.
                if is_fresh:
                    return 0
        return 0

    def close(self) -> None:
        """Hang up."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def _exchange(self, line: socket.socket, shot: Shot) -> int:
        line.sendall(shot.data)
        if not shot.is_whole:
            line.shutdown(socket.SHUT_WR)
        response = http.client.HTTPResponse(line, method="GET")
        response.begin()
        body: BinaryIO = response
        while body.read(1 << 16):
            pass
        if response.will_close or not shot.is_whole:
            self.close()
        return response.status


def object_ids(stand: Stand) -> list[str]:
    """Return the names of some objects of every kind, wherever they lie."""
    check = "--batch-check=%(objectname) %(objecttype)"
    lines = git("cat-file", "--batch-all-objects", check, cwd=stand.repo(NAME)).stdout.splitlines()
    kinds: dict[str, list[str]] = {}
    for line in lines:
        oid, kind = line.split()
        kinds.setdefault(kind, []).append(oid)
    return [oid for found in kinds.values() for oid in found[:25]] + kinds["commit"]


def bombard(stand: Stand, *, seed: int, times: int) -> Counter[int]:
    """Fire so many requests; return how often each status came."""
    dice = random.Random(seed)
    ids = object_ids(stand)
    seeds = request_seeds(dice.sample(ids, 12))
    supply = shots(dice, path=f"/{HOST}/{NAME}", questions=Questions(ids), seeds=seeds)
    gun, statuses = Gun(stand), Counter[int]()
    for number in range(times):
        shot = next(supply)
        try:
            status = gun.fire(shot)
        except TimeoutError as exc:
            raise AssertionError(f"shot {number} of {seed} is not answered: {shot}") from exc
        assert status < 500, f"shot {number} of {seed} got {status}: {shot}"
        statuses[status] += 1
    gun.close()
    return statuses


@pytest.mark.usefixtures("unharmed")
def test_spoiled_requests_are_answered_or_cut_off(stand: Stand) -> None:
    statuses = bombard(stand, seed=1, times=1_500)
    assert {200, 400, 403, 415} <= statuses.keys()


@pytest.mark.soak
@pytest.mark.usefixtures("unharmed")
def test_fifty_thousand_spoiled_requests_are_answered_or_cut_off(stand: Stand) -> None:
    for seed in range(2, 52):
        assert bombard(stand, seed=seed, times=1_000)[200]


@pytest.mark.usefixtures("unharmed")
def test_a_gzip_bomb_costs_no_more_than_the_limit(stand: Stand) -> None:
    """A gibibyte of zeros in a megabyte."""
    squeeze = zlib.compressobj(9, wbits=31)
    zeros = bytes(1 << 20)
    bomb = b"".join(squeeze.compress(zeros) for _ in range(1024)) + squeeze.flush()
    assert len(bomb) < 2 << 20
    for head in ({"Git-Protocol": "version=2"}, {}):
        answer = asks.post(stand.url(NAME), bomb, headers={**head, "Content-Encoding": "gzip"})
        assert answer.status == 413
        assert answer.text.count("\n") == 1


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("version", [0, 2])
def test_haves_without_end_are_cut_off(stand: Stand, version: int) -> None:
    """A body that would go on for ever: the node stops to listen at its limit."""
    have = asks.pkt_line(f"have {'ab' * 20}\n")
    oid = repos.oid_of(stand.repo(NAME), "main")
    if version == 2:
        start = asks.pkt_line("command=fetch\n") + asks.DELIM + asks.pkt_line(f"want {oid}\n")
    else:
        start = asks.pkt_line(f"want {oid} side-band-64k\n") + asks.FLUSH
    sent = 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        yield start
        while True:
            sent += len(have) * 1000
            yield have * 1000

    headers = {"Git-Protocol": "version=2"} if version == 2 else {}
    # It may hang up while we still speak.
    with suppress(ConnectionError):
        assert asks.post(stand.url(NAME), body(), headers=headers).status == 413
    assert sent < LARGEST + (64 << 20)


@pytest.mark.usefixtures("unharmed")
def test_clients_that_leave_at_any_byte_leave_nothing_behind(stand: Stand) -> None:
    dice = random.Random(5)
    questions = Questions(object_ids(stand))
    seeds = request_seeds(questions.ids)
    supply = shots(dice, path=f"/{HOST}/{NAME}", questions=questions, seeds=seeds)
    port = int(stand.node.base.rpartition(":")[2])
    for _ in range(150):
        data = next(supply).data
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as line:
            line.sendall(data[: dice.randrange(len(data) + 1)])
            if dice.random() < 0.5:
                line.settimeout(0.01)
                with suppress(TimeoutError):
                    line.recv(100)


@pytest.mark.usefixtures("unharmed")
def test_connections_that_end_without_a_word_are_let_go(stand: Stand) -> None:
    """As a load balancer's TCP checks do, all day."""
    port = int(stand.node.base.rpartition(":")[2])
    for _ in range(40):
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as line:
            line.shutdown(socket.SHUT_WR)


@pytest.mark.usefixtures("unharmed")
def test_a_credential_of_any_bytes_is_asked_of_upstream_or_refused(stand: Stand) -> None:
    for credential in ("Bearer \xff", "\xff", "Basic", "Bearer " + "x" * 5000):
        headers = {"Git-Protocol": "version=2", "Authorization": credential}
        status = asks.post(stand.url(NAME), b"0000", headers=headers).status
        assert status < 500, credential


@pytest.mark.usefixtures("unharmed")
def test_a_refused_request_whose_body_breaks_off_is_answered_once(stand: Stand) -> None:
    """The application refuses it early, and the server the broken body, at the same moment."""
    gun = Gun(stand)
    target = f"POST /{HOST}/{NAME}/git-upload-pack HTTP/1.1\r\nHost: goblet.test\r\n"
    head = f"{target}Content-Type: text/plain\r\nContent-Length: 9\r\n\r\n"
    for _ in range(30):
        assert gun.fire(Shot(data=f"{head}0000".encode(), is_whole=False)) in (0, 400, 415)

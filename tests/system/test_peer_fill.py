"""What one node holds the others need not ask the origin for: real nodes, real git."""

import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from goblet_testing import repos
from goblet_testing.asks import ask
from goblet_testing.fleet import Fleet, until
from goblet_testing.gitcli import clone, fsck, refs_of
from goblet_testing.processes import Service
from goblet_testing.seen import Seen
from goblet_testing.stand import HOST

pytestmark = [pytest.mark.system, pytest.mark.slow]

WARM, COLD, STRANGER, DISTANT = "goblet-1", "goblet-2", "goblet-3", "goblet-4"


@pytest.fixture(scope="module")
def gate() -> threading.Event:
    """Set when the relay may go on, which is to kill the warm node."""
    return threading.Event()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, gate: threading.Event) -> Iterator[Fleet]:
    """Two nodes before an origin with a repository for each test, and two that these do not know.

    `STRANGER` has another secret, `DISTANT` reaches the warm one through the relay alone.
    """
    directory = tmp_path_factory.mktemp("fleet")
    template = repos.make_repo(directory / "template.git", commits=20)
    for name in ("full", "shallow", "blobless", "moved", "rotten", "refused"):
        shutil.copytree(template, directory / f"root/org/{name}.git", symlinks=True)
    repos.make_blobs(directory / "root/org/large.git", megabytes=6)

    def hang_and_kill() -> None:
        gate.wait(60)
        running.kill(WARM)

    secret, members = directory / "another-secret", directory / "distant.json"
    secret.write_text("0123456789abcdef" * 4)
    with (
        Fleet(directory, nodes=2, routers=0) as running,
        relay(running.node_url(WARM), then=hang_and_kill, after=1 << 20) as address,
    ):
        members.write_text(json.dumps({"nodes": {WARM: address}}))
        running.add_node(STRANGER, ["--cluster-secret-file", str(secret)])
        flags = ["--members-file", str(members), "--peer-wait-seconds", "1"]
        running.add_node(DISTANT, flags)
        running.set_members([WARM, COLD])
        yield running


def url(node: Service, name: str) -> str:
    return node.url(f"{HOST}/org/{name}")


def held(node: Service) -> set[str]:
    """Return the names of the repositories that a node has a mirror of."""
    mirrors = json.loads(ask(f"{node.base}/-/mirrors").body)["mirrors"]
    return {mirror["key"].removeprefix(f"{HOST}/org/") for mirror in mirrors}


def warm(fleet: Fleet, name: str, directory: Path) -> None:
    """Have the one node hold the repository, and the origin forget that it was asked for it."""
    node = fleet.node(WARM)
    clone(url(node, name), directory / "first", "--mirror")
    until(lambda: name in held(node))
    fleet.origin.clear_log()


def copies(node: Service, outcome: str) -> float:
    return node.metrics().get(f'goblet_node_peer_copies_total{{outcome="{outcome}"}}', 0.0)


def packs(fleet: Fleet, name: str) -> list[Seen]:
    return [seen for seen in fleet.origin.packs() if seen.repo == f"org/{name}"]


def test_a_clone_through_the_other_node_costs_the_origin_no_pack(
    fleet: Fleet, tmp_path: Path
) -> None:
    warm(fleet, "full", tmp_path)
    cold = fleet.node(COLD)
    before = copies(cold, "copied")
    dest = clone(url(cold, "full"), tmp_path / "full", "--mirror")
    fsck(dest)
    assert refs_of(dest) == refs_of(fleet.origin.url_of("org/full"))
    assert packs(fleet, "full") == []
    assert copies(cold, "copied") == before + 1
    received = cold.metrics()["goblet_node_peer_received_bytes_total"]
    assert fleet.node(WARM).metrics()["goblet_node_peer_sent_bytes_total"] >= received > 0


@pytest.mark.parametrize(
    ("name", "flag"), [("shallow", "--depth=1"), ("blobless", "--filter=blob:none")]
)
def test_so_does_a_clone_of_a_part(name: str, flag: str, fleet: Fleet, tmp_path: Path) -> None:
    warm(fleet, name, tmp_path)
    dest = clone(url(fleet.node(COLD), name), tmp_path / "part", flag)
    assert repos.oid_of(dest, "HEAD") == repos.oid_of(tmp_path / "first", "refs/heads/main")
    assert packs(fleet, name) == []
    assert name in held(fleet.node(COLD))


def test_of_an_origin_that_moved_on_only_what_is_new_is_asked(fleet: Fleet, tmp_path: Path) -> None:
    warm(fleet, "moved", tmp_path)
    tip = repos.commit(fleet.origin.root / "org/moved.git", files={"new": "new\n"})
    dest = clone(url(fleet.node(COLD), "moved"), tmp_path / "moved", "--mirror")
    fsck(dest)
    assert repos.oid_of(dest, "refs/heads/main") == tip
    (asked,) = packs(fleet, "moved")
    assert asked.haves > 0
    assert asked.response_bytes < 5000


def test_what_rotted_on_the_other_node_is_had_from_the_origin(fleet: Fleet, tmp_path: Path) -> None:
    warm(fleet, "rotten", tmp_path)
    directory = next(
        path.parent
        for path in (fleet.directory / WARM / "mirrors").rglob("manifest.json")
        if f"{HOST}/org/rotten" in path.read_text()
    )
    pack = next(directory.glob("*.pack"))
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 1
    pack.write_bytes(content)
    cold = fleet.node(COLD)
    before = copies(cold, "failed")
    dest = clone(url(cold, "rotten"), tmp_path / "rotten", "--mirror")
    fsck(dest)
    assert len(packs(fleet, "rotten")) == 1
    assert copies(cold, "failed") == before + 1
    assert f"org/rotten is not copied from {WARM}: '{pack.name}' is not what was" in cold.log


def test_who_does_not_know_the_secret_gets_nothing_and_says_why(
    fleet: Fleet, tmp_path: Path
) -> None:
    warm(fleet, "refused", tmp_path)
    stranger = fleet.node(STRANGER)
    stranger.wait_ready()
    fsck(clone(url(stranger, "refused"), tmp_path / "refused", "--mirror"))
    assert len(packs(fleet, "refused")) == 1
    assert copies(stranger, "copied") == 0
    assert f"{WARM} does not take us for a member: is its cluster secret ours?" in stranger.log


def test_a_copy_that_hangs_and_then_breaks_off_costs_no_clone(
    fleet: Fleet, gate: threading.Event, tmp_path: Path
) -> None:
    """Last of all: after a megabyte the relay holds the rest back, then kills who sends it."""
    node = fleet.node(DISTANT)
    node.wait_ready()
    warm(fleet, "large", tmp_path)
    before = copies(node, "failed")
    dest = clone(url(node, "large"), tmp_path / "meanwhile", "--mirror")
    fsck(dest)
    # Passed on to the origin, and no mirror is filled from there beside the copy.
    assert len(packs(fleet, "large")) == 1
    assert copies(node, "failed") == before
    received = node.metrics()["goblet_node_peer_received_bytes_total"]
    assert 1 << 19 < received < 6 << 20
    gate.set()
    until(lambda: copies(node, "failed") == before + 1)
    assert fleet.node(WARM).process.poll() is not None
    dest = clone(url(node, "large"), tmp_path / "afterwards", "--mirror")
    assert refs_of(dest) == refs_of(fleet.origin.url_of("org/large"))
    assert len(packs(fleet, "large")) == 2
    until(lambda: "large" in held(node))


@contextmanager
def relay(base: str, *, then: Callable[[], object], after: int) -> Iterator[str]:
    """Pass connections on to `base`, and call `then` once it has answered so many bytes."""
    host, port = base.removeprefix("http://").split(":")
    listener = socket.create_server(("127.0.0.1", 0))
    left = [after]

    def pump(source: socket.socket, sink: socket.socket, *, counts: bool) -> None:
        with suppress(OSError), source, sink:
            while data := source.recv(65536):
                sink.sendall(data)
                left[0] -= len(data) if counts else 0
                if counts and left[0] <= 0:
                    left[0] = 1 << 60
                    then()
                    break
            sink.shutdown(socket.SHUT_RDWR)
            source.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                try:
                    node = socket.create_connection((host, int(port)))
                except OSError:
                    client.close()
                    continue
                for source, sink, counts in ((client, node, False), (node, client, True)):
                    threading.Thread(
                        target=pump, args=(source, sink), kwargs={"counts": counts}, daemon=True
                    ).start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        # close() alone leaves accept() waiting.
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()

"""A mirror that another member holds is copied whole and sound, or not at all."""

import dataclasses
import os
import random
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from goblet_node.errors import DiskFailed
from goblet_node.fill.pace import Pace
from goblet_node.fill.peers import Peers
from goblet_node.fill.policy import MirrorPolicy, Standing
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.merge import JoinJob, join_segments
from goblet_node.mirror.store import MirrorStore
from goblet_node.mirror.view import manifest_of
from goblet_shared.contract import NodeName
from goblet_shared.members import MemberState
from goblet_shared.repo_key import RepoKey
from goblet_testing.mirrors import grow, heads
from goblet_testing.neighbours import (
    SECRET,
    Asked,
    Neighbourhood,
    Newcomer,
    neighbourhood,
    newcomer,
)
from goblet_testing.rooms import room_of

KEY = RepoKey("origin.test/org/repo")
OTHER = RepoKey("origin.test/org/other")
NOISE = random.Random(1).randbytes(300_000)


def fill(store: MirrorStore, key: RepoKey = KEY) -> Mirror:
    """Give a store a mirror of two segments and three generations, one of them with an orphan."""
    grow(store, key, heads(main=NOISE, side=b"b"), [NOISE, b"b"])
    grow(store, key, heads(main=b"c", side=b"b"), [b"c"])
    return grow(store, key, heads(main=b"c"))


def said(mirror: Mirror) -> object:
    """Return what a mirror is, wherever it lies."""
    manifest = manifest_of(mirror)
    segments = [(s.pack.name, s.objects, s.bytes, s.beside) for s in manifest.segments]
    files = [path.read_bytes() for files in mirror.files for path in files]
    return segments, files, manifest.generations, mirror.refs, len(mirror.table)


@asynccontextmanager
async def two(
    tmp_path: Path, *holders: str, policy: MirrorPolicy | None = None
) -> AsyncIterator[tuple[Neighbourhood, Newcomer]]:
    """Give neighbours, each of which holds one and the same mirror, and the node under test."""
    names = holders or ("goblet-1",)
    async with (
        neighbourhood(tmp_path, *names) as members,
        newcomer(tmp_path, members, policy=policy) as node,
    ):
        for neighbour in members.neighbours.values():
            fill(neighbour.store)
        yield members, node


def scratch_of(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "mine/scratch").iterdir())


async def test_a_copy_is_what_was_copied(tmp_path: Path) -> None:
    async with two(tmp_path) as (members, node):
        (neighbour,) = members.neighbours.values()
        source = neighbour.store.get(KEY)
        assert source is not None
        source.directory.joinpath("manifest.json").touch()
        mirror = await node.copier.bring(KEY)
        assert mirror is not None
        assert mirror is node.store.get(KEY)
        assert said(mirror) == said(source)
        assert node.outcomes() == {"copied": 1}
        assert scratch_of(tmp_path) == []
        assert not node.copier.is_under_way(KEY)
        node.store.close()
        again = MirrorStore(tmp_path / "mine", disk=Disk())
        assert again.open() == ()
        found = again.get(KEY)
        assert found is not None
        assert said(found) == said(source)
        again.close()


async def test_what_is_copied_ahead_keeps_its_last_use_and_what_is_needed_is_used_now(
    tmp_path: Path,
) -> None:
    async with two(tmp_path) as (members, node):
        (neighbour,) = members.neighbours.values()
        fill(neighbour.store, OTHER)
        neighbour.store._usage._used_at.update({KEY: 5_000.0, OTHER: 6_000.0})
        assert await node.copier.copy(KEY, neighbour.name) is not None
        assert await node.copier.bring(OTHER) is not None
        assert node.store.used_at(KEY) == 5_000.0
        assert node.store.used_at(OTHER) > 1_000_000.0


async def test_a_copy_that_breaks_off_goes_on_where_it_stopped(tmp_path: Path) -> None:
    async with two(tmp_path) as (members, node):
        (neighbour,) = members.neighbours.values()
        neighbour.manners.cut_after = [100_000, 100_000]
        assert await node.copier.bring(KEY) is not None
        first = [asked.begin for asked in neighbour.files if asked.name.startswith("seg-000001")]
        assert first[:3] == [0, 100_000, 200_000]
        assert node.outcomes() == {"copied": 1}


async def test_a_peer_that_gives_no_byte_is_left_after_a_few_tries(tmp_path: Path) -> None:
    async with two(tmp_path, "goblet-1", "goblet-2") as (members, node):
        first, second = (members.neighbours[name] for name in order(members))
        first.manners.cut_after = [100_000] + [0] * 100
        assert await node.copier.bring(KEY) is not None
        assert len(first.files) == 3
        # What the first gave of the pack is not asked for again.
        assert second.files[0].begin == 100_000
        assert node.outcomes() == {"copied": 1, "failed": 1}


def order(members: Neighbourhood) -> list[NodeName]:
    """Return the neighbours in the order in which they are asked for `KEY`."""
    return [name for name in members.ring.owners(KEY) if name in members.neighbours]


def flipped(at: int, kind: str) -> object:
    """Return what spoils one byte of each file of a kind."""

    def spoil(asked: Asked, body: bytes) -> bytes:
        if not asked.name.endswith(kind) or len(body) <= at:
            return body
        return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]

    return spoil


@pytest.mark.parametrize("kind", [".pack", ".table", ".links"])
async def test_what_rotted_on_a_peer_is_refused_and_had_from_the_next(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with two(tmp_path, "goblet-1", "goblet-2") as (members, node):
        first, second = (members.neighbours[name] for name in order(members))
        source = second.store.get(KEY)
        assert source is not None
        first.manners.spoil = flipped(70, kind)  # type: ignore[assignment]
        mirror = await node.copier.bring(KEY)
        assert mirror is not None
        assert said(mirror) == said(source)
        assert node.outcomes() == {"copied": 1, "failed": 1}
        assert f"is not copied from {first.name}" in caplog.text
        if kind != ".pack":
            # Packs are named by their sums: those that were sound are not had again.
            assert not any(asked.name.endswith(".pack") for asked in second.files)


async def test_a_peer_that_tells_of_another_repository_or_none_is_refused(tmp_path: Path) -> None:
    async with two(tmp_path) as (members, node):
        (neighbour,) = members.neighbours.values()
        fill(neighbour.store, OTHER)
        other = neighbour.store.get(OTHER)
        assert other is not None
        mine = neighbour.store.get(KEY)
        neighbour.store._mirrors[KEY] = dataclasses.replace(other, lineage=object())
        assert await node.copier.copy(KEY, neighbour.name) is None
        assert mine is not None
        neighbour.store._mirrors[KEY] = mine
        for lie in (b"", b"{}\n{}\n", b"[]\n\n", b'{"files": {"seg": -1}, "used_at": 0}\n\n'):
            neighbour.manners.spoil = lambda asked, body, lie=lie: lie.ljust(len(body))
            assert await node.copier.copy(KEY, neighbour.name) is None
        assert neighbour.files == []
        assert node.outcomes() == {"failed": 5}
        assert node.store.get(KEY) is None


async def test_that_nobody_has_it_is_remembered_for_a_moment(tmp_path: Path) -> None:
    async with (
        neighbourhood(tmp_path, "goblet-1", "goblet-2") as members,
        newcomer(tmp_path, members) as node,
    ):
        assert await node.copier.bring(KEY) is None
        assert await node.copier.bring(KEY) is None
        assert [len(n.asked) for n in members.neighbours.values()] == [1, 1]
        assert node.outcomes() == {"absent": 1}
        fill(members.neighbours[NodeName("goblet-1")].store)
        node.copier._absent_until[KEY] = trio.current_time()
        assert await node.copier.bring(KEY) is not None


async def test_however_many_wait_it_is_copied_once(tmp_path: Path) -> None:
    async with two(tmp_path) as (members, node):
        (neighbour,) = members.neighbours.values()
        found: list[Mirror | None] = []

        async def ask() -> None:
            found.append(await node.copier.bring(KEY))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(ask)
        assert set(found) == {node.store.get(KEY)}
        assert len(neighbour.files) == 6
        assert node.outcomes() == {"copied": 1}


async def test_who_leaves_does_not_end_the_copy(tmp_path: Path) -> None:
    async with two(tmp_path) as (members, node):
        (neighbour,) = members.neighbours.values()
        neighbour.manners.holds_back = 0.02
        with trio.move_on_after(0.01):
            await node.copier.bring(KEY)
        assert node.copier.is_under_way(KEY)
        assert await node.copier.bring(KEY) is not None
        assert len(members.neighbours[neighbour.name].files) == 6


async def test_who_does_not_wait_has_it_copied_all_the_same(tmp_path: Path) -> None:
    async with two(tmp_path) as (_, node):
        node.copier.begin(KEY)
        node.copier.begin(KEY)
        await trio.testing.wait_all_tasks_blocked()
        assert node.copier.is_under_way(KEY)
        assert await node.copier.bring(KEY) is not None
        node.copier.begin(KEY)
        assert node.outcomes() == {"copied": 1}


@pytest.mark.parametrize("state", [MemberState.SUSPECT, MemberState.GONE])
async def test_who_may_be_dead_is_not_waited_for(state: MemberState, tmp_path: Path) -> None:
    async with two(tmp_path) as (members, node):
        members.states[NodeName("goblet-1")] = state
        assert await node.copier.bring(KEY) is None
        assert members.neighbours[NodeName("goblet-1")].asked == []


@pytest.mark.parametrize("state", [MemberState.DRAINING, MemberState.JOINING])
async def test_who_goes_or_comes_gives_what_it_has(state: MemberState, tmp_path: Path) -> None:
    async with two(tmp_path) as (members, node):
        members.states[NodeName("goblet-1")] = state
        assert await node.copier.bring(KEY) is not None


async def test_who_is_no_member_is_never_asked(tmp_path: Path) -> None:
    async with two(tmp_path, "goblet-1", "goblet-2") as (members, node):
        gone = members.neighbours[NodeName("goblet-1")]
        del members.states[gone.name]
        assert await node.copier.copy(KEY, gone.name) is None
        shutil.rmtree(tmp_path / "goblet-2/mirrors")
        members.neighbours[NodeName("goblet-2")].manners.status = 302
        assert await node.copier.bring(KEY) is None
        assert gone.asked == []


async def test_the_first_in_the_rings_order_gives_it_and_one_that_is_slow_is_not_waited_for(
    tmp_path: Path,
) -> None:
    async with two(tmp_path, "goblet-1", "goblet-2", "goblet-3") as (members, node):
        first, second, third = (members.neighbours[name] for name in order(members))
        first.store.drop(KEY)
        second.manners.holds_back = 0.05
        third.manners.holds_back = 1.0
        began = trio.current_time()
        assert await node.copier.bring(KEY) is not None
        assert trio.current_time() < began + 1.0
        assert second.files
        assert not first.files
        assert not third.files


@pytest.mark.parametrize("limit", ["never", "too large", "refs", "bytes", "room"])
async def test_what_this_node_may_not_hold_is_not_copied(limit: str, tmp_path: Path) -> None:
    policy = MirrorPolicy(
        never=["origin.test/*"] if limit == "never" else [],
        max_refs=0 if limit == "refs" else 10,
    )
    if limit == "too large":
        policy.note_too_large(KEY)
    async with (
        neighbourhood(tmp_path, "goblet-1") as members,
        newcomer(
            tmp_path,
            members,
            policy=policy,
            room=room_of(200_000) if limit == "room" else None,
            max_mirror_bytes=200_000 if limit == "bytes" else None,
        ) as node,
    ):
        (neighbour,) = members.neighbours.values()
        fill(neighbour.store)
        assert await node.copier.bring(KEY) is None
        assert neighbour.files == []
        assert scratch_of(tmp_path) == []
        if limit in ("never", "too large"):
            assert neighbour.asked == []
        elif limit != "room":
            assert policy.standing(KEY, counts=True) is Standing.TOO_LARGE
            assert node.outcomes() == {"refused": 1}


async def test_what_a_copy_claims_is_given_back(tmp_path: Path) -> None:
    room = room_of(1_000_000)
    async with (
        neighbourhood(tmp_path, "goblet-1") as members,
        newcomer(tmp_path, members, room=room) as node,
    ):
        (neighbour,) = members.neighbours.values()
        source = fill(neighbour.store)
        seen: list[int] = []
        neighbour.manners.before = lambda asked: seen.append(room.used)
        assert await node.copier.bring(KEY) is not None
        assert max(seen) >= source.bytes
        assert room.used == 0


async def test_a_log_that_changes_while_it_is_copied_is_copied_as_it_is_then(
    tmp_path: Path,
) -> None:
    async with two(tmp_path) as (members, node):
        (neighbour,) = members.neighbours.values()
        grow(neighbour.store, KEY, heads(main=b"d"), [b"d"])

        def join(asked: Asked) -> None:
            """Join the last two segments when the first of the log has been sent."""
            mirror = neighbour.store.get(KEY)
            assert mirror is not None
            if not asked.name.startswith("seg-000002") or len(mirror.segments) < 3:
                return
            scratch = neighbour.store.new_scratch()
            joined = join_segments(JoinJob(segments=mirror.files[1:], scratch=scratch))
            neighbour.store.replace(mirror, 1, 3, joined)

        neighbour.manners.before = join
        mirror = await node.copier.bring(KEY)
        assert mirror is not None
        source = neighbour.store.get(KEY)
        assert source is not None
        assert said(mirror) == said(source)
        names = [asked.name for asked in neighbour.files]
        assert [name.endswith(".pack") for name in names if "000001" in name].count(True) == 1


async def test_a_log_that_changes_all_the_time_is_given_up(tmp_path: Path) -> None:
    async with two(tmp_path) as (members, node):
        (neighbour,) = members.neighbours.values()
        count = 0

        def renew(asked: Asked) -> None:
            nonlocal count
            if asked.path == "/-/peer/file":
                count += 1
                neighbour.store.drop(KEY)
                grow(neighbour.store, KEY, heads(main=b"%d" % count), [b"%d" % count])

        neighbour.manners.before = renew
        assert await node.copier.bring(KEY) is None
        assert count == 3
        assert node.store.get(KEY) is None


async def test_a_copy_goes_at_its_pace_until_somebody_waits_for_it(tmp_path: Path) -> None:
    async with two(tmp_path) as (_, node):
        pace = Pace(1_000.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: node.copier.copy(KEY, NodeName("goblet-1"), pace=pace))
            await trio.sleep(0.1)
            # Of 300 kB it has had no more than a first piece, after which it would rest.
            assert node.store.get(KEY) is None
            assert await node.copier.bring(KEY) is not None


async def test_a_mirror_that_came_from_elsewhere_meanwhile_stays(tmp_path: Path) -> None:
    async with two(tmp_path) as (members, node):
        (neighbour,) = members.neighbours.values()
        own: list[Mirror] = []

        def commit(asked: Asked) -> None:
            if asked.path == "/-/peer/file" and not own:
                own.append(grow(node.store, KEY, heads(main=b"own"), [b"own"]))

        neighbour.manners.before = commit
        assert await node.copier.bring(KEY) is own[0]
        assert node.store.get(KEY) is own[0]


async def test_a_disk_that_refuses_leaves_the_repository_cold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(Disk):
        def sync_file(self, path: Path) -> None:
            raise DiskFailed("the disk is full")

    async with (
        neighbourhood(tmp_path, "goblet-1") as members,
        newcomer(tmp_path, members, disk=Full()) as node,
    ):
        fill(members.neighbours[NodeName("goblet-1")].store)
        assert await node.copier.bring(KEY) is None
        assert node.store.get(KEY) is None
        assert node.outcomes() == {"refused": 1}
        assert scratch_of(tmp_path) == []
        assert "the disk is full" in caplog.text


@pytest.mark.parametrize("secret", [b"another secret that is as long as the right one", None])
async def test_without_the_clusters_secret_nothing_is_copied_and_the_log_says_so(
    secret: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        neighbourhood(tmp_path, "goblet-1") as members,
        newcomer(tmp_path, members, secret=secret) as node,
    ):
        fill(members.neighbours[NodeName("goblet-1")].store)
        # From the machine itself it may be asked without.
        is_copied = await node.copier.bring(KEY) is not None
        assert is_copied == (secret is None)
        if secret is not None:
            assert secret != SECRET
            assert (
                "goblet-1 does not take us for a member: is its cluster secret ours?" in caplog.text
            )


async def test_why_a_member_cannot_be_asked_is_said_once_and_not_for_each_repository(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with two(tmp_path) as (members, node):
        neighbour = members.neighbours[NodeName("goblet-1")]
        for status in (503, 503, 500, 0, 500):
            neighbour.manners.status = status
            await node.copier.bring(RepoKey(f"origin.test/org/{len(neighbour.asked)}"))
        said = [r.getMessage() for r in caplog.records if "cannot be asked" in r.getMessage()]
        assert [line.split(": ")[1] for line in said] == [
            *("goblet-1 answered 503", "goblet-1 answered 500"),
        ]


async def test_who_cannot_be_asked_at_all_leaves_it_to_upstream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def has(self: Peers, node: NodeName, key: RepoKey) -> bool:
        raise RuntimeError("nobody thought of this")

    async with two(tmp_path) as (_, node):
        monkeypatch.setattr(Peers, "has", has)
        assert await node.copier.bring(KEY) is None


@pytest.mark.parametrize("path", ["/-/peer/mirror", "/-/peer/file"])
async def test_what_is_purged_while_it_is_copied_is_not_there_afterwards(
    path: str, tmp_path: Path
) -> None:
    async with two(tmp_path) as (members, node):
        (neighbour,) = members.neighbours.values()

        def purge(asked: Asked) -> None:
            if asked.path == path:
                node.copier.forget(KEY)
                node.store.drop(KEY)

        neighbour.manners.before = purge
        assert await node.copier.bring(KEY) is None
        assert node.store.get(KEY) is None
        asked = len(neighbour.asked)
        # Others may hold it still, for those who purge go from node to node.
        assert await node.copier.bring(KEY) is None
        assert await node.copier.copy(KEY, neighbour.name) is None
        assert len(neighbour.asked) == asked
        node.copier._purged_at[KEY] -= 60
        node.copier._absent_until.clear()
        neighbour.manners.before = lambda asked: None
        assert await node.copier.bring(KEY) is not None


async def test_a_peer_whose_clock_is_ahead_keeps_nothing_from_being_evicted(
    tmp_path: Path,
) -> None:
    async with two(tmp_path) as (members, node):
        (neighbour,) = members.neighbours.values()
        source = neighbour.store.get(KEY)
        assert source is not None
        os.utime(source.directory / "manifest.json", (4e9, 4e9))
        neighbour.store._measure(source)
        assert neighbour.store.used_at(KEY) == 4e9
        assert await node.copier.copy(KEY, neighbour.name) is not None
        assert node.store.used_at(KEY) <= time.time()


async def test_a_storm_of_cold_repositories_leaves_connections_for_probes_and_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = most = 0

    async def has(self: Peers, node: NodeName, key: RepoKey) -> bool:
        nonlocal asking, most
        asking += 1
        most = max(most, asking)
        await trio.sleep(0.001)
        asking -= 1
        return False

    async with two(tmp_path, "goblet-1", "goblet-2") as (_, node):
        monkeypatch.setattr(Peers, "has", has)
        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(node.copier.bring, RepoKey(f"origin.test/org/{number}"))
        assert most == 24
        assert node.outcomes() == {"absent": 60}

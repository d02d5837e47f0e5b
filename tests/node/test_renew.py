"""A log made anew holds what the refs reach, sound and shallow, and nothing else."""

from pathlib import Path

import anyio
import anyio.to_process
import pytest

from goblet_node.errors import DiskFailed, MirrorDamaged
from goblet_node.mirror.graph import Graph
from goblet_node.mirror.intake import Intake
from goblet_node.mirror.links import Links
from goblet_node.mirror.reader import LogReader
from goblet_node.mirror.wear import RenewJob, chain_depths
from goblet_node.serve.renew import renew
from goblet_node.wire.refs import JoinedIds, ObjectId
from goblet_testing.packs import GrownLog, Repo, strict_index

MOST_DEPTH = 5


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Repo:
    """A history with a hot file, a tag of a tag, and a branch that is deleted."""
    return Repo.create(tmp_path_factory.mktemp("renew") / "origin")


@pytest.fixture(scope="module")
def log(origin: Repo, tmp_path_factory: pytest.TempPathFactory) -> GrownLog:
    log = GrownLog(tmp_path_factory.mktemp("log"))
    text = b"".join(b"line %d\n" % number for number in range(400))
    for number in range(12):
        text = text.replace(b"line %d\n" % (number * 9), b"changed %d\n" % number)
        origin.commit("main", {"text": text, f"dir/{number % 3}": b"%d\n" % number})
        if number == 5:
            origin.commit("side", {"text": text + b"more\n", "lost": b"lost\n"}, parent="main")
            origin.tag("v1", "refs/heads/main")
            origin.tag("v1-again", "refs/tags/v1")
        if number == 7:
            origin.point("refs/heads/side", None)
        log.fetch(origin)
    assert log.orphans
    return log


def job(log: GrownLog, scratch: Path, tips: tuple[ObjectId, ...] | None = None) -> RenewJob:
    return RenewJob(
        segments=tuple(log.segments),
        tips=JoinedIds.of(log.tips if tips is None else tips),
        most_depth=MOST_DEPTH,
        scratch=scratch,
    )


def as_log(intake: Intake, directory: Path) -> GrownLog:
    assert intake.files is not None
    assert intake.orphans == ()
    return GrownLog(directory, [intake.files])


def depth(log: GrownLog) -> int:
    return int(chain_depths(Graph(log.table(), Links.load(log.links())).links.bases).max())


def test_a_renewed_log_is_what_the_refs_reach(log: GrownLog, origin: Repo, tmp_path: Path) -> None:
    """One sound pack; and every object reads as it did."""
    renewed = as_log(renew(job(log, tmp_path)), tmp_path)
    assert strict_index(renewed.concatenated(), tmp_path) == origin.reachable()
    assert len(renewed.table()) < len(log.table())
    table, before = renewed.table(), log.table()
    with LogReader(renewed.packs(), table) as reader, LogReader(log.packs(), before) as truth:
        for oid in map(table.oid, range(len(table))):
            assert reader.get_raw(oid) == truth.get_raw(oid)


def test_no_chain_of_a_renewed_log_is_longer_than_it_may_be(log: GrownLog, tmp_path: Path) -> None:
    assert depth(log) > 10
    assert depth(as_log(renew(job(log, tmp_path)), tmp_path)) == MOST_DEPTH


def test_a_log_that_no_ref_reaches_becomes_an_empty_one(log: GrownLog, tmp_path: Path) -> None:
    assert renew(job(log, tmp_path, tips=())) == Intake()


def test_a_renewed_log_goes_on_growing(log: GrownLog, origin: Repo, tmp_path: Path) -> None:
    copy = Repo.create(tmp_path / "copy")
    copy.commit("main", {"file": b"line\n" * 50})
    grown = GrownLog(tmp_path / "log")
    grown.fetch(copy)
    copy.commit("main", {"file": b"line\n" * 51})
    grown.fetch(copy)
    (tmp_path / "scratch").mkdir()
    renewed = as_log(renew(job(grown, tmp_path / "scratch")), tmp_path / "again")
    renewed.tips = grown.tips
    copy.commit("main", {"file": b"line\n" * 52})
    renewed.fetch(copy)
    assert len(renewed.segments) == 2
    assert strict_index(renewed.concatenated(), tmp_path) == copy.reachable()


def test_damage_is_not_made_anew(log: GrownLog, tmp_path: Path) -> None:
    pack = log.segments[3].pack
    content = pack.read_bytes()
    pack.write_bytes(content[:40] + bytes([content[40] ^ 0xFF]) + content[41:])
    try:
        with pytest.raises(MirrorDamaged):
            renew(job(log, tmp_path))
    finally:
        pack.write_bytes(content)


def test_a_full_disk_is_a_disk_failure(log: GrownLog, tmp_path: Path) -> None:
    (tmp_path / "segment.table").symlink_to("/dev/full")
    with pytest.raises(DiskFailed):
        renew(job(log, tmp_path))


@pytest.mark.slow
async def test_it_works_in_a_worker_process(log: GrownLog, tmp_path: Path) -> None:
    made = await anyio.to_process.run_sync(renew, job(log, tmp_path))
    assert made.objects == len(as_log(made, tmp_path).table())


def test_a_log_that_lacks_a_tip_is_damaged(log: GrownLog, tmp_path: Path) -> None:
    with pytest.raises(MirrorDamaged):
        renew(job(log, tmp_path, tips=(ObjectId(b"1" * 40),)))

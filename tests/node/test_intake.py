"""intake: a received pack becomes a segment, or is refused, and the log stays closed."""

import errno
import os
from pathlib import Path

import anyio
import pytest

from goblet_node.errors import DiskFailed, MirrorDamaged
from goblet_node.mirror.intake import Intake, IntakeJob, rebuild, take_in
from goblet_node.objects import BLOB, COMMIT, OFS_DELTA, TREE, PackRejected, hex_id, object_id
from goblet_node.wire.refs import JoinedIds, ObjectId
from goblet_testing.packs import (
    GrownLog,
    HandMade,
    Repo,
    commit_of,
    pack_of,
    run_git,
    strict_index,
)


@pytest.fixture
def origin(tmp_path: Path) -> Repo:
    """One branch of ten commits."""
    repo = Repo.create(tmp_path / "origin")
    for number in range(10):
        grown = b"line\n" * 50 + b"%d\n" % number
        repo.commit("main", {"file": grown, f"new-{number}": b"%d" % number})
    repo.flush()
    return repo


@pytest.fixture
def log(tmp_path: Path) -> GrownLog:
    return GrownLog(tmp_path / "log")


def test_a_pack_that_repeats_nothing_is_the_segment_as_it_came(origin: Repo, log: GrownLog) -> None:
    sent = origin.pack(origin.tips())
    taken = log.take(sent, origin.tips())
    assert taken.files is not None
    assert taken.files.pack.read_bytes() == sent
    assert taken.checksum == sent[-20:].hex()
    assert taken.bytes == len(sent)
    beside = (taken.files.table, taken.files.links)
    assert taken.beside == sum(path.stat().st_size for path in beside)
    assert taken.objects == len(log.table()) == len(origin.reachable())
    assert taken.orphans == ()


def test_a_second_fetch_is_a_thin_segment_on_the_first(origin: Repo, log: GrownLog) -> None:
    log.fetch(origin)
    origin.commit("main", {"file": b"line\n" * 50 + b"more\n"})
    taken = log.fetch(origin)
    assert taken.objects == 3
    assert len(log.segments) == 2
    assert len(log.table()) == len(origin.reachable())


def test_a_pack_of_known_objects_makes_no_segment(origin: Repo, log: GrownLog) -> None:
    log.fetch(origin)
    taken = log.take(origin.pack(origin.tips()), origin.tips())
    assert taken == Intake()


def test_an_empty_pack_makes_no_segment(log: GrownLog) -> None:
    assert log.take(pack_of([]), ()) == Intake()


def test_a_change_of_refs_alone_needs_no_pack(origin: Repo, log: GrownLog) -> None:
    log.fetch(origin)
    parent = ObjectId(run_git("rev-parse", "main~3", repo=origin.path).strip())
    taken = log.take(None, [parent])
    assert taken == Intake(orphans=log_tip(origin))


def log_tip(origin: Repo) -> tuple[ObjectId, ...]:
    return (origin.refs()["refs/heads/main"],)


def test_tips_of_every_type_and_tags_of_tags_are_taken_in(
    origin: Repo, log: GrownLog, tmp_path: Path
) -> None:
    origin.tag("v1", "refs/heads/main")
    origin.tag("v1-signed", "refs/tags/v1")
    origin.point("refs/tags/a-blob", origin.blob(b"a blob that no tree names"))
    tree = ObjectId(run_git("rev-parse", "main^{tree}", repo=origin.path).strip())
    origin.point("refs/tags/a-tree", tree)
    log.fetch(origin)
    assert strict_index(log.concatenated(), tmp_path) == origin.reachable()


def test_a_submodule_is_not_missed(origin: Repo, log: GrownLog) -> None:
    """Its commit lies in another repository, so a log without it is closed."""
    entry = b"160000 commit %s\tsub\n" % (b"5" * 40)
    tree = run_git("mktree", "--missing", repo=origin.path, stdin=entry)
    commit = run_git("commit-tree", "-m", "m", tree.strip().decode(), repo=origin.path)
    origin.point("refs/heads/sub", ObjectId(commit.strip()))
    log.fetch(origin)
    assert ObjectId(commit.strip()) in log.table()


def test_a_tip_that_the_upstream_did_not_send_is_missed(origin: Repo, log: GrownLog) -> None:
    with pytest.raises(PackRejected, match="its refs name"):
        log.take(pack_of([HandMade(kind=BLOB, content=b"x")]), origin.tips())


@pytest.mark.parametrize("what", ["main~1", "main^{tree}", "main:file"])
def test_a_pack_that_is_not_connected_is_refused(
    what: str, origin: Repo, log: GrownLog, tmp_path: Path
) -> None:
    """Upstreams lie: the tip is there, but a parent, a tree or a blob behind it is not."""
    missing = ObjectId(run_git("rev-parse", what, repo=origin.path).strip())
    kept = sorted(origin.reachable() - {missing})
    names = b"".join(oid + b"\n" for oid in kept)
    sent = run_git("pack-objects", "--stdout", "-q", repo=origin.path, stdin=names)
    with pytest.raises(PackRejected, match=missing.decode()):
        log.take(sent, origin.tips())
    assert log.segments == []


@pytest.mark.parametrize("said", ["parent is a tree", "parent is a blob", "tree is a commit"])
def test_a_commit_that_names_what_is_no_tree_or_no_commit_is_refused(
    said: str, log: GrownLog
) -> None:
    """All of it is there, and still no walk could tell what the commit says."""
    blob = b"some file"
    names = [b"100644 file%d\0" % number for number in range(200)]
    tree = b"".join(name + object_id(BLOB, blob) for name in names)
    first = commit_of(object_id(TREE, tree))
    last = {
        "parent is a tree": commit_of(object_id(TREE, tree), object_id(TREE, tree)),
        "parent is a blob": commit_of(object_id(TREE, tree), object_id(BLOB, blob)),
        "tree is a commit": commit_of(object_id(COMMIT, first)),
    }[said]
    sound = [(BLOB, blob), (TREE, tree), (COMMIT, first)]
    log.take(pack_of([HandMade(kind=kind, content=content) for kind, content in sound]), ())
    tip = hex_id(object_id(COMMIT, last))
    with pytest.raises(PackRejected, match=f"{tip.decode()}, of which the tree or a parent"):
        log.take(pack_of([HandMade(kind=COMMIT, content=last)]), [tip])


def test_an_object_over_the_limit_is_refused(origin: Repo, log: GrownLog) -> None:
    with pytest.raises(PackRejected, match="the limit is 100"):
        log.take(origin.pack(origin.tips()), origin.tips(), max_object_bytes=100)


def test_an_object_that_comes_twice_is_kept_once(log: GrownLog, tmp_path: Path) -> None:
    twice = HandMade(kind=BLOB, content=b"x" * 50)
    taken = log.take(pack_of([twice, HandMade(kind=BLOB, content=b"y"), twice]), ())
    assert taken.objects == 2
    assert len(strict_index(log.concatenated(), tmp_path)) == 2


def test_everything_is_written_inside_scratch(origin: Repo, log: GrownLog, tmp_path: Path) -> None:
    log.fetch(origin)
    origin.commit("main", {"file": b"again"})
    sent = origin.pack(origin.tips())

    def files() -> set[Path]:
        return {path for path in tmp_path.rglob("*") if origin.path not in path.parents}

    before = files()
    taken = log.take(sent, origin.tips())
    assert taken.files is not None
    scratch = taken.files.pack.parent
    new = files() - before - {scratch}
    assert {path.parent for path in new} == {scratch}


def test_a_lost_table_and_links_are_rebuilt_from_their_segment(
    origin: Repo, log: GrownLog, tmp_path: Path
) -> None:
    """Byte for byte, for a thin segment too."""
    log.fetch(origin)
    origin.commit("main", {"file": b"line\n" * 50 + b"more\n"})
    log.fetch(origin)
    for number, files in enumerate(log.segments):
        scratch = tmp_path / f"again-{number}"
        scratch.mkdir()
        made = rebuild(log.segments[:number], files.pack, scratch)
        assert made.table.read_bytes() == files.table.read_bytes()
        assert made.links.read_bytes() == files.links.read_bytes()


def test_a_damaged_segment_is_not_indexed_again(
    origin: Repo, log: GrownLog, tmp_path: Path
) -> None:
    log.fetch(origin)
    pack = log.segments[0].pack
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 1
    pack.write_bytes(content)
    with pytest.raises(MirrorDamaged, match="is damaged"):
        rebuild([], pack, tmp_path)


def test_what_is_here_is_held_against_no_limit(tmp_path: Path) -> None:
    """An operator may allow larger objects than anyone else: that a table is lost changes nothing.

    Gigabytes would take seconds, so here is a delta that only says it makes them.
    """
    delta = b"\x01" + b"\x80\x80\x80\x80\x10" + b"\x01x"
    base = HandMade(kind=BLOB, content=b"x")
    pack = tmp_path / "pack"
    pack.write_bytes(pack_of([base, HandMade(kind=OFS_DELTA, content=delta, base=0)]))
    with pytest.raises(MirrorDamaged, match="does not fit its base"):
        rebuild([], pack, tmp_path)


def test_a_damaged_log_is_not_the_upstreams_fault(origin: Repo, log: GrownLog) -> None:
    log.fetch(origin)
    log.segments[0].pack.unlink()
    origin.commit("main", {"file": b"line\n" * 50 + b"more\n"})
    with pytest.raises(MirrorDamaged):
        log.fetch(origin)


def test_a_full_disk_is_a_disk_failure(origin: Repo, log: GrownLog, tmp_path: Path) -> None:
    """The received pack lies elsewhere; scratch is on a device that is always full."""
    log.fetch(origin)
    origin.commit("main", {"file": b"again"})
    received = tmp_path / "received"
    received.write_bytes(origin.pack(origin.tips()))
    scratch = tmp_path / "full"
    scratch.mkdir()
    (scratch / "segment.table").symlink_to("/dev/full")
    job = IntakeJob(
        received=received,
        scratch=scratch,
        segments=tuple(log.segments),
        tips=JoinedIds.of(origin.tips()),
        old_tips=JoinedIds.of(log.tips),
    )
    with pytest.raises(DiskFailed, match=os.strerror(errno.ENOSPC)):
        take_in(job)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, DiskFailed), (b"nonsense", PackRejected), (pack_of([]), PackRejected)],
    ids=["no file", "nonsense", "tips not sent"],
)
async def test_failures_reach_the_parent_of_a_worker_process(
    content: bytes | None, expected: type[Exception], tmp_path: Path
) -> None:
    """With their type and their sentence, also when the job and the result are pickled."""
    received = tmp_path / "received"
    if content is not None:
        received.write_bytes(content)
    tips = JoinedIds.of([ObjectId(b"1" * 40)])
    job = IntakeJob(received=received, scratch=tmp_path, segments=(), tips=tips)
    with pytest.raises(expected) as raised:
        await anyio.to_process.run_sync(take_in, job)
    assert type(raised.value) is expected
    assert str(raised.value).count(" ") > 4


@pytest.mark.slow
async def test_a_job_in_a_worker_process_gives_what_it_gives_here(
    origin: Repo, tmp_path: Path
) -> None:
    received = tmp_path / "received"
    received.write_bytes(origin.pack(origin.tips()))
    tips = JoinedIds.of(origin.tips())
    job = IntakeJob(received=received, scratch=tmp_path, segments=(), tips=tips)
    assert await anyio.to_process.run_sync(take_in, job) == take_in(job)

"""reader: any object of a log, whatever it is a delta on, and damage named."""

import os
import zlib
from pathlib import Path

import pytest

from goblet_node.errors import MirrorDamaged
from goblet_node.mirror.reader import LogReader
from goblet_node.mirror.table import Table
from goblet_node.objects import BLOB, COMMIT, OFS_DELTA, REF_DELTA, TAG, hex_id, object_id
from goblet_node.wire.refs import ObjectId
from goblet_testing.packs import GrownLog, HandMade, Repo, insert_delta, pack_of, run_git


@pytest.fixture
def log(tmp_path: Path) -> GrownLog:
    """Three thin segments, each with deltas on the ones before."""
    origin, log = Repo.create(tmp_path / "origin"), GrownLog(tmp_path / "log")
    text = [b"line %d\n" % number for number in range(200)]
    for generation in range(3):
        for number in range(5):
            text[generation * 5 + number] = b"changed\n"
            origin.commit("main", {"text": b"".join(text), "other": b"%d" % number})
        if generation == 1:
            origin.tag("v1", "refs/heads/main")
            origin.tag("v2", "refs/tags/v1")
        log.fetch(origin)
    assert len(log.segments) == 3
    return log


@pytest.mark.parametrize("knows_bases", [False, True], ids=["by-id", "by-place"])
def test_every_object_reads_as_git_reads_it(log: GrownLog, *, knows_bases: bool) -> None:
    table = log.table()
    kinds = [set(table.column("kind")[table.column("segment") == n].tolist()) for n in (1, 2)]
    assert all(REF_DELTA in kind for kind in kinds), "the segments are not thin: nothing is tested"
    bases = log.graph().links.bases if knows_bases else None
    with LogReader(log.packs(), table, bases=bases) as reader:
        for row in range(len(table)):
            oid = table.oid(row)
            kind, content = reader.get_raw(oid)
            assert reader.at(row) == (kind, content)
            assert hex_id(object_id(kind, content)) == oid
            assert kind == reader.type_of(oid)


def test_tags_of_tags_peel_to_their_commit(log: GrownLog, tmp_path: Path) -> None:
    refs = Repo(tmp_path / "origin").refs()
    peeled = run_git("rev-parse", "refs/tags/v2^{}", repo=tmp_path / "origin").strip()
    with LogReader(log.packs(), log.table()) as reader:
        assert reader.type_of(refs["refs/tags/v2"]) == TAG
        assert reader.peel(refs["refs/tags/v2"]) == peeled
        assert reader.peel(ObjectId(peeled)) == peeled
        assert reader.type_of(ObjectId(peeled)) == COMMIT


def test_an_unknown_object_is_a_key_error(log: GrownLog) -> None:
    with LogReader(log.packs(), log.table()) as reader:
        for look_up in (reader.get_raw, reader.type_of, reader.peel):
            with pytest.raises(KeyError):
                look_up(ObjectId(b"0" * 40))


def test_a_chain_deeper_than_python_recurses_is_read(tmp_path: Path) -> None:
    entries = [HandMade(kind=BLOB, content=b"0")]
    for number in range(1, 3000):
        delta = insert_delta(b"%d" % (number - 1), b"%d" % number)
        entries.append(HandMade(kind=OFS_DELTA, base=number - 1, content=delta))
    log = GrownLog(tmp_path / "log")
    log.take(pack_of(entries), ())
    with LogReader(log.packs(), log.table()) as reader:
        assert reader.get_raw(hex_id(object_id(BLOB, b"2999"))) == (BLOB, b"2999")


def test_no_descriptor_stays_open(log: GrownLog) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with LogReader(log.packs(), log.table()):
        assert len(os.listdir("/proc/self/fd")) == before + 3
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_missing_segment_is_damage_and_leaves_nothing_open(log: GrownLog) -> None:
    table = log.table()
    log.packs()[2].unlink()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(MirrorDamaged):
        LogReader(log.packs(), table).__enter__()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_segment_beside_the_table_of_another_is_damage(log: GrownLog) -> None:
    table = Table.load([log.segments[0].table])
    with pytest.raises(MirrorDamaged, match="not the one"):
        LogReader([log.segments[1].pack], table).__enter__()


def test_damage_inside_a_segment_is_named(tmp_path: Path) -> None:
    """The trailer is in place, so only reading the object can show it."""
    log = GrownLog(tmp_path / "log")
    content = os.urandom(100)
    log.take(pack_of([HandMade(kind=BLOB, content=content)]), ())
    pack = log.packs()[0]
    written = pack.read_bytes()
    pack.write_bytes(written.replace(zlib.compress(content)[:40], b"?" * 40))
    oid = hex_id(object_id(BLOB, content))
    with LogReader([pack], log.table()) as reader, pytest.raises(MirrorDamaged, match=oid.decode()):
        reader.get_raw(oid)

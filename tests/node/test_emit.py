"""emit: whatever rows are asked for, git takes the pack, and it holds exactly those."""

import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from goblet_node.errors import DiskFailed
from goblet_node.mirror.reader import LogReader
from goblet_node.mirror.scan import scan_pack
from goblet_node.mirror.table import Entries, Table
from goblet_node.objects import (
    BLOB,
    OFS_DELTA,
    REF_DELTA,
    hex_id,
    object_header,
    object_id,
)
from goblet_node.serve import emit as emit_module
from goblet_node.serve.emit import emit
from goblet_node.serve.need import Needed
from goblet_node.serve.pieces import Pieces, pack_of
from goblet_node.wire.refs import ObjectId
from goblet_testing import packs
from goblet_testing.packs import GrownLog, HandMade, Repo, copy_delta, insert_delta, run_git

# An example costs a git process and a dozen files; half of the profile's number is enough.
half = settings(max_examples=settings().max_examples // 2)

Rows = NDArray[np.int64]
NOTHING = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Emitted:
    """An answer: what came of it before it is read, and the pack."""

    pieces: Pieces
    pack: bytes


def emitted(
    log: GrownLog,
    folder: Path,
    rows: Sequence[int] | Rows,
    *,
    client: Sequence[int] | Rows = NOTHING,
    alike: Sequence[tuple[int, int]] = (),
    thin: bool = False,
    ofs_delta: bool = True,
) -> Emitted:
    """Emit these rows of a log; what the answer announces of itself is so."""
    needed = Needed(
        rows=np.array(sorted(rows), dtype=np.int64),
        with_client=np.array(sorted(client), dtype=np.int64),
        alike=tuple(alike),
    )
    inline = folder / "inline"
    inline.unlink(missing_ok=True)
    graph = log.graph()
    with LogReader(log.packs(), graph.table, bases=graph.links.bases) as reader:
        pieces = emit(
            reader,
            log.packs(),
            needed,
            graph=graph,
            thin=thin,
            ofs_delta=ofs_delta,
            inline=inline,
        )
    pack = b"".join(pack_of(log.packs(), pieces))
    assert len(pack) == pieces.bytes + 32
    assert pieces.objects == len(needed.rows)
    return Emitted(pieces, pack)


def read_back(pack: bytes, folder: Path, client: Mapping[bytes, tuple[int, bytes]]) -> Entries:
    """Return the entries of a pack, found by reading it; `client` are the objects outside it."""
    path = folder / "answer.pack"
    path.write_bytes(pack)
    found = scan_pack(path, resolve_base=client.__getitem__, mention=lambda *_: None)
    return found.entries


def ids(table: Table, rows: Sequence[int] | Rows) -> set[ObjectId]:
    return {table.oid(int(row)) for row in rows}


def contents(log: GrownLog, rows: Sequence[int] | Rows) -> dict[bytes, tuple[int, bytes]]:
    """Return type and content of the objects in these rows, by raw id."""
    with LogReader(log.packs(), log.table()) as reader:
        raw = [reader.table.raw_oid(int(row)) for row in rows]
        return {oid: reader.resolve(oid) for oid in raw}


def index_at_client(
    pack: bytes, folder: Path, client: Mapping[bytes, tuple[int, bytes]]
) -> set[ObjectId]:
    """Return what git finds in a pack, bases that it adds included, where just `client` is had."""
    repo = packs.make_bare(folder / "client")
    try:
        for oid, (kind, content) in client.items():
            path = repo / "objects" / oid.hex()[:2] / oid.hex()[2:]
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(zlib.compress(object_header(kind, len(content)) + content, 1))
        flags = ("--strict", "--fsck-objects", "--fix-thin", "--stdin")
        said = run_git("index-pack", *flags, repo=repo, stdin=pack)
        name = said.split()[-1].decode()
        index = (repo / f"objects/pack/pack-{name}.idx").read_bytes()
        shown = run_git("show-index", repo=repo, stdin=index)
        return {ObjectId(line.split()[1]) for line in shown.splitlines()}
    finally:
        shutil.rmtree(repo)


@st.composite
def logs_of_blobs(draw: st.DrawFn) -> list[bytes]:
    """Draw the packs of a log: wholes and deltas of all kinds, some objects more than once."""
    random = Random(draw(st.integers(0, 1 << 32)))
    # Sizes around the places where a distance needs another byte.
    sizes = draw(st.lists(st.sampled_from([1, 60, 127, 9000, 17000]), min_size=3, max_size=12))
    pool = [random.randbytes(size) for size in sizes]
    # What the client of an upstream can name as a base: all that came before.
    known: list[bytes] = []
    made = []
    for _ in range(draw(st.integers(1, 3))):
        entries: list[HandMade] = []
        own: list[bytes] = []
        for _ in range(draw(st.integers(1, 10))):
            how = draw(st.sampled_from(["whole", "near", "near", "named", "doubled"]))
            bases = own if how in ("near", "doubled") else known
            result = draw(st.sampled_from(pool))
            if how == "whole" or not bases:
                entries.append(HandMade(kind=BLOB, content=result))
            else:
                base = draw(st.sampled_from(bases))
                result = base * 2 if how == "doubled" else result[:127]
                if result == base or len(base) > 20000:
                    continue
                delta = copy_delta(base, 2) if how == "doubled" else insert_delta(base, result)
                entries.append(
                    HandMade(kind=REF_DELTA, content=delta, base=object_id(BLOB, base))
                    if how == "named"
                    else HandMade(kind=OFS_DELTA, content=delta, base=own.index(base))
                )
            own.append(result)
            known.append(result)
        if entries:
            made.append(packs.pack_of(entries))
    return made


@half
@given(logs_of_blobs(), st.booleans(), st.booleans(), st.data())
def test_any_rows_of_any_log_are_a_pack_that_git_accepts(
    tmp_path_factory: pytest.TempPathFactory,
    made: list[bytes],
    thin: bool,
    ofs_delta: bool,
    data: st.DataObject,
) -> None:
    """Closed or not, whatever the client has, and by no means that it did not name."""
    folder = tmp_path_factory.mktemp("e")
    log = GrownLog(folder / "log")
    for pack in made:
        log.take(pack, ())
    table = log.table()
    subsets = st.lists(st.integers(0, len(table) - 1), unique=True)
    rows, client = data.draw(subsets), data.draw(subsets)
    answer = emitted(log, folder, rows, client=client, thin=thin, ofs_delta=ofs_delta)

    had = contents(log, client)
    entries = read_back(answer.pack, folder, had if thin else {})
    assert {hex_id(oid.tobytes().ljust(20, b"\0")) for oid in entries["oid"]} == ids(table, rows)
    assert ofs_delta or OFS_DELTA not in entries["kind"]
    assert len(entries) == len(rows)
    found = index_at_client(answer.pack, folder, had)
    assert ids(table, rows) <= found <= ids(table, rows) | ids(table, client if thin else [])

    # Nothing is sent whole that need not be.
    bases = table.find_raw(table.column("base")[rows])
    usable = np.isin(bases, [*rows, *(client if thin else [])])
    is_whole = np.isin(table.column("kind")[rows], [OFS_DELTA, REF_DELTA], invert=True)
    assert np.sum(entries["kind"] == BLOB) == np.sum(is_whole | ~usable)

    again = emitted(log, folder, rows, client=client, thin=thin, ofs_delta=ofs_delta)
    assert again.pack == answer.pack


@half
@given(logs_of_blobs(), st.booleans(), st.booleans(), st.data())
def test_whatever_is_taken_for_alike_git_accepts_the_pack(
    tmp_path_factory: pytest.TempPathFactory,
    made: list[bytes],
    thin: bool,
    ofs_delta: bool,
    data: st.DataObject,
) -> None:
    """And no entry is longer for it; to a client that takes no thin pack nothing changes."""
    folder = tmp_path_factory.mktemp("e")
    log = GrownLog(folder / "log")
    for pack in made:
        log.take(pack, ())
    table = log.table()
    places = data.draw(st.permutations(range(len(table))))
    cut = data.draw(st.integers(0, len(places)))
    rows, client = places[:cut], places[cut:]
    olds = st.none() | st.sampled_from(client) if client else st.none()
    drawn = data.draw(st.lists(olds, min_size=len(rows), max_size=len(rows)))
    alike = [(row, old) for row, old in zip(rows, drawn, strict=True) if old is not None]
    ask = partial(emitted, log, folder, rows, client=client, thin=thin, ofs_delta=ofs_delta)
    plain, answer = ask().pack, ask(alike=alike).pack
    assert ids(table, rows) <= index_at_client(answer, folder, contents(log, client))
    assert len(answer) <= len(plain)
    assert thin or answer == plain


@dataclass(frozen=True)
class Grown:
    """An origin's history, and the log that followed it."""

    origin: Repo
    log: GrownLog

    def rows(self, *revisions: str | bytes) -> Rows:
        """Return the rows of what `git rev-list --objects` lists."""
        words = [word if isinstance(word, str) else word.decode() for word in revisions]
        listed = run_git("rev-list", "--objects", *words, repo=self.origin.path).splitlines()
        return self.log.table().find(ObjectId(line[:40]) for line in listed)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Grown:
    """Four thin segments: commits, trees and blobs that are deltas across all of them."""
    folder = tmp_path_factory.mktemp("grown")
    grown = Grown(Repo.create(folder / "origin"), GrownLog(folder / "log"))
    random = Random(5)
    text = [b"%x\n" % random.getrandbits(64) for _ in range(300)]
    files = {f"part{number % 3}/file{number}": b"%x" % number for number in range(30)}
    for generation in range(4):
        for number in range(8):
            text[random.randrange(300)] = b"changed %x\n" % random.getrandbits(64)
            files["text"] = b"".join(text)
            files[f"part{number % 3}/file{number}"] = b"%x" % random.getrandbits(64)
            grown.origin.commit("main", files)
        if generation == 1:
            grown.origin.commit("side", {**files, "side": b"1"}, parent="main")
            grown.origin.tag("v1", "refs/heads/side")
        grown.log.fetch(grown.origin)
    assert len(grown.log.segments) == 4
    return grown


HISTORIES = {
    "a clone of one branch": ("main", ""),
    "a fetch of one commit": ("main", "main~1"),
    "a fetch across segments": ("main", "main~20"),
    "a fetch of what came between": ("main~3", "main~21"),
    "a side branch with its tag": ("v1", "main~30"),
}


@pytest.mark.slow
@pytest.mark.parametrize("ofs_delta", [True, False], ids=["ofs", "no-ofs"])
@pytest.mark.parametrize("thin", [True, False], ids=["thin", "no-thin"])
@pytest.mark.parametrize(("tip", "had"), HISTORIES.values(), ids=HISTORIES)
def test_a_client_that_gets_a_part_of_a_history_has_all_of_it(
    grown: Grown, tmp_path: Path, tip: str, had: str, thin: bool, ofs_delta: bool
) -> None:
    """As git judges, strictly: sound objects, none missing, none twice."""
    client = packs.make_bare(tmp_path / "client")
    with_client = grown.rows(had) if had else NOTHING
    if had:
        (oid,) = run_git("rev-parse", had, repo=grown.origin.path).split()
        run_git("index-pack", "--stdin", repo=client, stdin=grown.origin.pack([ObjectId(oid)]))
    rows = grown.rows(tip, f"^{had}") if had else grown.rows(tip)
    answer = emitted(grown.log, tmp_path, rows, client=with_client, thin=thin, ofs_delta=ofs_delta)
    flags = ("--strict", "--fsck-objects", *(["--fix-thin"] if thin else []), "--stdin")
    run_git("index-pack", *flags, repo=client, stdin=answer.pack)
    (oid,) = run_git("rev-parse", tip, repo=grown.origin.path).split()
    run_git("update-ref", f"refs/{'tags' if tip == 'v1' else 'heads'}/x", oid.decode(), repo=client)
    run_git("fsck", "--full", "--strict", "--connectivity-only", repo=client)
    expected = run_git("rev-list", "--objects", tip, repo=grown.origin.path)
    assert run_git("rev-list", "--objects", "--all", repo=client) == expected


def test_a_thin_answer_leaves_bases_to_the_client_and_is_smaller_for_it(
    grown: Grown, tmp_path: Path
) -> None:
    """A text of 300 lines of which eight changed is sent as what changed, only on permission."""
    rows, client = grown.rows("main", "^main~8"), grown.rows("main~8")
    thin = emitted(grown.log, tmp_path, rows, client=client, thin=True)
    whole = emitted(grown.log, tmp_path, rows, client=client, thin=False)
    entries = read_back(thin.pack, tmp_path, contents(grown.log, client))
    own = {bytes(oid) for oid in entries["oid"]}
    outside = [bytes(base) for base in entries["base"][entries["kind"] == REF_DELTA]]
    assert [base for base in outside if base not in own], "nothing is thin: nothing is tested"
    assert len(thin.pack) < len(whole.pack)


def test_a_new_version_goes_as_a_delta_on_the_old_one_that_the_client_has(
    tmp_path: Path,
) -> None:
    """Be it stored whole, or as a delta on what the client lacks."""
    random = Random(1)
    lines = [b"%x\n" % random.getrandbits(64) for _ in range(200)]
    half = b"".join(lines)
    old = half + b"".join([*lines[:90], b"old\n", *lines[91:]])
    new = half + b"".join([*lines[:90], b"new\n", *lines[91:]])
    log = GrownLog(tmp_path / "log")
    entries = [HandMade(kind=BLOB, content=content) for content in (half, old, new)]
    entries.append(HandMade(kind=OFS_DELTA, base=0, content=copy_delta(half, 2)))
    log.take(packs.pack_of(entries), ())
    oids = [hex_id(object_id(BLOB, content)) for content in (old, new, half * 2)]
    was, *rows = log.table().find(oids).tolist()
    alike = [(row, was) for row in rows]
    thin = emitted(log, tmp_path, rows, client=[was], alike=alike, thin=True)
    whole = emitted(log, tmp_path, rows, client=[was], alike=alike, thin=False)
    client = contents(log, [was])
    assert read_back(thin.pack, tmp_path, client)["kind"].tolist() == [REF_DELTA, REF_DELTA]
    assert read_back(whole.pack, tmp_path, {})["kind"].tolist() == [BLOB, BLOB]
    assert len(thin.pack) < 200 < len(whole.pack)


def test_what_is_too_large_to_compare_does_not_stand_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the longest that are few enough bytes, deltas are made; of those only so many."""
    monkeypatch.setattr(emit_module, "_MOST_DELTAS", 1)
    monkeypatch.setattr(emit_module, "_MOST_COMPARED", 20_000)
    random = Random(1)
    olds = [random.randbytes(size) for size in (15_000, 9_000, 5_000)]
    news = [old + b"new" for old in olds]
    log = GrownLog(tmp_path / "log")
    log.take(packs.pack_of([HandMade(kind=BLOB, content=each) for each in (*olds, *news)]), ())
    was, rows = [
        log.table().find([hex_id(object_id(BLOB, each)) for each in version]).tolist()
        for version in (olds, news)
    ]
    alike = list(zip(rows, was, strict=True))
    answer = emitted(log, tmp_path, rows, client=was, alike=alike, thin=True)
    kinds = read_back(answer.pack, tmp_path, contents(log, was))["kind"].tolist()
    assert kinds == [BLOB, REF_DELTA, BLOB]


def test_a_whole_log_is_one_copy_of_each_segment(grown: Grown, tmp_path: Path) -> None:
    log = grown.log
    answer = emitted(log, tmp_path, range(len(log.table())))
    sizes = [pack.stat().st_size for pack in log.packs()]
    assert answer.pieces.runs.tolist() == [(n, 12, size - 32) for n, size in enumerate(sizes)]
    assert answer.pieces.inline == b""
    assert answer.pack == log.concatenated()


def test_an_answer_of_nothing_is_an_empty_pack(grown: Grown, tmp_path: Path) -> None:
    answer = emitted(grown.log, tmp_path, [])
    assert len(answer.pack) == 32
    assert index_at_client(answer.pack, tmp_path, {}) == set()


def test_a_row_of_distances_that_each_widen_the_next_is_named_by_id_at_last(
    tmp_path: Path,
) -> None:
    """A delta is sent whole, 30 distances behind it grow from 127 to 128, one by one."""
    random, count = Random(3), 30
    # Of sizes that make all distances 127: 96 bytes and the delta after them take as
    # much as each entry of the row does.
    lost, row = random.randbytes(100), [random.randbytes(96)]
    entries = [
        HandMade(kind=BLOB, content=lost),
        HandMade(kind=BLOB, content=row[0]),
        HandMade(kind=OFS_DELTA, base=0, content=copy_delta(lost, 2)),
    ]
    for number in range(count):
        row.append(random.randbytes(110))
        base = number + 2 if number else 1
        entries.append(HandMade(kind=OFS_DELTA, base=base, content=insert_delta(row[-2], row[-1])))
    log = GrownLog(tmp_path / "log")
    log.take(packs.pack_of(entries), ())
    table = log.table()
    in_row = table.find(hex_id(object_id(BLOB, content)) for content in row)
    assert set(table.column("header")[in_row[1:]].tolist()) == {3}, "distances take one byte"
    rows = np.delete(np.arange(len(table)), table.row(hex_id(object_id(BLOB, lost))))

    answer = emitted(log, tmp_path, rows)
    assert index_at_client(answer.pack, tmp_path, {}) == ids(table, rows)
    kinds = read_back(answer.pack, tmp_path, {})["kind"].tolist()
    named = kinds.count(REF_DELTA)
    assert kinds == [BLOB, BLOB, *[OFS_DELTA] * (count - named), *[REF_DELTA] * named]
    assert 0 < named < count


def test_a_disk_that_takes_no_more_fails_the_answer_and_not_the_mirror(
    grown: Grown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emit_module, "IN_MEMORY", 0)
    (tmp_path / "no folder").write_bytes(b"")
    needed = Needed(rows=grown.rows("main", "^main~1"), with_client=NOTHING)
    needed.rows.sort()
    with (
        LogReader(grown.log.packs(), grown.log.table()) as reader,
        pytest.raises(DiskFailed, match="could not be prepared"),
    ):
        emit(
            reader,
            grown.log.packs(),
            needed,
            graph=grown.log.graph(),
            thin=False,
            ofs_delta=True,
            inline=tmp_path / "no folder/inline",
        )

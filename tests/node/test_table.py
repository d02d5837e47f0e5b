"""table: ids found again whatever bytes they are, and damage noticed."""

import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.errors import MirrorDamaged
from goblet_node.mirror.table import ENTRY, Entries, Table, oid_array, write_table
from goblet_node.objects import BLOB, REF_DELTA, hex_id, raw_id

# Few distinct bytes, many of them NUL and 0xFF: where fixed-size strings go wrong.
raw_ids = st.lists(st.sampled_from([0, 0, 1, 127, 128, 255]), min_size=20, max_size=20).map(bytes)


def entries_of(oids: list[bytes]) -> Entries:
    entries = np.zeros(len(oids), dtype=ENTRY)
    entries["oid"] = oid_array(b"".join(oids))
    entries["offset"] = np.arange(12, 12 + 10 * len(oids), 10)
    entries["length"] = 10
    entries["type"] = entries["kind"] = BLOB
    return entries


def write(path: Path, oids: list[bytes], checksum: bytes = b"c" * 20) -> Path:
    write_table(path, entries_of(oids), checksum)
    return path


@given(held=st.lists(raw_ids, unique=True), asked=st.lists(raw_ids), cut=st.integers(1, 4))
def test_exactly_the_ids_that_were_written_are_found(
    held: list[bytes], asked: list[bytes], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever bytes they hold, NULs at their ends too, and however many segments they lie in."""
    folder = tmp_path_factory.mktemp("t")
    parts = [held[number::cut] for number in range(cut)]
    table = Table.load([write(folder / f"{n}", part) for n, part in enumerate(parts)])
    assert len(table) == len(held)
    for raw in asked + held:
        assert (hex_id(raw) in table) == (raw in held)
        if raw in held:
            assert table.raw_oid(table.row(hex_id(raw))) == raw
            assert table.oid(table.row(hex_id(raw))) == hex_id(raw)
    assert table.missing(map(hex_id, asked)) == [hex_id(raw) for raw in asked if raw not in held]


def test_an_empty_log_holds_nothing() -> None:
    table = Table.load([])
    assert len(table) == 0
    assert table.missing([hex_id(b"x" * 20)]) == [hex_id(b"x" * 20)]
    assert list(table.find([])) == []
    assert [len(table.column(name)) for name in ("offset", "segment", "base")] == [0, 0, 0]


def test_every_field_comes_back_with_its_row(tmp_path: Path) -> None:
    """The rows are the places of the entries in the log."""
    written = []
    for number in range(3):
        entries = entries_of([os.urandom(20) for _ in range(50)])
        for name in ("offset", "length", "size"):
            entries[name] = np.random.default_rng(number).permutation(50).astype("u8") << 33
        entries["offset"].sort()
        entries["header"] = np.arange(50)
        entries["base"] = oid_array(b"\0" * 1000)
        entries["base"][7] = b"b" * 19 + b"\0"
        entries["kind"][7] = REF_DELTA
        write_table(tmp_path / f"{number}", entries, bytes([number]) * 20)
        written.append(entries)
    table = Table.load([tmp_path / f"{number}" for number in range(3)])
    for number, entries in enumerate(written):
        for place, entry in enumerate(entries, 50 * number):
            row = int(table.find_raw(entry["oid"].reshape(1))[0])
            assert row == place
            assert table.column("segment")[row] == number
            for name in ("offset", "length", "size", "header", "type", "kind", "base"):
                assert table.column(name)[row] == entry[name], name
        assert table.raw_base(int(table.find_raw(entries["oid"][7:8])[0])) == b"b" * 19 + b"\0"
        assert list(table.rows_of_segment(number)) == list(range(50 * number, 50 * number + 50))
    assert table.checksums == (b"\0" * 20, b"\1" * 20, b"\2" * 20)


@given(data=st.data())
def test_a_table_that_was_changed_anywhere_is_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.mktemp("t") / "table", [bytes([n]) * 20 for n in range(5)])
    sound = path.read_bytes()
    place = data.draw(st.integers(0, len(sound) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(sound[:place])
    else:
        flipped = bytes([sound[place] ^ 1 << data.draw(st.integers(0, 7))])
        path.write_bytes(sound[:place] + flipped + sound[place + 1 :])
    with pytest.raises(MirrorDamaged):
        Table.load([path])


def test_a_table_with_bytes_behind_its_end_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t", [b"a" * 20])
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(MirrorDamaged):
        Table.load([path])


def test_a_missing_table_is_damage(tmp_path: Path) -> None:
    with pytest.raises(MirrorDamaged, match="gone"):
        Table.load([tmp_path / "gone"])


def test_a_log_that_holds_an_object_twice_is_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "0", [b"a" * 20, b"b" * 20])
    second = write(tmp_path / "1", [b"c" * 20, b"a" * 20])
    with pytest.raises(MirrorDamaged, match="twice"):
        Table.load([first, second])


def test_a_table_keeps_no_file_open_and_misses_a_removed_one_only_for_new_columns(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "0", [b"a" * 20])
    before = len(os.listdir("/proc/self/fd"))
    table = Table.load([path])
    assert len(os.listdir("/proc/self/fd")) == before
    path.unlink()
    assert hex_id(raw_id(hex_id(b"a" * 20))) in table
    with pytest.raises(MirrorDamaged):
        table.column("offset")


def test_a_table_is_cut_while_another_thread_asks_for_more_of_it(tmp_path: Path) -> None:
    """An answer from the log as it was, and the first look at what its segments were joined to."""
    paths = [write(tmp_path / str(number), [b"%d" % number * 20]) for number in range(3)]

    def ask(table: Table) -> None:
        for name in ENTRY.names or ():
            table.column(name)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(100):
            table = Table.load(paths)
            asking = threading.Thread(target=ask, args=(table,))
            asking.start()
            while asking.is_alive():
                assert len(Table.load(paths[:2], grown_from=table)) == 2
            asking.join()
    finally:
        sys.setswitchinterval(interval)

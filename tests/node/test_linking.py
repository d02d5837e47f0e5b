"""linking: references become places, and what is nowhere is found out."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from goblet_node.mirror import linking
from goblet_node.mirror.linking import LinksBuilder
from goblet_node.mirror.links import BUNDLE, Links
from goblet_node.mirror.table import ENTRY, Entries, Table, oid_array, write_table
from goblet_node.objects import BLOB, COMMIT, TREE, PackRejected

CHECKSUM = bytes(20)


def name_of(number: int) -> bytes:
    """Return an id; those of consecutive numbers do not sort in their order."""
    return bytes([number * 151 % 256]) + number.to_bytes(19, "big")


def made_log(folder: Path, names: Sequence[bytes]) -> tuple[Table, Entries]:
    """Return the table of a log of one segment that has these objects, and its entries."""
    entries = np.zeros(len(names), dtype=ENTRY)
    entries["oid"] = oid_array(b"".join(names))
    write_table(folder / "table", entries, CHECKSUM)
    return Table.load([folder / "table"]), entries


def written(
    folder: Path, builder: LinksBuilder, table: Table, entries: Entries, indexes: Sequence[int]
) -> Links:
    builder.write(
        folder / "links",
        table=table,
        entries=entries,
        indexes=np.array(indexes, dtype=np.int64),
        checksum=CHECKSUM,
    )
    return Links.load([folder / "links"])


def targets_of(links: Links, place: int) -> list[int]:
    start, count = int(links.entries.starts[place]), int(links.entries.counts[place])
    found: list[int] = links.targets[start : start + count].tolist()
    return found


def test_entries_may_come_in_any_order_and_some_never(tmp_path: Path) -> None:
    names = [name_of(number) for number in range(4)]
    table, entries = made_log(tmp_path, names)
    rows = [int(row) for row in table.find_raw(oid_array(b"".join(names)))]
    with LinksBuilder(tmp_path) as builder:
        builder.add(3, TREE, names[1] + names[0], 0)
        builder.add(2, COMMIT, names[3], 1_700_000_000)
        links = written(tmp_path, builder, table, entries, [0, 1, 2, 3])
    assert targets_of(links, rows[3]) == [rows[1], rows[0]]
    assert targets_of(links, rows[2]) == [rows[3]]
    assert targets_of(links, rows[0]) == targets_of(links, rows[1]) == []
    assert links.committed[rows[2]] == 1_700_000_000
    assert links.committed.sum() == 1_700_000_000


def test_an_entry_that_the_segment_lacks_is_left_out(tmp_path: Path) -> None:
    """Its references are not even looked for: the log has the object, and so has what it names."""
    names = [name_of(number) for number in range(3)]
    table, entries = made_log(tmp_path, names)
    with LinksBuilder(tmp_path) as builder:
        builder.add(0, COMMIT, name_of(7), 5)
        builder.add(1, TREE, names[2], 0)
        builder.add(9, TREE, name_of(7), 0)
        links = written(tmp_path, builder, table, entries, [1, 2, 3])
    assert len(links.targets) == 1
    assert not links.committed.any()


@pytest.mark.parametrize("kind", [COMMIT, TREE])
def test_a_reference_to_what_is_nowhere_is_refused(kind: int, tmp_path: Path) -> None:
    names = [name_of(number) for number in range(2)]
    table, entries = made_log(tmp_path, names)
    with LinksBuilder(tmp_path) as builder:
        builder.add(0, kind, names[1] + name_of(7), 0)
        with pytest.raises(PackRejected, match=f"one of them {name_of(7).hex()}"):
            written(tmp_path, builder, table, entries, [0, 1])


def test_what_a_large_tree_lacks_is_found_in_its_bundles(tmp_path: Path) -> None:
    names = [name_of(number) for number in range(300)]
    table, entries = made_log(tmp_path, names)
    with LinksBuilder(tmp_path) as builder:
        builder.add(0, TREE, b"".join(names[1:]) + name_of(777), 0)
        with pytest.raises(PackRejected, match=name_of(777).hex()):
            written(tmp_path, builder, table, entries, range(300))


def test_the_parents_of_a_commit_are_never_bundled(tmp_path: Path) -> None:
    """Walks look at them one by one."""
    names = [name_of(number) for number in range(300)]
    table, entries = made_log(tmp_path, names)
    with LinksBuilder(tmp_path) as builder:
        builder.add(0, COMMIT, b"".join(names[1:]), 1)
        links = written(tmp_path, builder, table, entries, range(300))
    assert len(links.bundles) == 0
    place = table.find_raw(oid_array(names[0]))[0]
    assert targets_of(links, int(place)) == table.find_raw(oid_array(b"".join(names[1:]))).tolist()


def test_a_tree_of_very_many_entries_is_a_short_list(tmp_path: Path) -> None:
    """Its bundles are bundled in turn, and in order."""
    names = [bytes([number * 151 % 256]) + number.to_bytes(19, "big") for number in range(20_000)]
    table, entries = made_log(tmp_path, names)
    with LinksBuilder(tmp_path) as builder:
        builder.add(0, TREE, b"".join(names[1:]), 0)
        links = written(tmp_path, builder, table, entries, range(20_000))
    (place,) = table.find_raw(oid_array(names[0]))
    assert len(targets_of(links, int(place))) < 128
    assert (
        opened(links, targets_of(links, int(place)))
        == table.find_raw(oid_array(b"".join(names[1:]))).tolist()
    )


def opened(links: Links, targets: Sequence[int]) -> list[int]:
    """Return targets with bundles opened."""
    found: list[int] = []
    for target in targets:
        if target < BUNDLE:
            found.append(target)
            continue
        start = int(links.bundles.starts[target - BUNDLE])
        count = int(links.bundles.counts[target - BUNDLE])
        found += opened(links, links.targets[start : start + count].tolist())
    return found


def test_ids_that_are_never_cut_are_one_bundle(tmp_path: Path) -> None:
    """Nor does it end where every id is one: both have been chosen so by somebody."""
    uncut = [b"\x01" + number.to_bytes(19, "big") for number in range(300)]
    always = [b"\x00" + number.to_bytes(19, "big") for number in range(300)]
    table, entries = made_log(tmp_path, [*uncut, *always])
    with LinksBuilder(tmp_path) as builder:
        builder.add(0, TREE, b"".join(uncut[1:]), 0)
        builder.add(1, TREE, b"".join(always), 0)
        links = written(tmp_path, builder, table, entries, range(600))
    for name, expected in ((uncut[0], uncut[1:]), (uncut[1], always)):
        (place,) = table.find_raw(oid_array(name))
        places = table.find_raw(oid_array(b"".join(expected))).tolist()
        assert opened(links, targets_of(links, int(place))) == places


def test_bundles_that_were_forgotten_are_stored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That costs space, and changes nothing that is read."""
    monkeypatch.setattr(linking, "_BUNDLES_AT_ONCE", 3)
    names = [bytes([number * 151 % 256]) + number.to_bytes(19, "big") for number in range(5000)]
    table, entries = made_log(tmp_path, names)
    with LinksBuilder(tmp_path) as builder:
        builder.add(0, TREE, b"".join(names[2:]), 0)
        builder.add(1, TREE, b"".join(names[2:]), 0)
        links = written(tmp_path, builder, table, entries, range(5000))
    expected = table.find_raw(oid_array(b"".join(names[2:]))).tolist()
    for place in table.find_raw(oid_array(names[0] + names[1])):
        assert opened(links, targets_of(links, int(place))) == expected


def test_ids_are_spooled_and_resolved_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linking, "_IDS_IN_MEMORY", 100)
    monkeypatch.setattr(linking, "_IDS_AT_ONCE", 7)
    names = [name_of(number) for number in range(60)]
    table, entries = made_log(tmp_path, names)
    with LinksBuilder(tmp_path) as builder:
        for number in range(1, 60):
            builder.add(number, TREE, b"".join(names[:number]), 0)
        links = written(tmp_path, builder, table, entries, range(60))
        assert [path.name for path in tmp_path.iterdir() if path.stat().st_size == 0] == []
    for number, name in enumerate(names):
        (place,) = table.find_raw(oid_array(name))
        expected = table.find_raw(oid_array(b"".join(names[:number]))).tolist()
        assert targets_of(links, int(place)) == expected
    assert {path.name for path in tmp_path.iterdir()} == {"table", "links"}


def test_a_segment_of_blobs_alone_has_links(tmp_path: Path) -> None:
    table, entries = made_log(tmp_path, [name_of(1), name_of(2)])
    entries["type"] = BLOB
    with LinksBuilder(tmp_path) as builder:
        links = written(tmp_path, builder, table, entries, [0, 1])
    assert (len(links.entries), len(links.targets)) == (2, 0)

"""trees: what is new in a tree, at which depth, and what the comparison has met."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from goblet_node import objects
from goblet_node.errors import MirrorDamaged
from goblet_node.mirror.reader import LogReader
from goblet_node.objects import BLOB, TREE, hex_id, object_id
from goblet_node.serve import trees
from goblet_node.serve.trees import NewTrees, Reference, Rows
from goblet_testing.packs import GrownLog, HandMade, pack_of

# Modes as git writes them, and as other tools did: padded, with a group's right to write.
FILE, OLD_FILE, LINK = b"100644", b"100664", b"120000"
FOLDER, PADDED_FOLDER, MODULE = b"40000", b"040000", b"160000"
OTHERS_COMMIT = b"\x07" * 20


class Forest:
    """Objects by names of the test's own, to put into one log."""

    def __init__(self) -> None:
        self.ids: dict[str, bytes] = {"module": OTHERS_COMMIT}
        self._entries: dict[bytes, HandMade] = {}

    def blob(self, name: str) -> None:
        """Add a blob with its name as content."""
        self._add(name, BLOB, name.encode())

    def tree(self, name: str, *entries: tuple[bytes, bytes, str]) -> None:
        """Add a tree of mode, path and object."""
        content = b"".join(b"%s %s\0%s" % (mode, path, self.ids[of]) for mode, path, of in entries)
        self._add(name, TREE, content)

    def _add(self, name: str, kind: int, content: bytes) -> None:
        self.ids[name] = object_id(kind, content)
        self._entries[self.ids[name]] = HandMade(kind=kind, content=content)

    @contextmanager
    def reader(self, folder: Path) -> Iterator[LogReader]:
        """Give a reader of the log of these objects."""
        log = GrownLog(folder / "log")
        log.take(pack_of(list(self._entries.values())), map(hex_id, self._entries))
        with LogReader(log.packs(), log.table()) as reader:
            yield reader

    def names(self, reader: LogReader, mask: NDArray[np.bool_]) -> set[str]:
        """Return the names of the objects in these rows."""
        rows = {reader.table.raw_oid(int(row)) for row in np.flatnonzero(mask)}
        return {name for name, raw in self.ids.items() if raw in rows}


@pytest.fixture
def forest() -> Forest:
    """`old` and `new` differ in `folder/file`; `new` has `added/` too, in which `same` is again."""
    made = Forest()
    for blob in ("one", "two", "kept", "added"):
        made.blob(blob)
    made.tree("same", (FILE, b"kept", "kept"))
    made.tree("old folder", (FILE, b"file", "one"), (FOLDER, b"same", "same"))
    made.tree("new folder", (FILE, b"file", "two"), (FOLDER, b"same", "same"))
    made.tree("added folder", (FILE, b"added", "added"), (FOLDER, b"same", "same"))
    made.tree("old", (FOLDER, b"folder", "old folder"), (MODULE, b"module", "module"))
    made.tree(
        "new",
        (FOLDER, b"added", "added folder"),
        (FOLDER, b"folder", "new folder"),
        (MODULE, b"module", "module"),
    )
    return made


def test_all_of_a_tree_is_new_where_nothing_is_compared(forest: Forest, tmp_path: Path) -> None:
    with forest.reader(tmp_path) as reader:
        new = NewTrees(reader, takes_blobs=True, depth=None)
        new.add(forest.ids["old"])
        assert forest.names(reader, new.trees()) == {"old", "old folder", "same"}
        assert forest.names(reader, new.blobs.mask()) == {"one", "kept"}
        assert not new.met.mask().any()


def test_only_what_a_reference_has_not_at_the_same_path_is_new(
    forest: Forest, tmp_path: Path
) -> None:
    """`same` is new where the reference has nothing; `folder/same` is not opened."""
    with forest.reader(tmp_path) as reader:
        new = NewTrees(reader, takes_blobs=True, depth=None)
        new.add(forest.ids["new"], [Reference(forest.ids["old"], is_known=True)])
        assert forest.names(reader, new.trees()) == {"new", "new folder", "added folder", "same"}
        assert forest.names(reader, new.blobs.mask()) == {"two", "added", "kept"}
        met = {"old", "old folder", "one", "same"}
        assert forest.names(reader, new.met.mask()) == met
        assert forest.names(reader, new.known.mask()) == met


def test_what_a_reference_has_that_is_not_known_is_only_met(forest: Forest, tmp_path: Path) -> None:
    with forest.reader(tmp_path) as reader:
        new = NewTrees(reader, takes_blobs=True, depth=None)
        new.add(forest.ids["new"], [Reference(forest.ids["old"], is_known=False)])
        assert new.met.mask().any()
        assert not new.known.mask().any()


def test_a_tree_that_is_one_of_the_references_is_not_new(forest: Forest, tmp_path: Path) -> None:
    with forest.reader(tmp_path) as reader:
        new = NewTrees(reader, takes_blobs=True, depth=None)
        others = [Reference(forest.ids[name], is_known=True) for name in ("new", "old")]
        new.add(forest.ids["old"], others)
        assert not new.trees().any()
        assert not new.blobs.mask().any()


def test_several_references_are_taken_together(forest: Forest, tmp_path: Path) -> None:
    """As for a merge: what either parent has at a path is not new."""
    forest.tree("merge", (FOLDER, b"added", "added folder"), (FOLDER, b"folder", "old folder"))
    with forest.reader(tmp_path) as reader:
        new = NewTrees(reader, takes_blobs=True, depth=None)
        others = [Reference(forest.ids[name], is_known=True) for name in ("new", "old")]
        new.add(forest.ids["merge"], others)
        assert forest.names(reader, new.trees()) == {"merge"}
        assert not new.blobs.mask().any()


@pytest.mark.parametrize(
    ("depth", "found_trees", "found_blobs"),
    [
        (0, set(), set()),
        (1, {"old"}, set()),
        (2, {"old", "old folder"}, set()),
        (3, {"old", "old folder", "same"}, {"one"}),
        (4, {"old", "old folder", "same"}, {"one", "kept"}),
    ],
)
def test_nothing_is_new_that_lies_too_deep(
    forest: Forest, tmp_path: Path, depth: int, found_trees: set[str], found_blobs: set[str]
) -> None:
    with forest.reader(tmp_path) as reader:
        new = NewTrees(reader, takes_blobs=True, depth=depth)
        new.add(forest.ids["old"])
        assert forest.names(reader, new.trees()) == found_trees
        assert forest.names(reader, new.blobs.mask()) == found_blobs


def test_a_wanted_tree_does_not_count_as_a_level(forest: Forest, tmp_path: Path) -> None:
    with forest.reader(tmp_path) as reader:
        new = NewTrees(reader, takes_blobs=True, depth=1)
        new.add_wanted(forest.ids["old folder"])
        assert forest.names(reader, new.trees()) == {"old folder", "same"}
        assert forest.names(reader, new.blobs.mask()) == {"one"}


def test_a_tree_is_opened_again_where_it_lies_less_deep(forest: Forest, tmp_path: Path) -> None:
    with forest.reader(tmp_path) as reader:
        new = NewTrees(reader, takes_blobs=True, depth=3)
        new.add(forest.ids["old"])
        assert "kept" not in forest.names(reader, new.blobs.mask())
        new.add(forest.ids["old folder"])
        assert "kept" in forest.names(reader, new.blobs.mask())


def test_blobs_are_left_out_if_none_can_pass(forest: Forest, tmp_path: Path) -> None:
    with forest.reader(tmp_path) as reader:
        new = NewTrees(reader, takes_blobs=False, depth=None)
        new.add(forest.ids["old"])
        new.add(forest.ids["new"], [Reference(forest.ids["old"], is_known=False)])
        assert not new.blobs.mask().any()
        assert "added folder" in forest.names(reader, new.trees())


@pytest.mark.parametrize("is_compared", [False, True])
def test_modes_are_read_as_git_reads_them(
    forest: Forest, tmp_path: Path, is_compared: bool
) -> None:
    """Padded with a zero, as old tools wrote them; names and ids may look like entries."""
    forest.blob("40000 x")
    forest.tree("empty")
    forest.tree(
        "odd",
        (PADDED_FOLDER, b"40000 a", "same"),
        (OLD_FILE, b"b 160000", "one"),
        (LINK, b"c", "two"),
        (MODULE, b"d", "module"),
    )
    with forest.reader(tmp_path) as reader:
        new = NewTrees(reader, takes_blobs=True, depth=None)
        others = [Reference(forest.ids["empty"], is_known=True)] if is_compared else []
        new.add(forest.ids["odd"], others)
        assert forest.names(reader, new.trees()) == {"odd", "same"}
        assert forest.names(reader, new.blobs.mask()) == {"one", "two", "kept"}


def test_the_bounds_on_memory_change_no_result(
    forest: Forest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "_IDS_AT_ONCE", 1)
    monkeypatch.setattr(trees, "_KEPT_ENTRIES", 1)
    test_only_what_a_reference_has_not_at_the_same_path_is_new(forest, tmp_path)


def test_a_tree_that_names_what_the_log_lacks_is_damage(forest: Forest, tmp_path: Path) -> None:
    with forest.reader(tmp_path) as reader:
        rows = Rows(reader.table)
        rows.update([forest.ids["one"], OTHERS_COMMIT])
        with pytest.raises(MirrorDamaged, match="fill it again"):
            rows.mask()


def test_rows_are_those_of_the_objects_given(forest: Forest, tmp_path: Path) -> None:
    with forest.reader(tmp_path) as reader:
        rows = Rows(reader.table)
        rows.update(forest.ids[name] for name in ("one", "new"))
        rows.update([forest.ids["one"]])
        assert forest.names(reader, rows.mask()) == {"one", "new"}
        assert objects.TREE in reader.table.column("type")[rows.mask()]

"""alike: what changed between two trees is paired with what it was."""

from pathlib import Path

import pytest

from goblet_node.mirror.graph import Graph
from goblet_node.serve import alike as alike_module
from goblet_node.serve.alike import alike
from goblet_node.wire.refs import ObjectId
from goblet_testing.packs import Files, GrownLog, Repo, run_git

FILES = {f"folder{n}/file{m}": b"%d %d" % (n, m) for n in range(3) for m in range(3)}


class Two:
    """Two versions of a repository's files, and the pairs that are found in them."""

    def __init__(self, folder: Path, old: Files, new: Files) -> None:
        self.origin, log = Repo.create(folder / "origin"), GrownLog(folder / "log")
        self.origin.commit("main", old)
        self.origin.commit("main", new)
        log.fetch(self.origin)
        self.graph: Graph = log.graph()
        roots = [self.place("main^{tree}")]
        found = alike(self.graph, roots, self.place("main~^{tree}"))
        assert len(found) == len({new for new, _ in found})
        self.pairs = set(found)

    def place(self, name: str) -> int:
        """Return the place of the object of this name."""
        oid = ObjectId(run_git("rev-parse", name, repo=self.origin.path).strip())
        return int(self.graph.places([oid])[0])

    def versions(self, *paths: str) -> set[tuple[int, int]]:
        """Return the pairs of new and old at these paths, the root's included."""
        roots = (self.place("main^{tree}"), self.place("main~^{tree}"))
        return {roots, *((self.place(f"main:{p}"), self.place(f"main~:{p}")) for p in paths)}


def test_what_changed_is_paired_with_what_was_at_its_path(tmp_path: Path) -> None:
    changed = {"folder0/file1": b"new", "folder2/file0": b"new too"}
    two = Two(tmp_path, FILES, {**FILES, **changed})
    assert two.pairs == two.versions("folder0", "folder2", *changed)


def test_a_file_that_comes_does_not_hide_what_changed_beside_it(tmp_path: Path) -> None:
    """As many folders changed as before, and the blobs of one are not counted with them."""
    two = Two(tmp_path, FILES, {**FILES, "folder1/file1": b"new", "another": b"file"})
    assert two.pairs == two.versions("folder1", "folder1/file1")


def test_where_more_came_than_went_nothing_is_guessed(tmp_path: Path) -> None:
    two = Two(tmp_path, FILES, {**FILES, "folder0/file0": b"new", "folder0/file00": b"other"})
    assert two.pairs == two.versions("folder0")


def test_in_a_large_folder_what_changed_is_found(tmp_path: Path) -> None:
    """Most of it is bundles that both versions share."""
    files = {f"file{number:04}": b"%d" % number for number in range(2000)}
    changed = {"file0007": b"new", "file1000": b"new too", "file1999": b"and this"}
    two = Two(tmp_path, files, {**files, **changed})
    assert two.graph.bundles > 0
    assert two.pairs == two.versions(*changed)


def test_the_same_tree_is_no_pair(tmp_path: Path) -> None:
    assert Two(tmp_path, FILES, FILES).pairs == set()


@pytest.mark.parametrize("bound", ["_MOST_TREES", "_MOST_ENTRIES"])
def test_of_a_large_answer_only_the_first_trees_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(alike_module, bound, 1)
    two = Two(tmp_path, FILES, {**FILES, "folder0/file1": b"new"})
    assert two.pairs == two.versions()

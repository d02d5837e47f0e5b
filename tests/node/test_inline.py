"""An answer's own bytes: in memory while they are few, then all of them in a file."""

from pathlib import Path

import pytest

from goblet_node.serve.inline import Inline


def test_few_bytes_are_kept_in_memory_and_no_file_is_made(tmp_path: Path) -> None:
    path = tmp_path / "scratch" / "inline"
    with Inline(path, memory=6) as inline:
        assert (inline.write(b"one"), inline.tell()) == (3, 3)
        assert (inline.write(b"two"), inline.tell()) == (3, 6)
    assert inline.kept == b"onetwo"
    assert not path.parent.exists()


@pytest.mark.parametrize("memory", [0, 1, 5])
def test_many_bytes_are_all_in_the_file_in_their_order(tmp_path: Path, memory: int) -> None:
    path = tmp_path / "scratch" / "inline"
    with Inline(path, memory=memory) as inline:
        for piece in (b"one", b"two", b"three"):
            inline.write(piece)
        assert inline.tell() == 11
    assert inline.kept == path
    assert path.read_bytes() == b"onetwothree"


def test_a_folder_that_is_there_is_written_to_and_no_file_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "inline"
    path.write_bytes(b"another's")
    with Inline(path, memory=0) as inline, pytest.raises(FileExistsError):
        inline.write(b"mine")
    assert path.read_bytes() == b"another's"

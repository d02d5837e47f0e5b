"""Descriptors that are lent: closed when nobody uses them and nobody will."""

import os
from pathlib import Path

import pytest

from goblet_node.serve.open_files import OpenFiles


def opened(tmp_path: Path) -> int:
    """Return a new descriptor."""
    return os.open(tmp_path, os.O_RDONLY)


def is_open(file: int) -> bool:
    """Say whether a descriptor is open."""
    try:
        os.fstat(file)
    except OSError:
        return False
    return True


def test_one_descriptor_serves_all_who_ask_at_once(tmp_path: Path) -> None:
    files: OpenFiles[str] = OpenFiles(most=1)
    first = files.add("a", opened(tmp_path))
    assert files.take("a") is first
    assert files.take("b") is None
    files.give_back(first)
    files.give_back(first)
    assert is_open(first.file)
    files.clear()
    assert not is_open(first.file)


def test_the_one_used_longest_ago_is_let_go(tmp_path: Path) -> None:
    files: OpenFiles[str] = OpenFiles(most=2)
    lent = {name: files.add(name, opened(tmp_path)) for name in "ab"}
    for one in lent.values():
        files.give_back(one)
    files.take("a")
    third = files.add("c", opened(tmp_path))
    assert [is_open(lent[name].file) for name in "ab"] == [True, False]
    assert files.take("b") is None
    files.clear()
    assert is_open(third.file)  # in use


@pytest.mark.parametrize("again", [False, True])
def test_what_is_let_go_while_it_is_used_is_closed_by_its_last_user(
    tmp_path: Path, again: bool
) -> None:
    files: OpenFiles[str] = OpenFiles(most=2)
    lent = files.add("a", opened(tmp_path))
    if again:
        other = files.add("a", opened(tmp_path))
    else:
        files.let_go("a")
    assert is_open(lent.file)
    files.give_back(lent)
    assert not is_open(lent.file)
    if again:
        assert files.take("a") is other
        files.clear()
        assert is_open(other.file)
        files.give_back(other)
        files.give_back(other)
        assert not is_open(other.file)

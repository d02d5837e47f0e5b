"""The rendered files on disk."""

from pathlib import Path

import pytest

from goblet_router.haproxy.files import CannotWrite, write_files


def test_files_are_there_afterwards_and_for_haproxys_user_to_read(tmp_path: Path) -> None:
    place = tmp_path / "new" / "haproxy"
    assert write_files(place, {"a": "1\n", "b": "é\n"}) == ("a", "b")
    assert (place / "b").read_text(encoding="utf-8") == "é\n"
    assert (place / "a").stat().st_mode & 0o777 == 0o644
    assert sorted(file.name for file in place.iterdir()) == ["a", "b"]


def test_what_is_as_it_was_is_not_touched(tmp_path: Path) -> None:
    write_files(tmp_path, {"a": "1", "b": "2"})
    before = (tmp_path / "a").stat()
    assert write_files(tmp_path, {"a": "1", "b": "3"}) == ("b",)
    after = (tmp_path / "a").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_file_that_is_read_meanwhile_is_replaced_and_not_changed(tmp_path: Path) -> None:
    write_files(tmp_path, {"a": "old"})
    with (tmp_path / "a").open() as reader:
        write_files(tmp_path, {"a": "new"})
        assert reader.read() == "old"


def test_a_place_that_cannot_be_written_is_named_and_nothing_is_left_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match="file/a cannot be written: "):
        write_files(tmp_path / "file", {"a": "1"})
    (tmp_path / "a").mkdir()  # what cannot be replaced
    with pytest.raises(CannotWrite):
        write_files(tmp_path, {"a": "1"})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "file"]

"""Where things lie: never outside of the root, never two in one place."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from goblet_node.mirror.layout import (
    CacheRoot,
    is_mirror_directory,
    is_refs_name,
    refs_name,
    segment_files,
)
from goblet_shared.repo_key import RepoKey

ROOT = CacheRoot(Path("/cache"))
# Whatever a parser might let through, and what people try.
keys = st.one_of(st.text(), st.sampled_from(["../../etc", "/", "", "a/../../b", "\0", "a" * 5000]))


@given(keys)
def test_no_key_makes_a_path_outside_of_the_mirrors(text: str) -> None:
    directory = ROOT.directory_of(RepoKey(text))
    assert directory.parent.parent == ROOT.mirrors
    assert ".." not in directory.parts
    assert is_mirror_directory(directory)
    assert len(directory.name) == 64


@given(keys, keys)
def test_two_keys_never_share_a_directory(one: str, other: str) -> None:
    shared = ROOT.directory_of(RepoKey(one)) == ROOT.directory_of(RepoKey(other))
    assert shared == (one == other)


def test_letter_case_is_part_of_the_place() -> None:
    """Also on a file system that ignores it: names are hexadecimal digits."""
    lower = ROOT.directory_of(RepoKey("example.org/a"))
    upper = ROOT.directory_of(RepoKey("example.org/A"))
    assert lower.name.lower() != upper.name.lower()


def test_only_names_of_ours_are_taken_for_ours() -> None:
    assert is_refs_name(refs_name(12, b"content"))
    assert is_refs_name(refs_name(12_345_678, b"content"))
    for name in ("refs-000012", "../refs-000012-0123456789ab", "refs-000012-0123456789ab\n", ""):
        assert not is_refs_name(name)
    assert not is_mirror_directory(ROOT.mirrors / "00" / ("1" * 64))
    assert not is_mirror_directory(ROOT.mirrors / "aa" / "aa")


def test_names_carry_the_content() -> None:
    """What differs never has one name, what is equal may be written twice."""
    here = Path("/cache/mirrors/aa/aaaa")
    names = [path.relative_to(here).name for path in segment_files(here, 7, "0123456789abcdef")]
    stem = "seg-000007-0123456789ab"
    assert names == [f"{stem}.pack", f"{stem}.table", f"{stem}.links"]
    assert refs_name(7, b"a") != refs_name(7, b"b")
    assert refs_name(7, b"a") == refs_name(7, b"a")

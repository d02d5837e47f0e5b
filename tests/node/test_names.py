"""names: which bytes are an object id or a ref name, and how the others are shown."""

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from goblet_node.wire.names import OBJECT_FORMATS, as_object_id, is_ref_name, shown
from goblet_testing.gitcli import hermetic_env


@pytest.mark.parametrize(
    "name",
    [b"HEAD", b"refs/heads/main", b"refs/x", b"refs/heads/\xff\xfe", b"refs/@", b"refs/a.lockb"],
)
def test_what_git_advertises_is_a_ref_name(name: bytes) -> None:
    assert is_ref_name(name)


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b"@",
        b"FETCH_HEAD",
        b"HEAD/x",
        b"head",
        b"refs",
        b"refs/",
        b"/refs/heads/main",
        b"xrefs/heads/main",
        b"refs/../../etc/passwd",
        b"refs/heads//main",
        b"refs/heads/.main",
        b"refs/heads/main.lock",
        b"refs/main.lock/x",
        b"refs/heads/main.",
        b"refs/heads/main/",
        b"refs/heads/a@{b",
        b"refs/heads/main\n",
        b"refs/heads/a\0b",
        b"refs/heads/a\x7fb",
        *[b"refs/heads/a%cb" % byte for byte in b" ~^:?*[\\\t\x01"],
    ],
)
def test_what_git_refuses_is_no_ref_name(name: bytes) -> None:
    assert not is_ref_name(name)


@pytest.mark.system
@pytest.mark.slow
@settings(max_examples=150)
@given(st.lists(st.sampled_from([*"ab@{./~ \\", ".lock", "..", "é", "\x7f"]), max_size=6))
def test_git_check_ref_format_agrees(parts: list[str]) -> None:
    name = "refs/" + "".join(parts)
    judged = subprocess.run(["git", "check-ref-format", name], env=hermetic_env(), check=False)
    assert is_ref_name(name.encode()) == (judged.returncode == 0)


def test_an_object_id_has_the_length_of_its_format_and_becomes_lower_case() -> None:
    assert as_object_id(b"AB" * 20) == b"ab" * 20
    assert as_object_id(b"AB" * 32, "sha256") == b"ab" * 32
    assert {"sha1", "sha256"} == OBJECT_FORMATS


@pytest.mark.parametrize(
    "text", [b"", b"a" * 39, b"a" * 41, b"g" * 40, b"a" * 39 + b"\n", b" " + b"a" * 39, b"a" * 64]
)
def test_anything_else_is_no_object_id(text: bytes) -> None:
    assert as_object_id(text) is None
    assert as_object_id(text[:40], "sha256") is None


def test_what_a_client_sent_is_shown_bounded_and_printable() -> None:
    assert shown(b"want x") == "'want x'"
    assert shown(b"\x1b[31m\xff\n") == r"'\x1b[31m" + "�" + r"\n'"
    assert shown(b"x" * 80) == repr("x" * 80)
    assert shown(b"x" * 81) == repr("x" * 80 + "…")

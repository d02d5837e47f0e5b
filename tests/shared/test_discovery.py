"""Members from a list or a file."""

import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from goblet_shared.discovery import FileMembers, members_in, source_of
from goblet_shared.dns_members import DnsMembers
from goblet_shared.listing import DiscoveryFailed
from goblet_shared.member_settings import MemberSettings
from goblet_shared.members import members_of

TOML = '[nodes]\na = "http://10.0.0.1:8080"\nb = "http://10.0.0.2:8080"\n'
JSON = '{"nodes": {"a": "http://10.0.0.1:8080", "b": "http://10.0.0.2:8080"}}'
BOTH = members_of({"a": "http://10.0.0.1:8080", "b": "http://10.0.0.2:8080"})
OTHERS = TOML.replace("10.0.0.2", "10.0.0.9")


async def named(source: FileMembers) -> dict[str, str]:
    return {member.name: member.url for member in (await source.look()).members}


def settings(**given: object) -> MemberSettings:
    return MemberSettings.model_validate(given)


async def test_the_list_is_asked_for_once() -> None:
    listing = await source_of(settings(node={"a": "http://h:1"})).look()
    assert (listing.members, listing.ask_again_in) == (members_of({"a": "http://h:1"}), math.inf)


async def test_the_settings_say_which_source_it_is(tmp_path: Path) -> None:
    assert (await source_of(settings()).look()).members == ()
    file = tmp_path / "members"
    file.write_text(TOML)
    listing = await source_of(settings(members_file=file, members_poll_seconds=0.5)).look()
    assert (listing.members, listing.ask_again_in) == (BOTH, 0.5)
    assert isinstance(source_of(settings(members_dns="a:nodes.example:80")), DnsMembers)


@pytest.mark.parametrize("text", [TOML, JSON, f"\n  {JSON}\n", f"# ours\n{TOML}"])
def test_a_file_is_toml_or_json_whatever_it_is_called(text: str) -> None:
    assert members_in(text.encode()) == BOTH


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "want one table, nodes"),
        ("[nodes]", "names no node"),
        ('{"nodes": {}}', "names no node"),
        ('[nodes]\na = "http://h:1\n', "not valid TOML: .* line 2"),
        ('{"nodes":\n {"a": }}', "not valid JSON: .* line 2"),
        ('{"nodes": {"a": "http://h:1", "a": "http://h:2"}}', "'a' is there twice"),
        ('[nodes]\na = "http://h:1"\na = "http://h:2"\n', "not valid TOML: .* line 3"),
        ('nodes = ["http://h:1"]', "want one table, nodes"),
        ('[nodes]\na = "http://h:1"\n[node]\n', "want one table, nodes"),
        ("[nodes]\na = 8080\n", "the URL of node 'a'"),
        ('[nodes]\n"a\\nb" = 8080\n', r"the URL of node 'a\\nb'"),
        ('[nodes]\n"a b" = "http://h:1"\n', "node name 'a b'"),
        ('[nodes]\na = "ftp://h"\n', "the URL of node a"),
        ('[nodes]\na = "http://h..x:1"\n', "no name of a host"),
        (f'[nodes]\na = "http://{"h" * 64}:1"\n', "no name of a host"),
        ('[nodes]\na = "http://h id 7:1"\n', "no name of a host"),
        ('[nodes]\na = "http://[fe80::1%x id 7]:1"\n', "no name of a host"),
        ("[nodes]\n" + "".join(f'n{i} = "http://h:1"\n' for i in range(257)), "at most 256"),
        ('{"nodes": ' * 100_000, "nested too deeply"),
        ("#" * 2_000_000, "larger than"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        members_in(text.encode())


def test_a_long_file_with_a_name_twice_takes_no_longer_than_any_other() -> None:
    pairs = ",".join(f'"{number}":1' for number in [*range(60_000), 59_999])
    begun = process_time()
    with pytest.raises(ValueError, match="'59999' is there twice"):
        members_in(f"{{{pairs}}}".encode())
    assert process_time() - begun < 2  # 19 s if each is looked for among all


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: ("{" + text).encode()))
def test_no_file_brings_anything_but_members_or_a_value_error(content: bytes) -> None:
    with suppress(ValueError):
        assert members_in(content)


def _by_rename(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text)
    new.rename(file)


def _in_place(file: Path, text: str) -> None:
    file.write_text(text)


def _as_a_config_map(file: Path, text: str) -> None:
    """Change a file as the kubelet does: a symbolic link to a directory is swapped."""
    number = len(list(file.parent.glob("..v*")))
    version = file.parent / f"..v{number}"
    version.mkdir()
    (version / file.name).write_text(text)
    link = file.parent / "..new"
    link.symlink_to(version.name)
    link.rename(file.parent / "..data")
    if not file.is_symlink():
        file.symlink_to(f"..data/{file.name}")


@pytest.mark.parametrize("write", [_by_rename, _in_place, _as_a_config_map])
async def test_a_change_of_the_same_length_is_seen_however_it_is_made(
    write: Callable[[Path, str], None], tmp_path: Path
) -> None:
    file = tmp_path / "members.toml"
    write(file, TOML)
    source = FileMembers(file, poll=1)
    assert (await named(source))["b"] == "http://10.0.0.2:8080"
    write(file, OTHERS)
    assert (await named(source))["b"] == "http://10.0.0.9:8080"


async def test_a_file_that_is_broken_or_gone_is_a_failure_until_it_is_whole_again(
    tmp_path: Path,
) -> None:
    file = tmp_path / "members.toml"
    source = FileMembers(file, poll=3)
    with pytest.raises(DiscoveryFailed, match=r"members.toml: cannot be read: No such file"):
        await source.look()
    file.write_text(TOML)
    assert (await source.look()).members == BOTH
    file.write_text(TOML[:-3])
    for _ in range(2):
        with pytest.raises(DiscoveryFailed, match=r"members.toml: not valid TOML") as failed:
            await source.look()
        assert failed.value.ask_again_in == 3
    file.write_text(TOML)
    assert (await source.look()).members == BOTH


async def test_a_directory_in_the_files_place_is_a_failure(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    with pytest.raises(DiscoveryFailed, match="cannot be read"):
        await FileMembers(tmp_path, poll=1).look()

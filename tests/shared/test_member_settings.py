"""The settings of members, as a command and its environment give them."""

from pathlib import Path

import pytest

from goblet_shared.member_settings import MemberSettings
from goblet_shared.members import MemberState, members_of, state_said
from goblet_shared.settings import WrongSetting, load


def test_without_settings_nobody_is_a_member() -> None:
    settings = load(MemberSettings, flags={})
    assert (settings.has_members, settings.members) == (False, ())


@pytest.mark.parametrize(
    "flags",
    [
        {"node": ["a=http://h:1"]},
        {"members_file": "/etc/goblet/members"},
        {"members_dns": "srv:_http._tcp.n"},
    ],
)
def test_each_source_alone_is_taken(flags: dict[str, object]) -> None:
    assert load(MemberSettings, flags=flags).has_members


def test_members_come_from_one_place() -> None:
    flags = {"node": ["a=http://h:1"], "members_file": "/etc/members", "members_dns": "a:n:80"}
    with pytest.raises(WrongSetting, match="give one of node and members_file and members_dns"):
        load(MemberSettings, flags=flags)


@pytest.mark.parametrize(
    ("flags", "source"),
    [
        ({"node": ["a=ftp://h"]}, "--node"),
        ({"members_dns": "nodes.example"}, "--members-dns"),
        ({"members_poll_seconds": "0"}, "--members-poll-seconds"),
        ({"gone_after_seconds": "-1"}, "--gone-after-seconds"),
        ({"probe_rise": "0"}, "--probe-rise"),
    ],
)
def test_a_wrong_setting_is_named(flags: dict[str, object], source: str) -> None:
    with pytest.raises(WrongSetting) as wrong:
        load(MemberSettings, flags=flags)
    assert wrong.value.source == source


def test_the_environment_names_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOBLET_MEMBERS_FILE", "/etc/goblet/members.toml")
    monkeypatch.setenv("GOBLET_GONE_AFTER_SECONDS", "5")
    settings = load(MemberSettings, flags={"probe_timeout_seconds": "0.5"})
    assert settings.members_file == Path("/etc/goblet/members.toml")
    rules = settings.membership_rules
    assert (rules.gone_after, rules.timeout, rules.rise, rules.fall) == (5, 0.5, 2, 2)


def test_members_are_sorted_by_name() -> None:
    settings = load(MemberSettings, flags={"node": ["b=http://h:2", "a=http://h:1/"]})
    assert settings.members == members_of({"a": "http://h:1", "b": "http://h:2"})


@pytest.mark.parametrize(
    ("status", "body", "state"),
    [
        (200, b"ready\n", MemberState.READY),
        (503, b"joining: 12 of 40 mirrors copied\n", MemberState.JOINING),
        (404, b"draining: 3 mirrors to hand over\n", MemberState.DRAINING),
        (404, b"draining\n", MemberState.DRAINING),
        (200, b"<!doctype html>", None),
        (200, b"alreadyready", None),
        (404, b"Not Found", None),
        (503, b"no cache node is ready: look at /-/ring\n", None),
        (500, b"ready\n", None),
        (200, b"", None),
    ],
)
def test_what_a_node_says_of_itself_is_told_from_what_others_say(
    status: int, body: bytes, state: MemberState | None
) -> None:
    assert state_said(status, body) is state


@pytest.mark.parametrize("url", ["user:hunter2@h:1", "http:/u:hunter2@h", "http://u:hunter2@h"])
def test_a_password_is_not_repeated_wherever_in_the_url_it_stands(url: str) -> None:
    with pytest.raises(ValueError, match="leave out the user and password") as caught:
        members_of({"a": url})
    assert "hunter2" not in str(caught.value)

"""What may be configured of a node, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from goblet_node.cli import cli
from goblet_node.config import NodeSettings
from goblet_node.mirror.budget import Cap
from goblet_shared import contract


def settings(**given: Any) -> NodeSettings:
    return NodeSettings.model_validate({"name": "goblet-0", "cache_root": "cache"} | given)


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/b", "é", "a" * 64])
def test_a_name_that_is_no_plain_word_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="use letters"):
        settings(name=name)


@pytest.mark.parametrize(
    "url", ["host", "ftp://host", "https://me:hunter2@host", "http://host:99999", "http://[::1"]
)
def test_an_upstream_that_cannot_be_asked_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="upstream 'git'") as refused:
        settings(upstream={"git": url})
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("host", ["", "host:99999", "me:hunter2@host", "host?x"])
def test_an_allowed_host_that_cannot_be_asked_is_refused(host: str) -> None:
    with pytest.raises(ValidationError, match="upstream"):
        settings(allow_host=["github.com", host])


def test_a_connection_is_kept_at_least_twice_as_long_as_by_routers() -> None:
    shortest = 2 * contract.ROUTER_KEEPALIVE_EXPIRY
    assert settings(keep_alive_seconds=shortest).keep_alive_seconds == shortest
    with pytest.raises(ValidationError, match="at least twice"):
        settings(keep_alive_seconds=shortest - 1)


@pytest.mark.parametrize(
    "proxy", ["http://proxy:3128", "https://[::1]:8443/", "http://me:hunter2@proxy"]
)
def test_a_proxy_is_an_http_url_and_its_password_is_not_shown(proxy: str) -> None:
    accepted = settings(upstream_proxy=proxy)
    assert accepted.upstream_proxy == proxy
    assert "hunter2" not in repr(accepted)


@pytest.mark.parametrize(
    "proxy",
    [
        "",
        "foo",
        "proxy:3128",
        "socks5://me:hunter2@proxy",
        "http://",
        "http://[::1",
        "http://proxy:99999",
        "http://proxy\x01",
        "http://proxy/path",
    ],
)
def test_a_proxy_that_cannot_be_used_is_a_usage_error(proxy: str, tmp_path: Path) -> None:
    words = ["serve", "--name", "a", "--cache-root", str(tmp_path), "--upstream-proxy", proxy]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 2
    assert "want an http:// or https:// URL" in result.output
    assert "hunter2" not in result.output


def test_every_setting_explains_itself() -> None:
    for name, field in NodeSettings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name


def test_the_cap_of_the_cache_is_a_size_or_a_share() -> None:
    assert settings().cache_bytes == Cap(share=0.8)
    assert settings(cache_bytes="200GB").cache_bytes == Cap(bytes=200 * 10**9)
    assert settings(cache_bytes=12345).cache_bytes == Cap(bytes=12345)  # a number in a file
    with pytest.raises(ValidationError, match="'0%' of the file system cannot be had"):
        settings(cache_bytes="0%")
    shown = CliRunner().invoke(cli, ["serve", "--help"], env={"COLUMNS": "200"})
    assert "(80%)" in shown.output

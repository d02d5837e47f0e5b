"""The files that HAProxy starts from; whether it accepts them is asked in tests/system."""

from collections.abc import Mapping

import pytest

from goblet_router.haproxy.placement import Placement
from goblet_router.haproxy.render import (
    CONFIG,
    address_of,
    map_name,
    map_text,
    render,
    server_options,
)
from goblet_router.haproxy.settings import HAProxySettings
from goblet_shared.contract import NodeName
from goblet_shared.members import members_of
from goblet_shared.ring import SLOTS

NODES = {"goblet-1": "http://10.0.0.1:8080", "goblet-2": "http://10.0.0.2:8080"}


def config_of(nodes: Mapping[str, str] = NODES, /, **settings: object) -> str:
    placement = Placement.over(members_of(nodes))
    return render(placement, HAProxySettings.model_validate(settings))[CONFIG]


def lines_with(text: str, word: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if word in line]


def test_equal_members_give_equal_files_in_whatever_order_they_come() -> None:
    members = members_of(NODES)
    settings = HAProxySettings()
    files = render(Placement.over(members), settings)
    assert render(Placement.over(reversed(members)), settings) == files
    assert set(files) == {CONFIG, *(map_name(rank) for rank in range(settings.ranks))}


def test_a_map_has_a_line_for_each_slot_with_the_owner_in_it() -> None:
    placement = Placement.over(members_of(NODES))
    text = render(placement, HAProxySettings())[map_name(1)]
    lines = text.splitlines()
    assert lines == [f"{slot} {placement.ring.order(slot)[1]}" for slot in range(SLOTS)]
    assert map_text({}) == ""


def test_every_member_is_a_server_of_both_backends_with_one_id_of_its_own() -> None:
    servers = lines_with(config_of(), "    server ")
    assert len(servers) == 4
    assert servers[:2] == servers[2:]
    assert servers[0].startswith("server goblet-1 10.0.0.1:8080 id ")
    assert servers[0].split()[4] != servers[1].split()[4]


def test_a_server_that_is_added_later_is_checked_like_the_others() -> None:
    checks = {"probe_interval_seconds": 0.4, "probe_rise": 3, "probe_fall": 5}
    options = server_options(HAProxySettings.model_validate(checks))
    assert "inter 400ms fastinter 100ms rise 3 fall 5" in options
    assert f"default-server {options}" in lines_with(config_of(**checks), "default-server ")


def test_an_https_node_is_verified_by_its_name_and_an_ipv6_address_has_brackets() -> None:
    config = config_of({"a": "https://node.example", "b": "http://[fd00::7]:8080"})
    a, b = lines_with(config, "    server ")[:2]
    assert "node.example:443 " in a
    assert a.endswith(
        "ssl verify required ca-file @system-ca sni str(node.example) "
        "check-ssl check-sni node.example"
    )
    assert "[fd00::7]:8080 " in b
    assert "ssl" not in b
    assert address_of(members_of({"b": "http://[fd00::7]"})[0]) == ("fd00::7", 80)


def test_haproxy_becomes_the_user_that_is_named_and_may_then_open_its_socket() -> None:
    assert "    user " not in config_of()
    config = config_of(run_as="haproxy:adm")
    assert (
        "mode 660 level admin user haproxy group adm\n    user haproxy\n    group adm\n" in config
    )
    with pytest.raises(ValueError, match="want NAME or NAME:GROUP"):
        HAProxySettings(run_as="root root")


def test_names_are_followed_only_where_name_servers_are_given() -> None:
    assert "resolvers" not in config_of()
    config = config_of(name_servers=["system", "10.0.0.53:53"])
    assert "    parse-resolv-conf\n    nameserver ns1 10.0.0.53:53\n" in config
    servers = lines_with(config, "    server ")
    assert all("resolvers goblet init-addr last,libc,none" in line for line in servers)


def test_load_counts_only_where_a_bound_is_given() -> None:
    assert "srv_conn" not in config_of()
    config = config_of(most_requests=50, ranks=2)
    assert len(lines_with(config, "srv_conn")) == 4  # two ranks, two nodes
    assert len(lines_with(config, "    use-server")) == 6  # bounded, then not; and at last


def test_each_rank_has_its_rule() -> None:
    config = config_of(ranks=7)
    assert [line.count("rank6.map") for line in lines_with(config, "rank6.map")] == [2, 2]


@pytest.mark.parametrize(
    "settings",
    [
        {"listen": "*:80 ssl"},
        {"listen": "*:80\nuser root"},
        {"stats_listen": '"'},
        {"socket": "/run/a b"},
        {"certificate": "/etc/%[env(HOME)]"},
        {"ca_file": "a#b"},
        {"name_servers": ["10.0.0.1:53\n"]},
    ],
)
def test_what_would_say_something_else_in_the_file_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="use plain characters"):
        HAProxySettings.model_validate(settings)


@pytest.mark.parametrize(
    "url",
    ["h:80", "ftp://h", "http://", "http://me:pw@h", "http://h:x", "http://h:0", "http://[::1"],
)
def test_a_router_is_named_by_its_url(url: str) -> None:
    with pytest.raises(ValueError, match="want http://HOST:PORT") as caught:
        HAProxySettings(router=url)
    assert "pw" not in str(caught.value)


def test_a_router_is_the_only_source_of_members() -> None:
    assert HAProxySettings(router="http://h:8080/").router == "http://h:8080"
    with pytest.raises(ValueError, match="but not both"):
        HAProxySettings(router="http://h:8080", node={NodeName("a"): "http://h:1"})


def test_every_setting_explains_itself() -> None:
    for name, field in HAProxySettings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name

"""Members that a real DNS server lists, which answers on loopback."""

from collections.abc import Sequence

import dns.asyncresolver
import dns.rcode
import pytest

from goblet_shared.dns_members import LEAST_TTL, MOST_TTL, DnsMembers, asking
from goblet_shared.dns_name import DnsName
from goblet_shared.listing import DiscoveryFailed
from goblet_testing.dns_server import DnsServer, dns_server

SERVICES = "_http._tcp.goblet-nodes.ns.svc.cluster.local."
NODES = "nodes.example."


def source(server: DnsServer, written: str, patience: float = 5) -> DnsMembers:
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers, resolver.port = ["127.0.0.1"], server.port
    return DnsMembers(DnsName.parse(written), resolver=asking(resolver, patience=patience))


async def nodes(members: DnsMembers) -> dict[str, str]:
    return {member.name: member.url for member in (await members.look()).members}


def services(
    numbers: Sequence[int], domain: str = "goblet-nodes.ns.svc.cluster.local"
) -> list[str]:
    return [f"0 50 {8080 + number} goblet-{number}.{domain}." for number in numbers]


async def test_the_targets_of_services_begin_with_the_names_of_nodes() -> None:
    async with dns_server() as server:
        server.records[SERVICES, "SRV"] = services([2, 0])
        assert await nodes(source(server, f"srv:{SERVICES}")) == {
            "goblet-0": "http://goblet-0.goblet-nodes.ns.svc.cluster.local:8080",
            "goblet-2": "http://goblet-2.goblet-nodes.ns.svc.cluster.local:8082",
        }


async def test_names_have_no_case_and_the_service_https_means_tls() -> None:
    async with dns_server() as server:
        server.records["_https._tcp.x.example.", "SRV"] = ["0 0 443 Goblet-1.X.Example."]
        assert await nodes(source(server, "srv:_HTTPS._tcp.X.example")) == {
            "goblet-1": "https://goblet-1.x.example:443"
        }


async def test_behind_addresses_the_address_is_the_name() -> None:
    async with dns_server() as server:
        server.records[NODES, "A"] = ["10.0.0.7", "10.0.0.3"]
        server.records[NODES, "AAAA"] = ["fd00::7"]
        members = source(server, f"a:{NODES}:8080")
        assert await nodes(members) == {
            "10.0.0.3": "http://10.0.0.3:8080",
            "10.0.0.7": "http://10.0.0.7:8080",
        }
        del server.records[NODES, "A"]
        assert await nodes(members) == {
            "fd00-0000-0000-0000-0000-0000-0000-0007": "http://[fd00::7]:8080"
        }


@pytest.mark.parametrize(
    ("ttl", "again"), [(0, LEAST_TTL), (7, 7), (MOST_TTL, MOST_TTL), (86400, MOST_TTL)]
)
async def test_it_is_asked_again_when_the_answer_has_lived(ttl: int, again: float) -> None:
    async with dns_server() as server:
        server.ttl = int(ttl)
        server.records[NODES, "A"] = ["10.0.0.7"]
        assert (await source(server, f"a:{NODES}:80").look()).ask_again_in == again


async def test_a_hundred_nodes_are_listed_though_no_packet_holds_them() -> None:
    async with dns_server() as server:
        server.records[SERVICES, "SRV"] = services(range(100))
        assert len(await nodes(source(server, f"srv:{SERVICES}"))) == 100
        assert ("SRV", "tcp") in server.asked


async def test_ten_nodes_fit_a_packet() -> None:
    async with dns_server() as server:
        server.records[SERVICES, "SRV"] = services(range(10))
        assert len(await nodes(source(server, f"srv:{SERVICES}"))) == 10
        assert server.asked == [("SRV", "udp")]


@pytest.mark.parametrize("kind", ["SRV", "A"])
async def test_a_name_without_records_lists_nobody(kind: str) -> None:
    async with dns_server() as server:
        name = SERVICES if kind == "SRV" else NODES
        server.records[name, "TXT"] = ["x"]
        written = f"srv:{SERVICES}" if kind == "SRV" else f"a:{NODES}:80"
        assert await nodes(source(server, written)) == {}


async def test_a_target_that_is_the_root_is_nobody() -> None:
    async with dns_server() as server:
        server.records[SERVICES, "SRV"] = ["0 0 0 ."]
        assert await nodes(source(server, f"srv:{SERVICES}")) == {}


async def test_a_name_that_does_not_exist_is_a_failure() -> None:
    async with dns_server() as server:
        with pytest.raises(DiscoveryFailed, match=r"nodes.example.*does not exist"):
            await source(server, f"a:{NODES}:80").look()


async def test_a_server_that_is_ill_or_silent_is_a_failure_and_not_for_ever() -> None:
    async with dns_server() as server:
        server.records[NODES, "A"] = ["10.0.0.7"]
        members = source(server, f"a:{NODES}:80", patience=0.2)
        server.rcode = dns.rcode.SERVFAIL
        with pytest.raises(DiscoveryFailed, match="SERVFAIL"):
            await members.look()
        server.rcode, server.is_silent = dns.rcode.NOERROR, True
        with pytest.raises(DiscoveryFailed, match=r"nodes.example.*answered within 0.2 s$"):
            await members.look()
        server.is_silent = False
        assert await nodes(members) == {"10.0.0.7": "http://10.0.0.7:80"}


@pytest.mark.parametrize(
    ("records", "wrong"),
    [
        (["0 0 80 goblet-1.a.example.", "0 0 80 goblet-1.b.example."], "two targets"),
        (["0 0 0 goblet-1.a.example."], "the URL of node goblet-1"),
        (["0 0 80 _x.a.example."], "node name '_x'"),
    ],
)
async def test_records_that_name_no_nodes_are_a_failure(records: list[str], wrong: str) -> None:
    async with dns_server() as server:
        server.records[SERVICES, "SRV"] = records
        with pytest.raises(DiscoveryFailed, match=wrong):
            await source(server, f"srv:{SERVICES}").look()


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        (
            "srv:_http._tcp.n.example",
            DnsName(name="_http._tcp.n.example", port=None, scheme="http"),
        ),
        ("srv:_https._tcp.n", DnsName(name="_https._tcp.n", port=None, scheme="https")),
        ("a:n.example.:80", DnsName(name="n.example.", port=80, scheme="http")),
    ],
)
def test_a_setting_says_what_to_ask(written: str, asked: DnsName) -> None:
    assert DnsName.parse(written) == asked


@pytest.mark.parametrize(
    "written",
    [
        *("", "n.example", "srv:", "srv:n.example", "srv:_http._udp.n", "srv:_http._tcp."),
        *("a:n.example", "a::80", "a:n:0", "a:n:65536", "a:n:x", "a:n..m:80", "a:-\n:80"),
        *(f"a:{'x' * 64}:80", f"a:{'.'.join(['x'] * 128)}:80", "a:exämple:80", "a:n:٨٠"),
    ],
)
def test_what_says_nothing_to_ask_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="want"):
        DnsName.parse(written)

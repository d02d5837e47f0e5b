"""Members that the DNS lists, as for a headless Service of Kubernetes (RFC 1035, 2782)."""

import ipaddress
from typing import Final

import dns.asyncbackend
import dns.exception
import dns.resolver
from dns.asyncresolver import Resolver
from dns.rdtypes.IN.A import A
from dns.rdtypes.IN.AAAA import AAAA
from dns.rdtypes.IN.SRV import SRV

from goblet_shared.dns_name import DnsName
from goblet_shared.listing import DiscoveryFailed, Listing
from goblet_shared.members import members_of

# An answer's time to live is how often to ask. Zero would be for ever, and an hour
# would keep a new node waiting that long.
LEAST_TTL: Final = 1.0
MOST_TTL: Final = 60.0
# After a failure: members change rarely, and a server that is down is not helped.
_RETRY: Final = 5.0
_PATIENCE: Final = 10.0
# What fits a packet everywhere (dnsflagday.net/2020): without it, ten nodes need TCP.
_PAYLOAD: Final = 1232


def system_resolver() -> Resolver:
    """Return a resolver that asks the servers that this machine is set up to ask.

    Raises:
        DiscoveryFailed: it is set up to ask none.
    """
    try:
        return asking(Resolver())
    except dns.resolver.NoResolverConfiguration as exc:
        raise DiscoveryFailed(f"/etc/resolv.conf: {exc}", ask_again_in=_RETRY) from exc


def asking(resolver: Resolver, *, patience: float = _PATIENCE) -> Resolver:
    """Have `resolver` ask as we do: `patience` seconds for all servers and searched domains."""
    resolver.use_edns(0, 0, _PAYLOAD)
    resolver.lifetime = patience
    return resolver


class DnsMembers:
    """Members as the DNS lists them now.

    An SRV record's target begins with the node's name and is its address; so a node
    of a StatefulSet keeps its name when its address changes. Behind an A record there
    is no name: the address stands in for it, and a node whose address changes is
    another node. Where there are A records, AAAA are not asked for: the same nodes
    would be there twice.
    """

    def __init__(self, asked: DnsName, *, resolver: Resolver) -> None:
        self._asked = asked
        self._resolver = resolver
        self._backend = dns.asyncbackend.get_backend("trio")

    async def look(self) -> Listing:
        """Ask for the records.

        A name without records lists nobody. A name that does not exist is a failure:
        a Service whose every pod is down looks so, and they will be back.

        Raises:
            DiscoveryFailed: no answer came, or one that names no nodes.
        """
        try:
            if self._asked.port is None:
                return await self._services()
            return await self._addresses(self._asked.port)
        except dns.exception.Timeout as exc:
            # dnspython says to the millisecond how long it took: each would be news in the log.
            within = f"{self._resolver.lifetime:g} s"
            raise self._failed(f"no server of the DNS answered within {within}") from exc
        except dns.exception.DNSException as exc:
            raise self._failed(str(exc)) from exc
        except ValueError as exc:
            raise self._failed(f"the DNS lists what is no node: {exc}") from exc

    async def _services(self) -> Listing:
        found, ttl = await self._records("SRV")
        nodes: dict[str, str] = {}
        for record in found:
            assert isinstance(record, SRV)
            # Names in the DNS have no case, and ours have.
            host = record.target.to_text(omit_final_dot=True).lower()
            if host == ".":
                continue  # RFC 2782: decidedly not available
            name = host.partition(".")[0]
            url = f"{self._asked.scheme}://{host}:{record.port}"
            if nodes.setdefault(name, url) != url:
                raise ValueError(f"two targets are called {name}: {nodes[name]} and {url}")
        return _listing(nodes, ttl)

    async def _addresses(self, port: int) -> Listing:
        found, ttl = await self._records("A")
        if not found:
            found, ttl = await self._records("AAAA")
        nodes: dict[str, str] = {}
        for record in found:
            assert isinstance(record, A | AAAA)
            address = ipaddress.ip_address(record.address)
            host = f"[{address}]" if address.version == 6 else str(address)
            # A colon is not for names; written out, no name begins with a hyphen.
            name = address.exploded.replace(":", "-")
            nodes[name] = f"{self._asked.scheme}://{host}:{port}"
        return _listing(nodes, ttl)

    async def _records(self, kind: str) -> tuple[list[object], float]:
        """Return the records of a kind, and for how long they hold."""
        answer = await self._resolver.resolve(
            self._asked.name,
            kind,
            search=True,
            raise_on_no_answer=False,
            backend=self._backend,
        )
        if answer.rrset is None:
            return [], _RETRY
        return list(answer.rrset), float(answer.rrset.ttl)

    def _failed(self, problem: str) -> DiscoveryFailed:
        return DiscoveryFailed(f"{self._asked.name}: {problem}", ask_again_in=_RETRY)


def _listing(nodes: dict[str, str], ttl: float) -> Listing:
    return Listing(members=members_of(nodes), ask_again_in=min(max(ttl, LEAST_TTL), MOST_TTL))

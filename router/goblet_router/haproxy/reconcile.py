"""What a running HAProxy lacks of a placement, and how it gets it.

`steps` decides from facts alone; `reconcile` does what it says, and looks again.

Health is not among it. HAProxy probes for itself, and a sync that dies must not leave a
node out that has recovered.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from goblet_router.haproxy.placement import Placement, rank_maps, server_ids
from goblet_router.haproxy.render import (
    BACKENDS,
    address_of,
    map_name,
    server_options,
    tls_options,
)
from goblet_router.haproxy.runtime import HAProxyRefused, RuntimeApi, SeenServer
from goblet_router.haproxy.settings import HAProxySettings
from goblet_shared.contract import NodeName
from goblet_shared.members import Member

_log = logging.getLogger(__name__)

# The sign that a server was put into maintenance from here, because its node is no
# member any more: an operator's `disable server` leaves the weight, and stays.
_OUT_WEIGHT = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a running HAProxy has: servers by backend and name, and the map of each rank."""

    servers: Mapping[str, Mapping[NodeName, SeenServer]]
    maps: tuple[Mapping[int, NodeName], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AddServer:
    """Have a server, which is down until its checks are good."""

    backend: str
    name: NodeName
    address: str
    port: int
    number: int
    options: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveServer:
    """Let a server be at another address."""

    backend: str
    name: NodeName
    address: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TakeBack:
    """Use a server again that was put out; its node is a member again."""

    backend: str
    name: NodeName


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaceMap:
    """Let the map of a rank be this one."""

    rank: int
    of: Mapping[int, NodeName]


@dataclass(frozen=True, slots=True, kw_only=True)
class PutOut:
    """Send a server nothing new; what it answers goes on."""

    backend: str
    name: NodeName


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteServer:
    """Forget a server that was put out, once its last connection has ended."""

    backend: str
    name: NodeName


Step = AddServer | MoveServer | TakeBack | ReplaceMap | PutOut | DeleteServer


def steps(
    placement: Placement,
    seen: Seen,
    *,
    addresses: Mapping[NodeName, str],
    settings: HAProxySettings,
) -> tuple[Step, ...]:
    """Return what must be done, in order, for HAProxy to place as `placement` says.

    `addresses` has the IP address of each member whose name could be resolved; of
    others no server is added or moved, and their successors stand in for those that
    HAProxy has no server for.

    Servers come before the maps that name them, and go after: what a map names is
    always there. Between two maps the order does not matter: a node at two ranks is
    tried twice, and one at none not at all, for as long as one command takes.
    """
    # A map must name no server that is not there: HAProxy would then take any.
    absent = {
        name
        for name in placement.ring.members
        if name not in addresses and any(name not in seen.servers[backend] for backend in BACKENDS)
    }
    wanted = rank_maps(placement.ring, settings.ranks, without=absent)
    by_name = {member.name: member for member in placement.members}
    return (
        *(
            step
            for backend in BACKENDS
            for step in _arrivals(backend, seen.servers[backend], by_name, addresses, settings)
        ),
        *(
            ReplaceMap(rank=rank, of=of)
            for rank, of in enumerate(wanted)
            if of != seen.maps[rank]
        ),
        *(
            step
            for backend in BACKENDS
            for server in seen.servers[backend].values()
            if server.name not in by_name
            for step in _departure(backend, server)
        ),
    )  # fmt: skip


def told(step: Step) -> str:
    """Return a step as a sentence for the log."""
    match step:
        case AddServer():
            return f"added server {step.backend}/{step.name} at {step.address}:{step.port}"
        case MoveServer():
            return f"server {step.backend}/{step.name} is at {step.address}:{step.port} now"
        case TakeBack():
            return f"server {step.backend}/{step.name} is used again"
        case ReplaceMap():
            return f"replaced {map_name(step.rank)}, {len(step.of)} slots"
        case PutOut():
            return f"server {step.backend}/{step.name} gets nothing new"
        case DeleteServer():
            return f"deleted server {step.backend}/{step.name}"


async def look(api: RuntimeApi, settings: HAProxySettings) -> Seen:
    """Return what a running HAProxy has.

    Raises:
        HAProxyRefused: it runs with something else than the rendered file.
        HAProxyUnreachable: it cannot be asked.
    """
    servers = {backend: await api.servers(backend) for backend in BACKENDS}
    maps = [await api.map(map_name(rank)) for rank in range(settings.ranks)]
    return Seen(servers=servers, maps=tuple(maps))


async def reconcile(
    api: RuntimeApi,
    placement: Placement,
    *,
    addresses: Mapping[NodeName, str],
    settings: HAProxySettings,
) -> tuple[Step, ...]:
    """Bring a running HAProxy to `placement`; return what was done.

    Afterwards it was seen to place so. Only servers of nodes that are no members any
    more may still be there, put out, with connections that have not ended.

    Raises:
        HAProxyRefused: it did not take a command, or does not show what it was told.
        HAProxyUnreachable: it cannot be asked.
    """
    todo = steps(placement, await look(api, settings), addresses=addresses, settings=settings)
    done = [step for step in todo if await _take(api, step)]
    if done:
        left = steps(placement, await look(api, settings), addresses=addresses, settings=settings)
        if missing := [step for step in left if not isinstance(step, DeleteServer)]:
            raise HAProxyRefused(f"HAProxy does not show what it was told: {missing[0]}")
    return tuple(done)


def _arrivals(
    backend: str,
    servers: Mapping[NodeName, SeenServer],
    members: Mapping[NodeName, Member],
    addresses: Mapping[NodeName, str],
    settings: HAProxySettings,
) -> Iterable[Step]:
    numbers = server_ids(members, {name: seen.number for name, seen in servers.items()})
    for name, member in members.items():
        host, port = address_of(member)
        seen = servers.get(name)
        address = addresses.get(name)
        if seen is None:
            if address is not None:
                yield AddServer(
                    backend=backend,
                    name=name,
                    address=address,
                    port=port,
                    number=numbers[name],
                    options=server_options(settings) + tls_options(member, settings),
                )
            continue
        # What HAProxy resolves for itself is its own affair.
        is_resolved = bool(settings.name_servers) and seen.host == host
        here = seen.address if is_resolved else address
        if here is not None and (here, port) != (seen.address, seen.port):
            yield MoveServer(backend=backend, name=name, address=here, port=port)
        if _is_out(seen):
            yield TakeBack(backend=backend, name=name)


def _departure(backend: str, server: SeenServer) -> Iterable[Step]:
    if not _is_out(server):
        yield PutOut(backend=backend, name=server.name)
    yield DeleteServer(backend=backend, name=server.name)


def _is_out(server: SeenServer) -> bool:
    return server.is_in_maintenance and server.weight == _OUT_WEIGHT


async def _take(api: RuntimeApi, step: Step) -> bool:
    """Take a step; say whether it changed anything."""
    match step:
        case AddServer():
            await _add(api, step)
        case MoveServer(backend=backend, name=name):
            server = f"set server {backend}/{name}"
            await api.do(f"{server} addr {step.address} port {step.port}", says="changed from")
        case TakeBack(backend=backend, name=name):
            await api.do(f"set server {backend}/{name} weight 100%")
            await api.do(f"set server {backend}/{name} state ready")
        case ReplaceMap():
            await api.replace_map(map_name(step.rank), step.of)
        case PutOut(backend=backend, name=name):
            await api.do(f"set server {backend}/{name} weight {_OUT_WEIGHT}")
            await api.do(f"set server {backend}/{name} state maint")
        case DeleteServer(backend=backend, name=name):
            # It stays while it has connections, and if a rule of the file names it
            # (a bound on its load): then until HAProxy's next reload.
            answer = await api.ask(f"del server {backend}/{name}")
            if "deleted" not in answer:
                _log.debug("server %s/%s stays for now: %s", backend, name, answer)
                return False
    return True


async def _add(api: RuntimeApi, step: AddServer) -> None:
    server = f"{step.backend}/{step.name}"
    await api.do(
        f"add server {server} {step.address}:{step.port} id {step.number} {step.options}",
        says="registered",
    )
    await api.do(f"enable health {server}")
    # A server that leaves maintenance is up until its first check; this one has never
    # been seen, so it is down until its checks are good.
    await api.do(f"enable server {server}; set server {server} health down")

"""A placement as the files that HAProxy starts from: its configuration, and a map for each rank.

Tried with HAProxy 2.6; router/DESIGN.md says why the configuration is as it is.
"""

from collections.abc import Iterable, Mapping
from importlib import resources
from string import Template
from urllib.parse import urlsplit

from goblet_router.haproxy.placement import Placement, rank_maps, server_ids
from goblet_router.haproxy.settings import HAProxySettings
from goblet_shared.contract import NodeName
from goblet_shared.members import Member
from goblet_shared.ring import ring_id

CONFIG = "haproxy.cfg"
BACKEND = "goblet"
"""The backend of the nodes that say that they are ready."""
LAST_RESORT = "goblet_draining"
"""The backend that is used when `BACKEND` has no server: a draining node is in it."""
BACKENDS = (BACKEND, LAST_RESORT)

_TEMPLATE = "haproxy.cfg.template"


def render(placement: Placement, settings: HAProxySettings) -> Mapping[str, str]:
    """Return file name -> text; equal arguments give equal texts.

    HAProxy looks for the maps beside its configuration, wherever that lies.
    """
    template = Template(resources.files(__package__).joinpath(_TEMPLATE).read_text("utf-8"))
    ids = server_ids(member.name for member in placement.members)
    maps = rank_maps(placement.ring, settings.ranks)
    config = template.substitute(
        ring=ring_id(placement.ring),
        count=len(placement.members),
        backend=BACKEND,
        last_resort=LAST_RESORT,
        bind=_bind(settings),
        stats_bind=settings.stats_listen,
        socket=settings.socket,
        socket_owner="".join(f" {what} {name}" for what, name in _owner(settings)),
        run_as="".join(f"    {what} {name}\n" for what, name in _owner(settings)),
        check_seconds=milliseconds(settings.probe_timeout_seconds),
        default_server=server_options(settings),
        ca_file=settings.ca_file,
        resolvers=_resolvers(settings.name_servers),
        load_rules="".join(f"{rule}\n" for rule in _load_rules(placement, settings)),
        look_up=_look_up(0),
        use_servers=_lines(_use_servers(settings)),
        use_servers_at_last=_lines(map(_use_server, range(settings.ranks))),
        servers=_lines(_server(member, ids[member.name], settings) for member in placement.members),
    )
    return {CONFIG: config, **{map_name(rank): map_text(of) for rank, of in enumerate(maps)}}


def map_name(rank: int) -> str:
    """Return the file name of the map of a rank; the runtime API knows the map by it as well."""
    return f"rank{rank}.map"


def map_text(of: Mapping[int, NodeName]) -> str:
    """Return a map as HAProxy reads it: a line for each slot, in order."""
    return "".join(f"{slot} {name}\n" for slot, name in sorted(of.items()))


def server_options(settings: HAProxySettings) -> str:
    """Return how every server is checked, for `default-server` and for `add server` alike.

    A request that cannot connect marks its server down at once: no load balancing rule
    asks for the right successor again within one request, but the next request finds it.
    """
    interval = milliseconds(settings.probe_interval_seconds)
    return (
        f"check inter {interval} fastinter {_fast(settings.probe_interval_seconds)} "
        f"rise {settings.probe_rise} fall {settings.probe_fall} weight 100 "
        "observe layer4 error-limit 1 on-error mark-down"
    )


def tls_options(member: Member, settings: HAProxySettings) -> str:
    """Return what a server needs whose node is asked by https; nothing for http.

    `check-ssl` goes without saying in the file, but not in the runtime API.
    """
    url = urlsplit(member.url)
    if url.scheme != "https":
        return ""
    host = url.hostname
    checks = f"check-ssl check-sni {host}"
    return f" ssl verify required ca-file {settings.ca_file} sni str({host}) {checks}"


def address_of(member: Member) -> tuple[str, int]:
    """Return the host and port of a member; an IPv6 address comes without brackets."""
    url = urlsplit(member.url)
    assert url.hostname is not None
    return url.hostname, url.port or (443 if url.scheme == "https" else 80)


def milliseconds(seconds: float) -> str:
    """Return a time as HAProxy reads it, which has no fractions."""
    return f"{max(1, round(seconds * 1000))}ms"


def _fast(interval: float) -> str:
    # Between the first sign and the verdict, not a whole interval a sign.
    return milliseconds(interval / 4)


def _bind(settings: HAProxySettings) -> str:
    if settings.certificate is None:
        return settings.listen
    return f"{settings.listen} ssl crt {settings.certificate} alpn h2,http/1.1"


def _owner(settings: HAProxySettings) -> Iterable[tuple[str, str]]:
    """Return who HAProxy is to be, as its own words and the names for them."""
    if settings.run_as is None:
        return ()
    user, _, group = settings.run_as.partition(":")
    return (("user", user), *([("group", group)] if group else []))


def _resolvers(name_servers: Iterable[str]) -> str:
    lines = [
        "    parse-resolv-conf" if server == "system" else f"    nameserver ns{number} {server}"
        for number, server in enumerate(name_servers)
    ]
    if not lines:
        return ""
    # A pod's address is worth nothing once it is another's, and a name that is not
    # there yet is asked for again soon.
    head = ["resolvers goblet", *lines, "    accepted_payload_size 8192"]
    tail = [f"    hold {what} {time}" for what, time in (("valid", "5s"), ("nx", "1s"))]
    return "\n".join([*head, *tail, ""]) + "\n"


def _server(member: Member, number: int, settings: HAProxySettings) -> str:
    host, port = address_of(member)
    # As a URL names it: with brackets around an IPv6 address.
    shown = f"[{host}]" if ":" in host else host
    names = " resolvers goblet init-addr last,libc,none" if settings.name_servers else ""
    tls = tls_options(member, settings)
    return f"    server {member.name} {shown}:{port} id {number}{names}{tls}"


def _look_up(rank: int) -> str:
    # map_str finds a slot in a tree; map_int would walk a list of 4096, which takes
    # HAProxy 6 us more each time, of some 60 us that a small request takes.
    return f"var(txn.slot),map_str({map_name(rank)})"


def _use_servers(settings: HAProxySettings) -> Iterable[str]:
    """Yield the rules that choose: by rank, at first only among nodes below the bound."""
    if settings.most_requests is not None:
        for rank in range(settings.ranks):
            yield f"{_use_server(rank)} !{{ var(txn.full{rank}) -m bool }}"
    yield from map(_use_server, range(settings.ranks))


def _use_server(rank: int) -> str:
    if rank == 0:
        return "    use-server %[var(txn.owner)] if { var(txn.owner) -m found }"
    # The condition also makes HAProxy read the map while `default-path` holds: what
    # stands in %[] it reads later.
    return f"    use-server %[{_look_up(rank)}] if {{ {_look_up(rank)} -m found }}"


def _load_rules(placement: Placement, settings: HAProxySettings) -> Iterable[str]:
    if settings.most_requests is None:
        return
    for rank in range(settings.ranks):
        for member in placement.members:
            yield (
                f"    http-request set-var(txn.full{rank}) bool(true) "
                f"if {{ {_look_up(rank)} {member.name} }} "
                f"{{ srv_conn({BACKEND}/{member.name}) ge {settings.most_requests} }}"
            )


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(lines)

"""From a raw request target to the repository and the git endpoint it means."""

import enum
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote

from goblet_shared import repo_key
from goblet_shared.errors import BadRequest
from goblet_shared.repo_key import RepoKey

UPLOAD_PACK = "git-upload-pack"
RECEIVE_PACK = "git-receive-pack"

_ABSOLUTE = re.compile(rb"(?P<scheme>https?)://(?P<authority>[^/]*)/?(?P<path>.*)", re.I | re.S)
_DEFAULT_PORTS = {b"http": b":80", b"https": b":443"}
_OWN_PAGES = frozenset({b"/", b"/healthz", b"/readyz", b"/metrics"})
_OWN_ROOM = b"/-/"

# The LFS API has no other methods; the objects themselves live elsewhere.
_METHODS_OF_LFS = frozenset({"GET", "POST"})

_SMART_ONLY = (
    "only git's smart HTTP protocol is served here: "
    "use git 1.6.6 or newer, and unset GIT_SMART_HTTP"
)
_WANTED = (
    "want /HOST/PATH/info/refs?service=git-upload-pack, /HOST/PATH/git-upload-pack, "
    "/HOST/PATH/git-receive-pack or /HOST/PATH/info/lfs/..."
)


class NotServed(BadRequest):
    """A git endpoint that a read-only cache does not have."""

    status = 403


class Endpoint(enum.Enum):
    """What of a repository is asked for."""

    INFO_REFS = "info/refs"
    UPLOAD_PACK = UPLOAD_PACK
    RECEIVE_PACK = RECEIVE_PACK
    LFS = "info/lfs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A request target that was understood.

    `service` is set for INFO_REFS alone: `git-upload-pack` or `git-receive-pack`.
    `lfs_path` is what follows `info/lfs/`, percent-encoded, without any part that
    could climb out of it. `dot_git` says that the client wrote `.git`, which some
    upstreams insist on.
    """

    key: RepoKey
    endpoint: Endpoint
    service: str | None
    lfs_path: str = ""
    dot_git: bool


def is_own(raw_path: bytes) -> bool:
    """Tell whether a target is one of our own pages rather than a repository.

    No repository is shadowed: its path would begin with a host and a slash, and
    `-` is not a host. An absolute form is never our own.
    """
    return raw_path in _OWN_PAGES or raw_path.startswith(_OWN_ROOM)


def parse_target(*, method: str, raw_path: bytes, query: bytes) -> Route:
    """Return what a request asks for.

    `raw_path` is the target as it stood in the request line, up to its `?`: in path
    form (`/github.com/org/repo/info/refs`) or, from a client that takes us for its
    proxy, in absolute form (`http://github.com/org/repo/info/refs`). The endpoint is
    cut from the end, so a repository may be called `info` and a group
    `git-upload-pack`.

    Raises:
        BadRequest: with a sentence that tells the user what to do. Nothing else,
            whatever bytes are given.
    """
    if method == "CONNECT":
        raise BadRequest(
            "a tunnel cannot be cached: unset https_proxy and set "
            "url.<address of this server>/HOST/.insteadOf to https://HOST/"
        )
    host, path = _split_host(raw_path)
    parts = path.rstrip(b"/").split(b"/")
    if parts[-2:] == [b"info", b"refs"]:
        _must_be(method, {"GET"}, "info/refs")
        service = _service(query)
        return _route(host, parts[:-2], Endpoint.INFO_REFS, service=service)
    if parts[-1] in {UPLOAD_PACK.encode(), RECEIVE_PACK.encode()}:
        endpoint = Endpoint(parts[-1].decode())
        _must_be(method, {"POST"}, endpoint.value)
        return _route(host, parts[:-1], endpoint)
    cut = _find_lfs(parts)
    if cut is not None:
        _must_be(method, _METHODS_OF_LFS, "info/lfs")
        lfs_path = "/".join(
            quote(part, safe="") for part in repo_key.decode_parts(b"/".join(parts[cut + 2 :]))
        )
        return _route(host, parts[:cut], Endpoint.LFS, lfs_path=lfs_path)
    raise BadRequest(_SMART_ONLY if _is_dumb(parts) else _WANTED)


def must_be_served(route: Route) -> None:
    """Return if a route is of a clone or fetch.

    Raises:
        NotServed: it is of a push or of LFS, which go to the git host itself.
    """
    if route.endpoint is Endpoint.LFS:
        raise NotServed("this Goblet does not serve LFS: set lfs.url to the git host itself")
    if RECEIVE_PACK in (route.endpoint.value, route.service):
        raise NotServed(
            "pushes do not go through Goblet: set url.<base>.pushInsteadOf to the git host itself"
        )


def _split_host(raw_path: bytes) -> tuple[bytes, bytes]:
    """Return the host, and the path on it without its leading slash."""
    absolute = _ABSOLUTE.fullmatch(raw_path)
    if absolute is None:
        if not raw_path.startswith(b"/"):
            raise BadRequest(_WANTED)
        host, _, path = raw_path[1:].partition(b"/")
        return host, path
    authority = absolute["authority"]
    if b"@" in authority:
        # Not echoed: it may be a password.
        raise BadRequest(
            "the address names a user before an @: leave it out and let git's "
            "credential helper send it"
        )
    return authority.removesuffix(_DEFAULT_PORTS[absolute["scheme"].lower()]), absolute["path"]


def _route(
    host: bytes,
    parts: list[bytes],
    endpoint: Endpoint,
    *,
    service: str | None = None,
    lfs_path: str = "",
) -> Route:
    path = b"/".join(parts)
    return Route(
        key=repo_key.from_target(host, path),
        endpoint=endpoint,
        service=service,
        lfs_path=lfs_path,
        dot_git=repo_key.has_dot_git(path),
    )


def _must_be(method: str, allowed: set[str] | frozenset[str], what: str) -> None:
    if method not in allowed:
        raise BadRequest(f"{what} takes {' or '.join(sorted(allowed))}, not {method[:20]!r}")


def _service(query: bytes) -> str:
    """Return the one service that the query of info/refs asks for; other parameters are let be."""
    # Latin-1 both ways: every byte is a character, so no byte is an error.
    fields = parse_qsl(query.decode("latin-1"), keep_blank_values=True, encoding="latin-1")
    services = [value for name, value in fields if name == "service"]
    if not services:
        raise BadRequest(_SMART_ONLY)
    if len(services) > 1:
        raise BadRequest("service is given more than once: want service=git-upload-pack")
    service = services[0]
    if service not in {UPLOAD_PACK, RECEIVE_PACK}:
        raise BadRequest(
            f"no service {service[:40]!a} is known here: want {UPLOAD_PACK} or {RECEIVE_PACK}"
        )
    return service


def _find_lfs(parts: list[bytes]) -> int | None:
    """Return where the last `info/lfs` begins that something follows."""
    for cut in range(len(parts) - 3, -1, -1):
        if parts[cut : cut + 2] == [b"info", b"lfs"]:
            return cut
    return None


def _is_dumb(parts: list[bytes]) -> bool:
    """Tell whether this is what git asks of a plain file server."""
    return parts[-1] == b"HEAD" or b"objects" in parts[-3:-1]

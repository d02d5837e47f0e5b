"""Requests for repositories in every spelling that a client may use, as bytes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from goblet_shared.git_route import parse_target
from goblet_shared.repo_key import RepoKey

_ODD = (
    "github.com/{org}/repo-{n}",
    "GitHub.com/{org}/Repo-{n}",
    "gitlab.example.com:8443/group/sub-{n}/{org}/project",
    "gitlab.example.com/{org}/info/lfs-{n}",
    "gitlab.example.com/{org}/git-upload-pack/x{n}",
    "gitlab.example.com/{org}/x{n}/info/lfs",
    "gitlab.example.com/{org}/x{n}/info/refs",
    "forge.example/{org}/É-Ünïcödé-{n}",
    "forge.example/{org}/a+b c%41&d={n}",
    "forge.example/{org}/x.git-{n}.x",
    "forge.example/{org}/digit{n}git",
    "forge.example:80/{org}/r{n}",
    "forge.example:443/{org}/r{n}?#",
    "1.2.3.4:3000/{org}/{n}",
    "localhost/{n}",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request on the wire, and the repository that Python finds in it."""

    request: bytes
    key: RepoKey


def repos(count: int) -> Iterator[str]:
    """Yield so many repositories as HOST/PATH, not escaped; among them all kinds of odd names."""
    for number in range(count):
        kind = _ODD[number % len(_ODD)]
        yield kind.format(org=f"Org{number % 37}", n=number)


def ask_for(repo: str, spelling: str) -> Asked:
    """Return a request for `repo` in one of `SPELLINGS`."""
    method, target = SPELLINGS[spelling](*_escaped(repo))
    body = b"0000" if method == "POST" else b""
    length = f"Content-Length: {len(body)}\r\n" if method == "POST" else ""
    # In absolute form, Host repeats the target's (RFC 9112, 3.2.2); HAProxy insists on it.
    named = target.split("/")[2] if "://" in target else "goblet.example"
    head = f"{method} {target} HTTP/1.1\r\nHost: {named}\r\n{length}\r\n"
    path, _, query = target.partition("?")
    # The oracle is what Python makes of the very bytes, not what was meant by them.
    route = parse_target(method=method, raw_path=path.encode(), query=query.encode())
    return Asked(request=head.encode() + body, key=route.key)


def _escaped(repo: str) -> tuple[str, str]:
    host, _, path = repo.partition("/")
    return host, quote(path, safe="/+&=")


def _lfs(host: str, path: str) -> tuple[str, str]:
    return "POST", f"/{host}/{path}.git/info/lfs/objects/batch"


_QUERY = "?service=git-upload-pack"
SPELLINGS: Mapping[str, Callable[[str, str], tuple[str, str]]] = {
    "GET": lambda host, path: ("GET", f"/{host}/{path}/info/refs{_QUERY}"),
    "POST": lambda host, path: ("POST", f"/{host}/{path}/git-upload-pack"),
    "GET .git": lambda host, path: ("GET", f"/{host}/{path}.git/info/refs{_QUERY}"),
    "POST .git": lambda host, path: ("POST", f"/{host}/{path}.git/git-upload-pack"),
    "absolute GET": lambda host, path: ("GET", f"http://{host}/{path}/info/refs{_QUERY}"),
    "absolute POST": lambda host, path: ("POST", f"HTTP://{host}/{path}.git/git-upload-pack"),
    "absolute https": lambda host, path: ("POST", f"https://{host}/{path}/git-upload-pack"),
    "default port": lambda host, path: (
        "GET",
        f"http://{host}{'' if ':' in host else ':80'}/{path}/info/refs{_QUERY}",
    ),
    "default port of https": lambda host, path: (
        "GET",
        f"https://{host}{'' if ':' in host else ':443'}/{path}/info/refs{_QUERY}",
    ),
    "another port than the default": lambda host, path: (
        "GET",
        f"https://{host}{'' if ':' in host else ':80'}/{path}/info/refs{_QUERY}",
    ),
    "slashes": lambda host, path: ("GET", f"/{host}/{path}//info/refs/{_QUERY}"),
    "slashes after .GIT": lambda host, path: ("POST", f"/{host}/{path}.GIT/git-upload-pack//"),
    "escaped .git": lambda host, path: ("GET", f"/{host}/{path}%2E%67it/info/refs{_QUERY}"),
    "lower case": lambda host, path: ("POST", f"/{host}/{path}/git-upload-pack".lower()),
    "push": lambda host, path: ("POST", f"/{host}/{path}/git-receive-pack"),
    "query with a slash": lambda host, path: (
        "GET",
        f"/{host}/{path}/info/refs{_QUERY}&x=/a/b.git?c",
    ),
    "LFS": _lfs,
    "LFS in LFS": lambda host, path: ("GET", f"/{host}/{path}/info/lfs/a/info/lfs/locks"),
}

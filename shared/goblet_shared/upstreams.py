"""Which upstreams there are, and what a repository's URL is on them. Pure."""

from collections.abc import Iterable, Mapping
from urllib.parse import urljoin, urlsplit

from goblet_shared import repo_key
from goblet_shared.errors import GobletError
from goblet_shared.repo_key import RepoKey

INFO_REFS = "/info/refs?service=git-upload-pack"
# Servers take request lines of 8 KB (nginx, Apache): a longer URL could not be asked.
MAX_LOCATION = 8192


class HostNotAllowed(GobletError):
    """The repository's host is not on the list of upstreams."""

    status = 403


class BadUpstream(GobletError):
    """A configured upstream URL cannot be used."""


class Upstreams:
    """The allow-list: hosts that clients may name, each with the base URL that it stands for."""

    def __init__(self, *, allowed: Iterable[str], mapped: Mapping[str, str]) -> None:
        """Take `allowed` hosts as https://HOST; `mapped` adds to them or overrides them.

        Raises BadUpstream for a URL that is not http(s) or carries userinfo.
        """
        bases = {host.lower(): f"https://{host.lower()}" for host in allowed}
        bases |= {host.lower(): url.rstrip("/") for host, url in mapped.items()}
        for host, base in bases.items():
            try:
                parts = urlsplit(base)
                origin_of(base)
            except ValueError:
                raise BadUpstream(
                    f"upstream {host!r} has a URL whose host or port cannot be read"
                ) from None
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise BadUpstream(f"upstream {host!r} needs an http:// or https:// URL")
            if "@" in parts.netloc:
                raise BadUpstream(
                    f"upstream {host!r} has a user name or password in its URL: "
                    "callers bring their own credentials"
                )
            if parts.query or parts.fragment:
                raise BadUpstream(f"upstream {host!r} has a query or fragment in its URL")
        self._bases = bases
        self._origins = {origin_of(base) for base in bases.values()}

    def repository_url(self, key: RepoKey, *, dot_git: bool) -> str:
        """Return the URL of a repository, spelled with or without `.git` as its client did.

        Hosts differ: some know only one of the spellings, and the client's works
        wherever the client's own clone works. Raises HostNotAllowed.
        """
        host = repo_key.host_of(key)
        base = self._bases.get(host)
        if base is None:
            raise HostNotAllowed(
                f"host {host!r} is not among the upstreams of this Goblet: "
                f"its operator can add it with --upstream {host}=https://{host}"
            )
        return f"{base}/{repo_key.url_path(key)}{'.git' if dot_git else ''}"

    def redirected(self, asked: str, location: str) -> str | None:
        """Return the repository URL that a redirect of its info/refs leads to, None if it may not.

        `asked` is the repository URL whose info/refs was asked. As git does, only a
        redirect that keeps the question (`/info/refs?service=...`) is one of the
        repository; as the allow-list says, only to a scheme, host and port on it.
        """
        if len(location) > MAX_LOCATION or not location.isprintable():
            return None
        try:
            target = urljoin(asked + INFO_REFS, location)
            base = target.removesuffix(INFO_REFS)
            is_known = origin_of(base) in self._origins
            has_userinfo = "@" in urlsplit(base).netloc
        except ValueError:  # a port or an IPv6 address that is none
            return None
        # A query or fragment in the base would swallow whatever is appended to it.
        if base == target or has_userinfo or "?" in base or "#" in base:
            return None
        return base if is_known else None


def origin_of(url: str) -> tuple[str, str, int | None]:
    """Return scheme, host and port: what a credential may not leave.

    Raises ValueError for a URL whose host or port cannot be read.
    """
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname or "", parts.port or default

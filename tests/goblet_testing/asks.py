"""Hand-made requests to a router, a node or an origin, one connection each.

What git would never send, and answers as they were: status, headers, body.
"""

import base64
import http.client
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from goblet_testing.seen import pkt_lines

FLUSH = b"0000"
DELIM = b"0001"
_V2 = {"Git-Protocol": "version=2"}
_PATIENCE = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back; `headers` by lower-case name."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    is_complete: bool
    """False if the connection was cut before the body's end."""

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode(errors="replace")

    @property
    def node(self) -> str | None:
        """Which node answered, by its own word."""
        return self.headers.get("goblet-node")

    @property
    def cache(self) -> str | None:
        """How the pack came about, by the node's word."""
        return self.headers.get("goblet-cache")

    @property
    def refs(self) -> dict[str, str]:
        """What an answer to `ls_refs` holds, by name."""
        lines = (line.decode().split() for line in pkt_lines(iter([self.body])))
        return {words[1]: words[0] for words in lines}

    @property
    def pack(self) -> bytes:
        """The pack of an answer to `fetch`: what its side-band 1 holds."""
        lines = pkt_lines(iter([self.body]))
        return b"".join(line[1:] for line in lines if line.startswith(b"\x01"))


def ask(
    url: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | Iterable[bytes] | None = None,
    user: tuple[str, str] | None = None,
    target: str | None = None,
) -> Answer:
    """Send one request and read all of its answer.

    A body of several pieces is sent chunked. `user` is a name and a password;
    `target` replaces the URL's path and query on the request line, as it is.
    """
    parts = urllib.parse.urlsplit(url)
    whole = parts.path + (f"?{parts.query}" if parts.query else "")
    sent = dict(headers or {})
    if user is not None:
        sent["Authorization"] = "Basic " + base64.b64encode(":".join(user).encode()).decode()
    connection = http.client.HTTPConnection(parts.netloc, timeout=_PATIENCE)
    try:
        connection.request(method, target or whole or "/", body=body, headers=sent)
        response = connection.getresponse()
        is_complete = True
        try:
            data = response.read()
        except http.client.IncompleteRead as exc:
            data, is_complete = exc.partial, False
        return Answer(
            status=response.status,
            headers={name.lower(): value for name, value in response.getheaders()},
            body=data,
            is_complete=is_complete,
        )
    finally:
        connection.close()


def info_refs(repo_url: str, *, user: tuple[str, str] | None = None) -> Answer:
    """Ask for the advertisement, in protocol version 2."""
    return ask(f"{repo_url}/info/refs?service=git-upload-pack", headers=_V2, user=user)


def ls_refs(
    repo_url: str, *prefixes: str, user: tuple[str, str] | None = None, symrefs: bool = False
) -> Answer:
    """Ask for the refs that begin with one of `prefixes` (none: all), by a bare POST."""
    lines = ["symrefs"] if symrefs else []
    lines += [f"ref-prefix {prefix}" for prefix in prefixes]
    return post(repo_url, command_body("ls-refs", lines), user=user)


def fetch(
    repo_url: str,
    wants: Sequence[str],
    *,
    haves: Sequence[str] = (),
    arguments: Sequence[str] = ("thin-pack", "ofs-delta"),
    is_done: bool = True,
    user: tuple[str, str] | None = None,
) -> Answer:
    """Ask for a pack by a bare POST."""
    lines = [*arguments, *(f"want {oid}" for oid in wants), *(f"have {oid}" for oid in haves)]
    lines += ["done"] if is_done else []
    return post(repo_url, command_body("fetch", lines), user=user)


def post(
    repo_url: str,
    body: bytes | Iterable[bytes],
    *,
    user: tuple[str, str] | None = None,
    headers: Mapping[str, str] = _V2,
) -> Answer:
    """Send `body` to the repository's git-upload-pack."""
    kind = {"Content-Type": "application/x-git-upload-pack-request"}
    return ask(
        f"{repo_url}/git-upload-pack",
        method="POST",
        headers={**kind, **headers},
        body=body,
        user=user,
    )


def command_body(command: str, arguments: Iterable[str]) -> bytes:
    """Return a request's body in protocol version 2."""
    head = pkt_line(f"command={command}\n") + pkt_line("object-format=sha1")
    return head + DELIM + b"".join(pkt_line(f"{line}\n") for line in arguments) + FLUSH


def pkt_line(data: str) -> bytes:
    """Return `data` as one pkt-line."""
    return b"%04x%b" % (len(data.encode()) + 4, data.encode())

"""What a request asked of the origin, and how it went.

The pkt-lines are read here once more, apart from the node's own reader: a judge
must not share the mistakes of what it judges.
"""

import urllib.parse
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import BinaryIO, Literal

Kind = Literal["info-refs", "ls-refs", "fetch", "v0", "probe", "other"]
"""`v0` is a POST in an older protocol, `probe` the bare `0000` before a long body."""

_ENDPOINTS = ("/info/refs", "/git-upload-pack", "/git-receive-pack")
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request, read as far as the origin cares."""

    method: str
    path: str
    repo: str
    """Without slashes at the ends and without `.git`."""
    endpoint: str
    service: str | None
    kind: Kind
    git_protocol: str | None
    agent: str | None
    """The User-Agent header."""
    request_bytes: int
    wants: int = 0
    haves: int = 0
    done: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen(Asked):
    """One line of the origin's log: what was asked, and how it went."""

    user: str | None
    status: int
    response_bytes: int
    """Of the body, as sent."""
    seconds: float
    aborted: bool
    """The answer did not end as it should: the client left, or a fault cut it."""
    packed: bool
    """The answer held pack data."""

    @classmethod
    def of(
        cls,
        asked: Asked,
        *,
        user: str | None,
        status: int,
        response_bytes: int,
        seconds: float,
        aborted: bool,
        packed: bool,
    ) -> "Seen":
        """Return the log line for `asked` and what became of it."""
        return cls(
            **{field.name: getattr(asked, field.name) for field in fields(Asked)},
            user=user,
            status=status,
            response_bytes=response_bytes,
            seconds=seconds,
            aborted=aborted,
            packed=packed,
        )

    @property
    def command(self) -> str | None:
        """`ls-refs`, `fetch`, `v0` or `probe` of a POST; None of anything else."""
        return self.kind if self.method == "POST" else None

    @property
    def wants_pack(self) -> bool:
        """It asked for a pack: not a round of negotiation that ended without one."""
        return self.packed or (self.kind in ("fetch", "v0") and self.done)

    def to_json(self) -> dict[str, object]:
        """Return all facts in one flat value for a log file."""
        return {**asdict(self), "command": self.command, "wants_pack": self.wants_pack}


def read_request(
    *, method: str, target: str, headers: dict[str, str], body: BinaryIO, size: int
) -> Asked:
    """Return what a request asks; `headers` by lower-case name, `body` is left at its start."""
    path, _, query = target.partition("?")
    decoded = urllib.parse.unquote(path)
    endpoint = next((end for end in _ENDPOINTS if decoded.endswith(end)), "")
    repo = decoded.removesuffix(endpoint).strip("/").removesuffix(".git")
    service = urllib.parse.parse_qs(query).get("service", [endpoint.strip("/") or None])[0]
    kind: Kind = "other"
    lines: list[bytes] = []
    wants = haves = 0
    done = False
    if endpoint == "/info/refs":
        kind, service = "info-refs", None if "service=" not in query else service
    elif endpoint == "/git-upload-pack":
        for line in pkt_lines(_inflated(body, gzipped=headers.get("content-encoding") == "gzip")):
            wants += line.startswith(b"want")
            haves += line.startswith(b"have ")
            done = done or line.rstrip(b"\n") == b"done"
            if not lines:
                lines.append(line)
        kind = _kind_of(lines[0] if lines else None)
        body.seek(0)
    return Asked(
        method=method,
        path=path,
        repo=repo,
        endpoint=endpoint,
        service=service,
        kind=kind,
        git_protocol=headers.get("git-protocol"),
        agent=headers.get("user-agent"),
        request_bytes=size,
        wants=wants,
        haves=haves,
        done=done,
    )


def pkt_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the data of each pkt-line, without the markers; stop where it is none any more."""
    buffer = bytearray()
    for block in blocks:
        buffer += block
        start = 0
        while len(buffer) - start >= 4:
            try:
                length = int(buffer[start : start + 4], 16)
            except ValueError:
                return
            if length < 4:
                start += 4
                continue
            if len(buffer) - start < length:
                break
            yield bytes(buffer[start + 4 : start + length])
            start += length
        del buffer[:start]


def _kind_of(first: bytes | None) -> Kind:
    if first is None:
        return "probe"
    if not first.startswith(b"command="):
        return "v0"
    command = first.removeprefix(b"command=").strip()
    return {b"ls-refs": "ls-refs", b"fetch": "fetch"}.get(command, "other")  # type: ignore[return-value]


def _inflated(body: BinaryIO, *, gzipped: bool) -> Iterator[bytes]:
    inflate = zlib.decompressobj(wbits=31)
    while block := body.read(_BLOCK):
        yield inflate.decompress(block) if gzipped else block

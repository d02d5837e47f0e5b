"""The settings of `goblet haproxy`: the members as a router takes them, and what HAProxy needs."""

import re
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from goblet_shared.member_settings import MemberSettings
from goblet_shared.settings import Seconds

# What stands in a configuration file unquoted: no space, quote, backslash or #, and
# no % or $, which HAProxy would replace.
_PLAIN = re.compile(r"[A-Za-z0-9_./:@*\[\]+,=-]+")
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(:[A-Za-z_][A-Za-z0-9_-]*)?")
MAX_RANKS = 64


class HAProxySettings(MemberSettings):
    """What is rendered, and whom `sync` follows."""

    router: str | None = Field(
        default=None,
        description="A running router as http://HOST:PORT, whose ring is followed instead of "
        "watching the nodes from here; then no other source of members is given.",
    )
    listen: str = Field(
        default="*:8080",
        description="Where HAProxy's clients connect: HOST:PORT, or * for every address.",
    )
    certificate: Path | None = Field(
        default=None,
        description="A PEM file with certificate and key, for HAProxy to take TLS (and HTTP/2) "
        "where clients connect.",
    )
    stats_listen: str = Field(
        default="127.0.0.1:8404",
        description="Where HAProxy shows its statistics (/), and its metrics for Prometheus "
        "(/metrics).",
    )
    socket: Path = Field(
        default=Path("/run/haproxy/goblet.sock"),
        description="The socket of HAProxy's runtime API: rendered into the file, and what sync "
        "speaks to. Its directory must exist.",
    )
    run_as: str | None = Field(
        default=None,
        description="The user, as NAME or NAME:GROUP, that HAProxy becomes when root starts it, "
        "and who may open its socket. By default it stays who started it.",
    )
    ranks: int = Field(
        default=4,
        ge=1,
        le=MAX_RANKS,
        description="How many owners of a repository are tried in order; after them any node "
        "is taken.",
    )
    most_requests: int | None = Field(
        default=None,
        ge=1,
        description="A node with this many requests under way is passed over while another owner "
        "has fewer. By default load does not count. Nodes that sync adds are bounded from "
        "HAProxy's next reload on.",
    )
    name_servers: list[str] = Field(
        default_factory=list,
        description="A name server as HOST:PORT, or `system` for /etc/resolv.conf; repeat it for "
        "each. HAProxy then follows the addresses of nodes that are given by name, as in "
        "Kubernetes; else it looks once, when it starts.",
    )
    ca_file: str = Field(
        default="@system-ca",
        description="A PEM file of authorities that may vouch for nodes with https URLs.",
    )
    sync_seconds: Seconds = Field(
        default=2.0,
        description="The pause between two looks at whether HAProxy is as it should be, so that "
        "one that was reloaded or restarted is brought up to date.",
    )

    @field_validator("listen", "stats_listen", "ca_file")
    @classmethod
    def _text_is_plain(cls, text: str) -> str:
        return plain(text)

    @field_validator("socket", "certificate")
    @classmethod
    def _path_is_plain(cls, path: Path | None) -> Path | None:
        return None if path is None else Path(plain(str(path)))

    @field_validator("run_as")
    @classmethod
    def _user_is_plain(cls, user: str | None) -> str | None:
        if user is not None and not _USER.fullmatch(user):
            raise ValueError("want NAME or NAME:GROUP")
        return user

    @field_validator("name_servers")
    @classmethod
    def _name_servers_are_plain(cls, servers: list[str]) -> list[str]:
        return [plain(server) for server in servers]

    @model_validator(mode="after")
    def _a_router_is_the_only_source(self) -> Self:
        if self.router and (self.node or self.members_file or self.members_dns):
            raise ValueError("give a router, or members, but not both: the router knows its own")
        return self

    @field_validator("router")
    @classmethod
    def _router_is_a_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:
            parts = urlsplit(url)
            is_usable = parts.hostname and parts.port != 0 and "@" not in parts.netloc
        except ValueError:  # no port is such a number
            is_usable = False
        if not is_usable or parts.scheme not in ("http", "https"):
            raise ValueError("want http://HOST:PORT")
        return f"{parts.scheme}://{parts.netloc}"


def plain(text: str) -> str:
    """Return a text that may stand in a configuration file as it is.

    Raises:
        ValueError: it would have to be quoted there.
    """
    if not _PLAIN.fullmatch(text):
        raise ValueError(f"{text!r} cannot stand in HAProxy's configuration: use plain characters")
    return text

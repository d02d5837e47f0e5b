"""The settings that router and node share: who the members are, and how they are watched."""

from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from goblet_shared.dns_name import DnsName
from goblet_shared.members import Member, members_of
from goblet_shared.membership import Rules
from goblet_shared.settings import ProcessSettings, Seconds


class MemberSettings(ProcessSettings):
    """Where a process learns who the members of its cluster are, and when it believes what."""

    node: dict[str, str] = Field(
        default_factory=dict,
        description="A cache node as NAME=URL; repeat it for each. Placement goes by the name, "
        "so keep names when addresses change.",
    )
    members_file: Path | None = Field(
        default=None,
        description="A file that names the nodes instead, read again when it changes: TOML with "
        'a table [nodes] of NAME = "URL", or JSON as {"nodes": {"NAME": "URL"}}.',
    )
    members_poll_seconds: Seconds = Field(
        default=2.0, description="The pause between two looks at whether members_file changed."
    )
    members_dns: str | None = Field(
        default=None,
        description="A name that the DNS lists the nodes under instead: srv:_http._tcp.NAME, "
        "where the first label of each target is a node's name, or a:NAME:PORT, where its "
        "address is.",
    )
    probe_interval_seconds: Seconds = Field(
        default=2.0, description="The pause between two looks at a node's /readyz."
    )
    probe_timeout_seconds: Seconds = Field(
        default=2.0,
        description="A node that does not answer /readyz within this time is not ready.",
    )
    probe_rise: int = Field(
        default=2,
        ge=1,
        description="Good probes in a row after which a suspect node is ready again.",
    )
    probe_fall: int = Field(
        default=2, ge=1, description="Bad probes in a row after which a ready node is suspect."
    )
    gone_after_seconds: Seconds = Field(
        default=60.0,
        description="How long a node that is not listed any more keeps its place, so that one "
        "that comes back finds its repositories; doubled for each time within an hour that "
        "it went.",
    )
    cluster_secret_file: Path | None = Field(
        default=None,
        description="A file with the secret that members of the cluster know, the same for all: "
        "at least 32 bytes, as `openssl rand -hex 32` prints them.",
    )

    @field_validator("node")
    @classmethod
    def _nodes_are_usable(cls, nodes: dict[str, str]) -> dict[str, str]:
        members_of(nodes)
        return nodes

    @field_validator("members_dns")
    @classmethod
    def _dns_name_is_usable(cls, written: str | None) -> str | None:
        if written is not None:
            DnsName.parse(written)
        return written

    @model_validator(mode="after")
    def _members_come_from_one_place(self) -> Self:
        given = [name for name in ("node", "members_file", "members_dns") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"give one of {' and '.join(given)}: members come from one place")
        return self

    @property
    def members(self) -> tuple[Member, ...]:
        """The nodes that `node` lists, sorted by name."""
        return members_of(self.node)

    @property
    def has_members(self) -> bool:
        """Whether anything says who the members are."""
        return bool(self.node or self.members_file or self.members_dns)

    @property
    def membership_rules(self) -> Rules:
        """When what is believed of a member."""
        return Rules(
            rise=self.probe_rise,
            fall=self.probe_fall,
            gone_after=self.gone_after_seconds,
            interval=self.probe_interval_seconds,
            timeout=self.probe_timeout_seconds,
        )

"""The router's settings: every limit, wait and size that it has, with the text of --help."""

from pydantic import ByteSize, Field, field_validator

from goblet_shared.members import Member, members_of
from goblet_shared.settings import ProcessSettings, Seconds


class RouterSettings(ProcessSettings):
    """How one router behaves."""

    listen: str = Field(
        default="127.0.0.1:8080",
        description="Where clients connect: HOST:PORT, or fd://N if inherited.",
    )
    node: dict[str, str] = Field(
        default_factory=dict,
        description="A cache node as NAME=URL; repeat it for each. Placement goes by the name, "
        "so keep names when addresses change.",
    )
    fallbacks: int = Field(
        default=2,
        ge=0,
        description="How many successors are tried after a repository's first owner.",
    )
    replay_bytes: ByteSize = Field(
        default=ByteSize(1024 * 1024),
        description="How much of a request's body is kept, so that another node can be asked "
        "when the first fails. A request that has sent more is not retried.",
    )
    max_connections: int = Field(
        default=1000,
        ge=1,
        description="The most requests at one node at a time; each takes a connection.",
    )
    connect_seconds: Seconds = Field(
        default=3.0,
        description="The longest wait for a connection to a node, before the next is tried.",
    )
    first_byte_seconds: Seconds = Field(
        default=300.0,
        description="The longest wait for the head of a node's answer. Generous, because a node "
        "may have to ask a slow upstream first.",
    )
    idle_seconds: Seconds = Field(
        default=120.0,
        description="The longest pause inside a body, either way; there is no limit on the whole.",
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
    keep_alive_seconds: Seconds = Field(
        default=75.0, description="How long a client's idle connection is kept."
    )
    grace_seconds: Seconds = Field(
        default=30.0, description="How long answers in flight may go on after SIGTERM."
    )

    @field_validator("node")
    @classmethod
    def _nodes_are_usable(cls, nodes: dict[str, str]) -> dict[str, str]:
        members_of(nodes)
        return nodes

    @property
    def members(self) -> tuple[Member, ...]:
        """The nodes, sorted by name."""
        return members_of(self.node)

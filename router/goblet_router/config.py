"""The router's settings: every limit, wait and size that it has, with the text of --help."""

from typing import Literal

from pydantic import ByteSize, Field, field_validator

from goblet_shared.member_settings import MemberSettings
from goblet_shared.members import members_of
from goblet_shared.settings import Seconds
from goblet_shared.upstream_settings import UpstreamSettings


class RouterSettings(MemberSettings, UpstreamSettings):
    """How one router behaves."""

    listen: str = Field(
        default="127.0.0.1:8080",
        description="Where clients connect: HOST:PORT, or fd://N if inherited.",
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
    bypass: bool = Field(
        default=True,
        description="Ask upstream itself, under the allow-list, when no owner of a repository "
        "answers. Without it such a request fails with 503.",
    )
    spread_factor: float = Field(
        default=1.25,
        ge=0,
        allow_inf_nan=False,
        description="A repository that is asked for much uses so many of its owners that none "
        "has more under way than so many times the mean. From 1 on; 0: only its first owner.",
    )
    spread_after: int = Field(
        default=4,
        ge=1,
        description="So many requests for one repository are under way at this router before "
        "it uses a second node, which has to copy it first.",
    )
    spread_cool_seconds: Seconds = Field(
        default=30.0,
        description="How long a repository has not needed a node before it leaves it again.",
    )
    mode: Literal["proxy", "redirect"] = Field(
        default="proxy",
        description="redirect: answer the first question of a clone with a redirect to the node "
        "that owns the repository, where git goes on; clients must reach the nodes.",
    )
    advertise: dict[str, str] = Field(
        default_factory=dict,
        description="Where clients reach a node in redirect mode, as NAME=URL, if that is not "
        "where routers do; repeat it for each.",
    )
    redirect_credentials: bool = Field(
        default=False,
        description="Redirect requests with a credential too, in redirect mode, though the "
        "client may send it along. Without it they fail with 403.",
    )
    workers: int = Field(
        default=1,
        ge=1,
        le=256,
        description="How many processes serve at the address, to use as many cores. Each counts "
        "for itself what spread_after and max_connections bound.",
    )
    max_connections: int = Field(
        default=1000,
        ge=1,
        description="The most requests at one node at a time, or at one upstream; each takes a "
        "connection.",
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
    keep_alive_seconds: Seconds = Field(
        default=75.0, description="How long a client's idle connection is kept."
    )
    grace_seconds: Seconds = Field(
        default=30.0, description="How long answers in flight may go on after SIGTERM."
    )

    @field_validator("spread_factor")
    @classmethod
    def _bound_leaves_room(cls, factor: float) -> float:
        if 0 < factor < 1:
            raise ValueError("nodes cannot all have less than the mean: want 1 or more, or 0")
        return factor

    @field_validator("advertise")
    @classmethod
    def _advertised_are_usable(cls, advertised: dict[str, str]) -> dict[str, str]:
        members_of(advertised)
        return advertised

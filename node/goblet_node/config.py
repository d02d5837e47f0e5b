"""A node's settings: every limit, wait and size that it has, with the text of --help."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import ByteSize, Field, PlainValidator, field_validator, model_validator

from goblet_node.fill.connections import is_proxy_url
from goblet_node.mirror.budget import BadCap, Cap
from goblet_shared import contract
from goblet_shared.member_settings import MemberSettings
from goblet_shared.members import is_node_name
from goblet_shared.settings import Seconds
from goblet_shared.upstream_settings import UpstreamSettings


def _cap(given: object) -> Cap:
    if isinstance(given, Cap):
        return given
    try:
        return Cap.parse(str(given))
    except BadCap as exc:
        raise ValueError(str(exc)) from None


class NodeSettings(MemberSettings, UpstreamSettings):
    """How one node behaves."""

    name: str = Field(
        description="This node's stable name, such as goblet-2. Placement goes by it, so it "
        "stays when the address changes."
    )
    listen: str = Field(
        "127.0.0.1:8081",
        description="Where routers connect: HOST:PORT, or fd://N if inherited.",
    )
    cache_root: Path = Field(
        description="The folder that holds the mirrors. One node has it at a time."
    )
    upstream_proxy: str | None = Field(
        None,
        repr=False,  # it may hold a password
        description="The HTTP proxy to reach upstreams through, as http://HOST:PORT or "
        "http://USER:PASSWORD@HOST:PORT; https:// if it speaks TLS. Proxy variables of the "
        "environment are not read.",
    )
    access_seconds: float = Field(
        30.0,
        ge=0,
        allow_inf_nan=False,
        description="How long upstream's yes to one credential and repository is remembered. "
        "A repository that turns private is served to those who knew it for at most so long; see "
        "stale_seconds for the time in which upstream cannot be asked.",
    )
    stale_seconds: float = Field(
        3600.0,
        ge=0,
        allow_inf_nan=False,
        description="While an upstream cannot be reached, answers with a 5xx or not in time: how "
        "long ago it may have allowed a caller, and told the refs, for both to stand. Such "
        "answers carry their age in Goblet-Age. With 0 an outage of an upstream is one of its "
        "repositories here.",
    )
    stale_after_seconds: Seconds = Field(
        10.0,
        description="How long an upstream may think about a question to which there is such an "
        "answer, before that is given. The question goes on for those who come later.",
    )
    breaker_failures: int = Field(
        5,
        ge=0,
        le=1000,
        description="After how many failures in a row an upstream is left alone: who asks for it "
        "is told so at once. Errors of one repository alone are not enough. With 0 it never is.",
    )
    breaker_seconds: Seconds = Field(
        5.0,
        description="How long an upstream is left alone before one question tries it again, half "
        "of it more or less.",
    )
    upstream_tries: int = Field(
        3,
        ge=1,
        le=10,
        description="How often a question is asked of an upstream that fails, in the time that "
        "there is for it; pauses are random and grow.",
    )
    connect_seconds: Seconds = Field(
        10.0, description="The longest wait for a connection to an upstream."
    )
    question_seconds: Seconds = Field(
        60.0, description="The longest an upstream may take over an access check or its refs."
    )
    first_byte_seconds: Seconds = Field(
        300.0, description="The longest wait for an upstream to begin a pack."
    )
    idle_seconds: Seconds = Field(
        120.0, description="The longest pause inside an upstream's answer."
    )
    pack_idle_seconds: Seconds = Field(
        900.0,
        description="The longest that an upstream may send nothing of a pack, whatever it tells "
        "of its progress meanwhile.",
    )
    ensure_seconds: Seconds = Field(
        240.0,
        description="The longest that POST /-/ensure waits for a mirror to have what it names. "
        "Less than the routers' first_byte_seconds, after which they ask the next node.",
    )
    refresh_wait_seconds: Seconds = Field(
        60.0,
        description="How long a request for an object that is not here waits for a refresh, "
        "before upstream is asked to answer it.",
    )
    retry_refresh_seconds: float = Field(
        30.0,
        ge=0,
        allow_inf_nan=False,
        description="After a failed refresh, how long a repository's clients are passed on to "
        "upstream before it is tried again.",
    )
    freshness_seconds: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="How long a repository's refs, once listed, are told to others without "
        "asking upstream again; such answers carry their age in Goblet-Age. With 0 only those "
        "who ask at the same time share one question. A push is seen by fetches so much later.",
    )
    refs_memory_bytes: ByteSize = Field(
        default=ByteSize(128 * 1024 * 1024),
        description="The most memory for refs that were listed, and as much again for the "
        "answers that were made of them.",
    )
    mirror_after: int = Field(
        3,
        ge=0,
        le=1000,
        description="From which shallow, filtered or otherwise partial request on a repository "
        "is mirrored, within mirror_after_within_seconds; before, they are passed on to "
        "upstream. With 0 never for their sake. A whole clone has it mirrored at once.",
    )
    mirror_after_within_seconds: Seconds = Field(
        3600.0, description="In which time the requests of mirror_after must come."
    )
    never_mirror: list[str] = Field(
        default_factory=list,
        description="Repositories that are never mirrored but always passed on, as a glob on "
        "HOST/PATH such as 'github.com/org/huge*'; repeat it for each. Case does not matter, "
        "and * matches slashes too. A mirror that is there is deleted at the start.",
    )
    max_mirror_refs: int = Field(
        1_000_000,
        ge=1,
        description="The most branches and tags of a mirror. A repository with more is passed "
        "on to upstream.",
    )
    retry_too_large_seconds: Seconds = Field(
        3600.0,
        description="How long a repository that proved too large for a mirror is passed on to "
        "upstream before it is tried again.",
    )
    max_requests: int = Field(
        2000,
        ge=0,
        description="The most git requests that are let in at once; more are answered 503. With "
        "0 there is no limit.",
    )
    max_requests_per_caller: int = Field(
        500,
        ge=0,
        description="The most git requests of one caller that are let in at once, of an anonymous "
        "one by its address; more are answered 429. With 0 there is no limit.",
    )
    audit_log: Path | None = Field(
        None,
        description="The file to which who asked for what, and what they got, is appended as JSON "
        "lines. Without it none is written.",
    )
    max_request_bytes: ByteSize = Field(
        ByteSize(64 * 1024 * 1024), description="The largest request body, decoded."
    )
    max_bodies_bytes: ByteSize = Field(
        default=ByteSize(512 * 1024 * 1024),
        description="The most memory for the bodies of all requests together. Beyond it a "
        "request is answered 503.",
    )
    body_idle_seconds: Seconds = Field(
        default=30.0, description="The longest pause inside a request's body."
    )
    cache_bytes: Annotated[Cap, PlainValidator(_cap)] = Field(
        Cap(share=0.8),
        description="The most disk for mirrors and recordings together, and for what is being "
        "written: a size such as 200GB, or a share of the size of the cache root's file system "
        "such as 80%, fixed at the start. To keep it recordings go first, then mirrors that "
        "nobody uses, the least recently used before others.",
    )
    max_mirror_bytes: ByteSize | None = Field(
        None,
        description="The largest mirror. A repository that is larger is passed on to upstream.",
    )
    recordings_bytes: ByteSize = Field(
        ByteSize(10 * 1024 * 1024 * 1024),
        description="The most disk for recorded answers, of what cache_bytes allows for all. "
        "The least recently used go first. With 0 none is recorded.",
    )
    record_after: int = Field(
        2,
        ge=1,
        le=1000,
        description="From which time on that it is asked a question is recorded that one "
        "client asks to go on from what it has. Clones of any depth and filter are recorded "
        "at once.",
    )
    record_whole_after: int = Field(
        8,
        ge=0,
        le=1_000_000,
        description="From which time on that it is asked a whole clone is recorded that the mirror "
        "can send as it lies: one file costs less CPU still, and its size on the disk again. "
        "With 0 it never is.",
    )
    max_object_bytes: ByteSize = Field(
        ByteSize(2 * 1024 * 1024 * 1024),
        description="The largest object that a mirror takes. A repository with a larger one is "
        "passed on to upstream.",
    )
    workers: int = Field(
        os.cpu_count() or 2,
        ge=1,
        description="How many processes index packs at once. Each may need the memory of the "
        "largest object two or three times.",
    )
    selectors: int = Field(
        os.cpu_count() or 2,
        ge=1,
        description="How many processes look at once for the objects that a fetch needs.",
    )
    upstream_connections: int = Field(
        100,
        ge=1,
        description="The most connections to upstreams for packs and what else is passed on, "
        "and as many again for access checks and refs.",
    )
    tidy_quiet_seconds: Seconds = Field(
        10.0,
        description="A mirror's small packs are joined, and a worn one is made anew, when nobody "
        "has asked for it for so long and the node has little else to do.",
    )
    tidy_within_seconds: Seconds = Field(
        600.0, description="After so long a mirror is tidied though the node is busy."
    )
    renew_orphan_percent: float = Field(
        25.0,
        ge=1,
        le=100,
        description="A mirror is made anew, from itself, when more of its bytes than this are "
        "reached by no branch or tag any more.",
    )
    renew_depth: int = Field(
        200,
        ge=60,
        description="A mirror is made anew, from itself, when an object of it is made of more "
        "deltas than this.",
    )
    keep_alive_seconds: Seconds = Field(
        contract.NODE_KEEPALIVE,
        description="How long an idle connection is kept: at least twice as long as routers do, "
        f"who let go after {contract.ROUTER_KEEPALIVE_EXPIRY:g} s.",
    )
    grace_seconds: Seconds = Field(
        30.0,
        description="How long answers in flight may go on once the node listens no more: after "
        "SIGINT, or when it has drained.",
    )
    peer_question_seconds: Seconds = Field(
        1.0,
        description="How long another member of the cluster may take to say whether it has a "
        "mirror of a repository that is cold here, and to begin any answer.",
    )
    peer_idle_seconds: Seconds = Field(
        10.0, description="The longest pause in what another member sends."
    )
    peer_wait_seconds: Seconds = Field(
        30.0,
        description="How long a client of a cold repository waits for a mirror to be copied from "
        "another member, before it is passed on to upstream. The copy goes on.",
    )
    copy_bytes_per_second: ByteSize = Field(
        ByteSize(0),
        description="How fast a node that joins copies mirrors, in bytes a second, all together. "
        "With 0 as fast as it can. What clients wait for is not held back.",
    )
    join_seconds: Seconds = Field(
        600.0,
        description="The longest that a node which is new to its cluster copies the mirrors that "
        "it will own, before it says that it is ready. The rest comes when it is asked for.",
    )
    join_copies: int = Field(
        2, ge=1, le=64, description="How many mirrors a node that joins copies at once."
    )
    drain_seconds: Seconds = Field(
        25.0,
        description="The longest that a node which is told to go (SIGTERM, POST /-/drain) waits "
        "for others to take over the mirrors that it owns. It answers meanwhile.",
    )
    drain_notice_seconds: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="The shortest time that it goes on answering, so that routers notice: more "
        "than they take between two probes. Without it: 5 for a member of a cluster, else 0.",
    )

    @field_validator("name")
    @classmethod
    def _name_is_plain(cls, name: str) -> str:
        if not is_node_name(name):
            raise ValueError("use letters, digits, dots, hyphens and underscores")
        return name

    @field_validator("upstream_proxy")
    @classmethod
    def _proxy_is_usable(cls, proxy: str | None) -> str | None:
        if proxy is not None and not is_proxy_url(proxy):
            # Not repeated here: it may hold a password.
            raise ValueError("want an http:// or https:// URL of a host, without a path")
        return proxy

    @model_validator(mode="after")
    def _keeps_connections_longer_than_routers(self) -> "NodeSettings":
        if self.keep_alive_seconds < 2 * contract.ROUTER_KEEPALIVE_EXPIRY:
            raise ValueError(
                "keep_alive_seconds must be at least twice the router's "
                f"{contract.ROUTER_KEEPALIVE_EXPIRY:g} s"
            )
        return self

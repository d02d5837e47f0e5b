"""A node's settings: every limit, wait and size that it has, with the text of --help."""

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import ByteSize, Field, field_validator, model_validator

from goblet_node.fill.connections import is_proxy_url
from goblet_node.fill.hosts import BadUpstream, Upstreams
from goblet_shared import contract
from goblet_shared.settings import ProcessSettings

# A name becomes a header value, and uhashring hashes it: plain characters only.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class NodeSettings(ProcessSettings):
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
    allow_host: list[str] = Field(
        ["github.com", "gitlab.com", "bitbucket.org"],
        description="A host that clients may name, asked at https://HOST; repeat it for each. "
        "Giving any replaces the default list.",
    )
    upstream: dict[str, str] = Field(
        default_factory=dict,
        description="A host that clients may name and the base URL to ask for it, as NAME=URL: "
        "a private host, a test, another Goblet. Adds to the allowed hosts.",
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
        "A repository that turns private is served to those who knew it for at most so long.",
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
    keep_alive_seconds: Seconds = Field(
        contract.NODE_KEEPALIVE,
        description="How long an idle connection is kept: at least twice as long as routers do, "
        f"who let go after {contract.ROUTER_KEEPALIVE_EXPIRY:g} s.",
    )
    grace_seconds: Seconds = Field(
        30.0, description="How long answers in flight may go on after SIGTERM."
    )

    @field_validator("name")
    @classmethod
    def _name_is_plain(cls, name: str) -> str:
        if _NAME.fullmatch(name) is None:
            raise ValueError("use letters, digits, dots, hyphens and underscores")
        return name

    @field_validator("allow_host")
    @classmethod
    def _hosts_are_usable(cls, allowed: list[str]) -> list[str]:
        try:
            Upstreams(allowed=allowed, mapped={})
        except BadUpstream as exc:
            raise ValueError(str(exc)) from None
        return allowed

    @field_validator("upstream")
    @classmethod
    def _upstreams_are_usable(cls, mapped: dict[str, str]) -> dict[str, str]:
        try:
            Upstreams(allowed=(), mapped=mapped)
        except BadUpstream as exc:
            raise ValueError(str(exc)) from None
        return mapped

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

"""The settings of the commands that ask a cluster: whom they ask, and as whom."""

from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from goblet_router.asking import Cluster
from goblet_shared.settings import ProcessSettings, Seconds


class RouterAddress(ProcessSettings):
    """Which router is asked."""

    router: str = Field(
        default="http://127.0.0.1:8080", description="A running router, as http://HOST:PORT."
    )

    @field_validator("router")
    @classmethod
    def _is_an_address(cls, router: str) -> str:
        parts = urlsplit(router)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("want http://HOST:PORT")
        if "@" in parts.netloc or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError("want http://HOST:PORT, without a user or a path")
        return router.rstrip("/")


class Source(RouterAddress):
    """Where the members are learned."""

    node: list[str] = Field(
        default_factory=list,
        description="A member as NAME or NAME=URL; repeat it for each. No router is asked then.",
    )

    @field_validator("node")
    @classmethod
    def _are_members(cls, words: list[str]) -> list[str]:
        Cluster.of(words)
        return words


class NodeSource(Source):
    """The same, for commands that ask nodes what is for members alone."""

    cluster_secret_file: Path | None = Field(
        default=None,
        description="A file with the cluster's secret. Without it only nodes on this machine "
        "answer.",
    )
    patience_seconds: Seconds = Field(
        default=10.0, description="How long a node may take to answer."
    )


class WarmSettings(RouterAddress):
    """How repositories are warmed."""

    warm_seconds: Seconds = Field(
        default=900.0, description="How long a repository's first fetch may take."
    )

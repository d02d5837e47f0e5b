"""The settings that router and node share: which hosts clients may name, and where those are."""

from pydantic import Field, field_validator

from goblet_shared.settings import ProcessSettings
from goblet_shared.upstreams import BadUpstream, Upstreams


class UpstreamSettings(ProcessSettings):
    """The allow-list of upstreams."""

    allow_host: list[str] = Field(
        default=["github.com", "gitlab.com", "bitbucket.org"],
        description="A host that clients may name, asked at https://HOST; repeat it for each. "
        "Giving any replaces the default list.",
    )
    upstream: dict[str, str] = Field(
        default_factory=dict,
        description="A host that clients may name and the base URL to ask for it, as NAME=URL: "
        "a private host, a test, another Goblet. Adds to the allowed hosts.",
    )

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

    @property
    def upstreams(self) -> Upstreams:
        """The hosts that may be asked."""
        return Upstreams(allowed=self.allow_host, mapped=self.upstream)

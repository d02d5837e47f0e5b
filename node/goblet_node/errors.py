"""What can go wrong in a node, each with the status that fits before an answer has begun."""

from goblet_shared.errors import BadRequest, GobletError


class ProtocolError(BadRequest):
    """Bytes that are not the git protocol, or not a part of it that we speak."""


class UpstreamError(GobletError):
    """The origin failed or broke the protocol; another node would not help."""

    status = 502


class UpstreamDown(UpstreamError):
    """The origin cannot be reached, breaks connections, or answers with a 5xx.

    It says nothing of the caller: what upstream said a while ago may stand in for it.
    `retry_after` is how many seconds the origin asks to be left alone, if it said so.
    """

    def __init__(self, sentence: str, *, retry_after: float | None = None) -> None:
        super().__init__(sentence)
        self.retry_after = retry_after


class UpstreamResting(UpstreamDown):
    """The origin failed again and again, and is not asked for a moment."""


class UpstreamTooSlow(UpstreamDown):
    """The origin did not answer, or stopped sending, within the configured time."""

    status = 504


class MirrorDamaged(GobletError):
    """What the disk holds is not what was written."""


class DiskFailed(GobletError):
    """The disk refused a write; what was being written is lost, nothing else is."""

    status = 507


class NodeStopping(GobletError):
    """The node is shutting down; the same request will work elsewhere or later."""

    status = 503

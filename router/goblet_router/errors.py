"""What can go wrong in the router, each with the status that fits before an answer has begun."""

import enum

from goblet_shared.contract import NodeName
from goblet_shared.errors import GobletError


class FailureKind(enum.Enum):
    """Why a node gave no answer to one attempt; the values are metric labels."""

    UNREACHABLE = "unreachable"
    RESET = "reset"
    TIMEOUT = "timeout"
    BUSY = "busy"
    """All of our connections to the node are in use; it says nothing about the node's health."""
    DECLINED = "declined"
    """The node lives and asks us to take another."""
    GONE = "gone"
    """The node left the cluster while its turn came."""


class NodeFailed(GobletError):
    """One attempt at one node ended without the head of an answer; another node may be asked."""

    status = 502

    def __init__(self, sentence: str, *, node: NodeName, kind: FailureKind) -> None:
        super().__init__(sentence)
        self.node = node
        self.kind = kind

    @property
    def is_suspicious(self) -> bool:
        """Whether the failure speaks against the node itself."""
        return self.kind in (FailureKind.UNREACHABLE, FailureKind.RESET, FailureKind.TIMEOUT)


class StaleConnection(NodeFailed):
    """A kept connection broke before any answer: most likely the node had closed it when idle."""

    @property
    def is_suspicious(self) -> bool:
        """Closing an idle connection is a node's good right."""
        return False


class NoNodeAnswered(GobletError):
    """Every owner that could be asked failed or declined."""

    status = 503


class UpstreamFailed(GobletError):
    """Upstream, which the router asked itself, gave no answer that git can use."""

    status = 502


class NotRepeatable(GobletError):
    """A node failed, and more of the request's body had gone to it than we keep for a retry."""

    status = 502


class AnswerCut(GobletError):
    """The node's answer broke off after the client had received its head: nothing can mend that."""

    status = 502


class ClientGone(GobletError):
    """The client left before its answer was complete; the status is only seen in logs."""

    status = 499


class ClientTooSlow(GobletError):
    """The client stopped sending its request's body."""

    status = 408


class StartFailed(GobletError):
    """A process of the local cluster did not come up."""

"""What every room of a node is built on."""

from dataclasses import dataclass

import trio

from goblet_node.config import NodeSettings
from goblet_node.fill.policy import MirrorPolicy
from goblet_node.fill.room import Room
from goblet_node.metrics import NodeMetrics
from goblet_node.mirror.store import MirrorStore
from goblet_node.serve.recordings import Recordings
from goblet_shared.audit import Audit
from goblet_shared.cluster_secret import ClusterSecret


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The settings, the nursery of the whole service, and what is on the disk."""

    settings: NodeSettings
    nursery: trio.Nursery
    metrics: NodeMetrics
    store: MirrorStore
    recordings: Recordings
    room: Room
    policy: MirrorPolicy
    secret: ClusterSecret | None
    audit: Audit

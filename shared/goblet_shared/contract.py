"""The names that travel between client, router and node."""

from typing import NewType

NodeName = NewType("NodeName", str)
"""A node's stable name (`goblet-2`). Placement goes by names; addresses may change."""

# Answer headers, lower-case as ASGI wants them.
NODE_HEADER = b"goblet-node"
CACHE_HEADER = b"goblet-cache"
# What it says of an answer that a node gave of what it holds.
FROM_A_MIRROR = frozenset((b"recorded", b"whole", b"suffix", b"selected"))
REQUEST_ID_HEADER = b"x-request-id"
# Seconds since upstream was asked, on an answer that was not asked for anew.
AGE_HEADER = b"goblet-age"
# A node that answers 503 with this header is alive but wants this request to go
# to another node. Any other 503 is an answer.
DECLINED_HEADER = b"goblet-declined"
# On a request to a member: proof that its sender knows the cluster's secret.
PEER_HEADER = b"goblet-peer"

# The router lets go of an idle connection first; the node keeps it at least
# twice as long. Equal times are a race in which a healthy node looks dead.
ROUTER_KEEPALIVE_EXPIRY = 30.0
NODE_KEEPALIVE = 75.0

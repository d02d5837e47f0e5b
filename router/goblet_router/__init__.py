"""Route git requests to the cache node that owns the repository.

A request passes app (our own endpoints, or a git route) -> shared.git_route
(repository key) -> shared.ring (owners in order) -> spread (which of them, while many
ask) -> proxy (the first owner that answers, over its lane) -> bypass (upstream, if none
does); redirect sends it to its owner instead. shared.watch runs beside it: it follows
who the nodes are, and knows which are willing. workers runs several such routers at one
address; local starts a router and its nodes as processes on one machine;
__main__ and cli are the only wiring.
"""

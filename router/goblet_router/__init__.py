"""Route git requests to the cache node that owns the repository.

A request passes app (our own endpoints, or a git route) -> shared.git_route
(repository key) -> shared.ring (owners in order) -> proxy (the first owner that
answers). health runs beside it: it probes the nodes and notes which are not
willing. local starts a router and its nodes as processes on one machine;
__main__ and cli are the only wiring.
"""

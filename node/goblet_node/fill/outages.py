"""What is said of an outage: once when it first matters to a repository, once when it is over."""

import logging

from goblet_node.errors import UpstreamDown
from goblet_node.metrics import NodeMetrics
from goblet_shared.repo_key import RepoKey

log = logging.getLogger(__name__)

# Of how many repositories it is remembered that they are answered stale. Beyond it
# all are forgotten, and told once more.
MAX_TOLD = 65_536


class Outages:
    """Counts answers that are stale, and logs them once a repository and outage."""

    def __init__(self, *, metrics: NodeMetrics) -> None:
        self._metrics = metrics
        # All mutable state. Changed only between awaits.
        self._told: set[RepoKey] = set()

    def stale(self, key: RepoKey, of: str, *, age: float, why: UpstreamDown | None) -> None:
        """Take note that what upstream said of a repository `age` seconds ago stands in.

        `of` is what: "access" or "refs". `why` is how upstream failed, None if it has
        only not answered yet.
        """
        self._metrics.stale_answers.labels(of).inc()
        if key in self._told:
            return
        if len(self._told) >= MAX_TOLD:
            self._told.clear()
        self._told.add(key)
        log.warning(
            "%s is served as its upstream had it %d s ago: %s",
            key,
            age,
            why or "it has not answered yet",
        )

    def over(self, key: RepoKey) -> None:
        """Take note that upstream told a repository's refs."""
        if key in self._told:
            self._told.remove(key)
            log.warning("%s is served as its upstream has it, again", key)

"""The logs that a worker has in memory: those of the repositories it was asked about last."""

from collections.abc import Sequence

from goblet_node.mirror.graph import Graph
from goblet_node.mirror.layout import SegmentFiles
from goblet_node.mirror.links import Links
from goblet_node.mirror.table import Table


class KeptGraphs:
    """Graphs of logs, the least recently used dropped first.

    A segment's files are named by its checksum: the same names are the same content.
    """

    def __init__(self, *, most_objects: int) -> None:
        """Keep graphs of up to `most_objects` together, and the last one in any case."""
        self._most_objects = most_objects
        # All mutable state: by the first segment, for a log that grew keeps it.
        self._graphs: dict[tuple[SegmentFiles, ...], Graph] = {}

    def of(self, log: Sequence[SegmentFiles]) -> Graph:
        """Return the graph of a log, segment 0 first; of one that grew only what is new is read.

        Raises:
            MirrorDamaged: A file is missing or not what was written.
            DiskFailed: The disk refuses to be read for another reason.
        """
        first = tuple(log[:1])
        graph = _loaded(log, self._graphs.pop(first, None))
        self._graphs[first] = graph
        kept = sum(map(len, self._graphs.values()))
        while kept > self._most_objects and len(self._graphs) > 1:
            kept -= len(self._graphs.pop(next(iter(self._graphs))))
        return graph


def _loaded(log: Sequence[SegmentFiles], earlier: Graph | None) -> Graph:
    tables, links = [files.table for files in log], [files.links for files in log]
    if earlier is None:
        return Graph(Table.load(tables), Links.load(links))
    if earlier.links.paths == tuple(links):
        return earlier
    return Graph(
        Table.load(tables, grown_from=earlier.table), Links.load(links, grown_from=earlier.links)
    )

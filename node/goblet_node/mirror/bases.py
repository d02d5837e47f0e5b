"""Contents that deltas are made on, kept within a bound."""

from collections import OrderedDict

# As git's core.deltaBaseCacheLimit.
KEPT_BYTES = 96 << 20


class BaseCache:
    """Remembers, by a number that its user gives them, the contents used last.

    Holds at most `limit` bytes, or one content if that alone is larger: a chain
    of deltas on a big object would otherwise be walked from its root for every
    link.
    """

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._limit = limit
        # Least recently used first.
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._size = 0

    def get(self, number: int) -> bytes | None:
        """Return a content if it is kept."""
        content = self._kept.get(number)
        if content is not None:
            self._kept.move_to_end(number)
        return content

    def keep(self, number: int, content: bytes) -> None:
        """Keep a content, and forget old ones until all fit the limit."""
        forgotten = self._kept.pop(number, b"")
        self._kept[number] = content
        self._size += len(content) - len(forgotten)
        while self._size > self._limit and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._size -= len(oldest)

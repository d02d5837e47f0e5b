"""Where each object id stands in an array of them.

Ids are numpy's fixed 20-byte strings, which compare like the bytes they are.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

OID = np.dtype("S20")


class IdTwice(ValueError):
    """An id stands in an array more than once."""


@dataclass(frozen=True, slots=True)
class IdIndex:
    """Where to find each id: the first eight bytes of all ids, sorted, and their places.

    Numbers are compared five times faster than 20-byte strings. `longest` is how many
    ids at most begin with the same eight bytes: 1, unless somebody took the trouble.
    """

    starts: NDArray[np.uint64]
    places: NDArray[np.int64]
    longest: int

    @classmethod
    def of(cls, oids: NDArray[np.bytes_]) -> "IdIndex":
        """Return the index of these ids. Raises IdTwice."""
        starts = _starts(oids)
        places = np.argsort(starts)
        return cls._checked(starts[places], places, oids)

    def with_more(self, oids: NDArray[np.bytes_]) -> "IdIndex":
        """Return the index of `oids`, which begin with those of this index. Raises IdTwice."""
        more = IdIndex.of(oids[len(self.starts) :])
        if not len(self.starts):
            return more
        at = np.searchsorted(self.starts, more.starts, side="right")
        starts = np.insert(self.starts, at, more.starts)
        places = np.insert(self.places, at, more.places + len(self.starts))
        return self._checked(starts, places, oids)

    def until(self, count: int) -> "IdIndex":
        """Return the index of the first ids alone."""
        is_in = self.places < count
        return IdIndex(self.starts[is_in], self.places[is_in], self.longest)

    @classmethod
    def _checked(
        cls, starts: NDArray[np.uint64], places: NDArray[np.int64], oids: NDArray[np.bytes_]
    ) -> "IdIndex":
        ties = np.flatnonzero(starts[1:] == starts[:-1])
        longest = 1
        if len(ties):
            tied = np.union1d(ties, ties + 1)
            if len(np.unique(oids[places[tied]])) < len(tied):
                raise IdTwice
            longest = int(np.unique(starts[tied], return_counts=True)[1].max())
        return cls(starts, places, longest)

    def find(self, asked: NDArray[np.bytes_], oids: NDArray[np.bytes_]) -> NDArray[np.int64]:
        """Return the place of each id that is asked for, -1 if it is not among `oids`."""
        if not len(oids):
            return np.full(len(asked), -1, dtype=np.int64)
        at = np.searchsorted(self.starts, _starts(asked))
        places = self.places[np.minimum(at, len(oids) - 1)]
        found = np.where(oids[places] == asked, places, -1)
        for step in range(1, self.longest):
            places = self.places[np.minimum(at + step, len(oids) - 1)]
            is_it = oids[places] == asked
            found[is_it] = places[is_it]
        return found


def _starts(oids: NDArray[np.bytes_]) -> NDArray[np.uint64]:
    """Return the first eight bytes of each id as a number that sorts as they do."""
    whole = np.ascontiguousarray(oids, dtype=OID)
    firsts: NDArray[Any] = np.ndarray(
        len(whole), dtype=">u8", buffer=whole.data, strides=(OID.itemsize,)
    )
    return firsts.astype(np.uint64)

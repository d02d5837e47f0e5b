"""Descriptors that are used again and again: to open a file costs a thread, and that the most.

What is sent most is small, and the same few files: a hop to a thread costs more than all
else of such an answer. Not safe between threads: the owner holds a lock.
"""

import os
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Lent:
    """A descriptor that somebody uses; closed when it is neither used nor kept any more."""

    def __init__(self, file: int) -> None:
        self.file = file
        self.users = 1
        self.is_kept = False


class OpenFiles(Generic[K]):
    """Keeps the descriptors that were used last, by name. The owner opens the files."""

    def __init__(self, *, most: int) -> None:
        """Keep `most` descriptors, and those that are in use besides."""
        self._most = most
        self._kept: OrderedDict[K, Lent] = OrderedDict()

    def take(self, name: K) -> Lent | None:
        """Lend the descriptor of this name if it is kept; it is to be given back."""
        lent = self._kept.get(name)
        if lent is not None:
            self._kept.move_to_end(name)
            lent.users += 1
        return lent

    def add(self, name: K, file: int) -> Lent:
        """Take over a descriptor, and lend it at once; whatever had this name is let go."""
        self.let_go(name)
        lent = self._kept[name] = Lent(file)
        lent.is_kept = True
        if len(self._kept) > self._most:
            self.let_go(next(iter(self._kept)))
        return lent

    def give_back(self, lent: Lent) -> None:
        """Count one user less."""
        lent.users -= 1
        _close_if_done(lent)

    def let_go(self, name: K) -> None:
        """Keep this one no longer; who uses it goes on."""
        lent = self._kept.pop(name, None)
        if lent is not None:
            lent.is_kept = False
            _close_if_done(lent)

    def clear(self) -> None:
        """Let go of all."""
        for name in list(self._kept):
            self.let_go(name)


def _close_if_done(lent: Lent) -> None:
    if not lent.users and not lent.is_kept:
        os.close(lent.file)

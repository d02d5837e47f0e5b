"""What upstreams allowed: to whom, what, and when. In memory alone.

It is kept under an HMAC of the credential, with a key that lives only in this
process: what is remembered can neither be read back nor compared with anything
outside it.
"""

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import trio

from goblet_node.fill.upstream import Grant
from goblet_shared.git_route import Route

# About 75 MB at the worst; the oldest go first.
MAX_REMEMBERED = 65536
# In how many spellings one credential's grants of one repository are kept.
_SPELLINGS = 4

_Place = tuple[str, bytes]
"""A repository in lower case, and who asks: what one *no* is about, however it was spelled."""

_Spelled = tuple[str, bool]

Question = tuple[_Place, _Spelled]
"""Whether one credential may read one repository, as it was spelled."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """A *yes*, and when it was asked for; `is_doubted` says that upstream failed since."""

    grant: Grant  # without its credential
    asked_at: float
    is_doubted: bool = False


class Grants:
    """Remembers each *yes* until a *no* ends it, whichever question brought that."""

    def __init__(self, *, clock: Callable[[], float] = trio.current_time) -> None:
        self.clock = clock
        self._hmac_key = secrets.token_bytes(32)
        # All mutable state, newest last, and the questions under way whose *yes* will be
        # the newest word. Changed only between awaits.
        self._remembered: OrderedDict[_Place, dict[_Spelled, Remembered]] = OrderedDict()
        self._asking: dict[_Place, set[_Spelled]] = {}

    def question(self, route: Route, authorization: str | None) -> Question:
        """Return what a request asks of upstream before all else."""
        # A caller without a credential is not one with an empty one.
        said = b"" if authorization is None else b"=" + authorization.encode("latin-1")
        holder = hmac.digest(self._hmac_key, said, hashlib.sha256)
        return (route.key.lower(), holder), (route.key, route.dot_git)

    def younger(self, question: Question, age: float) -> Remembered | None:
        """Return the *yes* to a question if it was asked less than `age` seconds ago."""
        place, spelled = question
        kept = self._remembered.get(place)
        known = None if kept is None else kept.get(spelled)
        return known if known is not None and self.clock() < known.asked_at + age else None

    @contextmanager
    def asking(self, question: Question) -> Iterator[Callable[[Grant], Grant]]:
        """Give what takes a *yes*, remembers it and makes it known; one at a time a question.

        It counts from the beginning of the block, since upstream may have decided that
        early; it is not remembered if a *no* came meanwhile.
        """
        (place, spelled), asked_at = question, self.clock()
        self._asking.setdefault(place, set()).add(spelled)

        def allowed(grant: Grant) -> Grant:
            grant = replace(grant, holder=place[1])
            if spelled in self._asking.get(place, ()):
                self._remember(question, Remembered(grant.held_by(None), asked_at))
            return grant

        try:
            yield allowed
        finally:
            believed = self._asking.get(place, set())
            believed.discard(spelled)
            if not believed:
                self._asking.pop(place, None)

    def doubt(self, question: Question) -> None:
        """Take note that upstream failed to answer a question."""
        place, spelled = question
        kept = self._remembered.get(place, {})
        if spelled in kept and not kept[spelled].is_doubted:
            kept[spelled] = replace(kept[spelled], is_doubted=True)

    def refused(self, grant: Grant) -> None:
        """Take note that upstream does not let a holder read any more what it did."""
        self._end((grant.key.lower(), grant.holder))

    def end(self, question: Question) -> None:
        """Take note of a *no*: what was said before it counts no more, in any spelling."""
        self._end(question[0])

    def _end(self, place: _Place) -> None:
        self._remembered.pop(place, None)
        self._asking.pop(place, None)

    def _remember(self, question: Question, known: Remembered) -> None:
        place, spelled = question
        kept = self._remembered.pop(place, {})
        kept.pop(spelled, None)
        if len(kept) >= _SPELLINGS:
            del kept[next(iter(kept))]
        while len(self._remembered) >= MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        kept[spelled] = known
        self._remembered[place] = kept

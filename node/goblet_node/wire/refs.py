"""Refs as they travel."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NewType, Self

ObjectId = NewType("ObjectId", bytes)
"""A SHA-1 object id as 40 lower-case hexadecimal digits, the form it has on the wire."""

_ID_SIZE = 40


@dataclass(frozen=True, slots=True)
class JoinedIds:
    """Object ids end to end, as they go to a worker process.

    It is the event loop that pickles: one by one, 200,000 ids would hold it for 50 ms.
    To join them and to take them apart takes 10, so that is done in a thread.
    """

    joined: bytes = b""

    @classmethod
    def of(cls, oids: Iterable[ObjectId]) -> Self:
        """Return these ids, in their order."""
        return cls(b"".join(oids))

    def apart(self) -> tuple[ObjectId, ...]:
        """Return the ids one by one."""
        starts = range(0, len(self.joined), _ID_SIZE)
        return tuple(ObjectId(self.joined[start : start + _ID_SIZE]) for start in starts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ref:
    """One advertised ref.

    `oid` is None only for a HEAD that is unborn: a symref to a branch that does
    not exist yet. `peeled` is what an annotated tag finally points at.
    """

    name: bytes
    oid: ObjectId | None
    symref_target: bytes | None = None
    peeled: ObjectId | None = None

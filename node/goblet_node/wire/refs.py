"""Refs as they travel."""

from dataclasses import dataclass
from typing import NewType

ObjectId = NewType("ObjectId", bytes)
"""A SHA-1 object id as 40 lower-case hexadecimal digits, the form it has on the wire."""


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

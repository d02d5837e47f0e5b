"""Which nodes own a repository, in which order. The only module that imports uhashring."""

from __future__ import annotations

import string
import zlib
from collections.abc import Iterable

from uhashring import HashRing

from goblet_shared.contract import NodeName
from goblet_shared.repo_key import RepoKey

# Placement goes by slot, so that it can be written down as a table: a load
# balancer with CRC-32 and a map follows it. A power of two, and some 400 slots a
# node with ten nodes, so that single slots do not unbalance them.
SLOTS = 4096

# Points of each node on uhashring's circle. With 640 the fullest of 3, 5 or 10
# nodes `goblet-N` has 1.05, 1.05 and 1.09 times its fair share of the slots (with
# uhashring's own 160: 1.04, 1.04, 1.19), and a ring of ten takes 9 ms to build.
_VNODES = 640

# HAProxy's `lower` knows ASCII alone, and so do we: str.lower would put a
# repository with a letter such as an upper-case E acute elsewhere than HAProxy does.
_LOWER_ASCII = bytes.maketrans(string.ascii_uppercase.encode(), string.ascii_lowercase.encode())


def slot_of(key: RepoKey) -> int:
    """Return the slot of a repository: CRC-32 of its key with only A to Z lowered, mod 4096.

    Two keys that differ in letter case share a slot, and nothing else.
    """
    return zlib.crc32(key.encode().translate(_LOWER_ASCII)) % SLOTS


class Ring:
    """An immutable table: slot -> members in order of preference.

    Rings over the same names are equal, however the names were listed; so router
    and nodes agree without talking. A new membership is a new ring.
    """

    __slots__ = ("_hashed", "_members", "_orders")

    def __init__(self, members: tuple[NodeName, ...]) -> None:
        self._members = members
        # uhashring overwrites a point that two names hash to, so that the last one
        # inserted keeps it: members come sorted, and the outcome is the same everywhere.
        self._hashed = HashRing(nodes=list(members), vnodes=_VNODES)
        # Filled as slots are asked for. Outside nothing shows: an order depends on
        # the members alone, so when it is computed cannot matter.
        self._orders: dict[int, tuple[NodeName, ...]] = {}

    @classmethod
    def of(cls, names: Iterable[NodeName]) -> Ring:
        """Return the ring over these names; their order and repetitions do not matter."""
        return cls(tuple(sorted(set(names))))

    @property
    def members(self) -> tuple[NodeName, ...]:
        """The names on the ring, sorted and distinct."""
        return self._members

    def order(self, slot: int) -> tuple[NodeName, ...]:
        """Return all members, the owner of `slot` first, then its successors.

        Raises:
            ValueError: when there is no such slot.
        """
        if not 0 <= slot < SLOTS:
            raise ValueError(f"slot {slot}: want 0 to {SLOTS - 1}")
        order = self._orders.get(slot)
        if order is None:
            order = self._orders[slot] = self._compute(slot)
        return order

    def owners(self, key: RepoKey) -> tuple[NodeName, ...]:
        """Return all members in the order in which they should be asked for `key`."""
        return self.order(slot_of(key))

    def _compute(self, slot: int) -> tuple[NodeName, ...]:
        if not self._members:
            return ()
        # uhashring hashes str(key): the slot as decimal digits, "0" to "4095".
        return tuple(NodeName(node["nodename"]) for node in self._hashed.range(str(slot)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ring) and self._members == other._members

    def __hash__(self) -> int:
        return hash(self._members)

    def __repr__(self) -> str:
        return f"Ring.of({list(self._members)!r})"

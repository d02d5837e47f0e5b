"""Which nodes own a repository, in which order. The only module that imports uhashring.

Each node ranks all slots by how far they lie before one of its points on uhashring's
circle, and the slots are given out rank by rank: first what some node ranks first,
then what one ranks second, until each slot has an owner. No node gets more than
`BOUND` times its fair share.

The bound is that of consistent hashing with bounded loads (Mirrokni, Thorup,
Zadimoghaddam, 2018). That every node has a list of all slots is from Maglev (Eisenbud
et al., NSDI 2016), whose nodes take turns until all is given out; ours do not make up
for a slot that another has, since that would move half as many slots again.
"""

from __future__ import annotations

import hashlib
import string
import zlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from uhashring import HashRing

from goblet_shared.contract import NodeName
from goblet_shared.repo_key import RepoKey

# Placement goes by slot, so that it can be written down as a table: a load
# balancer with CRC-32 and a map follows it. A power of two, and some 400 slots a
# node with ten nodes, so that single slots do not unbalance them.
SLOTS = 4096

# No node owns more than so many times its fair share of the slots. A tighter bound
# moves more of them when a node joins: shared/DESIGN.md has the figures.
BOUND = Fraction(11, 10)

# Points of each node on uhashring's circle.
_VNODES = 480
# Of a point's 128 bits the first 12 say behind which slot it lies, and these how far.
_BITS = 32
_CIRCLE = SLOTS << _BITS

# How many rankings are remembered, of 16 kB each: a new ring has most names of the old.
_REMEMBERED = 256

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

    __slots__ = ("_members", "_orders", "_owners", "_without")

    def __init__(self, members: tuple[NodeName, ...]) -> None:
        self._members = members
        # All three are filled as slots are asked for. Outside nothing shows: they depend
        # on the members alone, so when they are computed cannot matter.
        self._owners: Sequence[NodeName] | None = None
        self._without: dict[NodeName, Sequence[NodeName]] = {}
        self._orders: dict[int, tuple[NodeName, ...]] = {}

    @classmethod
    def of(cls, names: Iterable[NodeName]) -> Ring:
        """Return the ring over these names; their order and repetitions do not matter."""
        return cls(tuple(sorted(set(names))))

    @property
    def members(self) -> tuple[NodeName, ...]:
        """The names on the ring, sorted and distinct."""
        return self._members

    @property
    def placement(self) -> Sequence[NodeName]:
        """The owner of each slot: `SLOTS` names, or none if nobody is on the ring.

        Cheaper than to ask for the whole order of each slot.
        """
        if self._owners is None:
            self._owners = _placed(self._members)
        return self._owners

    def order(self, slot: int) -> tuple[NodeName, ...]:
        """Return all members, the owner of `slot` first, then its successors.

        The first successor is the owner on the ring without the owner.

        Raises:
            ValueError: when there is no such slot.
        """
        order = self._orders.get(slot)
        if order is None:
            if not 0 <= slot < SLOTS:
                raise ValueError(f"slot {slot}: want 0 to {SLOTS - 1}")
            order = self._orders[slot] = self._compute(slot)
        return order

    def owners(self, key: RepoKey) -> tuple[NodeName, ...]:
        """Return all members in the order in which they should be asked for `key`."""
        return self.order(slot_of(key))

    def _compute(self, slot: int) -> tuple[NodeName, ...]:
        if len(self._members) < 2:
            return self._members
        owner = self.placement[slot]
        without = self._without.get(owner)
        if without is None:
            rest = tuple(name for name in self._members if name != owner)
            without = self._without[owner] = _placed(rest)
        heir = without[slot]
        others = (name for name in self._members if name not in (owner, heir))
        return (owner, heir, *sorted(others, key=lambda name: _ranking(name).ranks[slot]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ring) and self._members == other._members

    def __hash__(self) -> int:
        return hash(self._members)

    def __repr__(self) -> str:
        return f"Ring.of({list(self._members)!r})"


def moves(old: Ring, new: Ring) -> Mapping[int, tuple[NodeName, NodeName]]:
    """Return, for each slot whose owner differs, its owner on `old` and on `new`.

    To or from a ring without members nothing moves: nobody held it, or nobody will.
    """
    if not (old.members and new.members):
        return {}
    owners = zip(old.placement, new.placement, strict=True)
    return {slot: (before, after) for slot, (before, after) in enumerate(owners) if before != after}


def ring_id(ring: Ring) -> str:
    """Return a short name of a ring: equal exactly for equal members, on every router."""
    return hashlib.sha256("\n".join(ring.members).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ranking:
    """In which order a node would take slots, were it alone."""

    slots: Sequence[int]  # by rank
    ranks: Sequence[int]  # by slot


# Remembered, because a member that joins or leaves changes the ranking of no other.
@lru_cache(maxsize=_REMEMBERED)
def _ranking(name: NodeName) -> _Ranking:
    points = HashRing(nodes=[name], vnodes=_VNODES).get_points()
    # uhashring's points are 128 bits of MD5, in their order on the circle.
    places = [point >> (128 - _CIRCLE.bit_length() + 1) for point, _ in points]
    places.append(places[0] + _CIRCLE)
    # Slots lie at even distances: hashed to their places as well, some would lie
    # together, and more would have to move when a node comes.
    distances = []
    slot = 0
    for place in places:
        behind = min(place >> _BITS, SLOTS - 1)
        distances += [
            ((place - (before << _BITS)) << SLOTS.bit_length()) + before
            for before in range(slot, behind + 1)
        ]
        slot = max(slot, behind + 1)
    mask = (1 << SLOTS.bit_length()) - 1
    slots = array("H", (distance & mask for distance in sorted(distances)))
    ranks = array("H", bytes(slots.itemsize * SLOTS))
    for rank, slot in enumerate(slots):
        ranks[slot] = rank
    return _Ranking(slots=slots, ranks=ranks)


def _placed(members: Sequence[NodeName]) -> Sequence[NodeName]:
    """Return the owner of each slot, with no more slots for any of them than the bound allows."""
    if not members:
        return ()
    bound = max(int(BOUND * SLOTS / len(members)), -(-SLOTS // len(members)))
    owners: list[NodeName | None] = [None] * SLOTS
    room = dict.fromkeys(members, bound)
    left = SLOTS
    takers = [(name, _ranking(name).slots) for name in members]
    for rank in range(SLOTS):
        # When two rank a slot alike, the first of them gets it: each of them is the
        # first at every other rank, whoever else is on the ring.
        for name, slots in takers if rank % 2 else reversed(takers):
            slot = slots[rank]
            if owners[slot] is None:
                owners[slot] = name
                room[name] -= 1
                left -= 1
        if not left:
            break
        takers = [taker for taker in takers if room[taker[0]]]
    return tuple(owner for owner in owners if owner is not None)

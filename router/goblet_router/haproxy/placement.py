"""What HAProxy must know to place repositories as the routers do: members, and a ring."""

import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from goblet_shared.contract import NodeName
from goblet_shared.members import Member
from goblet_shared.ring import SLOTS, Ring

# HAProxy multiplies a server's id by 4096 to find its points on a 32-bit circle
# (src/lb_chash.c), so that only the lower 20 bits of an id tell two servers apart.
_IDS = 2**20 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The members that HAProxy has servers for, and the ring that says who owns what.

    Every name on the ring is a member; a member need not be on the ring.
    """

    members: tuple[Member, ...]
    ring: Ring

    @classmethod
    def over(cls, members: Iterable[Member]) -> Self:
        """Return the placement in which every member is on the ring."""
        known = tuple(sorted(members, key=lambda member: member.name))
        return cls(members=known, ring=Ring.of(member.name for member in known))


def rank_maps(
    ring: Ring, ranks: int, *, without: Collection[NodeName] = ()
) -> tuple[Mapping[int, NodeName], ...]:
    """Return a map for each rank: slot -> the node that is asked at that place.

    Nodes in `without` are left out, and their successors move up. Ranks that there are
    no nodes for are empty.
    """
    orders = [
        tuple(name for name in ring.order(slot) if name not in without) for slot in range(SLOTS)
    ]
    return tuple(
        {slot: order[rank] for slot, order in enumerate(orders) if rank < len(order)}
        for rank in range(ranks)
    )


def server_ids(
    names: Iterable[NodeName], taken: Mapping[NodeName, int] | None = None
) -> Mapping[NodeName, int]:
    """Return a distinct id for each name, the same whoever else there is.

    By the name's CRC-32. Of two names that have the same (one pair in a million) the
    later in the alphabet takes the next free id, which then depends on the other.
    Names in `taken` keep what they have there.
    """
    ids = dict(taken or {})
    used = set(ids.values())
    for name in sorted(set(names) - ids.keys()):
        ids[name] = _free(1 + zlib.crc32(name.encode()) % _IDS, used)
        used.add(ids[name])
    return ids


def _free(first: int, used: Collection[int]) -> int:
    while first in used:
        first = 1 + first % _IDS
    return first

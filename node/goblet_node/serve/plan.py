"""How one fetch will be answered. A plain function of facts; the caller acts."""

from collections.abc import Sequence
from dataclasses import dataclass

from goblet_node.mirror.log import Generation
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.requests import Fetch


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a mirror holds of what one fetch wants.

    `within` are its generations, newest first, of which every tip is wanted;
    `unknown` the wants that it lacks; `reach` how many segments, from the log's
    start, hold all the others.
    """

    within: Sequence[Generation]
    unknown: frozenset[ObjectId]
    reach: int
    is_clean: bool


@dataclass(frozen=True, slots=True)
class Whole:
    """Send the segments of this generation, verbatim."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class Follow:
    """Send what the first fetch of this repository receives, as it arrives."""


@dataclass(frozen=True, slots=True)
class Refill:
    """Bring the mirror up to date, then plan again."""


@dataclass(frozen=True, slots=True)
class Forward:
    """Pass the request to upstream. `reason` is for the log and says what the mirror lacks."""

    reason: str


Plan = Whole | Follow | Refill | Forward


def plan(
    fetch: Fetch,
    *,
    held: Held | None,
    arriving: frozenset[ObjectId] | None,
    may_refill: bool,
) -> Plan:
    """Choose the cheapest answer that is right.

    `held` is None while the repository is cold; then `arriving` are the tips of the
    pack that its first fetch is receiving, None if no such fetch is under way.
    `may_refill` is False once a refresh was waited for, or cannot be had.
    """
    if not fetch.is_plain:
        return Forward("not a whole clone")
    if held is None:
        if arriving is None:
            return Refill() if may_refill else Forward("cold")
        return Follow() if arriving == set(fetch.wants) else Forward("not what is arriving")
    if held.unknown:
        return Refill() if may_refill else Forward("wants what upstream did not list")
    for generation in held.within:
        # What a clean log holds its tips reach, so further wants within it add nothing.
        if generation.is_clean and held.reach <= generation.segments:
            return Whole(generation)
    return Forward("not every tip" if held.is_clean else "the log holds what no ref reaches")

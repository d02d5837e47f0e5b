"""How one fetch will be answered. A plain function of facts; the caller acts."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from goblet_node.fill.policy import Standing
from goblet_node.mirror.log import Generation
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.requests import Fetch

# Objects that are fetched by name for one request. A mirror clone asks for every
# pull request: those are upstream's to send, and not to be kept one by one.
MAX_BROUGHT = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Behind:
    """A client that holds all tips of one clean generation of a log that is clean now.

    `is_asked_for` says that it wants every branch tip that came since.
    """

    generation: Generation
    is_asked_for: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a mirror holds of what one fetch wants.

    `within` are its generations, newest first, of which every tip is wanted;
    `unknown` the wants that it lacks; `reach` how many of its objects, from the log's
    start, hold all the others.
    """

    within: Sequence[Generation]
    unknown: frozenset[ObjectId]
    reach: int
    behind: Behind | None


class Tried(Enum):
    """What was done already for the wants that are not here.

    `ALL` leaves open why they still are not: too large for a mirror, too slow, an
    outage. `REFUSED` is that upstream said it does not have them.
    """

    NOTHING = auto()
    REFRESH = auto()
    ALL = auto()
    REFUSED = auto()


@dataclass(frozen=True, slots=True)
class Whole:
    """Send the segments of this generation, verbatim."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class Suffix:
    """Send the segments that came after this generation, verbatim."""

    generation: Generation


@dataclass(frozen=True, slots=True)
class Select:
    """Find the objects that the client lacks, and send those."""


@dataclass(frozen=True, slots=True)
class Follow:
    """Send what the first fetch of this repository receives, as it arrives."""


@dataclass(frozen=True, slots=True)
class Refill:
    """Bring the mirror up to date, then plan again."""


@dataclass(frozen=True, slots=True)
class Bring:
    """Fetch these objects by name, which no ref that is mirrored reaches, then plan again."""

    oids: frozenset[ObjectId]


@dataclass(frozen=True, slots=True)
class Refuse:
    """Upstream does not have this object either."""

    oid: ObjectId


@dataclass(frozen=True, slots=True)
class Forward:
    """Pass the request to upstream. `reason` is for the log and says what the mirror lacks.

    With `fill` the repository is fetched meanwhile, for those who come next.
    """

    reason: str
    fill: bool = False


Plan = Whole | Suffix | Select | Follow | Refill | Bring | Refuse | Forward


def plan(
    fetch: Fetch,
    *,
    held: Held | None,
    arriving: frozenset[ObjectId] | None,
    tried: Tried,
    standing: Standing,
) -> Plan:
    """Choose the cheapest answer that is right.

    `held` is None while the repository is cold; then `arriving` are the tips of the
    pack that its first fetch is receiving, None if no such fetch is under way, and
    `standing` says whether one may be for this request's sake.
    """
    if fetch.want_refs or fetch.packfile_uris is not None or fetch.sideband_all:
        return Forward("asks for what was not offered")
    if standing is Standing.NEVER:
        return Forward("is never mirrored here")
    if held is None:
        return _cold(fetch, arriving, tried, standing)
    if held.unknown:
        match tried:
            case Tried.NOTHING:
                return Refill()
            case Tried.REFRESH if len(held.unknown) <= MAX_BROUGHT:
                return Bring(held.unknown)
            case Tried.REFUSED:
                return Refuse(min(held.unknown))
            case _:
                return Forward("wants what could not be had")
    # Segments hold offset deltas, which go only to clients that say they take them.
    if fetch.is_plain and fetch.ofs_delta:
        for generation in held.within:
            # What a clean log holds its tips reach, so further wants within it add nothing.
            if generation.is_clean and held.reach <= generation.objects:
                return Whole(generation)
    if held.behind is not None and _takes_suffix(fetch) and held.behind.is_asked_for:
        return Suffix(held.behind.generation)
    return Select()


def _cold(
    fetch: Fetch, arriving: frozenset[ObjectId] | None, tried: Tried, standing: Standing
) -> Plan:
    if standing is Standing.TOO_LARGE:
        return Forward("too large for a mirror")
    if not fetch.is_plain:
        # One shallow or partial clone must not have all of a repository fetched; many
        # show that it is wanted, and so does one who holds all of its history.
        is_wanted = standing is Standing.OFTEN or (bool(fetch.haves) and _is_full(fetch))
        return Forward("cold", fill=is_wanted)
    if arriving is None:
        return Refill() if tried is Tried.NOTHING else Forward("cold")
    if arriving == set(fetch.wants) and fetch.ofs_delta:
        return Follow()
    return Forward("not what is arriving")


def _is_full(fetch: Fetch) -> bool:
    """Whether the client holds, and asks for, whole history with whole trees."""
    return not (fetch.shallow or fetch.has_depth or fetch.filter_spec is not None)


def _takes_suffix(fetch: Fetch) -> bool:
    """Whether what came later can go as it lies: thin, with offset deltas."""
    return _is_full(fetch) and fetch.thin_pack and fetch.ofs_delta and not fetch.wants_nothing

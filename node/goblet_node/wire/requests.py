"""What a client asks for, in whichever dialect of the protocol it said it.

Only values: the dialects (v2, and v0 beside it) read these and write these.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

from goblet_node.wire.refs import ObjectId


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one request may ask for before it is refused.

    What was read of a line takes twice its 50 bytes (30 MB at the peak for 262,144
    wants, measured) beside the body that holds it, so the size of a body alone would
    be a loose bound. A clone of a repository with 30,000 refs sends 30,000 wants; a client that
    negotiates over HTTP repeats its common haves and adds at most a tenth to them
    each round (LARGE_FLUSH and next_flush in git's fetch-pack.c), so a quarter of a
    million is beyond both.

    `capabilities` counts what a client says before its arguments in version 2, its
    server options among them, and the different words behind its wants in version
    0: git knows some twenty. `packets` counts everything, repeated lines too, which
    no other limit counts: as many wants and haves as allowed, and some more.
    """

    wants: int = 262_144
    haves: int = 262_144
    shallow: int = 262_144
    refs: int = 65_536
    capabilities: int = 256
    packets: int = 600_000


# TOO_MANY_PREFIXES in git's ls-refs.c: from here on git answers with every ref,
# which a client must expect, since prefixes are only a hint.
TOO_MANY_PREFIXES = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class LsRefs:
    """A question for refs. Without prefixes it is for all of them."""

    peel: bool = False
    symrefs: bool = False
    unborn: bool = False
    prefixes: tuple[bytes, ...] = ()
    agent: bytes | None = None
    session_id: bytes | None = None
    server_options: tuple[bytes, ...] = ()
    object_format: str = "sha1"
    _shortest: tuple[bytes, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_shortest", _without_covered(self.prefixes))

    def matches(self, name: bytes) -> bool:
        """Whether the ref of this full name is asked for.

        Costs one binary search: a client may send 65,535 prefixes, and asking each
        of 100,000 names about each of them would stop the node for minutes.
        """
        if not self._shortest:
            return True
        # No prefix here begins with another one, and whatever sorts between a
        # prefix of `name` and `name` begins with that prefix too: so only the
        # last one that is not after `name` can match.
        at = bisect_right(self._shortest, name)
        return at > 0 and name.startswith(self._shortest[at - 1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """A question for objects. The order of ids is the client's, each stands once.

    `deepen` counts commits, `deepen_since` is in seconds since the epoch;
    `deepen_not` holds names as the user typed them, which need not be full.
    `filter_spec` and `packfile_uris` are what the client wrote, unread.
    """

    wants: tuple[ObjectId, ...] = ()
    want_refs: tuple[bytes, ...] = ()
    haves: tuple[ObjectId, ...] = ()
    done: bool = False
    thin_pack: bool = False
    ofs_delta: bool = False
    no_progress: bool = False
    include_tag: bool = False
    wait_for_done: bool = False
    sideband_all: bool = False
    shallow: tuple[ObjectId, ...] = ()
    deepen: int | None = None
    deepen_relative: bool = False
    deepen_since: int | None = None
    deepen_not: tuple[bytes, ...] = ()
    filter_spec: str | None = None
    packfile_uris: str | None = None
    agent: bytes | None = None
    session_id: bytes | None = None
    server_options: tuple[bytes, ...] = ()
    object_format: str = "sha1"

    @property
    def wants_nothing(self) -> bool:
        """Whether the request names no object at all, neither by id nor by ref."""
        return not (self.wants or self.want_refs)

    @property
    def has_depth(self) -> bool:
        """Whether the answer changes where the client's history ends."""
        return self.deepen is not None or self.deepen_since is not None or bool(self.deepen_not)

    @property
    def is_plain(self) -> bool:
        """Whether this is a whole clone by object ids: the wants and all they reach, as a pack.

        `include_tag` does not make it less plain: it allows more objects, it never
        demands them.
        """
        return bool(self.wants) and not (
            self.want_refs
            or self.haves
            or self.shallow
            or self.has_depth
            or self.deepen_relative
            or self.filter_spec is not None
            or self.packfile_uris is not None
            or self.sideband_all
        )


def _without_covered(prefixes: Iterable[bytes]) -> tuple[bytes, ...]:
    """Return the prefixes, sorted, without those that begin with another one."""
    kept: list[bytes] = []
    for prefix in sorted(prefixes):
        if not (kept and prefix.startswith(kept[-1])):
            kept.append(prefix)
    return tuple(kept)

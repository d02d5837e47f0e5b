"""Filter-specs of partial clones: what a client does not want to be sent yet."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote_to_bytes

from goblet_node.errors import ProtocolError
from goblet_node.wire.names import shown

Kind = Literal["commit", "tree", "blob", "tag"]
"""The types of object, as `object:type=` names them."""

KINDS: frozenset[Kind] = frozenset({"commit", "tree", "blob", "tag"})

# git writes a dozen bytes for each of the four sorts of filter. The bound keeps
# "combine:combine:combine:..." from costing the square of a long line.
MAX_SPEC = 4096

# As git's git_parse_ulong: strtoumax of base 0, then a unit.
_NUMBER = re.compile(r"(0[xX][0-9a-fA-F]+|[0-9]{1,20})([kmg]?)", re.IGNORECASE)
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30}
_MAX_NUMBER = 2**64 - 1

# RESERVED_NON_WS in git's list-objects-filter-options.c: what must be written as
# %XX inside a combination, beside blanks and control characters.
_RESERVED = re.compile(r"""[\x00-\x20~`!@#$^&*()\[\]{}\\;'",<>?]""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What passes. Objects that are wanted by id pass in any case.

    Every combination of git's filters is one of these, because to combine is to
    intersect: the types that all let pass, the smallest limit, the least depth.

    Attributes:
        kinds: The types of object that pass.
        blob_limit: Blobs pass that have fewer bytes than this; None for any size.
        tree_depth: Trees and blobs pass that lie less deep than this below a commit,
            whose own tree has depth 0, or below a tree that is wanted by its id, whose
            entries have depth 0; None for any depth.
    """

    kinds: frozenset[Kind] = KINDS
    blob_limit: int | None = None
    tree_depth: int | None = None

    def __and__(self, other: "Filter") -> "Filter":
        """Return the filter that lets pass what both do."""
        return Filter(
            kinds=self.kinds & other.kinds,
            blob_limit=_least((self.blob_limit, other.blob_limit)),
            tree_depth=_least((self.tree_depth, other.tree_depth)),
        )

    @property
    def passes_blobs(self) -> bool:
        """Whether some blob could pass that is not wanted by its id."""
        return "blob" in self.kinds and self.blob_limit != 0

    @property
    def passes_trees(self) -> bool:
        """Whether some tree could pass that is not wanted by its id."""
        return "tree" in self.kinds


def parse_filter(spec: str) -> Filter:
    """Return the filter that a filter-spec says.

    Raises:
        ProtocolError: It is none, or needs what only the repository's files can say (sparse:oid).
    """
    if len(spec) > MAX_SPEC:
        raise ProtocolError(f"a filter-spec of {len(spec)} characters: want at most {MAX_SPEC}")
    parsed = Filter()
    # A list and not recursion: combinations may hold combinations.
    unread = [spec]
    while unread:
        one = unread.pop()
        if one.startswith("combine:"):
            unread += _parts(one)
        else:
            parsed &= _simple(one)
    return parsed


def _parts(combined: str) -> list[str]:
    parts = [part for part in combined.removeprefix("combine:").split("+") if part]
    if not parts:
        raise ProtocolError("expected something after combine: in a filter-spec")
    for part in parts:
        if found := _RESERVED.search(part):
            raise ProtocolError(
                f"{found[0]!r} in a part of a combined filter-spec: want %{ord(found[0]):02X}"
            )
    return [unquote_to_bytes(part).decode(errors="replace") for part in parts]


def _simple(spec: str) -> Filter:
    name, equals, value = spec.partition("=")
    if spec == "blob:none":
        return Filter(blob_limit=0)
    if name == "blob:limit" and equals:
        return Filter(blob_limit=_number(value, spec))
    if spec.startswith("tree:"):
        return Filter(tree_depth=_number(spec.removeprefix("tree:"), spec))
    if name == "object:type":
        for kind in KINDS:
            if kind == value:
                return Filter(kinds=frozenset({kind}))
    if name == "sparse:oid":
        raise ProtocolError("sparse:oid filters are not supported here: want blob:none or tree:0")
    raise ProtocolError(f"invalid filter-spec {shown(spec.encode())}")


def _number(value: str, spec: str) -> int:
    match = _NUMBER.fullmatch(value)
    if match is not None:
        digits, unit = match[1], match[2].lower()
        is_octal = digits.startswith("0") and digits.isdigit()
        if not (is_octal and not set(digits) <= set("01234567")):
            number = int(digits, 8 if is_octal else 0) << _UNITS[unit]
            if number <= _MAX_NUMBER:
                return number
    raise ProtocolError(f"invalid number in filter-spec {shown(spec.encode())}")


def _least(numbers: Collection[int | None]) -> int | None:
    return min((number for number in numbers if number is not None), default=None)

"""Names as they travel: which are valid, and how a sentence shows what is not."""

import re

from goblet_node.wire.refs import ObjectId

_OBJECT_IDS = {
    "sha1": re.compile(rb"[0-9a-f]{40}"),
    "sha256": re.compile(rb"[0-9a-f]{64}"),
}

OBJECT_FORMATS = frozenset(_OBJECT_IDS)
"""The values of `object-format` that git knows."""

# What git-check-ref-format(1) forbids, by the numbers of its rules. Rule 2 (at
# least one slash) and rule 9 ("@" alone) follow from the prefix that is_ref_name
# asks for.
_FORBIDDEN = re.compile(
    rb"[\x00-\x20\x7f~^:?*\[\\]"  # 4, 5, 10
    rb"|\.\."  # 3
    rb"|@\{"  # 8
    rb"|//|/\."  # 6, 1
    rb"|\.lock(?:/|\Z)"  # 1
    rb"|[/.]\Z"  # 6, 7
)


def as_object_id(text: bytes, object_format: str = "sha1") -> ObjectId | None:
    """Return `text` as an object id in lower case, or None if it is none in that format."""
    lowered = text.lower()
    return ObjectId(lowered) if _OBJECT_IDS[object_format].fullmatch(lowered) else None


def is_ref_name(name: bytes) -> bool:
    """Whether a repository can have a ref of this full name: HEAD, or a valid one below `refs/`.

    The rules are git-check-ref-format(1)'s. Other names without a slash
    (FETCH_HEAD, ORIG_HEAD) are private to a repository and never advertised.
    """
    if name == b"HEAD":
        return True
    return name.startswith(b"refs/") and not _FORBIDDEN.search(name)


def shown(line: bytes) -> str:
    """Return a client's bytes as they may stand in a sentence: bounded, and nothing unprintable."""
    text = line[:80].decode("utf-8", "replace")
    return repr(text + "…" if len(line) > 80 else text)

"""The manifest: the one file that says what a mirror is. Pure: values in, bytes out, and back.

A segment or a refs file exists for others only when the manifest names it, so
replacing the manifest is the moment in which a commit happens.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goblet_node.errors import MirrorDamaged
from goblet_node.mirror.layout import MANIFEST, is_refs_name, segment_files
from goblet_node.mirror.log import Generation, Segment, log_size
from goblet_node.wire.refs import ObjectId
from goblet_shared.repo_key import RepoKey

VERSION = 2
# RecursionError: thousands of brackets are damage like any other.
_NOT_UNDERSTOOD = (
    *(ValueError, LookupError, TypeError, AttributeError),
    *(OverflowError, RecursionError),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a manifest says: the log and the generations of one repository."""

    key: RepoKey
    segments: tuple[Segment, ...]
    generations: tuple[Generation, ...]

    def file_names(self) -> frozenset[str]:
        """Return the names of all files that belong into the mirror's directory."""
        of_log = (path.name for segment in self.segments for path in segment.files)
        return frozenset((MANIFEST, self.generations[-1].refs_file, *of_log))


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the manifest's file; `decode_manifest` gives back an equal manifest."""
    mirror = {
        "key": manifest.key,
        "segments": [
            {
                "number": s.number,
                "objects": s.objects,
                "bytes": s.bytes,
                "beside": s.beside,
                "checksum": s.checksum,
            }
            for s in manifest.segments
        ],
        "generations": [
            {
                "number": g.number,
                "objects": g.objects,
                "bytes": g.bytes,
                "refs_file": g.refs_file,
                "orphans": _texts(g.orphans),
                "gained": _texts(g.gained),
                "lost": _texts(g.lost),
            }
            for g in manifest.generations
        ],
    }
    sealed = {"version": VERSION, "checksum": _checksum(mirror), "mirror": mirror}
    return _canonical(sealed) + b"\n"


def decode_manifest(content: bytes, directory: Path) -> Manifest:
    """Return what the manifest of the mirror in `directory` says.

    Raises:
        MirrorDamaged: it is not what was written, or written by a version of
            Goblet whose mirrors this one cannot read.
    """
    try:
        sealed = json.loads(content)
        version = sealed["version"]
        if version != VERSION:
            raise MirrorDamaged(
                f"a mirror is of version {version!r} and this Goblet reads version {VERSION}; "
                "the mirror must be filled again"
            )
        if sealed["checksum"] != _checksum(sealed["mirror"]):
            raise MirrorDamaged(
                "a manifest is not what was written; the mirror must be filled again"
            )
        return _manifest(sealed["mirror"], directory)
    except _NOT_UNDERSTOOD as exc:
        raise MirrorDamaged(
            "a manifest cannot be understood; the mirror must be filled again"
        ) from exc


def make_segment(
    *, directory: Path, number: int, objects: int, bytes: int, beside: int, checksum: str
) -> Segment:
    """Return the segment of these facts, with its files where they lie in `directory`."""
    files = segment_files(directory, number, checksum)
    return Segment(
        number=number,
        pack=files.pack,
        table=files.table,
        links=files.links,
        objects=objects,
        bytes=bytes,
        beside=beside,
        checksum=checksum,
    )


def _manifest(mirror: dict[str, Any], directory: Path) -> Manifest:
    segments = tuple(
        make_segment(
            directory=directory,
            number=int(s["number"]),
            objects=int(s["objects"]),
            bytes=int(s["bytes"]),
            beside=int(s["beside"]),
            checksum=_hexadecimal(s["checksum"]),
        )
        for s in mirror["segments"]
    )
    generations = tuple(
        Generation(
            number=int(g["number"]),
            objects=int(g["objects"]),
            bytes=int(g["bytes"]),
            refs_file=_refs_file(g["refs_file"]),
            orphans=_oids(g["orphans"]),
            gained=_oids(g["gained"]),
            lost=_oids(g["lost"]),
        )
        for g in mirror["generations"]
    )
    if (generations[-1].objects, generations[-1].bytes) != log_size(segments):
        raise ValueError("the current generation does not stand on the whole log")
    return Manifest(key=_key(mirror["key"]), segments=segments, generations=generations)


def _checksum(mirror: Any) -> str:
    return hashlib.sha256(_canonical(mirror)).hexdigest()


def _canonical(value: Any) -> bytes:
    # One value, one spelling: what was parsed can be checked by writing it again.
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _texts(oids: Sequence[ObjectId]) -> list[str]:
    return [oid.decode() for oid in oids]


def _oids(texts: Sequence[str]) -> tuple[ObjectId, ...]:
    return tuple(ObjectId(text.encode()) for text in texts)


def _hexadecimal(text: str) -> str:
    if re.fullmatch(r"[0-9a-f]{40}", text) is None:
        raise ValueError("a checksum is not 40 hexadecimal digits")
    return text


def _key(text: str) -> RepoKey:
    if not isinstance(text, str) or not text.isprintable():
        raise ValueError("a repository's key is not one")
    return RepoKey(text)


def _refs_file(name: str) -> str:
    if not is_refs_name(name):
        raise ValueError("a refs file's name is not one of ours")
    return name

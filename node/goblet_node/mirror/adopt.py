"""A mirror that was copied from another node: checked, and made one of ours.

Other nodes are trusted to have taken in what upstream sent, each object by its name: who
knows the cluster's secret could as well be asked for the repository itself. Their disks,
and the way from there, are not trusted at all. So every byte is checked: packs by their
SHA-1, which the manifest states, table and links by their sums; and that all of
them tell of one log, so that no damage is met later, by a client.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from goblet_node.errors import MirrorDamaged
from goblet_node.mirror.commit import Commit
from goblet_node.mirror.concat import HEADER_SIZE
from goblet_node.mirror.disk import reading
from goblet_node.mirror.layout import refs_name
from goblet_node.mirror.links import BUNDLE, NO_BASE, Links, Lists
from goblet_node.mirror.log import Segment
from goblet_node.mirror.manifest import Manifest, decode_manifest, make_segment
from goblet_node.mirror.refs import check_refs, decode_refs
from goblet_node.mirror.table import Table
from goblet_node.mirror.window import TRAILER_SIZE
from goblet_shared.repo_key import RepoKey

_READ_SIZE = 1 << 20


def described(manifest: bytes, refs: bytes, *, key: RepoKey, directory: Path) -> Manifest:
    """Return what the mirror of `key` is that is to be copied into `directory`.

    The files of its log are named as they will lie there.

    Raises:
        MirrorDamaged: manifest or refs file are not what was written, do not belong
            together, or are another repository's.
    """
    with _unsound():
        found = decode_manifest(manifest, directory)
        if found.key != key:
            raise MirrorDamaged(f"a mirror of {found.key!r} was given for one of {key!r}")
        check_refs(refs)
        current = found.generations[-1]
        if current.refs_file != refs_name(current.number, refs):
            raise MirrorDamaged("the refs are not those of the current generation")
        _expect_ascending([segment.number for segment in found.segments], "segments")
        _expect_ascending([generation.number for generation in found.generations], "generations")
    return found


def check_pack(segment: Segment) -> None:
    """Raise MirrorDamaged unless a segment's pack is, byte for byte, what its checksum says.

    Reads all of it.
    """
    running = hashlib.sha1(usedforsecurity=False)
    with reading(segment.pack), segment.pack.open("rb") as pack:
        left = os.fstat(pack.fileno()).st_size - TRAILER_SIZE
        header = pack.read(HEADER_SIZE)
        running.update(header)
        left -= len(header)
        while left > 0 and (piece := pack.read(min(left, _READ_SIZE))):
            running.update(piece)
            left -= len(piece)
        trailer = pack.read()
    is_whole = trailer == running.digest() and trailer.hex() == segment.checksum
    is_of_size = int.from_bytes(header[8:]) == segment.objects
    if not (is_whole and is_of_size and header.startswith(b"PACK\0\0\0\2")):
        raise MirrorDamaged(f"{segment.pack.name!r} is not what was written")


def check_log(copied: Manifest, refs: bytes) -> Manifest:
    """Return the manifest of a copied mirror whose packs are sound, if all else is sound too.

    What its table and links take is what they take here: they may have been made anew
    where they come from.

    Raises:
        MirrorDamaged: table or links are not what was written, or do not agree with
            the packs, with each other, or with what the manifest and the refs say.
        DiskFailed: the disk refuses to be read.
    """
    with _unsound():
        table = Table.load([segment.table for segment in copied.segments])
        links = Links.load([segment.links for segment in copied.segments])
        checksums = tuple(bytes.fromhex(segment.checksum) for segment in copied.segments)
        if not table.checksums == links.checksums == checksums:
            raise MirrorDamaged("table or links are of another pack")
        _check_entries(copied.segments, table)
        _check_links(links, len(table))
        _check_generations(copied, table)
        named = [ref.oid for ref in decode_refs(refs) if ref.oid is not None]
        if missing := table.missing(named):
            raise MirrorDamaged(f"the log lacks {missing[0].decode()}, which its refs name")
    segments = tuple(replace(segment, beside=_beside(segment)) for segment in copied.segments)
    return replace(copied, segments=segments)


def plan_adoption(copied: Manifest, refs: bytes, *, directory: Path) -> Commit:
    """Return what makes a copied mirror the one that lies in `directory`."""
    segments = tuple(_in(directory, segment) for segment in copied.segments)
    moves = [
        move
        for here, there in zip(copied.segments, segments, strict=True)
        for move in zip(here.files, there.files, strict=True)
    ]
    return Commit(
        directory=directory,
        moves=tuple(moves),
        refs_file=(directory / copied.generations[-1].refs_file, refs),
        manifest=replace(copied, segments=segments),
    )


@contextmanager
def _unsound() -> Iterator[None]:
    """Raise MirrorDamaged for numbers and names that no mirror of ours would hold."""
    try:
        yield
    except (ValueError, IndexError, OverflowError) as exc:
        raise MirrorDamaged(f"a copied mirror makes no sense: {exc}") from exc


def _expect_ascending(numbers: Sequence[int], what: str) -> None:
    if any(number < 1 for number in numbers) or any(a >= b for a, b in pairwise(numbers)):
        raise MirrorDamaged(f"the {what} are not in their order")


def _check_entries(segments: Sequence[Segment], table: Table) -> None:
    """Raise MirrorDamaged unless the table's entries are just those that fill the packs."""
    offsets, lengths = table.column("offset"), table.column("length")
    if table.counts != tuple(segment.objects for segment in segments):
        raise MirrorDamaged("the table has other entries than the packs")
    for number, segment in enumerate(segments):
        rows = table.rows_of_segment(number)
        ends = np.concatenate([[HEADER_SIZE], offsets[rows] + lengths[rows]]).astype(np.int64)
        starts = np.concatenate([offsets[rows], [segment.bytes - TRAILER_SIZE]]).astype(np.int64)
        if not np.array_equal(starts, ends):
            raise MirrorDamaged(f"the table does not fit {segment.pack.name!r}")


def _check_links(links: Links, count: int) -> None:
    """Raise MirrorDamaged if links of `count` objects lead to what is not there."""
    places = links.targets[links.targets < BUNDLE]
    bundles = links.targets[links.targets >= BUNDLE] - np.uint32(BUNDLE)
    bases = links.bases[links.bases != NO_BASE]
    is_sound = (
        len(links.entries) == len(links.bases) == count
        and _are_below(places, count)
        and _are_below(bases, count)
        and _are_below(bundles, len(links.bundles))
        and _are_within(links.entries, len(links.targets))
        and _are_within(links.bundles, len(links.targets))
    )
    if not is_sound:
        raise MirrorDamaged("the links lead to what is not there")


def _are_below(numbers: NDArray[np.uint32], bound: int) -> bool:
    return int(numbers.max(initial=0)) < max(bound, 1)


def _are_within(lists: Lists, count: int) -> bool:
    ends = lists.starts + lists.counts
    return int(lists.starts.min(initial=0)) >= 0 and int(ends.max(initial=0)) <= count


def _check_generations(copied: Manifest, table: Table) -> None:
    """Raise MirrorDamaged unless each generation ends between entries, and the log has its tips."""
    sizes = np.concatenate([[0], np.cumsum(table.column("length"))]).astype(np.int64)
    for generation in copied.generations:
        reaches = 0 <= generation.objects < len(sizes)
        if not reaches or int(sizes[generation.objects]) != generation.bytes:
            raise MirrorDamaged(f"generation {generation.number} ends within an object")
        if table.missing([*generation.orphans, *generation.gained, *generation.lost]):
            raise MirrorDamaged(f"the log lacks a tip of generation {generation.number}")


def _beside(segment: Segment) -> int:
    with reading(segment.table):
        return segment.table.stat().st_size + segment.links.stat().st_size


def _in(directory: Path, segment: Segment) -> Segment:
    return make_segment(
        directory=directory,
        number=segment.number,
        objects=segment.objects,
        bytes=segment.bytes,
        beside=segment.beside,
        checksum=segment.checksum,
    )

"""A mirror as an ordinary bare repository: one pack, its index, the refs.

Nothing is indexed or compressed again: the pack is the segments one after
another, and the log's table knows where each object lies.
"""

import hashlib
import os
import secrets
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from goblet_node import objects
from goblet_node.errors import DiskFailed, MirrorDamaged
from goblet_node.mirror.concat import HEADER_SIZE, body, log_header
from goblet_node.mirror.disk import Disk, reading
from goblet_node.mirror.layout import SegmentFiles
from goblet_node.mirror.reader import LogReader
from goblet_node.mirror.table import Table
from goblet_node.mirror.window import TRAILER_SIZE
from goblet_node.wire.refs import Ref
from goblet_shared.errors import GobletError

_COPY_SIZE = 1 << 20
_CONFIG = b"[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n"
# "fully-peeled" promises that a ref without a peeled line cannot be peeled.
_PACKED_REFS_HEADER = b"# pack-refs with: peeled fully-peeled sorted \n"
# git has no repository without a HEAD. Where the origin advertised none, this
# one is unborn.
_NO_HEAD = b"ref: refs/heads/main\n"


class ExportRefused(GobletError):
    """The place to export to is not one that may be written."""


def export(*, segments: Sequence[SegmentFiles], refs: Sequence[Ref], dest: Path) -> None:
    """Make `dest` a bare repository with all objects of a log and these refs.

    `dest` appears whole or not at all; it survives a power cut. A symref other
    than HEAD becomes an ordinary ref.

    Args:
        segments: The files of every segment, in order.
        refs: The refs of a generation of that log, HEAD among them if there is one.
        dest: Must not exist, or be an empty directory; its parent must exist.

    Raises:
        ExportRefused: `dest` is taken, or its parent is missing.
        MirrorDamaged: The log is not what was written, or lacks what a ref names.
        DiskFailed: The disk refused a read or a write.
    """
    _check_free(dest)
    packs = [files.pack for files in segments]
    table = Table.load([files.table for files in segments])
    disk = Disk()
    aside = dest.parent / f".{dest.name}.{secrets.token_hex(8)}.partial"
    try:
        with LogReader(packs, table) as reader, ExitStack() as opened:
            # All at once: a node that goes on may join them while they are copied.
            sources = [opened.enter_context(_opened(pack)) for pack in packs]
            ref_lines = packed_refs(refs, reader)
            _lay_out(aside)
            if len(table):
                _write_pack(aside / "objects/pack", sources, table)
        (aside / "packed-refs").write_bytes(ref_lines)
        (aside / "HEAD").write_bytes(head_line(refs))
        (aside / "config").write_bytes(_CONFIG)
        for path in sorted(aside.rglob("*"), reverse=True):
            (disk.sync_directory if path.is_dir() else disk.sync_file)(path)
        disk.sync_directory(aside)
        disk.publish(aside, dest)
    except OSError as exc:
        raise DiskFailed(
            f"{dest.name!r} could not be exported ({exc.strerror or exc}); "
            "see to the disk that it lies on and try again"
        ) from exc
    finally:
        if aside.exists():
            disk.remove_tree(aside)


def packed_refs(refs: Sequence[Ref], reader: LogReader) -> bytes:
    """Return the content of a `packed-refs` file.

    Raises:
        MirrorDamaged: A ref names what the log lacks, or is named as no ref can be.
    """
    lines = [_PACKED_REFS_HEADER]
    for ref in sorted(refs, key=lambda ref: ref.name):
        if ref.name == b"HEAD" or ref.oid is None:
            continue
        _check_name(ref.name)
        try:
            is_tag = reader.type_of(ref.oid) == objects.TAG
            peeled = (ref.peeled or reader.peel(ref.oid)) if is_tag else None
        except KeyError as exc:
            raise MirrorDamaged(f"the mirror lacks what {ref.name!r} names") from exc
        lines.append(b"%s %s\n" % (ref.oid, ref.name))
        if peeled is not None:
            lines.append(b"^%s\n" % peeled)
    return b"".join(lines)


def head_line(refs: Sequence[Ref]) -> bytes:
    """Return the content of a `HEAD` file: a branch (born or not), or a commit."""
    for ref in refs:
        if ref.name == b"HEAD":
            if ref.symref_target is not None:
                _check_name(ref.symref_target)
                return b"ref: %s\n" % ref.symref_target
            if ref.oid is not None:
                return b"%s\n" % ref.oid
    return _NO_HEAD


def _check_free(dest: Path) -> None:
    try:
        if not dest.parent.is_dir():
            raise ExportRefused(f"{dest.parent} is not a directory; create it first")
        if dest.is_symlink() or (dest.exists() and not (dest.is_dir() and not any(dest.iterdir()))):
            raise ExportRefused(f"{dest} exists and is not an empty directory; name another")
    except OSError as exc:
        raise ExportRefused(f"{dest} cannot be looked at: {exc.strerror}") from exc


def _check_name(name: bytes) -> None:
    # One line a ref: a name with a line end in it would be read as two.
    if not name.startswith(b"refs/") or any(byte <= 0x20 or byte == 0x7F for byte in name):
        raise MirrorDamaged(f"the mirror holds a ref with a name that git does not allow: {name!r}")


def _lay_out(repository: Path) -> None:
    repository.mkdir()
    for name in ("objects/info", "objects/pack", "refs/heads", "refs/tags"):
        (repository / name).mkdir(parents=True)


def _opened(pack: Path) -> BinaryIO:
    with reading(pack):
        return pack.open("rb")


def _write_pack(directory: Path, sources: Sequence[BinaryIO], table: Table) -> None:
    unnamed = directory / "unnamed.pack"
    digest = hashlib.sha1()
    with unnamed.open("xb") as target:
        header = log_header(len(table))
        digest.update(header)
        target.write(header)
        rows: list[tuple[bytes, int, int]] = []
        for number, source in enumerate(sources):
            rows += _copy_entries(source, target, digest, number, table)
        target.write(digest.digest())
    name = f"pack-{digest.hexdigest()}"
    rows.sort()
    with (directory / f"{name}.idx").open("xb") as index:
        objects.write_index(index, rows, digest.digest())
        os.fchmod(index.fileno(), 0o444)
    unnamed.chmod(0o444)
    unnamed.rename(directory / f"{name}.pack")


def _copy_entries(
    source: BinaryIO, target: BinaryIO, digest: "hashlib._Hash", number: int, table: Table
) -> Iterator[tuple[bytes, int, int]]:
    """Copy a segment's entries; give raw id, new offset and CRC-32 of each, in their order."""
    entries = body(os.fstat(source.fileno()).st_size)
    # The segment's own trailer is checked on the way: damage must not travel on.
    own = hashlib.sha1(source.read(HEADER_SIZE))
    rows = table.rows_of_segment(number)
    place = entries.start
    for row, offset, length in zip(
        rows.tolist(),
        table.column("offset")[rows].tolist(),
        table.column("length")[rows].tolist(),
        strict=True,
    ):
        if offset != place:
            break
        place += length
        new_offset, crc = target.tell(), 0
        for size in _chunk_sizes(length):
            chunk = source.read(size)
            crc = zlib.crc32(chunk, crc)
            own.update(chunk)
            digest.update(chunk)
            target.write(chunk)
        yield table.raw_oid(row), new_offset, crc
    trailer = source.read(TRAILER_SIZE + 1)
    if place != entries.stop or trailer != own.digest() or trailer != table.checksums[number]:
        raise MirrorDamaged(f"segment {number} of the mirror is not what was written")


def _chunk_sizes(length: int) -> Iterator[int]:
    while length > 0:
        yield min(length, _COPY_SIZE)
        length -= _COPY_SIZE

"""Segments as one framed pack."""

import hashlib
import os
import struct
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.errors import DiskFailed, MirrorDamaged
from goblet_node.mirror.log import Segment, Stretch
from goblet_node.serve import verbatim
from goblet_node.serve.verbatim import FramedPack, trailer_of
from goblet_node.wire.answers import Dialect, SideBand, V0Dialect, V2Dialect
from goblet_node.wire.pktline import Band, packets_of, split_band
from goblet_shared.parts import FileSpan, Part, size_of

BARE = V0Dialect()
SMALL = V0Dialect(side_band=SideBand.SMALL)
DIALECTS = [V2Dialect(), SMALL, BARE]


def segment(directory: Path, number: int, entries: bytes) -> Stretch:
    """Write a segment; what its entries are does not matter here."""
    head = struct.pack(">4sLL", b"PACK", 2, 7) + entries
    pack = directory / f"seg-{number}.pack"
    pack.write_bytes(head + hashlib.sha1(head).digest())
    return Stretch(pack, 12, len(entries))


def bytes_of(part: Part) -> bytes:
    return os.pread(part.file, part.count, part.offset) if isinstance(part, FileSpan) else part


async def travelling(pack: FramedPack) -> bytes:
    """Return what travels, read while its descriptors are good."""
    found = b""
    async with aclosing(pack.batches()) as batches:
        async for batch in batches:
            found += b"".join(map(bytes_of, batch))
    return found


def unframed(dialect: Dialect, sent: bytes) -> bytes:
    """Return the pack that travelled; every packet but the last has to be full."""
    if not dialect.side_band:
        return sent
    pieces = []
    for packet in packets_of(sent):
        assert isinstance(packet, bytes)
        band, data = split_band(packet)
        assert band is Band.PACK
        pieces.append(data)
    assert {len(piece) for piece in pieces[:-1]} <= {int(dialect.side_band)}
    return b"".join(pieces)


@given(
    st.sampled_from(DIALECTS),
    st.integers(0, 2**32 - 1),
    st.lists(st.binary(max_size=2500), max_size=5),
)
def test_a_log_is_one_header_all_entries_and_one_trailer(
    tmp_path_factory: pytest.TempPathFactory, dialect: Dialect, objects: int, bodies: list[bytes]
) -> None:
    directory = tmp_path_factory.mktemp("log")
    stretches = [segment(directory, n, data) for n, data in enumerate(bodies)]
    pack = FramedPack(stretches, objects=objects, trailer=None, dialect=dialect)
    sent = trio.run(travelling, pack)
    found = unframed(dialect, sent)
    assert found[:-20] == struct.pack(">4sLL", b"PACK", 2, objects) + b"".join(bodies)
    assert found[-20:] == hashlib.sha1(found[:-20]).digest() == pack.trailer
    assert pack.length == len(sent)
    again = FramedPack(stretches, objects=objects, trailer=pack.trailer, dialect=dialect)
    assert trio.run(travelling, again) == sent


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("knows_trailer", [True, False])
async def test_of_many_batches_each_is_bounded_and_together_they_are_the_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dialect: Dialect, knows_trailer: bool
) -> None:
    monkeypatch.setattr(verbatim, "_BATCH", 2 * 65515)
    bodies = [os.urandom(size) for size in (300_000, 10, 65515, 0, 131_018, 200_000)]
    stretches = [segment(tmp_path, n, data) for n, data in enumerate(bodies)]
    whole = struct.pack(">4sLL", b"PACK", 2, 7) + b"".join(bodies)
    trailer = hashlib.sha1(whole).digest()
    pack = FramedPack(
        stretches, objects=7, trailer=trailer if knows_trailer else None, dialect=dialect
    )
    sizes, sent = [], b""
    async with aclosing(pack.batches()) as batches:
        async for batch in batches:
            sizes.append(size_of(batch))
            sent += b"".join(map(bytes_of, batch))
    assert unframed(dialect, sent) == whole + trailer
    assert pack.length == len(sent)
    assert len(sizes) > 5
    assert max(sizes) <= 2 * 65515 * 1.01


def open_files(stretches: Sequence[Stretch]) -> set[str]:
    packs = {str(stretch.pack) for stretch in stretches}
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return {os.readlink(link) for link in links if os.path.islink(link)} & packs


async def test_a_client_holds_open_what_its_batch_needs_and_nothing_when_it_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verbatim, "_BATCH", 2 * 65515)
    stretches = [segment(tmp_path, n, bytes(100_000)) for n in range(10)]
    pack = FramedPack(stretches, objects=7, trailer=b"t" * 20, dialect=BARE)
    most = 0
    async with aclosing(pack.batches()) as batches:
        async for batch in batches:
            most = max(most, len(open_files(stretches)))
            if size_of(batch) < 1000:
                break
    assert 0 < most <= 3
    assert open_files(stretches) == set()


@pytest.mark.parametrize("at", [0, 2])
async def test_a_segment_that_became_shorter_is_damage_before_anything_is_sent(
    tmp_path: Path, at: int
) -> None:
    log = [segment(tmp_path, n, bytes(3 << 20)) for n in range(3)]
    os.truncate(log[at].pack, 12 + (3 << 20) - 1)
    with pytest.raises(MirrorDamaged, match="shorter"):
        await first_batch(log)
    assert open_files(log) == set()


@pytest.mark.parametrize("at", [0, 2])
async def test_a_segment_that_is_gone_is_damage_before_anything_is_sent(
    tmp_path: Path, at: int
) -> None:
    log = [segment(tmp_path, n, bytes(3 << 20)) for n in range(3)]
    log[at].pack.unlink()
    with pytest.raises(MirrorDamaged, match="missing"):
        await first_batch(log)


async def test_a_segment_that_cannot_be_opened_is_the_disks_fault(tmp_path: Path) -> None:
    log = [segment(tmp_path, 0, bytes(1000))]
    log[0].pack.unlink()
    log[0].pack.symlink_to(log[0].pack)
    with pytest.raises(DiskFailed, match="cannot be read"):
        await first_batch(log)


async def first_batch(log: Sequence[Stretch]) -> None:
    pack = FramedPack(log, objects=7, trailer=b"t" * 20, dialect=BARE)
    async with aclosing(pack.batches()) as batches:
        await anext(batches)


async def test_a_segment_that_becomes_shorter_while_it_is_hashed_is_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verbatim, "_BATCH", 2 * 65515)
    log = [segment(tmp_path, 0, bytes(1 << 20))]
    pack = FramedPack(log, objects=7, trailer=None, dialect=BARE)
    async with aclosing(pack.batches()) as batches:
        await anext(batches)
        os.truncate(log[0].pack, 200_000)
        with pytest.raises(MirrorDamaged, match="shorter"):
            async for _ in batches:
                pass
    assert pack.trailer is None


def test_just_one_segment_has_its_own_trailer(tmp_path: Path) -> None:
    stretches = [segment(tmp_path, n, bytes(1000 + n)) for n in range(3)]
    segments = [
        Segment(
            number=number,
            pack=stretch.pack,
            table=stretch.pack,
            links=stretch.pack,
            objects=7,
            bytes=stretch.pack.stat().st_size,
            beside=0,
            checksum=stretch.pack.read_bytes()[-20:].hex(),
        )
        for number, stretch in enumerate(stretches)
    ]
    assert trailer_of(segments, stretches[1:2]) == stretches[1].pack.read_bytes()[-20:]
    assert trailer_of(segments, stretches[:2]) is None
    assert trailer_of(segments, [stretches[1]._replace(length=1000)]) is None
    assert trailer_of(segments, []) is None

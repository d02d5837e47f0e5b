"""window: a pack is the same however its bytes are read, and memory is bounded."""

import io
import os
import tracemalloc
import zlib
from pathlib import Path

import pytest

from goblet_node.mirror import window as window_module
from goblet_node.mirror.scan import Scan, scan_pack
from goblet_node.mirror.window import PackWindow
from goblet_node.objects import BLOB, OFS_DELTA, REF_DELTA, PackRejected, object_id
from goblet_testing.packs import HandMade, insert_delta, pack_of, sealed


def scan(path: Path) -> Scan:
    nothing: dict[bytes, tuple[int, bytes]] = {}
    return scan_pack(path, resolve_base=nothing.__getitem__, mention=lambda *_: None)


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """Entries of all kinds of heads, contents that pack well, badly and not at all."""
    noise = os.urandom(5000)
    entries = [
        HandMade(kind=BLOB, content=b""),
        HandMade(kind=BLOB, content=noise),
        HandMade(kind=BLOB, content=bytes(50_000)),
        HandMade(kind=OFS_DELTA, base=1, content=insert_delta(noise, b"near")),
        HandMade(
            kind=REF_DELTA, base=object_id(BLOB, noise), content=insert_delta(noise, b"named")
        ),
        HandMade(kind=BLOB, content=b"last"),
    ]
    path = tmp_path / "pack"
    path.write_bytes(pack_of(entries))
    return path


@pytest.mark.parametrize("read_size", [20, 21, 33, 64, 1000])
@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_where_reads_end_never_matters(
    read_size: int, piece: int, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = scan(pack)
    monkeypatch.setattr(window_module, "_READ_SIZE", read_size)
    monkeypatch.setattr(window_module, "_PIECE", piece)
    found = scan(pack)
    assert found.entries.tobytes() == expected.entries.tobytes()
    assert found.checksum == expected.checksum


def test_a_big_object_passes_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "pack"
    path.write_bytes(pack_of([HandMade(kind=BLOB, content=bytes(50 << 20))]))
    tracemalloc.start()
    try:
        assert scan(path).entries["size"].tolist() == [50 << 20]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 << 20


def test_a_stream_never_reaches_into_the_trailer(tmp_path: Path) -> None:
    """A pack cut inside its last entry, whose rest looks like a trailer, is not whole."""
    stream = zlib.compress(os.urandom(100))
    path = tmp_path / "cut"
    path.write_bytes(stream)
    with path.open("rb") as file, pytest.raises(PackRejected):
        PackWindow(file).inflate(100, io.BytesIO().write)


def test_the_checksum_is_of_all_before_the_trailer(tmp_path: Path) -> None:
    path = tmp_path / "pack"
    path.write_bytes(sealed(b"four"))
    with path.open("rb") as file:
        window = PackWindow(file)
        assert (window.left, window.take(4), window.left, window.offset) == (4, b"four", 0, 4)
        assert window.finish() == sealed(b"four")[-20:]

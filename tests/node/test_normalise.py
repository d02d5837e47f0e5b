"""normalise: what is left of a pack is still a pack, and the log still one of git's packs."""

import io
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from goblet_node.mirror.normalise import encode_distance, normalise, plan_pieces
from goblet_node.mirror.reader import LogReader
from goblet_node.mirror.scan import Scan, scan_pack
from goblet_node.objects import BLOB, OFS_DELTA, REF_DELTA, hex_id, object_id
from goblet_testing.packs import (
    GrownLog,
    HandMade,
    Repo,
    insert_delta,
    pack_of,
    strict_index,
)

# An example costs several git processes; a fifth of the profile's number is enough.
a_fifth = settings(max_examples=settings().max_examples // 5)

STEPS = ("commit", "commit", "squash", "pick", "revert", "branch", "merge", "reset", "delete")
# Each step names two of four branches and one of five files.
steps = st.tuples(st.sampled_from(STEPS), st.integers(0, 3), st.integers(0, 3), st.integers(0, 4))
histories = st.lists(st.lists(steps, min_size=1, max_size=6), min_size=2, max_size=5)

SQUASH_AND_REVERT = [
    [("commit", 0, 0, 0), ("commit", 0, 0, 1), ("commit", 0, 0, 2), ("branch", 1, 0, 0)],
    [("commit", 1, 0, 0), ("commit", 1, 0, 1), ("commit", 0, 0, 3)],
    [("squash", 0, 1, 0), ("delete", 1, 0, 0)],
    [("revert", 0, 0, 0)],
]


class History:
    """Plays steps on an origin; steps that make no sense at that point do nothing."""

    def __init__(self, origin: Repo) -> None:
        self.origin = origin
        # What each branch held before, for reverts.
        self._past: dict[str, list[dict[str, bytes]]] = {}
        self._count = 0

    def play(self, step: tuple[str, int, int, int]) -> None:
        """Do one step."""
        verb, first, second, number = step
        branch, other, file = f"b{first}", f"b{second}", f"file-{number}"
        origin = self.origin
        self._count += 1
        files = dict(origin.branches.get(branch, {}))
        theirs = origin.branches.get(other)
        if verb == "commit":
            line = b"%d %d\n" % (number, self._count)
            files[file] = files.get(file, b"some text that repeats\n" * 30) + line
            self._commit(branch, files)
        elif verb == "revert" and len(self._past.get(branch, ())) > 1:
            self._commit(branch, self._past[branch][-2])
        elif theirs is None or branch == other:
            return
        elif verb == "branch":
            self._commit(branch, dict(theirs), parent=other)
        elif verb == "reset":
            self._commit(branch, {"new": b"%d" % self._count}, parent=other)
        elif verb == "delete" and len(origin.branches) > 1 and branch in origin.branches:
            origin.point(f"refs/heads/{branch}", None)
        elif verb == "squash" and files:
            self._commit(branch, {**files, **theirs})
        elif verb == "pick" and files and file in theirs:
            self._commit(branch, {**files, file: theirs[file]})
        elif verb == "merge" and files:
            self._commit(branch, {**files, **theirs}, merge=other)

    def _commit(
        self,
        branch: str,
        files: dict[str, bytes],
        *,
        parent: str | None = None,
        merge: str | None = None,
    ) -> None:
        self.origin.commit(branch, files, parent=parent, merge=merge)
        self._past.setdefault(branch, []).append(files)


@pytest.mark.slow
@a_fifth
@given(history=histories)
@example(history=SQUASH_AND_REVERT)
def test_a_log_of_any_history_is_one_pack_that_git_accepts(
    history: list[list[tuple[str, int, int, int]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It holds what was reachable at some generation, each object once, and nothing else."""
    folder = tmp_path_factory.mktemp("h")
    origin, log = Repo.create(folder / "origin"), GrownLog(folder / "log")
    played = History(origin)
    expected: set[bytes] = set()
    for generation in history:
        for step in generation:
            played.play(step)
        log.fetch(origin)
        expected |= origin.reachable()
    assert strict_index(log.concatenated(), folder) == expected
    table = log.table()
    assert {table.oid(row) for row in range(len(table))} == expected


def test_upstreams_do_repeat_objects(tmp_path: Path) -> None:
    """Else the test above would test nothing: in this history git sends some blobs again."""
    origin, log = Repo.create(tmp_path / "origin"), GrownLog(tmp_path / "log")
    played, sent = History(origin), 0
    for generation in SQUASH_AND_REVERT:
        for step in generation:
            played.play(step)
        tips = origin.tips()
        pack = origin.pack(log.table().missing(tips), log.tips)
        sent += int.from_bytes(pack[8:12], "big")
        log.take(pack, tips)
    assert sent > len(log.table())
    assert any(pack.name == "segment.pack" for pack in log.packs())


@st.composite
def pack_pairs(draw: st.DrawFn) -> tuple[list[HandMade], list[HandMade]]:
    """A first pack, and a second that repeats some of it and of itself, with deltas anywhere."""
    random = Random(draw(st.integers(0, 1 << 32)))
    # Sizes around the places where a distance needs another byte.
    sizes = draw(st.lists(st.sampled_from([1, 60, 127, 9000, 17000]), min_size=1, max_size=8))
    contents = [random.randbytes(size) for size in sizes]
    first = [HandMade(kind=BLOB, content=c) for c in contents if draw(st.booleans())]
    second: list[HandMade] = []
    made: list[bytes] = []
    for number in draw(st.lists(st.integers(0, len(contents) - 1), max_size=12)):
        result = contents[number]
        bases = [n for n, content in enumerate(made) if len(result) < 128 and content != result]
        how = draw(st.sampled_from(["whole", "near", "named"])) if bases else "whole"
        if how == "whole":
            second.append(HandMade(kind=BLOB, content=result))
        else:
            base = draw(st.sampled_from(bases))
            delta = insert_delta(made[base], result)
            reference = base if how == "near" else object_id(BLOB, made[base])
            kind = OFS_DELTA if how == "near" else REF_DELTA
            second.append(HandMade(kind=kind, content=delta, base=reference))
        made.append(result)
    return first, second


@a_fifth
@given(pair=pack_pairs())
def test_entries_dropped_anywhere_leave_a_pack_that_git_accepts(
    pair: tuple[list[HandMade], list[HandMade]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Gaps of any width between deltas and bases, bases dropped, objects repeated in one pack."""
    folder = tmp_path_factory.mktemp("p")
    log = GrownLog(folder / "log")
    for number, entries in enumerate(pair):
        pack = pack_of(entries)
        (folder / f"{number}").write_bytes(pack)
        log.take(pack, ())
    expected = set()
    for number in range(2):
        found = scan(folder / f"{number}")
        expected |= {hex_id(oid.tobytes().ljust(20, b"\0")) for oid in found.entries["oid"]}
    assert strict_index(log.concatenated(), folder) == expected
    table = log.table()
    with LogReader(log.packs(), table) as reader:
        for oid in expected:
            assert hex_id(object_id(*reader.get_raw(oid))) == oid


def scan(path: Path) -> Scan:
    nothing: dict[bytes, tuple[int, bytes]] = {}
    return scan_pack(path, resolve_base=nothing.__getitem__, mention=lambda *_: None)


def test_the_new_entries_are_what_a_new_scan_finds(tmp_path: Path) -> None:
    """Offsets, lengths, kinds and headers are computed while writing, not read back."""
    random = Random(1)
    contents = [random.randbytes(size) for size in (9000, 100, 200, 20, 30)]
    entries = [
        HandMade(kind=BLOB, content=contents[1]),
        HandMade(kind=BLOB, content=contents[0]),
        HandMade(kind=OFS_DELTA, base=0, content=insert_delta(contents[1], contents[3])),
        HandMade(kind=BLOB, content=contents[2]),
        HandMade(kind=OFS_DELTA, base=1, content=insert_delta(contents[0], contents[4])),
    ]
    received = tmp_path / "received"
    received.write_bytes(pack_of(entries))
    # The second goes: one distance shrinks by a byte, one delta loses its base.
    keep = np.array([True, False, True, True, True])
    made = normalise(received, scan(received), keep, tmp_path / "segment")
    whole = scan_pack(
        tmp_path / "segment",
        resolve_base={object_id(BLOB, contents[0]): (BLOB, contents[0])}.__getitem__,
        mention=lambda *_: None,
    )
    assert made.entries.tobytes() == whole.entries.tobytes()
    assert made.checksum == whole.checksum
    assert made.entries["kind"].tolist() == [BLOB, OFS_DELTA, BLOB, REF_DELTA]
    assert (tmp_path / "segment").read_bytes()[-20:] == made.checksum


def test_what_lies_together_is_copied_together(tmp_path: Path) -> None:
    received = tmp_path / "received"
    received.write_bytes(pack_of([HandMade(kind=BLOB, content=b"%d" % n) for n in range(100)]))
    found = scan(received)
    keep = np.ones(100, dtype=np.bool_)
    keep[50] = False
    with received.open("rb") as source:
        assert len(plan_pieces(found, keep, source).pieces) == 2


def test_of_two_entries_of_one_object_the_one_that_closes_no_circle_is_kept(
    tmp_path: Path,
) -> None:
    """A as a delta on B, B as a delta on the other A: dropping that A would make a circle."""
    a, b = b"a" * 30, b"b" * 30
    on_b = HandMade(kind=REF_DELTA, base=object_id(BLOB, b), content=insert_delta(b, a))
    whole_a = HandMade(kind=BLOB, content=a)
    on_a = HandMade(kind=OFS_DELTA, base=1, content=insert_delta(a, b))
    log = GrownLog(tmp_path / "log")
    log.take(pack_of([on_b, whole_a, on_a]), ())
    expected = {hex_id(object_id(BLOB, content)) for content in (a, b)}
    assert strict_index(log.concatenated(), tmp_path) == expected


@given(st.integers(1, (1 << 60) - 1))
def test_a_distance_reads_back_as_it_was_written(distance: int) -> None:
    source = io.BytesIO(encode_distance(distance))
    byte = source.read(1)[0]
    read = byte & 0x7F
    while byte & 0x80:
        byte = source.read(1)[0]
        read = ((read + 1) << 7) | (byte & 0x7F)
    assert (read, source.read()) == (distance, b"")

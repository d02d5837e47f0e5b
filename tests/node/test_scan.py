"""scan: every entry of a pack found, checked and resolved; whatever else is sent, refused."""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_node import objects
from goblet_node.mirror import bases
from goblet_node.mirror import scan as scan_module
from goblet_node.mirror.concat import log_header
from goblet_node.mirror.scan import Mention, Scan, scan_pack
from goblet_node.objects import BLOB, COMMIT, OFS_DELTA, REF_DELTA, TREE, PackRejected, hex_id
from goblet_node.wire.refs import ObjectId
from goblet_testing.packs import (
    HandMade,
    Repo,
    copy_delta,
    entry_start,
    insert_delta,
    joined,
    pack_of,
    run_git,
    sealed,
)

NAMES = {1: "commit", 2: "tree", 3: "blob", 4: "tag"}


def scan(
    path: Path,
    *,
    before: dict[bytes, tuple[int, bytes]] | None = None,
    mention: Mention = lambda *_: None,
    limit: int = 1 << 20,
) -> Scan:
    return scan_pack(
        path,
        resolve_base=(before or {}).__getitem__,
        mention=mention,
        max_object_bytes=limit,
    )


def scan_bytes(pack: bytes, folder: Path, **options: object) -> Scan:
    path = folder / f"{os.urandom(6).hex()}.pack"
    path.write_bytes(pack)
    return scan(path, **options)  # type: ignore[arg-type]


def oids(found: Scan) -> list[ObjectId]:
    return [hex_id(found.entries["oid"][n : n + 1].tobytes()) for n in range(len(found.entries))]


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Repo:
    """A history with long delta chains, a tag of a tag, and files too big for one read."""
    repo = Repo.create(tmp_path_factory.mktemp("scan") / "origin")
    text = b"".join(b"line %d\n" % number for number in range(400))
    big = os.urandom(700_000)
    for number in range(60):
        text = text.replace(b"line %d\n" % (number * 5), b"changed %d\n" % number)
        repo.commit("main", {"text": text, f"dir/{number % 7}": b"%d\n" % number, "big": big})
    repo.tag("v1", "refs/heads/main")
    repo.tag("v1-again", "refs/tags/v1")
    return repo


@pytest.mark.parametrize("flags", [(), ("--delta-base-offset",), ("--depth=0",)])
def test_scanning_finds_what_git_finds(
    origin: Repo, flags: tuple[str, ...], tmp_path: Path
) -> None:
    """Id, type, size, place and delta base of every entry, as verify-pack lists them."""
    pack = tmp_path / "p.pack"
    pack.write_bytes(origin.pack(origin.tips(), flags=flags))
    found = scan(pack)
    run_git("index-pack", pack, repo=origin.path)
    expected = {}
    for line in run_git("verify-pack", "-v", pack, repo=origin.path).splitlines():
        words = line.split()
        if len(words) >= 5 and len(words[0]) == 40:
            base = words[6] if len(words) > 6 else b"0" * 40
            expected[words[0]] = (words[1], int(words[3]), int(words[4]), base)
    actual = {
        oid: (
            NAMES[entry["type"]].encode(),
            entry["length"],
            entry["offset"],
            hex_id(entry["base"].ljust(20, b"\0")),
        )
        for oid, entry in zip(oids(found), found.entries, strict=True)
    }
    assert actual == expected
    sizes = run_git(
        "cat-file",
        "--batch-check=%(objectname) %(objectsize)",
        repo=origin.path,
        stdin=b"\n".join(oids(found)),
    )
    stated = {ObjectId(line.split()[0]): int(line.split()[1]) for line in sizes.splitlines()}
    assert dict(zip(oids(found), found.entries["size"].tolist(), strict=True)) == stated


def test_the_references_of_all_objects_are_mentioned(origin: Repo, tmp_path: Path) -> None:
    """Each object's once, under its own number and type, as they are read from the object."""
    mentioned: dict[int, tuple[int, bytes, int]] = {}

    def mention(index: int, kind: int, references: bytes, committed: int) -> None:
        assert index not in mentioned
        mentioned[index] = (kind, references, committed)

    found = scan_bytes(origin.pack(origin.tips(), flags=()), tmp_path, mention=mention)
    types = found.entries["type"].tolist()
    assert sorted(mentioned) == [n for n, kind in enumerate(types) if kind != BLOB]
    assert [mentioned[n][0] for n in sorted(mentioned)] == [kind for kind in types if kind != BLOB]
    for index, (kind, references, committed) in mentioned.items():
        content = run_git("cat-file", NAMES[kind], oids(found)[index].decode(), repo=origin.path)
        assert objects.raw_references(kind, content) == (references, committed)
    everything = b"".join(references for _, references, _ in mentioned.values())
    named = {hex_id(everything[at : at + 20]) for at in range(0, len(everything), 20)}
    refs = origin.refs()
    assert named == origin.reachable() - {refs["refs/tags/v1-again"]}


def test_a_base_always_has_an_earlier_turn_than_its_deltas(origin: Repo, tmp_path: Path) -> None:
    found = scan_bytes(origin.pack(origin.tips(), flags=()), tmp_path)
    turn = dict(zip(oids(found), found.turns.tolist(), strict=True))
    deltas = [entry for entry in found.entries if entry["kind"] == REF_DELTA]
    assert len(deltas) > 40
    for entry in deltas:
        base = hex_id(entry["base"].ljust(20, b"\0"))
        assert turn[base] < turn[hex_id(entry["oid"].ljust(20, b"\0"))]


def test_a_thin_pack_is_resolved_on_what_lies_before_it(tmp_path: Path) -> None:
    """Also where a delta's base is itself a delta on something outside, and lies behind it."""
    outside = b"o" * 50
    first = insert_delta(outside, b"first")
    first_id = objects.object_id(BLOB, b"first")
    pack = pack_of(
        [
            HandMade(kind=REF_DELTA, base=first_id, content=insert_delta(b"first", b"second")),
            HandMade(kind=REF_DELTA, base=b"\xff" * 20, content=first),
        ]
    )
    found = scan_bytes(pack, tmp_path, before={b"\xff" * 20: (BLOB, outside)})
    assert oids(found) == [hex_id(objects.object_id(BLOB, b"second")), hex_id(first_id)]
    assert found.turns.tolist() == [1, 0]
    assert found.entries["type"].tolist() == [BLOB, BLOB]


def test_a_forgotten_base_is_made_again(
    origin: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for one content only, wide and deep chains still give the same objects."""
    pack = origin.pack(origin.tips(), flags=("--delta-base-offset", "--depth=60", "--window=60"))
    expected = oids(scan_bytes(pack, tmp_path))
    monkeypatch.setattr(bases.BaseCache.__init__, "__defaults__", (1,))
    assert oids(scan_bytes(pack, tmp_path)) == expected


def test_a_pack_of_no_objects_is_a_pack(tmp_path: Path) -> None:
    assert len(scan_bytes(pack_of([]), tmp_path).entries) == 0


def test_an_object_that_comes_twice_is_listed_twice(tmp_path: Path) -> None:
    twice = HandMade(kind=BLOB, content=b"x")
    assert len(set(oids(scan_bytes(pack_of([twice, twice]), tmp_path)))) == 1


def test_deltas_on_an_object_that_comes_twice_are_all_resolved(tmp_path: Path) -> None:
    whole = HandMade(kind=BLOB, content=b"x")
    raw = objects.object_id(BLOB, b"x")
    delta = insert_delta(b"x", b"y")
    pack = pack_of(
        [
            whole,
            HandMade(kind=OFS_DELTA, base=0, content=delta),
            whole,
            HandMade(kind=OFS_DELTA, base=2, content=delta),
            HandMade(kind=REF_DELTA, base=raw, content=delta),
        ]
    )
    assert oids(scan_bytes(pack, tmp_path)).count(hex_id(objects.object_id(BLOB, b"y"))) == 3


def test_a_chain_deeper_than_python_recurses_is_resolved(tmp_path: Path) -> None:
    entries = [HandMade(kind=BLOB, content=b"0")]
    for number in range(1, 3000):
        delta = insert_delta(b"%d" % (number - 1), b"%d" % number)
        entries.append(HandMade(kind=OFS_DELTA, base=number - 1, content=delta))
    last = oids(scan_bytes(pack_of(entries), tmp_path))[-1]
    assert last == hex_id(objects.object_id(BLOB, b"2999"))


BLOB_X = HandMade(kind=BLOB, content=b"x" * 40)
STREAM = zlib.compress(b"x" * 40)


def broken_packs() -> Iterator[tuple[str, bytes, str]]:
    yield "empty file", b"", "shorter"
    yield "no entries, no trailer", log_header(0), "shorter"
    yield "not a pack", sealed(b"KCAP" + log_header(0)[4:]), "begins"
    yield "version 3", sealed(b"PACK\0\0\0\3\0\0\0\0"), "begins"
    random = HandMade(kind=BLOB, content=os.urandom(40))
    yield "one more stated", pack_of([random], count=2), "ends within"
    yield "far more stated", pack_of([BLOB_X], count=2**32 - 1), "cannot hold"
    yield "fewer stated", pack_of([BLOB_X, BLOB_X], count=1), "after its last entry"
    yield "wrong trailer", pack_of([BLOB_X])[:-1] + b"?", "checksum"
    yield "bytes behind the trailer", pack_of([BLOB_X]) + b"?", "after its last entry"
    yield "no trailer", pack_of([random])[:-20], "not of its stated size"
    head = log_header(1)
    yield "kind 0", sealed(head + entry_start(0, 40) + STREAM), "unknown kind"
    yield "kind 5", sealed(head + entry_start(5, 40) + STREAM), "unknown kind"
    yield "object longer than stated", sealed(head + entry_start(BLOB, 39) + STREAM), "stated size"
    yield "object shorter than stated", sealed(head + entry_start(BLOB, 41) + STREAM), "stated size"
    yield "not zlib", sealed(head + entry_start(BLOB, 40) + b"?" * 40), "damaged"
    yield "endless size", sealed(head + b"\xbf" * 40), "endless size"
    yield "endless distance", sealed(head + entry_start(OFS_DELTA, 5) + b"\xff" * 40), "distance"
    yield "a tree that is none", pack_of([HandMade(kind=TREE, content=b"?")]), "that is none"
    yield "a commit that is none", pack_of([HandMade(kind=COMMIT, content=b"")]), "that is none"
    delta = insert_delta(b"x" * 40, b"y")
    for name, base in ("itself", 0), ("before the first entry", 1000):
        start = entry_start(OFS_DELTA, len(delta)) + (b"\0" if not base else b"\x86\x68")
        yield f"delta on {name}", sealed(head + start + zlib.compress(delta)), "no entry"
    inside = entry_start(OFS_DELTA, len(delta)) + b"\x05" + zlib.compress(delta)
    yield (
        "delta into the middle of an entry",
        joined([pack_of([BLOB_X]), sealed(head + inside)]),
        "no entry",
    )
    nowhere = HandMade(kind=REF_DELTA, base=b"n" * 20, content=delta)
    yield "delta on nothing", pack_of([BLOB_X, nowhere]), "neither in it nor"
    other = HandMade(kind=OFS_DELTA, base=0, content=insert_delta(b"x", b"y"))
    yield "delta on another size of base", pack_of([BLOB_X, other]), "does not fit"
    yield (
        "delta of no bytes",
        pack_of([BLOB_X, HandMade(kind=OFS_DELTA, base=0, content=b"")]),
        "broken delta",
    )
    whole_tree = HandMade(kind=TREE, content=b"100644 file\0" + b"t" * 20)
    to_nothing = bytes([len(whole_tree.content), 0])
    empty = HandMade(kind=OFS_DELTA, base=0, content=to_nothing)
    yield "delta that makes an empty tree", pack_of([whole_tree, empty]), "empty"
    cut_tree = HandMade(kind=TREE, content=b"100644 file\0" + b"t" * 19)
    yield "tree that ends within an id", pack_of([cut_tree]), "that is none"
    bomb = HandMade(kind=OFS_DELTA, base=0, content=copy_delta(b"x" * 40, 30_000))
    yield "delta that makes more than the limit", pack_of([BLOB_X, bomb]), "the limit is"
    yield (
        "object larger than the limit",
        pack_of([HandMade(kind=BLOB, content=bytes((1 << 20) + 1))]),
        "the limit is",
    )
    a, b = (objects.object_id(BLOB, name) for name in (b"a", b"b"))
    yield (
        "deltas on each other",
        pack_of(
            [
                HandMade(kind=REF_DELTA, base=b, content=insert_delta(b"b", b"a")),
                HandMade(kind=REF_DELTA, base=a, content=insert_delta(b"a", b"b")),
            ]
        ),
        "neither in it nor",
    )


@pytest.mark.parametrize(
    ("pack", "sentence"), [pytest.param(pack, says, id=name) for name, pack, says in broken_packs()]
)
def test_a_broken_pack_is_refused_with_a_sentence(
    pack: bytes, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(PackRejected, match=sentence) as refused:
        scan_bytes(pack, tmp_path)
    assert "\n" not in str(refused.value)


def test_an_object_of_exactly_the_limit_is_taken(tmp_path: Path) -> None:
    pack = pack_of([HandMade(kind=BLOB, content=bytes(1 << 20))])
    assert scan_bytes(pack, tmp_path).entries["size"].tolist() == [1 << 20]


@pytest.mark.parametrize("is_delta", [False, True])
def test_a_tree_too_large_to_parse_is_refused(
    is_delta: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan_module, "MAX_PARSED_BYTES", 40)
    entry = b"100644 file\0" + b"t" * 20
    doubled = HandMade(kind=OFS_DELTA, base=0, content=copy_delta(entry, 2))
    if is_delta:
        entries = [HandMade(kind=TREE, content=entry), doubled]
    else:
        entries = [HandMade(kind=TREE, content=entry * 2)]
    with pytest.raises(PackRejected, match="the limit is 40"):
        scan_bytes(pack_of(entries), tmp_path)


@pytest.fixture(scope="module")
def small_pack(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """All kinds of entries in two kilobytes, by git."""
    repo = Repo.create(tmp_path_factory.mktemp("small") / "origin")
    text = os.urandom(40).hex().encode()
    for number in range(4):
        repo.commit("main", {"file": text + b"%d" % number, "other": text + b"?%d" % number})
    repo.tag("v1", "refs/heads/main")
    return repo.pack(repo.tips())


@given(data=st.data())
def test_a_mutated_pack_is_refused_or_is_the_same(
    data: st.DataObject, small_pack: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With a trailer that fits, so that the checksum alone does not decide it."""
    folder = tmp_path_factory.getbasetemp()
    content = bytearray(small_pack[:-20])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        change = data.draw(st.sampled_from(["flip", "cut", "insert", "remove"]))
        if change == "flip":
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        elif change == "cut" and place > 12:
            del content[place:]
        elif change == "insert":
            content[place:place] = data.draw(st.binary(min_size=1, max_size=8))
        elif len(content) > 20:
            del content[place]
    sound = scan_bytes(small_pack, folder)
    try:
        found = scan_bytes(sealed(bytes(content)), folder)
    except PackRejected:
        return
    # zlib has bits that change nothing; a head can change without the content;
    # and a flipped type gives a blob of the same bytes. All are honest packs.
    assert len(found.entries) == len(sound.entries)
    assert found.entries["size"].tolist() == sound.entries["size"].tolist()

"""Mirrors as values: which generations are kept, and what each one's tips were."""

import weakref
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.errors import MirrorDamaged
from goblet_node.mirror.commit import plan_commit
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.intake import Intake
from goblet_node.mirror.log import (
    KEPT_GENERATIONS,
    KEPT_TIP_CHANGES,
    Generation,
    Lazy,
    Mirror,
    kept,
    load_table,
)
from goblet_node.mirror.store import MirrorStore
from goblet_node.mirror.view import as_mirror
from goblet_node.wire.refs import ObjectId, Ref
from goblet_shared.repo_key import RepoKey
from goblet_testing.mirrors import grow, heads

KEY = RepoKey("example.org/one")
OIDS = [ObjectId(b"%040x" % number) for number in range(1, 9)]
tip_sets = st.frozensets(st.sampled_from(OIDS), max_size=5)


def mirror_through(history: Sequence[frozenset[ObjectId]]) -> Mirror:
    """Return a mirror whose generations had these tips, one after the other; no disk involved."""
    mirror: Mirror | None = None
    for tips in history:
        refs = tuple(Ref(name=b"refs/heads/" + oid, oid=oid) for oid in sorted(tips))
        commit = plan_commit(
            key=KEY, directory=Path("unused"), base=mirror, refs=refs, intake=Intake()
        )
        mirror = as_mirror(
            commit.manifest,
            directory=Path("unused"),
            refs=refs,
            earlier=None,
            mend=lambda segments, position: None,
        )
    assert mirror is not None
    return mirror


@given(st.lists(tip_sets, min_size=1, max_size=12))
def test_every_generation_knows_its_tips_through_differences(
    history: list[frozenset[ObjectId]],
) -> None:
    mirror = mirror_through(history)
    assert [mirror.tips_of(generation) for generation in mirror.generations] == history


@given(st.lists(tip_sets, min_size=1, max_size=12), tip_sets)
def test_generations_within_are_those_whose_every_tip_is_given(
    history: list[frozenset[ObjectId]], given_oids: frozenset[ObjectId]
) -> None:
    mirror = mirror_through(history)
    expected = [g for g in reversed(mirror.generations) if mirror.tips_of(g) <= given_oids]
    assert list(mirror.generations_within(given_oids)) == expected


def test_a_generation_of_another_mirror_is_refused() -> None:
    stranger = Generation(number=99, objects=0, bytes=0, refs_file="refs-000099-000000000000")
    with pytest.raises(ValueError, match="generation 99"):
        mirror_through([frozenset()]).tips_of(stranger)


def test_at_most_so_many_generations_are_kept_the_newest() -> None:
    mirror = mirror_through([frozenset(OIDS[n % 7 : n % 7 + 2]) for n in range(300)])
    assert len(mirror.generations) == KEPT_GENERATIONS
    assert mirror.current.number == 300
    assert mirror.tips_of(mirror.generations[0]) == set(OIDS[44 % 7 : 44 % 7 + 2])


def test_generations_that_differ_in_too_much_are_forgotten_but_never_the_current() -> None:
    """A repository whose every ref moves each time must not fill the memory with history."""
    few = Generation(number=1, objects=1, bytes=9, refs_file="unused")
    many = replace(few, gained=(OIDS[0],) * KEPT_TIP_CHANGES, lost=(OIDS[1],))
    numbered = [replace(g, number=n) for n, g in enumerate([few, few, many, many, few])]
    assert [g.number for g in kept(numbered)] == [3, 4]
    assert [g.number for g in kept(numbered[:3])] == [2]
    assert kept(numbered)[0].gained == kept(numbered)[0].lost == ()


def test_a_lazy_value_is_read_once_and_again_only_after_a_failure() -> None:
    answers: list[int | None] = [None, 7]

    def read() -> int:
        answer = answers.pop(0)
        if answer is None:
            raise MirrorDamaged("not yet")
        return answer

    lazy = Lazy(read)
    with pytest.raises(MirrorDamaged):
        lazy.get()
    assert not lazy.is_loaded
    assert [lazy.get(), lazy.get()] == [7, 7]
    assert lazy.is_loaded
    assert Lazy.of(8).is_loaded
    assert Lazy.of(8).get() == 8


def test_a_lazy_value_that_was_read_keeps_nothing_of_what_it_was_read_from() -> None:
    """A log's table is made of the one before it, which is as large."""
    earlier = frozenset([1, 2])
    seen = weakref.ref(earlier)
    lazy = Lazy(partial(len, earlier))
    del earlier
    assert seen() is not None
    assert [lazy.get(), lazy.get()] == [2, 2]
    assert seen() is None


@pytest.fixture
def store(tmp_path: Path) -> MirrorStore:
    store = MirrorStore(tmp_path / "root", disk=Disk())
    store.open()
    return store


def test_a_mirror_answers_what_it_holds(store: MirrorStore) -> None:
    first = grow(store, KEY, heads(main=b"a", side=b"b"), [b"a", b"b"])
    second = grow(store, KEY, heads(main=b"c", side=b"b"), [b"c"])
    oid = {name: heads(x=name)[0].oid for name in (b"a", b"b", b"c", b"d")}
    assert all(isinstance(found, bytes) for found in oid.values())
    known = [found for found in oid.values() if found is not None]
    assert second.missing(known) == [oid[b"d"]]
    assert first.missing(known) == [oid[b"c"], oid[b"d"]]
    assert second.bytes == sum(path.stat().st_size for files in second.files for path in files)
    assert [generation.objects for generation in second.generations] == [2, 3]
    assert second.tips == {oid[b"b"], oid[b"c"]}
    assert second.generations[0].is_clean
    assert second.current.orphans == (oid[b"a"],)
    assert not second.current.is_clean
    store.close()


def test_a_mirror_that_was_replaced_keeps_its_refs_without_their_file(store: MirrorStore) -> None:
    """Of 256 generations with 100,000 refs the files would be gigabytes."""
    for content in (b"a", b"b"):
        grow(store, KEY, heads(main=content), [content])
    store.close()
    store.open()
    old = store.get(KEY)
    assert old is not None
    assert not old.lazy_refs.is_loaded
    new = grow(store, KEY, heads(main=b"c"), [b"c"])
    assert [path.name for path in new.directory.glob("refs-*")] == [new.current.refs_file]
    assert old.refs == heads(main=b"b")
    store.close()


def test_a_generation_is_a_stretch_of_the_log_wherever_segments_end(store: MirrorStore) -> None:
    """From its own bytes to those of another, each pack without header and trailer."""
    for content in (b"a", b"bb", b"ccc"):
        mirror = grow(store, KEY, heads(main=content), [content])
    bodies = [segment.pack.read_bytes()[12:-20] for segment in mirror.segments]
    starts = [0, *(generation.bytes for generation in mirror.generations)]
    for first, begin in enumerate(starts):
        for last, end in enumerate(starts[first:], first):
            stretches = mirror.stretches(begin, end)
            read = [pack.read_bytes()[at : at + length] for pack, at, length in stretches]
            assert read == bodies[first:last]
    cut = mirror.stretches(starts[1] + 1, starts[2] - 1)
    assert cut == ((mirror.segments[1].pack, 13, len(bodies[1]) - 2),)
    store.close()


@pytest.mark.parametrize("spoil", ["remove", "truncate", "swap"])
@pytest.mark.parametrize("ending", ["table", "links"])
def test_what_is_lost_is_mended_in_log_order_and_nothing_else(
    store: MirrorStore, spoil: str, ending: str
) -> None:
    """What is whole, but of another pack, needs it too."""
    for content in (b"a", b"b", b"c", b"d"):
        mirror = grow(store, KEY, heads(main=content), [content])
    paths = [segment.pack.with_suffix(f".{ending}") for segment in mirror.segments]
    good = [path.read_bytes() for path in paths]
    match spoil:
        case "remove":
            for path in paths[1:3]:
                path.unlink()
        case "truncate":
            for path, content in zip(paths[1:3], good[1:3], strict=True):
                path.write_bytes(content[:-1])
        case "swap":
            paths[1].write_bytes(good[2])
            paths[2].write_bytes(good[1])
    mended: list[int] = []

    def mend(position: int) -> None:
        mended.append(position)
        paths[position].write_bytes(good[position])

    table = load_table(mirror.segments, mend)
    assert mended == [1, 2]
    assert len(table) == 4
    store.close()


def test_of_a_log_that_grew_only_what_is_new_is_read(store: MirrorStore) -> None:
    first = grow(store, KEY, heads(main=b"a"), [b"a"])
    before = load_table(first.segments, lambda position: None)
    second = grow(store, KEY, heads(main=b"b"), [b"b"])
    first.segments[0].table.write_bytes(b"damage")
    grown = load_table(second.segments, lambda position: None, grown_from=before)
    assert len(grown) == 2
    second.segments[1].links.write_bytes(b"damage")
    with pytest.raises(MirrorDamaged):
        load_table(second.segments, lambda position: None, grown_from=before)
    store.close()


def test_a_table_that_mending_does_not_help_is_damage(store: MirrorStore) -> None:
    mirror = grow(store, KEY, heads(main=b"a"), [b"a"])
    mirror.segments[0].table.unlink()
    with pytest.raises(MirrorDamaged):
        load_table(mirror.segments, lambda position: None)
    store.close()

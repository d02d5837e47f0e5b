"""Whatever the moment of a crash, a mirror is what it was before or after a commit, whole."""

import hashlib
import random
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path

import pytest

from goblet_node.errors import DiskFailed
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.intake import Intake
from goblet_node.mirror.layout import CacheRoot, SegmentFiles
from goblet_node.mirror.links import Links
from goblet_node.mirror.lock import CacheRootInUse
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.merge import JoinJob, join_segments
from goblet_node.mirror.store import MirrorStore
from goblet_node.mirror.table import Table
from goblet_node.mirror.view import manifest_of
from goblet_node.wire.refs import Ref
from goblet_shared.repo_key import RepoKey
from goblet_testing.committer import Committer, refs_at
from goblet_testing.faults import Fault, FaultDisk, Kind, PowerCut
from goblet_testing.mirrors import grow, heads, take_blobs

ONE = RepoKey("example.org/one")
TWO = RepoKey("example.org/two")

State = dict[RepoKey, tuple[tuple[Ref, ...], int, int]]
"""Of every mirror its refs, its segments and the number of its generation."""


class Deed(Enum):
    """What an act does."""

    COMMIT = auto()
    JOIN = auto()  # all segments become one
    RENEW = auto()
    DROP = auto()


@dataclass(frozen=True, kw_only=True)
class Act:
    """One change of a store; its intake was made beforehand."""

    key: RepoKey
    deed: Deed
    refs: tuple[Ref, ...]
    intake: Intake

    def apply(self, store: MirrorStore) -> None:
        if self.deed is Deed.DROP:
            store.drop(self.key)
            return
        scratch = store.new_scratch()
        intake = self.intake
        if intake.files is not None:
            copies = (shutil.copyfile(path, scratch / path.name) for path in intake.files)
            intake = replace(intake, files=SegmentFiles(*copies))
        base = store.get(self.key)
        if self.deed is Deed.COMMIT:
            store.commit(self.key, base=base, refs=self.refs, intake=intake)
        else:
            assert base is not None
            if self.deed is Deed.JOIN:
                store.replace(base, 0, len(base.segments), intake)
            else:
                store.renew(base, intake)
        store.discard_scratch(scratch)


SCRIPT: list[tuple[RepoKey, Deed, tuple[Ref, ...], Sequence[bytes]]] = [
    (ONE, Deed.COMMIT, heads(main=b"a", side=b"b"), (b"a", b"b")),
    (TWO, Deed.COMMIT, heads(main=b"z"), (b"z",)),
    (ONE, Deed.COMMIT, heads(main=b"c", side=b"b"), (b"c",)),
    (ONE, Deed.COMMIT, heads(main=b"c"), ()),
    (ONE, Deed.JOIN, (), ()),
    (ONE, Deed.COMMIT, heads(main=b"e"), (b"e",)),
    (ONE, Deed.RENEW, (), (b"e",)),
    (ONE, Deed.DROP, (), ()),
    (ONE, Deed.COMMIT, heads(main=b"d"), (b"d",)),
]


@dataclass(frozen=True, kw_only=True)
class Story:
    """Acts, and the state of the store before the first and after each."""

    acts: list[Act]
    states: list[State]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Take everything in once, so that the hundreds of crashes below cost only file moves."""
    place = tmp_path_factory.mktemp("story")
    store = MirrorStore(place / "root", disk=Disk())
    store.open()
    acts: list[Act] = []
    states = [state_of(store)]
    for number, (key, deed, refs, contents) in enumerate(SCRIPT):
        scratch = place / str(number)
        scratch.mkdir()
        mirror = store.get(key)
        intake = Intake()
        if deed is Deed.COMMIT:
            intake = take_blobs(scratch, base=mirror, refs=refs, contents=contents)
        elif deed is Deed.RENEW:
            intake = take_blobs(scratch, base=None, refs=(), contents=contents)
        elif deed is Deed.JOIN:
            assert mirror is not None
            intake = join_segments(JoinJob(segments=mirror.files, scratch=scratch))
        acts.append(Act(key=key, deed=deed, refs=refs, intake=intake))
        acts[-1].apply(store)
        states.append(state_of(store))
    store.close()
    return Story(acts=acts, states=states)


def state_of(store: MirrorStore) -> State:
    return {m.key: (m.refs, len(m.segments), m.current.number) for m in mirrors_of(store)}


def mirrors_of(store: MirrorStore) -> list[Mirror]:
    found = map(store.get, store.keys())
    return [mirror for mirror in found if mirror is not None]


def check_whole(store: MirrorStore, root: Path) -> None:
    """Every file of every mirror is what it was, and counted; and there is no other file."""
    expected = {root / "lock"}
    for mirror in mirrors_of(store):
        check_segments(mirror)
        assert mirror.missing(mirror.tips) == []
        expected |= {mirror.directory / name for name in manifest_of(mirror).file_names()}
    assert {path for path in root.rglob("*") if path.is_file()} == expected
    assert list(CacheRoot(root).scratch.iterdir()) == []
    on_disk = sum(path.stat().st_size for path in (root / "mirrors").rglob("*") if path.is_file())
    assert store.total_bytes == sum(store.sizes().values()) == on_disk


def check_segments(mirror: Mirror) -> None:
    """Packs carry their checksum; tables and links load as they lie, not made anew."""
    for segment in mirror.segments:
        pack = segment.pack.read_bytes()
        assert hashlib.sha1(pack[:-20]).digest() == pack[-20:]
        assert pack[-20:].hex() == segment.checksum
        assert len(Table.load([segment.table])) == segment.objects
        assert Links.load([segment.links]).checksums[0].hex() == segment.checksum
        beside = segment.table.stat().st_size + segment.links.stat().st_size
        assert beside == segment.beside


def steps_of(story: Story, tmp_path: Path) -> list[str]:
    """Return every write, fsync, rename and removal of the whole story."""
    (tmp_path / "limbo").mkdir()
    disk = FaultDisk(tmp_path / "limbo")
    store = MirrorStore(tmp_path / "root", disk=disk)
    store.open()
    for act in story.acts:
        act.apply(store)
    store.close()
    return disk.steps


def places(tmp_path: Path, numbers: Iterable[int]) -> Iterator[tuple[int, Path, Path]]:
    """Yield each number with a cache root to be and a limbo."""
    for number in numbers:
        place = tmp_path / str(number)
        (place / "limbo").mkdir(parents=True)
        yield number, place / "root", place / "limbo"
        shutil.rmtree(place)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "share"), [(Kind.CUT_BEFORE, 1), (Kind.CUT_AFTER, 4)])
def test_a_power_cut_at_any_step_leaves_the_state_before_or_after(
    story: Story, tmp_path: Path, kind: Kind, share: int
) -> None:
    """At every step; unsynced files end anywhere, unsynced names are there or not.

    A cut after a step finds what one before the next step does: a share of them is
    enough, with the last, which has no next.
    """
    cut_at_steps(story, tmp_path, kind, seed=0, share=share)


@pytest.mark.soak
@pytest.mark.parametrize("kind", [Kind.CUT_BEFORE, Kind.CUT_AFTER])
@pytest.mark.parametrize("seed", range(1, 11))
def test_ten_further_power_cuts_at_any_step_leave_the_state_before_or_after(
    story: Story, tmp_path: Path, kind: Kind, seed: int
) -> None:
    """What is lost of what was not synced is another part each time."""
    cut_at_steps(story, tmp_path, kind, seed=seed, share=1)


def cut_at_steps(story: Story, tmp_path: Path, kind: Kind, *, seed: int, share: int) -> None:
    """Cut at one step of `share`, counted from the last."""
    steps = steps_of(story, tmp_path)
    for number, root, limbo in places(tmp_path, range(len(steps) - 1, -1, -share)):
        disk = FaultDisk(limbo, fault=Fault(step=number, kind=kind))
        done = run_until_cut(story, MirrorStore(root, disk=disk))
        disk.cut_power(root, random.Random(f"{seed} {number}"))

        store = MirrorStore(root, disk=Disk())
        store.open()
        found = state_of(store)
        what = f"{kind.name} of step {number}, {steps[number]!r}, in act {done}"
        assert found in story.states[done : done + 2], what
        check_whole(store, root)
        next_commit_works(store, root)


def run_until_cut(story: Story, store: MirrorStore) -> int:
    """Return how many acts were finished when the power went."""
    done = 0
    try:
        store.open()
        for act in story.acts:
            act.apply(store)
            done += 1
    except PowerCut:
        pass
    else:
        pytest.fail("the power was never cut")
    finally:
        store.close()
    return done


def next_commit_works(store: MirrorStore, root: Path) -> None:
    grow(store, ONE, heads(main=b"new"), [b"new"])
    after = state_of(store)
    store.close()
    again = MirrorStore(root, disk=Disk())
    assert again.open() == ()
    assert state_of(again) == after
    check_whole(again, root)
    again.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Kind.REFUSED, Kind.REFUSED_AFTER])
def test_a_refusal_at_any_step_loses_that_commit_alone(
    story: Story, tmp_path: Path, kind: Kind
) -> None:
    """Full or failing: memory keeps the last good state, and the same act works next time."""
    steps = steps_of(story, tmp_path)
    for number, root, limbo in places(tmp_path, range(len(steps))):
        disk = FaultDisk(limbo, fault=Fault(step=number, kind=kind))
        store = MirrorStore(root, disk=disk)
        what = f"{kind.name} of step {number}, {steps[number]!r}"
        try:
            store.open()
        except DiskFailed:
            store.open()
        for before, act in zip(story.states, story.acts, strict=False):
            try:
                act.apply(store)
            except DiskFailed:
                if act.deed is not Deed.DROP:  # a mirror that cannot be deleted is forgotten
                    assert state_of(store) == before, what
                act.apply(store)
        assert state_of(store) == story.states[-1], what
        store.close()
        again = MirrorStore(root, disk=Disk())
        again.open()
        assert state_of(again) == story.states[-1], what
        check_whole(again, root)
        again.close()


def test_a_commit_that_fails_for_want_of_space_gives_the_space_back(
    story: Story, tmp_path: Path
) -> None:
    """Not only at the next start: a full disk must not stay full."""
    (tmp_path / "limbo").mkdir()
    disk = FaultDisk(tmp_path / "limbo")
    root = tmp_path / "root"
    store = MirrorStore(root, disk=disk)
    store.open()
    for act in story.acts[:2]:
        act.apply(store)
    mirror = store.get(ONE)
    assert mirror is not None
    before = sorted(mirror.directory.iterdir())
    disk.fail_next("write manifest.json.new", Kind.REFUSED)
    with pytest.raises(DiskFailed):
        story.acts[2].apply(store)
    assert sorted(mirror.directory.iterdir()) == before
    store.close()


def test_a_manifest_that_came_through_in_spite_of_a_failure_keeps_its_files(
    story: Story, tmp_path: Path
) -> None:
    """A commit fails in its last fsync, the next fails early: the files of the first must stay.

    The manifest on the disk is then the failed commit's, and a start would read it.
    """
    (tmp_path / "limbo").mkdir()
    root = tmp_path / "root"
    disk = FaultDisk(tmp_path / "limbo")
    store = MirrorStore(root, disk=disk)
    store.open()
    for act in story.acts[:2]:
        act.apply(store)
    for name, kind in (
        ("rename manifest.json.new to manifest.json", Kind.REFUSED_AFTER),
        ("write manifest.json.new", Kind.REFUSED),
    ):
        disk.fail_next(name, kind)
        with pytest.raises(DiskFailed):
            story.acts[2].apply(store)
    store.close()
    again = MirrorStore(root, disk=Disk())
    again.open()
    assert state_of(again) == story.states[3]
    check_whole(again, root)
    again.close()


@pytest.mark.slow
def test_fifty_kills_of_a_committing_process_never_lose_or_invent_a_commit(
    tmp_path: Path,
) -> None:
    """A real process on real files, killed at random moments: what it said is there, whole."""
    chance = random.Random(50)
    root = tmp_path / "root"
    told = 0
    is_cold = True
    with Committer() as committer:
        for round_number in range(50):
            committer.start(root, first=told + 1)
            if chance.random() < 0.7:  # else the kill may fall into the recovery at the start
                committer.wait_for_word()
            committer.kill_after(chance.uniform(0.0, 0.05))
            told = max([told, *committer.words()])

            store = MirrorStore(root, disk=Disk())
            store.open()
            mirror = store.get(ONE)
            if mirror is None:  # the committer drops its mirror now and then
                stayed_cold = is_cold and not committer.words()
                assert committer.is_dropping or stayed_cold, f"round {round_number}"
            else:
                found = int(mirror.refs[0].name.rpartition(b"-")[2])
                assert found in (told, told + 1), f"round {round_number}"
                assert mirror.refs == refs_at(found)
                told = found
            is_cold = mirror is None
            check_whole(store, root)
            store.close()
    assert told > 50


def test_a_root_is_refused_while_its_owner_lives_and_given_after_it_was_killed(
    tmp_path: Path,
) -> None:
    """flock, so that no stale lock can keep a node from starting."""
    root = tmp_path / "root"
    with Committer() as committer:
        committer.start(root, first=1)
        committer.wait_for_word()
        store = MirrorStore(root, disk=Disk())
        with pytest.raises(CacheRootInUse, match=str(root)):
            store.open()
        committer.kill_after(0)
        store.open()
        assert store.keys() == (ONE,)
        store.close()

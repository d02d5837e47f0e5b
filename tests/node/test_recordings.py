"""Recordings: found whole or not at all, within a budget, the least used first to go."""

import os
import random
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from goblet_node.errors import DiskFailed
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.layout import CacheRoot
from goblet_node.serve import recordings as recordings_module
from goblet_node.serve.recordings import NOTED_EVERY, Recordings
from goblet_shared.repo_key import RepoKey
from goblet_testing.faults import Fault, FaultDisk, Kind, PowerCut

REPO = RepoKey("origin.test/org/repo")
OTHER = RepoKey("origin.test/org/other")
BLOCK = 4096
PLENTY = 1 << 30


def key(number: int) -> str:
    """Return a key as `key_of` makes them."""
    return f"{number:064x}"


def opened(root: Path, *, budget: int = PLENTY, disk: Disk | None = None) -> Recordings:
    """Return the recordings of a root, as a node that starts there."""
    found = Recordings(root, budget=budget, disk=disk or Disk())
    found.open()
    return found


def record(
    recordings: Recordings,
    number: int,
    content: bytes = b"answer",
    *,
    repo: RepoKey = REPO,
    has_pack: bool = True,
) -> bool:
    """Make a recording, as who made the answer does."""
    descriptor, name = tempfile.mkstemp(dir=recordings_root(recordings))
    os.close(descriptor)
    source = Path(name)
    source.write_bytes(content)
    try:
        with recordings.writing(repo, key(number)) as writing:
            return writing.keep(source, has_pack=has_pack)
    finally:
        source.unlink(missing_ok=True)


def recordings_root(recordings: Recordings) -> Path:
    """Return the cache root that they lie in."""
    return recordings._root.path


def read(recordings: Recordings, number: int, *, repo: RepoKey = REPO) -> bytes | None:
    """Return a recording's content, None if there is none."""
    found = recordings.find(repo, key(number))
    if found is None:
        return None
    lent = recordings.lend(found) or recordings.open_file(found)
    if lent is None:
        return None
    try:
        return os.pread(lent.file, found.size + 1, 0)
    finally:
        recordings.give_back(lent)


def read_small(recordings: Recordings, number: int, *, repo: RepoKey = REPO) -> bytes | None:
    """Do what `read` does, from memory if it is there."""
    answer = recordings.at_hand(repo, key(number))
    if answer is None and (found := recordings.find(repo, key(number))) is not None:
        answer = recordings.read(found)
    return None if answer is None else answer.data


def is_at_hand(recordings: Recordings, number: int) -> bool:
    """Say whether a recording is in memory."""
    return recordings.at_hand(REPO, key(number)) is not None


def files(root: Path) -> list[Path]:
    """Return every file that lies among the recordings."""
    return [path for path in CacheRoot(root).recordings.rglob("*") if path.is_file()]


def test_what_was_kept_is_found_with_all_that_is_known_of_it(tmp_path: Path) -> None:
    recordings = opened(tmp_path)
    assert record(recordings, 1, b"a pack")
    assert record(recordings, 2, b"words", has_pack=False)
    assert [read(recordings, number) for number in (1, 2, 3)] == [b"a pack", b"words", None]
    found = [recordings.find(REPO, key(number)) for number in (1, 2)]
    assert [(one.size, one.has_pack) for one in found if one] == [(6, True), (5, False)]


def test_a_question_is_never_answered_with_another_repositorys_answer(tmp_path: Path) -> None:
    recordings = opened(tmp_path)
    record(recordings, 1)
    assert recordings.find(OTHER, key(1)) is None


def test_a_restart_finds_what_there_was_and_nothing_else(tmp_path: Path) -> None:
    recordings = opened(tmp_path)
    record(recordings, 1, b"first")
    record(recordings, 2, b"second", repo=OTHER, has_pack=False)
    place = CacheRoot(tmp_path).recordings
    (place / "stray").write_bytes(b"?")
    (CacheRoot(tmp_path).recordings_of(REPO) / "half.new").write_bytes(b"?")
    (place / ("0" * 64)).mkdir()
    again = opened(tmp_path)
    assert read(again, 1) == b"first"
    assert read(again, 2, repo=OTHER) == b"second"
    assert (again.total, again.count) == (recordings.total, 2) == (2 * BLOCK, 2)
    assert len(files(tmp_path)) == 2
    assert len(list(place.iterdir())) == 2


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    recordings = opened(tmp_path, budget=3 * BLOCK)
    for number in (1, 2, 3):
        record(recordings, number)
    read(recordings, 1)
    record(recordings, 4)
    assert [read(recordings, number) is None for number in (1, 2, 3, 4)] == [0, 1, 0, 0]
    assert recordings.total == 3 * BLOCK
    assert len(files(tmp_path)) == 3


def test_the_order_of_use_survives_a_restart(tmp_path: Path) -> None:
    recordings = opened(tmp_path)
    long_ago = time.time() - 10 * NOTED_EVERY
    for number in (1, 2, 3):
        record(recordings, number)
    for at, path in enumerate(sorted(files(tmp_path))):
        os.utime(path, (long_ago + at, long_ago + at))
    second = opened(tmp_path)
    read(second, 1)
    second.close()
    third = opened(tmp_path, budget=2 * BLOCK)
    assert [read(third, number) is None for number in (1, 2, 3)] == [0, 1, 0]


def test_use_is_noted_on_the_disk_now_and_then_only(tmp_path: Path) -> None:
    recordings = opened(tmp_path)
    record(recordings, 1)
    (path,) = files(tmp_path)
    before = path.stat().st_mtime_ns
    read(recordings, 1)
    assert path.stat().st_mtime_ns == before


def test_a_clock_that_was_set_back_keeps_nothing_for_ever(tmp_path: Path) -> None:
    record(opened(tmp_path), 1)
    (path,) = files(tmp_path)
    os.utime(path, (time.time() + 1e9, time.time() + 1e9))
    recordings = opened(tmp_path)
    time.sleep(0.002)
    record(recordings, 2)
    recordings.free(1)
    assert [read(recordings, number) is None for number in (1, 2)] == [1, 0]


def test_freeing_frees_at_least_what_is_asked_and_no_recording_more(tmp_path: Path) -> None:
    recordings = opened(tmp_path)
    for number in range(5):
        record(recordings, number, b"x" * (BLOCK + 1))
    assert recordings.free(2 * BLOCK + 1) == 4 * BLOCK
    assert (recordings.total, recordings.count) == (6 * BLOCK, 3)
    assert recordings.free(PLENTY) == 6 * BLOCK
    assert (recordings.total, files(tmp_path)) == (0, [])


def test_what_is_larger_than_the_budget_is_not_kept_and_evicts_nothing(tmp_path: Path) -> None:
    recordings = opened(tmp_path, budget=2 * BLOCK)
    assert record(recordings, 1)
    assert not record(recordings, 2, b"x" * (2 * BLOCK + 1))
    assert read(recordings, 1) == b"answer"


def test_a_budget_of_nothing_keeps_nothing(tmp_path: Path) -> None:
    record(opened(tmp_path), 1)
    recordings = opened(tmp_path, budget=0)
    assert not record(recordings, 2)
    assert files(tmp_path) == []


def test_no_more_are_kept_than_are_worth_their_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordings_module, "MAX_RECORDINGS", 2)
    recordings = opened(tmp_path)
    for number in range(4):
        record(recordings, number)
    assert [read(recordings, number) is None for number in range(4)] == [1, 1, 0, 0]


def test_discarding_a_repository_spares_the_others(tmp_path: Path) -> None:
    recordings = opened(tmp_path)
    for repo in (REPO, OTHER):
        for number in (1, 2):
            record(recordings, number, repo=repo)
    recordings.discard(REPO)
    assert [read(recordings, number) for number in (1, 2)] == [None, None]
    assert read(recordings, 1, repo=OTHER) == b"answer"
    assert len(files(tmp_path)) == 2
    assert not CacheRoot(tmp_path).recordings_of(REPO).exists()


def test_what_was_begun_before_the_discarding_is_not_kept(tmp_path: Path) -> None:
    """It may be made of what is gone; what is begun later is not."""
    recordings = opened(tmp_path)
    source = tmp_path / "made"
    source.write_bytes(b"answer")
    with recordings.writing(REPO, key(1)) as writing, recordings.writing(OTHER, key(1)) as spared:
        recordings.discard(REPO)
        assert not writing.keep(source, has_pack=True)
        assert source.exists()
        assert spared.keep(source, has_pack=True)
    assert recordings.find(REPO, key(1)) is None
    assert record(recordings, 1)


def test_a_recording_that_is_being_sent_can_be_read_to_its_end(tmp_path: Path) -> None:
    recordings = opened(tmp_path)
    record(recordings, 1, b"x" * 10_000)
    found = recordings.find(REPO, key(1))
    assert found is not None
    lent = recordings.open_file(found)
    assert lent is not None
    assert recordings.free(PLENTY) > 0
    assert os.pread(lent.file, 20_000, 0) == b"x" * 10_000
    recordings.give_back(lent)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(lent.file)


def test_a_recording_that_is_sent_often_is_opened_once(tmp_path: Path) -> None:
    recordings = opened(tmp_path)
    record(recordings, 1)
    found = recordings.find(REPO, key(1))
    assert found is not None
    assert recordings.lend(found) is None
    first = recordings.open_file(found)
    second = recordings.lend(found)
    assert first is not None
    assert first is second
    for _ in range(2):
        recordings.give_back(first)
    recordings.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(first.file)


def test_what_is_deleted_is_not_kept_open(tmp_path: Path) -> None:
    """The disk would not get its bytes back."""
    recordings = opened(tmp_path)
    record(recordings, 1)
    before = len(os.listdir("/proc/self/fd"))
    read(recordings, 1)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    recordings.discard(REPO)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"cut")])
def test_a_recording_that_is_not_what_it_was_is_forgotten(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    recordings = opened(tmp_path)
    record(recordings, 1)
    (path,) = files(tmp_path)
    spoil(path)
    assert read(recordings, 1) is None  # opened for the first time
    assert (recordings.total, recordings.count, files(tmp_path)) == (0, 0, [])
    assert record(recordings, 1)
    assert read(recordings, 1) == b"answer"


def test_what_was_read_once_is_at_hand_without_its_file(tmp_path: Path) -> None:
    recordings = opened(tmp_path)
    record(recordings, 1, b"words", has_pack=False)
    assert not is_at_hand(recordings, 1)
    assert read_small(recordings, 1) == b"words"
    (path,) = files(tmp_path)
    path.unlink()
    answer = recordings.at_hand(REPO, key(1))
    assert answer is not None
    assert (answer.data, answer.has_pack) == (b"words", False)
    assert recordings.at_hand(OTHER, key(1)) is None


@pytest.mark.parametrize(
    "delete",
    [
        lambda recordings: recordings.discard(REPO),
        lambda recordings: recordings.free(1),
        lambda recordings: recordings.forget(recordings.find(REPO, key(1))),
        lambda recordings: record(recordings, 1, b"another"),
        lambda recordings: recordings.close(),
    ],
    ids=["discard", "free", "forget", "record", "close"],
)
def test_what_is_deleted_is_not_at_hand_any_more(
    tmp_path: Path, delete: Callable[[Recordings], object]
) -> None:
    recordings = opened(tmp_path)
    record(recordings, 1)
    read_small(recordings, 1)
    assert is_at_hand(recordings, 1)
    delete(recordings)
    assert not is_at_hand(recordings, 1)


def test_a_recording_that_was_deleted_while_it_was_read_is_not_at_hand(tmp_path: Path) -> None:
    recordings = opened(tmp_path)
    record(recordings, 1)
    found = recordings.find(REPO, key(1))
    assert found is not None
    recordings.discard(REPO)
    assert recordings.read(found) is None
    record(recordings, 1, b"newer")
    assert recordings.read(found) is None  # it has another size by now, and is forgotten
    assert not is_at_hand(recordings, 1)


def test_use_from_memory_counts_in_the_order_and_is_noted_when_it_is_due(tmp_path: Path) -> None:
    recordings = opened(tmp_path)
    for number in (1, 2):
        record(recordings, number)
        read_small(recordings, number)
    assert is_at_hand(recordings, 1)
    recordings.free(1)
    assert [is_at_hand(recordings, number) for number in (1, 2)] == [True, False]
    (path,) = files(tmp_path)
    long_ago = time.time() - 2 * NOTED_EVERY
    os.utime(path, (long_ago, long_ago))
    after = opened(tmp_path)
    read_small(after, 1)
    assert path.stat().st_mtime > long_ago + NOTED_EVERY


def test_memory_for_recordings_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings_module, "SMALL_MEMORY", 8000)
    recordings = opened(tmp_path)
    for number in range(4):
        record(recordings, number, b"x" * 3000)
        read_small(recordings, number)
    assert [is_at_hand(recordings, number) for number in range(4)] == [False, False, True, True]
    assert recordings.count == 4


def test_an_answer_recorded_twice_counts_once(tmp_path: Path) -> None:
    recordings = opened(tmp_path)
    record(recordings, 1, b"x" * 3 * BLOCK, has_pack=False)
    record(recordings, 1, b"y")
    assert read(recordings, 1) == b"y"
    assert (recordings.total, len(files(tmp_path))) == (BLOCK, 1)


def faulty(root: Path, *, fault: Fault | None = None) -> tuple[Recordings, FaultDisk]:
    """Return the recordings of a new root on a disk that fails at one step."""
    limbo = root.with_suffix(".limbo")
    limbo.mkdir()
    disk = FaultDisk(limbo, fault=fault)
    return opened(root, disk=disk), disk


def steps_of_one(root: Path) -> range:
    """Return the numbers of the steps that one recording takes in a new root."""
    recordings, disk = faulty(root)
    before = len(disk.steps)
    record(recordings, 1)
    assert len(disk.steps) > before
    return range(before, len(disk.steps))


@pytest.mark.parametrize("kind", [Kind.REFUSED, Kind.REFUSED_AFTER])
def test_a_disk_that_refuses_any_step_leaves_no_half_recording(tmp_path: Path, kind: Kind) -> None:
    for step in steps_of_one(tmp_path / "counted"):
        root = tmp_path / f"{step}"
        recordings, _ = faulty(root, fault=Fault(step=step, kind=kind))
        with pytest.raises(DiskFailed):
            record(recordings, 1)
        assert recordings.find(REPO, key(1)) is None
        assert recordings.total == 0
        assert read(opened(root), 1) in (None, b"answer")


@pytest.mark.parametrize("kind", [Kind.CUT_BEFORE, Kind.CUT_AFTER])
def test_a_power_cut_at_any_step_leaves_all_of_a_recording_or_nothing(
    tmp_path: Path, kind: Kind
) -> None:
    content = b"answer" * 1000
    for step in steps_of_one(tmp_path / "counted"):
        for seed in range(6):
            root = tmp_path / f"{step}-{seed}"
            recordings, disk = faulty(root, fault=Fault(step=step, kind=kind))
            with pytest.raises(PowerCut):
                record(recordings, 1, content)
            disk.cut_power(root, random.Random(seed))
            assert read(opened(root), 1) in (None, content)


def test_threads_that_keep_free_and_discard_at_once_leave_the_books_right(tmp_path: Path) -> None:
    recordings = opened(tmp_path, budget=20 * BLOCK)

    def work(seed: int) -> None:
        for step in range(30):
            record(recordings, seed * 1000 + step % 7, repo=(REPO, OTHER)[step % 2])
            read(recordings, seed * 1000 + step % 5)
            read_small(recordings, seed * 1000 + step % 5)
            if step % 5 == seed:
                recordings.free(BLOCK)
            if step % 11 == seed:
                recordings.discard(OTHER)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = files(tmp_path)
    assert (recordings.total, recordings.count) == (BLOCK * len(left), len(left))


class AnyOrder(RuleBasedStateMachine):
    """Whatever is kept, used, freed, discarded and restarted: the model says what is there."""

    numbers = st.integers(0, 3)
    repos = st.sampled_from([REPO, OTHER])
    budget = 4 * BLOCK

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.recordings = opened(Path(self.folder.name), budget=self.budget)
        self.model: dict[tuple[RepoKey, int], bytes] = {}

    @rule(repo=repos, number=numbers, size=st.integers(0, 3))
    def keep(self, repo: RepoKey, number: int, size: int) -> None:
        content = bytes([number]) * (size * BLOCK + 1)
        if record(self.recordings, number, content, repo=repo):
            self.model.pop((repo, number), None)
            self.model[repo, number] = content
            self._shrink(self.budget)

    @rule(repo=repos, number=numbers)
    def use(self, repo: RepoKey, number: int) -> None:
        content = read(self.recordings, number, repo=repo)
        assert content == self.model.get((repo, number))
        if content is not None:
            self.model[repo, number] = self.model.pop((repo, number))

    @rule(repo=repos, number=numbers)
    def use_in_memory(self, repo: RepoKey, number: int) -> None:
        content = read_small(self.recordings, number, repo=repo)
        assert content == self.model.get((repo, number))
        if content is not None:
            self.model[repo, number] = self.model.pop((repo, number))

    @precondition(lambda self: self.model)
    @rule()
    def free(self) -> None:
        assert self.recordings.free(1) > 0
        self.model.pop(next(iter(self.model)))

    @rule(repo=repos)
    def discard(self, repo: RepoKey) -> None:
        self.recordings.discard(repo)
        self.model = {place: said for place, said in self.model.items() if place[0] != repo}

    @invariant()
    def books_are_right(self) -> None:
        assert self.recordings.total == sum(map(_blocks, self.model.values())) <= self.budget
        assert len(files(Path(self.folder.name))) == self.recordings.count == len(self.model)

    def teardown(self) -> None:
        self.folder.cleanup()

    def _shrink(self, budget: int) -> None:
        while sum(map(_blocks, self.model.values())) > budget:
            self.model.pop(next(iter(self.model)))


def _blocks(content: bytes) -> int:
    return -(-len(content) // BLOCK) * BLOCK


@pytest.mark.slow
def test_whatever_is_done_in_whatever_order_the_books_are_right() -> None:
    steps = settings(max_examples=10, stateful_step_count=30)
    run_state_machine_as_test(AnyOrder, settings=steps)

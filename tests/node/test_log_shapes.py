"""However a log grew, was joined and was renewed: every answer from it is right, says git."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from goblet_node.mirror.concat import log_header
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.export import export
from goblet_node.mirror.intake import IntakeJob, take_in
from goblet_node.mirror.log import Generation, Mirror
from goblet_node.mirror.merge import JoinJob, join_segments
from goblet_node.mirror.reader import LogReader
from goblet_node.mirror.refs import tips
from goblet_node.mirror.store import MirrorStore
from goblet_node.mirror.wear import RenewJob, load_graph
from goblet_node.serve.emit import emit
from goblet_node.serve.need import Question, need
from goblet_node.serve.pieces import pack_of
from goblet_node.serve.renew import renew
from goblet_node.wire.refs import JoinedIds, ObjectId, Ref
from goblet_shared.repo_key import RepoKey
from goblet_testing.gitcli import fsck
from goblet_testing.packs import Repo, sealed, strict_index

KEY = RepoKey("example.org/one")
BRANCHES = ("main", "one", "two")

# Each example asks git some dozens of times.
pytestmark = pytest.mark.slow


class Tended:
    """An origin and its mirror, which is changed as a node changes it."""

    def __init__(self, place: Path, chance: random.Random) -> None:
        self._place = place
        self._chance = chance
        self.origin = Repo.create(place / "origin")
        self.store = MirrorStore(place / "root", disk=Disk())
        self.store.open()
        self._text = [b"line %d\n" % number for number in range(120)]
        self.push()
        self.follow()

    @property
    def mirror(self) -> Mirror:
        found = self.store.get(KEY)
        assert found is not None
        return found

    def push(self) -> None:
        """Commit to a branch, which may begin at another."""
        branch = self._chance.choice(BRANCHES)
        others = sorted(self.origin.branches)
        parent = self._chance.choice(others) if others and self._chance.random() < 0.3 else None
        self._text[self._chance.randrange(120)] = b"%d\n" % self._chance.randrange(10**6)
        files = {"text": b"".join(self._text), f"d/{self._chance.randrange(5)}": self._text[0]}
        self.origin.commit(branch, files, parent=parent if parent != branch else None)
        if self._chance.random() < 0.2:
            self.origin.tag(f"t{self._chance.randrange(10**6)}", f"refs/heads/{branch}")

    def delete(self) -> None:
        """Delete a branch, if there are others."""
        if len(self.origin.branches) > 1:
            branch = self._chance.choice(sorted(self.origin.branches))
            self.origin.point(f"refs/heads/{branch}", None)

    def follow(self) -> None:
        """Refresh the mirror."""
        named = self.origin.refs().items()
        refs = tuple(Ref(name=name.encode(), oid=oid) for name, oid in sorted(named))
        base = self.store.get(KEY)
        missing = tips(refs) if base is None else base.missing(tips(refs))
        haves = () if base is None else (*base.tips, *base.current.orphans)
        with self._scratch() as scratch:
            received = scratch / "received.pack"
            if missing:
                received.write_bytes(self.origin.pack(sorted(missing), haves))
            job = IntakeJob(
                received=received if missing else None,
                scratch=scratch,
                segments=() if base is None else base.files,
                tips=JoinedIds.of(sorted(tips(refs))),
                old_tips=JoinedIds.of(() if base is None else sorted(base.tips)),
                old_orphans=JoinedIds.of(() if base is None else base.current.orphans),
            )
            self.store.commit(KEY, base=base, refs=refs, intake=take_in(job))

    def join(self) -> None:
        """Join some neighbours."""
        first = self._chance.randrange(len(self.mirror.segments))
        last = self._chance.randint(first + 1, len(self.mirror.segments))
        with self._scratch() as scratch:
            job = JoinJob(segments=self.mirror.files[first:last], scratch=scratch)
            self.store.replace(self.mirror, first, last, join_segments(job))

    def renew(self) -> None:
        """Make the log anew, with short chains."""
        with self._scratch() as scratch:
            job = RenewJob(
                segments=self.mirror.files,
                tips=JoinedIds.of(self.mirror.tips),
                most_depth=3,
                scratch=scratch,
            )
            self.store.renew(self.mirror, renew(job))

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        scratch = self.store.new_scratch()
        try:
            yield scratch
        finally:
            self.store.discard_scratch(scratch)

    def whole(self, generation: Generation) -> bytes:
        """Return the log up to a generation, as a whole clone gets it."""
        found = log_header(generation.objects)
        for pack, offset, length in self.mirror.stretches(0, generation.bytes):
            found += pack.read_bytes()[offset : offset + length]
        return sealed(found)

    def selected(self, wants: tuple[ObjectId, ...]) -> bytes:
        """Return what a clone gets where the log cannot go as it lies."""
        graph = load_graph(self.mirror.files)
        packs = [files.pack for files in self.mirror.files]
        with self._scratch() as scratch, LogReader(packs, graph.table) as reader:
            pieces = emit(
                reader,
                packs,
                need(graph, Question(wants=wants)),
                graph=graph,
                thin=False,
                ofs_delta=True,
                inline=scratch / "inline",
            )
            return b"".join(pack_of(packs, pieces))

    def check(self) -> None:
        """Have git judge all that a client may be sent."""
        everything = self.origin.reachable()
        table = self.mirror.table
        wants = tuple(sorted(self.mirror.tips))
        assert strict_index(self.selected(wants), self._place) == everything
        for generation in self.mirror.generations:
            if not generation.is_clean:
                continue
            # What comes after it is a suffix: with it, the whole of a later one.
            held = {table.oid(place) for place in range(generation.objects)}
            assert strict_index(self.whole(generation), self._place) == held
        if self.mirror.current.is_clean:
            assert {table.oid(place) for place in range(len(table))} == everything


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 10**6),
    acts=st.lists(
        st.sampled_from(["push", "push", "push", "delete", "join", "join", "renew"]), max_size=9
    ),
)
def test_after_every_act_every_answer_is_right(
    seed: int, acts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tended = Tended(tmp_path_factory.mktemp("tended"), random.Random(seed))
    for act in acts:
        getattr(tended, act)()
        if act in ("push", "delete"):
            tended.follow()
        tended.check()
    tended.store.close()


def test_a_joined_and_renewed_mirror_is_exported_as_git_would_have_it(tmp_path: Path) -> None:
    """Every link of it is sound, and a restart finds it as it is."""
    tended = Tended(tmp_path, random.Random(7))
    for act in ("push", "push", "delete", "push", "renew", "push", "push", "join", "push"):
        getattr(tended, act)()
        if act in ("push", "delete"):
            tended.follow()
    tended.store.close()
    tended.store.open()
    export(segments=tended.mirror.files, refs=tended.mirror.refs, dest=tmp_path / "export.git")
    fsck(tmp_path / "export.git")

"""What a commit will be, decided without a disk."""

from dataclasses import replace
from pathlib import Path

from goblet_node.mirror.commit import Commit, changes, plan_commit
from goblet_node.mirror.intake import Intake
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.refs import decode_refs
from goblet_node.mirror.view import as_mirror
from goblet_node.wire.refs import Ref
from goblet_shared.repo_key import RepoKey
from goblet_testing.mirrors import blob_id, heads

KEY = RepoKey("example.org/one")
HERE = Path("/cache/mirrors/aa/aaaa")
PACK = Intake(
    pack=Path("/scratch/received.pack"),
    table=Path("/scratch/segment.table"),
    objects=3,
    bytes=400,
    checksum="0123456789" * 4,
)


def planned(base: Mirror | None, refs: tuple[Ref, ...], intake: Intake) -> Commit:
    return plan_commit(key=KEY, directory=HERE, base=base, refs=refs, intake=intake)


def mirror_after(commit: Commit) -> Mirror:
    return as_mirror(
        commit.manifest,
        directory=HERE,
        refs=decode_refs(commit.refs_file[1]),
        table=None,
        mend=lambda segments, position: None,
    )


def test_a_first_pack_becomes_the_first_segment_and_generation() -> None:
    commit = planned(None, heads(main=b"a"), PACK)
    (segment,) = commit.manifest.segments
    (generation,) = commit.manifest.generations
    assert (segment.number, segment.objects, segment.bytes) == (1, 3, 400)
    assert commit.moves == ((PACK.pack, segment.pack), (PACK.table, segment.table))
    assert segment.pack == HERE / "seg-000001-012345678901.pack"
    assert (generation.number, generation.segments) == (1, 1)
    assert commit.refs_file[0] == HERE / generation.refs_file
    assert decode_refs(commit.refs_file[1]) == heads(main=b"a")


def test_a_repository_without_objects_has_a_generation_and_no_segment() -> None:
    unborn = (Ref(name=b"HEAD", oid=None, symref_target=b"refs/heads/main"),)
    commit = planned(None, unborn, Intake())
    assert commit.manifest.segments == ()
    assert commit.moves == ()
    assert commit.manifest.generations[-1].segments == 0


def test_a_further_pack_goes_after_the_log_and_refs_alone_leave_it() -> None:
    base = mirror_after(planned(None, heads(main=b"a", side=b"b"), PACK))
    grown = planned(base, heads(main=b"c", side=b"b"), PACK)
    assert [segment.number for segment in grown.manifest.segments] == [1, 2]
    moved = planned(base, heads(main=b"a"), Intake(orphans=(blob_id(b"b"),)))
    assert moved.manifest.segments == base.segments
    assert moved.moves == ()
    assert [g.number for g in moved.manifest.generations] == [1, 2]
    assert [g.segments for g in moved.manifest.generations] == [1, 1]
    assert not moved.manifest.generations[-1].is_clean


def test_a_generation_notes_which_tips_it_gained_and_lost() -> None:
    base = mirror_after(planned(None, heads(main=b"a", side=b"b"), PACK))
    newest = planned(base, heads(main=b"c", side=b"b"), PACK).manifest.generations[-1]
    assert newest.gained == (blob_id(b"c"),)
    assert newest.lost == (blob_id(b"a"),)


def test_refs_objects_and_orphans_are_changes_and_nothing_else_is() -> None:
    refs = heads(main=b"a")
    base = mirror_after(planned(None, refs, PACK))
    assert not changes(base, refs=list(refs), intake=Intake())
    assert changes(base, refs=refs, intake=PACK)
    assert changes(base, refs=heads(main=b"b"), intake=Intake())
    assert changes(base, refs=refs, intake=Intake(orphans=(blob_id(b"x"),)))
    assert changes(base, refs=(replace(refs[0], peeled=blob_id(b"x")),), intake=Intake())

"""What a commit will be, decided without a disk."""

from dataclasses import replace
from pathlib import Path

from goblet_node.mirror.commit import Commit, changes, plan_commit, plan_join, plan_renewal
from goblet_node.mirror.intake import Intake
from goblet_node.mirror.layout import SegmentFiles
from goblet_node.mirror.log import Mirror, log_size
from goblet_node.mirror.refs import decode_refs
from goblet_node.mirror.view import as_mirror
from goblet_node.wire.refs import Ref
from goblet_shared.repo_key import RepoKey
from goblet_testing.mirrors import blob_id, heads

KEY = RepoKey("example.org/one")
HERE = Path("/cache/mirrors/aa/aaaa")
FILES = SegmentFiles(
    pack=Path("/scratch/received.pack"),
    table=Path("/scratch/segment.table"),
    links=Path("/scratch/segment.links"),
)
PACK = Intake(
    files=FILES,
    objects=3,
    bytes=400,
    beside=90,
    checksum="0123456789" * 4,
)


def planned(base: Mirror | None, refs: tuple[Ref, ...], intake: Intake) -> Commit:
    return plan_commit(key=KEY, directory=HERE, base=base, refs=refs, intake=intake)


def mirror_after(commit: Commit) -> Mirror:
    assert commit.refs_file is not None
    return as_mirror(
        commit.manifest,
        directory=HERE,
        refs=decode_refs(commit.refs_file[1]),
        earlier=None,
        mend=lambda segments, position: None,
    )


def test_a_first_pack_becomes_the_first_segment_and_generation() -> None:
    commit = planned(None, heads(main=b"a"), PACK)
    (segment,) = commit.manifest.segments
    (generation,) = commit.manifest.generations
    assert (segment.number, segment.objects, segment.bytes, segment.beside) == (1, 3, 400, 90)
    assert commit.moves == tuple(zip(FILES, segment.files, strict=True))
    assert segment.pack == HERE / "seg-000001-012345678901.pack"
    assert (generation.number, generation.objects, generation.bytes) == (1, 3, 368)
    assert commit.refs_file is not None
    assert commit.refs_file[0] == HERE / generation.refs_file
    assert decode_refs(commit.refs_file[1]) == heads(main=b"a")


def test_a_repository_without_objects_has_a_generation_and_no_segment() -> None:
    unborn = (Ref(name=b"HEAD", oid=None, symref_target=b"refs/heads/main"),)
    commit = planned(None, unborn, Intake())
    assert commit.manifest.segments == ()
    assert commit.moves == ()
    assert commit.manifest.generations[-1].objects == 0
    assert commit.manifest.generations[-1].bytes == 0


def test_a_further_pack_goes_after_the_log_and_refs_alone_leave_it() -> None:
    base = mirror_after(planned(None, heads(main=b"a", side=b"b"), PACK))
    grown = planned(base, heads(main=b"c", side=b"b"), PACK)
    assert [segment.number for segment in grown.manifest.segments] == [1, 2]
    moved = planned(base, heads(main=b"a"), Intake(orphans=(blob_id(b"b"),)))
    assert moved.manifest.segments == base.segments
    assert moved.moves == ()
    assert [g.number for g in moved.manifest.generations] == [1, 2]
    assert [g.objects for g in moved.manifest.generations] == [3, 3]
    assert [g.objects for g in grown.manifest.generations] == [3, 6]
    assert [g.bytes for g in grown.manifest.generations] == [368, 736]
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


def test_joined_segments_are_one_in_their_place_and_nothing_else_changes() -> None:
    base = mirror_after(planned(None, heads(main=b"a"), PACK))
    for name in (b"b", b"c", b"d"):
        base = mirror_after(planned(base, heads(main=name), PACK))
    joined = replace(PACK, objects=6, bytes=768, beside=150, checksum="f" * 40)
    commit = plan_join(base, 1, 3, joined)
    assert [segment.number for segment in commit.manifest.segments] == [1, 2, 4]
    assert commit.manifest.segments[0::2] == base.segments[0::3]
    assert commit.manifest.segments[1].pack.name == "seg-000002-ffffffffffff.pack"
    assert commit.manifest.generations == base.generations
    assert log_size(commit.manifest.segments) == log_size(base.segments)
    assert commit.refs_file is None
    assert commit.moves == tuple(zip(FILES, commit.manifest.segments[1].files, strict=True))


def test_a_renewed_log_is_one_segment_and_one_clean_generation_with_the_same_refs() -> None:
    base = mirror_after(planned(None, heads(main=b"a", side=b"b"), PACK))
    base = mirror_after(planned(base, heads(main=b"a"), Intake(orphans=(blob_id(b"b"),))))
    commit = plan_renewal(base, replace(PACK, objects=2))
    (segment,) = commit.manifest.segments
    (generation,) = commit.manifest.generations
    assert segment.number == 2
    assert (generation.number, generation.objects, generation.bytes) == (3, 2, 368)
    assert generation.is_clean
    assert generation.gained == generation.lost == ()
    assert commit.refs_file is not None
    assert decode_refs(commit.refs_file[1]) == base.refs


def test_a_log_of_which_nothing_is_left_is_renewed_to_none() -> None:
    base = mirror_after(planned(None, heads(), PACK))
    commit = plan_renewal(base, Intake())
    assert commit.manifest.segments == ()
    assert commit.moves == ()
    assert commit.manifest.generations[-1].objects == 0

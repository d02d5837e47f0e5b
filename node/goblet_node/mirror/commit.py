"""Which files and which manifest make the next generation of a mirror. Pure: nothing is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from goblet_node.mirror.intake import Intake
from goblet_node.mirror.layout import refs_name
from goblet_node.mirror.log import Generation, Mirror, kept
from goblet_node.mirror.manifest import Manifest, make_segment
from goblet_node.mirror.refs import encode_refs, tips
from goblet_node.wire.refs import ObjectId, Ref
from goblet_shared.repo_key import RepoKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What must be on the disk, in this order, for a generation to exist.

    `moves` are files of the intake and the names they get, `refs_file` the new
    refs file with its content; `manifest` names them all.
    """

    directory: Path
    moves: tuple[tuple[Path, Path], ...]
    refs_file: tuple[Path, bytes]
    manifest: Manifest


def changes(base: Mirror, *, refs: Sequence[Ref], intake: Intake) -> bool:
    """Say whether there is anything to commit.

    Generations are a history of bounded length: one that repeats the one before
    it would only push out an older one.
    """
    return (
        intake.pack is not None
        or tuple(refs) != base.refs
        or intake.orphans != base.current.orphans
    )


def plan_commit(
    *,
    key: RepoKey,
    directory: Path,
    base: Mirror | None,
    refs: Sequence[Ref],
    intake: Intake,
) -> Commit:
    """Return what makes `refs` and the objects of `intake` the mirror's next generation."""
    number = 1 if base is None else base.current.number + 1
    segments = () if base is None else base.segments
    moves: tuple[tuple[Path, Path], ...] = ()
    if intake.pack is not None and intake.table is not None:
        segment = make_segment(
            directory=directory,
            number=segments[-1].number + 1 if segments else 1,
            objects=intake.objects,
            bytes=intake.bytes,
            checksum=intake.checksum,
        )
        moves = ((intake.pack, segment.pack), (intake.table, segment.table))
        segments = (*segments, segment)
    content = encode_refs(refs)
    generation = Generation(
        number=number,
        segments=len(segments),
        refs_file=refs_name(number, content),
        orphans=tuple(intake.orphans),
        gained=_sorted(tips(refs) - base.tips) if base else (),
        lost=_sorted(base.tips - tips(refs)) if base else (),
    )
    earlier = () if base is None else base.generations
    return Commit(
        directory=directory,
        moves=moves,
        refs_file=(directory / generation.refs_file, content),
        manifest=Manifest(key=key, segments=segments, generations=kept((*earlier, generation))),
    )


def _sorted(oids: frozenset[ObjectId]) -> tuple[ObjectId, ...]:
    return tuple(sorted(oids))

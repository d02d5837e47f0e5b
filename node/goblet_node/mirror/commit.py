"""Which files and which manifest make the next generation of a mirror. Pure: nothing is written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from goblet_node.mirror.intake import Intake
from goblet_node.mirror.layout import refs_name
from goblet_node.mirror.log import Generation, Mirror, Segment, kept, log_size
from goblet_node.mirror.manifest import Manifest, make_segment
from goblet_node.mirror.refs import encode_refs, tips
from goblet_node.wire.refs import ObjectId, Ref
from goblet_shared.repo_key import RepoKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What must be on the disk, in this order, for a generation to exist.

    `moves` are files of an intake and the names they get, `refs_file` the new refs
    file with its content, None if it stays; `manifest` names them all.
    """

    directory: Path
    moves: tuple[tuple[Path, Path], ...]
    refs_file: tuple[Path, bytes] | None
    manifest: Manifest


def changes(base: Mirror, *, refs: Sequence[Ref], intake: Intake) -> bool:
    """Say whether there is anything to commit.

    Generations are a history of bounded length: one that repeats the one before
    it would only push out an older one.
    """
    return (
        intake.files is not None
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
    segments = () if base is None else base.segments
    number = segments[-1].number + 1 if segments else 1
    added = () if intake.files is None else (_segment(directory, number, intake),)
    generation, refs_file = _generation(
        directory, refs, (*segments, *added), number=1 if base is None else base.current.number + 1
    )
    generation = replace(
        generation,
        orphans=tuple(intake.orphans),
        gained=_sorted(tips(refs) - base.tips) if base else (),
        lost=_sorted(base.tips - tips(refs)) if base else (),
    )
    earlier = () if base is None else base.generations
    return Commit(
        directory=directory,
        moves=_moves(intake, added),
        refs_file=refs_file,
        manifest=Manifest(
            key=key,
            segments=(*segments, *added),
            generations=kept((*earlier, generation)),
        ),
    )


def plan_join(base: Mirror, first: int, last: int, joined: Intake) -> Commit:
    """Return what puts `joined` in the place of the segments from `first` up to `last`.

    It holds their entries in their order, so no generation changes.
    """
    segment = _segment(base.directory, base.segments[first].number, joined)
    segments = (*base.segments[:first], segment, *base.segments[last:])
    return Commit(
        directory=base.directory,
        moves=_moves(joined, (segment,)),
        refs_file=None,
        manifest=Manifest(key=base.key, segments=segments, generations=base.generations),
    )


def plan_renewal(base: Mirror, renewed: Intake) -> Commit:
    """Return what makes `renewed` a mirror's whole log; its refs stay what they are.

    Older generations are forgotten: they say how far another log reached.
    """
    number = base.segments[-1].number + 1 if base.segments else 1
    segments = () if renewed.files is None else (_segment(base.directory, number, renewed),)
    generation, refs_file = _generation(
        base.directory, base.refs, segments, number=base.current.number + 1
    )
    return Commit(
        directory=base.directory,
        moves=_moves(renewed, segments),
        refs_file=refs_file,
        manifest=Manifest(key=base.key, segments=segments, generations=(generation,)),
    )


def _generation(
    directory: Path, refs: Sequence[Ref], segments: Sequence[Segment], *, number: int
) -> tuple[Generation, tuple[Path, bytes]]:
    """Return a clean generation of these refs on the whole of a log, and its refs file."""
    content = encode_refs(refs)
    objects, size = log_size(segments)
    name = refs_name(number, content)
    generation = Generation(number=number, objects=objects, bytes=size, refs_file=name)
    return generation, (directory / name, content)


def _segment(directory: Path, number: int, intake: Intake) -> Segment:
    return make_segment(
        directory=directory,
        number=number,
        objects=intake.objects,
        bytes=intake.bytes,
        beside=intake.beside,
        checksum=intake.checksum,
    )


def _moves(intake: Intake, segments: Sequence[Segment]) -> tuple[tuple[Path, Path], ...]:
    if intake.files is None:
        return ()
    return tuple(zip(intake.files, segments[0].files, strict=True))


def _sorted(oids: frozenset[ObjectId]) -> tuple[ObjectId, ...]:
    return tuple(sorted(oids))

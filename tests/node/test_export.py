"""export: an ordinary bare repository comes out, or nothing."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from goblet_node.errors import DiskFailed, MirrorDamaged
from goblet_node.mirror.export import ExportRefused, export, head_line
from goblet_node.wire.refs import ObjectId, Ref
from goblet_testing.gitcli import fsck
from goblet_testing.packs import GrownLog, Repo, run_git


@pytest.fixture
def origin(tmp_path: Path) -> Repo:
    return Repo.create(tmp_path / "origin")


@pytest.fixture
def log(origin: Repo, tmp_path: Path) -> GrownLog:
    """Four segments of a history with branches, tags of all types, and repeated objects."""
    log = GrownLog(tmp_path / "log")
    text = b"".join(b"line %d\n" % number for number in range(100))
    for generation in range(4):
        for number in range(3):
            text = text.replace(b"line %d\n" % number, b"%d.%d\n" % (generation, number))
            origin.commit("main", {"file": text, "sub/x": b"%d" % generation})
        origin.commit(f"side-{generation}", {"file": text, "side": b"s"}, parent="main")
        origin.tag(f"v{generation}", "refs/heads/main")
        log.fetch(origin)
    origin.tag("again", "refs/tags/v1")
    origin.point("refs/tags/a-blob", origin.blob(b"blob"))
    origin.commit("main", {"file": b"".join(b"line %d\n" % number for number in range(100))})
    log.fetch(origin)
    assert len(log.segments) == 5
    return log


def refs_of(origin: Repo, *, is_peeled: bool = True) -> list[Ref]:
    """Return what ls-refs advertises for the origin."""
    refs = []
    for name, oid in origin.refs().items():
        end = ObjectId(run_git("rev-parse", f"{name}^{{}}", repo=origin.path).strip())
        peeled = end if is_peeled and end != oid else None
        refs.append(Ref(name=name.encode(), oid=oid, peeled=peeled))
    main = origin.refs()["refs/heads/main"]
    refs.append(Ref(name=b"HEAD", oid=main, symref_target=b"refs/heads/main"))
    return refs


def for_each_ref(repository: Path) -> bytes:
    return run_git(
        "for-each-ref", "--format=%(refname) %(objectname) %(*objectname)", repo=repository
    )


@pytest.mark.parametrize("is_peeled", [True, False], ids=["peeled", "not peeled by the upstream"])
def test_an_export_is_sound_and_equal_to_the_origin(
    is_peeled: bool, origin: Repo, log: GrownLog, tmp_path: Path
) -> None:
    dest = tmp_path / "export.git"
    export(segments=log.segments, refs=refs_of(origin, is_peeled=is_peeled), dest=dest)
    fsck(dest)
    assert for_each_ref(dest) == for_each_ref(origin.path)
    assert run_git("show-ref", "-d", repo=dest) == run_git("show-ref", "-d", repo=origin.path)
    assert run_git("symbolic-ref", "HEAD", repo=dest) == b"refs/heads/main\n"
    assert run_git("rev-list", "--objects", "--all", "--count", repo=dest) == run_git(
        "rev-list", "--objects", "--all", "--count", repo=origin.path
    )


def test_the_index_is_the_one_that_git_would_write(
    origin: Repo, log: GrownLog, tmp_path: Path
) -> None:
    export(segments=log.segments, refs=refs_of(origin), dest=tmp_path / "export.git")
    (pack,) = (tmp_path / "export.git/objects/pack").glob("*.pack")
    run_git("index-pack", "-o", tmp_path / "git.idx", pack, repo=origin.path)
    assert pack.with_suffix(".idx").read_bytes() == (tmp_path / "git.idx").read_bytes()


def test_an_export_is_a_repository_that_git_goes_on_working_with(
    origin: Repo, log: GrownLog, tmp_path: Path
) -> None:
    dest = tmp_path / "export.git"
    export(segments=log.segments, refs=refs_of(origin), dest=dest)
    run_git("update-ref", "refs/heads/new", "refs/heads/main", repo=dest)
    run_git("repack", "-a", "-d", "-q", repo=dest)
    fsck(dest)


def test_an_empty_mirror_becomes_an_empty_repository(tmp_path: Path) -> None:
    unborn = Ref(name=b"HEAD", oid=None, symref_target=b"refs/heads/trunk")
    export(segments=(), refs=[unborn], dest=tmp_path / "export.git")
    fsck(tmp_path / "export.git")
    assert run_git("symbolic-ref", "HEAD", repo=tmp_path / "export.git") == b"refs/heads/trunk\n"
    assert for_each_ref(tmp_path / "export.git") == b""


OID = ObjectId(b"a" * 40)


@pytest.mark.parametrize(
    ("refs", "line"),
    [
        ([Ref(name=b"HEAD", oid=OID)], b"a" * 40 + b"\n"),
        ([Ref(name=b"HEAD", oid=OID, symref_target=b"refs/heads/x")], b"ref: refs/heads/x\n"),
        ([], b"ref: refs/heads/main\n"),
    ],
    ids=["detached", "a branch", "none advertised"],
)
def test_head_is_what_the_origin_says(refs: Sequence[Ref], line: bytes) -> None:
    assert head_line(refs) == line


@pytest.mark.parametrize("taken", ["directory", "file", "dangling link", "no parent"])
def test_a_place_that_is_taken_is_refused_and_left_as_it_is(taken: str, tmp_path: Path) -> None:
    dest = tmp_path / "dest"
    if taken == "directory":
        dest.mkdir()
        (dest / "mine").touch()
    elif taken == "file":
        dest.touch()
    elif taken == "dangling link":
        dest.symlink_to("nowhere")
    else:
        dest = tmp_path / "no" / "dest"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ExportRefused, match=str(dest.parent)):
        export(segments=(), refs=(), dest=dest)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "dest").mkdir()
    export(segments=(), refs=(), dest=tmp_path / "dest")
    fsck(tmp_path / "dest")


def test_damage_in_the_log_leaves_nothing_behind(
    origin: Repo, log: GrownLog, tmp_path: Path
) -> None:
    """Even where nothing but the segment's checksum shows it."""
    pack = log.packs()[2]
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 1
    pack.write_bytes(content)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(MirrorDamaged, match="segment 2"):
        export(segments=log.segments, refs=refs_of(origin), dest=tmp_path / "dest")
    assert sorted(os.listdir(tmp_path)) == before


class LastWords(list[Ref]):
    """Refs that, when they are read, take some files away."""

    def __init__(self, refs: Sequence[Ref], paths: Sequence[Path]) -> None:
        super().__init__(refs)
        self._paths = paths

    def __iter__(self) -> Iterator[Ref]:
        for path in self._paths:
            path.unlink(missing_ok=True)
        return super().__iter__()


def test_segments_that_a_node_joins_meanwhile_are_copied_to_their_end(
    origin: Repo, log: GrownLog, tmp_path: Path
) -> None:
    """Gigabytes take longer than a busy mirror stays as it is."""
    refs = LastWords(refs_of(origin), log.packs())
    export(segments=log.segments, refs=refs, dest=tmp_path / "dest")
    assert not log.packs()[0].exists()
    fsck(tmp_path / "dest")


def test_a_segment_that_is_gone_is_damage_and_no_fault_of_the_disk(
    origin: Repo, log: GrownLog, tmp_path: Path
) -> None:
    """Who reads beside a node begins anew then."""
    log.packs()[4].unlink()
    with pytest.raises(MirrorDamaged, match="missing"):
        export(segments=log.segments, refs=refs_of(origin), dest=tmp_path / "dest")


def test_a_ref_to_what_the_log_lacks_is_damage(origin: Repo, log: GrownLog, tmp_path: Path) -> None:
    refs = [*refs_of(origin), Ref(name=b"refs/heads/x", oid=OID)]
    with pytest.raises(MirrorDamaged, match="refs/heads/x"):
        export(segments=log.segments, refs=refs, dest=tmp_path / "dest")
    assert not (tmp_path / "dest").exists()


@pytest.mark.parametrize("name", [b"refs/heads/a b", b"refs/heads/a\nb", b"config", b"refs/a\x7f"])
def test_a_name_that_would_break_the_refs_file_is_refused(
    name: bytes, origin: Repo, log: GrownLog, tmp_path: Path
) -> None:
    tip = origin.refs()["refs/heads/main"]
    with pytest.raises(MirrorDamaged, match="does not allow"):
        export(segments=log.segments, refs=[Ref(name=name, oid=tip)], dest=tmp_path / "dest")


def test_a_disk_that_refuses_is_a_disk_failure_and_leaves_nothing(
    origin: Repo, log: GrownLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(DiskFailed, match="No space left"):
        export(segments=log.segments, refs=refs_of(origin), dest=tmp_path / "dest")
    assert sorted(os.listdir(tmp_path)) == before

"""The manifest: what is written comes back, and nothing else is ever believed."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.errors import MirrorDamaged
from goblet_node.mirror.layout import MANIFEST, refs_name
from goblet_node.mirror.log import Generation, log_size
from goblet_node.mirror.manifest import (
    Manifest,
    decode_manifest,
    encode_manifest,
    make_segment,
)
from goblet_shared.repo_key import RepoKey
from goblet_testing.strategies import object_ids

HERE = Path("/cache/mirrors/aa/aaaa")

segments = st.builds(
    make_segment,
    directory=st.just(HERE),
    number=st.integers(1, 10**7),
    objects=st.integers(0),
    bytes=st.integers(32),
    beside=st.integers(0),
    checksum=st.binary(min_size=20, max_size=20).map(bytes.hex),
)
SEGMENT = make_segment(directory=HERE, number=1, objects=1, bytes=41, beside=9, checksum="0" * 40)
oid_tuples = st.lists(object_ids, max_size=3).map(tuple)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    log = draw(st.lists(segments, max_size=4))
    objects, size = log_size(log)
    generation = st.builds(
        Generation,
        number=st.integers(1),
        objects=st.just(objects),
        bytes=st.just(size),
        refs_file=st.builds(refs_name, st.integers(1, 10**7), st.binary(max_size=3)),
        orphans=oid_tuples,
        gained=oid_tuples,
        lost=oid_tuples,
    )
    return Manifest(
        key=RepoKey(draw(st.text().filter(str.isprintable))),
        segments=tuple(log),
        generations=tuple(draw(st.lists(generation, min_size=1, max_size=4))),
    )


@given(manifests())
def test_a_manifest_comes_back(manifest: Manifest) -> None:
    assert decode_manifest(encode_manifest(manifest), HERE) == manifest


@given(manifests(), st.data())
def test_changed_bytes_are_damage_or_change_nothing(
    manifest: Manifest, data: st.DataObject
) -> None:
    """Nothing: white space and letter case of an escape are not content."""
    content = bytearray(encode_manifest(manifest))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        found = decode_manifest(bytes(content), HERE)
    except MirrorDamaged:
        return
    assert found == manifest


def sealed_again(content: bytes, change: str, value: object) -> bytes:
    """Return a manifest with a wrong value and a right checksum, as a bug of ours would write."""
    sealed = json.loads(content)
    if change == "version":
        sealed["version"] = value
    else:
        place, _, name = change.partition(".")
        sealed["mirror"][place][0][name] = value
        mirror = json.dumps(sealed["mirror"], sort_keys=True, separators=(",", ":"))
        sealed["checksum"] = hashlib.sha256(mirror.encode()).hexdigest()
    return json.dumps(sealed).encode()


@pytest.mark.parametrize(
    ("change", "value", "sentence"),
    [
        ("version", 1, "of version 1"),
        ("version", None, "of version None"),
        ("segments.checksum", "../../../../etc/passwd", "cannot be understood"),
        ("segments.bytes", "many", "cannot be understood"),
        ("generations.refs_file", "../../lock", "cannot be understood"),
        ("generations.objects", 7, "cannot be understood"),
        ("generations.bytes", 7, "cannot be understood"),
    ],
)
def test_what_another_goblet_wrote_is_not_guessed_at(
    change: str, value: object, sentence: str
) -> None:
    """No name in a manifest leads out of the mirror's directory, whoever wrote it."""
    generation = Generation(number=1, objects=1, bytes=9, refs_file=refs_name(1, b""))
    good = Manifest(key=RepoKey("a/b"), segments=(SEGMENT,), generations=(generation,))
    with pytest.raises(MirrorDamaged, match=sentence):
        decode_manifest(sealed_again(encode_manifest(good), change, value), HERE)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"[" * 100_000, b"\xff", b"7"])
def test_what_is_no_manifest_is_damage(content: bytes) -> None:
    with pytest.raises(MirrorDamaged):
        decode_manifest(content, HERE)


def test_the_files_of_a_mirror_are_its_log_its_refs_and_the_manifest() -> None:
    """The current refs alone: whoever holds an older mirror has read its refs."""
    generations = tuple(
        Generation(number=n, objects=1, bytes=9, refs_file=refs_name(n, b"")) for n in range(1, 20)
    )
    manifest = Manifest(key=RepoKey("a/b"), segments=(SEGMENT,), generations=generations)
    of_log = {path.name for path in SEGMENT.files}
    assert len(of_log) == 3
    assert manifest.file_names() == {MANIFEST, generations[-1].refs_file, *of_log}

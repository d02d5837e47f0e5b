"""What a plan is told of a mirror."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from goblet_node.errors import ProtocolError
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.log import Lazy
from goblet_node.mirror.store import MirrorStore
from goblet_node.serve.look import commits_named, is_quick, look, names_history, tags_of, whole
from goblet_node.wire.refs import ObjectId, Ref
from goblet_node.wire.requests import Fetch
from goblet_shared.repo_key import RepoKey
from goblet_testing.mirrors import blob_id, grow, heads
from goblet_testing.packs import GrownLog, Repo, run_git

KEY = RepoKey("example.org/one")
ONE, TWO, THREE = b"one\n", b"two\n", b"three\n"
NOWHERE = ObjectId(b"1" * 40)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MirrorStore]:
    store = MirrorStore(tmp_path, disk=Disk())
    store.open()
    yield store
    store.close()


def test_wants_are_found_with_how_far_they_reach_into_the_log(store: MirrorStore) -> None:
    grow(store, KEY, heads(a=ONE), [ONE])
    mirror = grow(store, KEY, heads(a=ONE, b=TWO), [TWO])
    first = look(mirror, Fetch(wants=(blob_id(ONE),)))
    assert (first.reach, first.unknown) == (1, frozenset())
    assert [generation.objects for generation in first.within] == [1]
    both = look(mirror, Fetch(wants=(blob_id(ONE), blob_id(TWO))))
    assert both.reach == 2
    assert [generation.objects for generation in both.within] == [2, 1]


def test_what_is_not_here_is_unknown(store: MirrorStore) -> None:
    mirror = grow(store, KEY, heads(a=ONE), [ONE])
    facts = look(mirror, Fetch(wants=(blob_id(ONE), NOWHERE)))
    assert facts.unknown == {NOWHERE}
    assert look(mirror, Fetch(wants=(NOWHERE,))).reach == 0


def test_a_client_with_all_tips_is_behind_the_newest_generation_it_holds(
    store: MirrorStore,
) -> None:
    grow(store, KEY, heads(a=ONE), [ONE])
    mirror = grow(store, KEY, heads(a=ONE, b=TWO), [TWO])
    behind = look(mirror, Fetch(wants=(blob_id(TWO),), haves=(blob_id(ONE),))).behind
    assert behind is not None
    assert behind.generation.objects == 1
    assert behind.is_asked_for
    elsewhere = look(mirror, Fetch(wants=(blob_id(ONE),), haves=(blob_id(ONE),))).behind
    assert elsewhere is not None
    assert not elsewhere.is_asked_for
    assert look(mirror, Fetch(wants=(blob_id(TWO),), haves=(NOWHERE,))).behind is None


def test_what_came_before_is_not_among_what_came_since(store: MirrorStore) -> None:
    """A tag's object from before: its commit was named as held, it itself was not."""
    tag = Ref(name=b"refs/tags/v1", oid=blob_id(THREE), peeled=blob_id(ONE))
    grow(store, KEY, (*heads(a=ONE), tag), [ONE, THREE])
    mirror = grow(store, KEY, (*heads(a=ONE, b=TWO), tag), [TWO])
    wants = (blob_id(TWO), blob_id(THREE))
    behind = look(mirror, Fetch(wants=wants, haves=(blob_id(ONE),))).behind
    assert behind is not None
    assert not behind.is_asked_for
    behind = look(mirror, Fetch(wants=wants[:1], haves=(blob_id(ONE),))).behind
    assert behind is not None
    assert behind.is_asked_for


def test_nobody_is_behind_a_log_with_orphans(store: MirrorStore) -> None:
    grow(store, KEY, heads(a=ONE, b=TWO), [ONE, TWO])
    mirror = grow(store, KEY, heads(a=ONE, c=THREE), [THREE])
    assert not mirror.current.is_clean
    haves = (blob_id(ONE), blob_id(TWO))
    assert look(mirror, Fetch(wants=(blob_id(THREE),), haves=haves)).behind is None


def test_a_tag_is_held_by_whoever_names_what_it_peels_to() -> None:
    tag = Ref(name=b"refs/tags/v1", oid=blob_id(TWO), peeled=blob_id(ONE))
    light = Ref(name=b"refs/tags/light", oid=blob_id(ONE))
    assert tags_of([tag, light]) == ((blob_id(TWO), blob_id(ONE)),)


@pytest.mark.parametrize("name", [b"v1", b"tags/v1", b"refs/tags/v1"])
def test_a_ref_is_found_where_git_looks_for_it_and_peeled(name: bytes) -> None:
    refs = [Ref(name=b"refs/tags/v1", oid=blob_id(TWO), peeled=blob_id(ONE))]
    assert commits_named([name], refs) == (blob_id(ONE),)


def test_a_tag_goes_before_a_branch_of_its_name() -> None:
    refs = [
        Ref(name=b"refs/heads/v1", oid=blob_id(TWO)),
        Ref(name=b"refs/tags/v1", oid=blob_id(ONE)),
    ]
    assert commits_named([b"v1"], refs) == (blob_id(ONE),)


def test_a_name_that_no_ref_has_is_refused() -> None:
    with pytest.raises(ProtocolError, match="deepen-not is not a ref: 'v2'"):
        commits_named([b"v2"], [])


def test_all_tips_of_a_clean_generation_are_known_to_reach_all_of_it(store: MirrorStore) -> None:
    grow(store, KEY, heads(a=ONE), [ONE])
    mirror = grow(store, KEY, heads(a=ONE, b=TWO), [TWO])
    one, two = blob_id(ONE), blob_id(TWO)
    assert whole(mirror, Fetch(wants=(two, one), filter_spec="blob:none")) == 2
    assert whole(mirror, Fetch(wants=(one,))) == 1
    assert whole(mirror, Fetch(wants=(two,))) is None
    assert whole(mirror, Fetch(wants=(one, two), haves=(one,))) is None
    assert whole(mirror, Fetch(wants=(one, two), deepen=1)) is None
    assert whole(mirror, Fetch(wants=(one, two), shallow=(one,))) is None


def test_what_no_ref_reaches_is_not_all_that_is_wanted(store: MirrorStore) -> None:
    """The log of the second generation holds an object that is an orphan."""
    grow(store, KEY, heads(a=ONE), [ONE])
    mirror = grow(store, KEY, heads(b=TWO), [TWO])
    assert mirror.current.orphans == (blob_id(ONE),)
    assert whole(mirror, Fetch(wants=(blob_id(TWO),))) is None
    assert whole(mirror, Fetch(wants=(blob_id(ONE), blob_id(TWO)))) is None


def test_a_look_is_quick_only_in_memory_and_for_little(store: MirrorStore) -> None:
    grow(store, KEY, heads(a=ONE), [ONE])
    store.close()
    store.open()
    mirror = store.get(KEY)
    assert mirror is not None
    few = Fetch(wants=(blob_id(ONE),))
    assert not is_quick(mirror, few)
    look(mirror, few)
    assert is_quick(mirror, few)
    assert not is_quick(mirror, Fetch(wants=(blob_id(ONE),), haves=(blob_id(ONE),)))
    many = tuple(ObjectId(b"%040x" % number) for number in range(1, 300))
    assert not is_quick(mirror, Fetch(wants=many))


def test_blobs_are_no_history(store: MirrorStore) -> None:
    mirror = grow(store, KEY, heads(a=ONE), [ONE])
    assert not names_history(mirror, [blob_id(ONE), NOWHERE])
    assert not names_history(mirror, [NOWHERE])


@pytest.mark.parametrize("ref", ["refs/heads/main", "refs/tags/v1"])
def test_commits_and_tags_are_history(store: MirrorStore, tmp_path: Path, ref: str) -> None:
    origin = Repo.create(tmp_path / "origin")
    origin.commit("main", {"a": ONE})
    origin.tag("v1", "refs/heads/main")
    log = GrownLog(tmp_path / "log")
    log.fetch(origin)
    mirror = replace(grow(store, KEY, heads(a=ONE), [ONE]), lazy_table=Lazy.of(log.table()))
    tree = ObjectId(run_git("rev-parse", "main^{tree}", repo=origin.path).strip())
    assert names_history(mirror, [tree, origin.refs()[ref]])
    assert not names_history(mirror, [tree])

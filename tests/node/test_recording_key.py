"""One key for one answer: what does not matter does not change it, what matters does."""

import functools
import random
import tempfile
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.errors import ProtocolError
from goblet_node.serve.pieces import Pieces
from goblet_node.serve.recording_key import (
    SharedQuestion,
    is_ours_to_answer,
    key_of,
    normalised,
    tags_digest,
)
from goblet_node.serve.selection import Selection, SelectJob, select
from goblet_node.wire.answers import AckMode, Dialect, SideBand, V0Dialect, V2Dialect
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.requests import Fetch
from goblet_testing.packs import GrownLog, Repo, run_git
from goblet_testing.strategies import fetch_requests, object_ids

A, B, C, D = (ObjectId(letter * 40) for letter in (b"a", b"b", b"c", b"d"))
V2 = V2Dialect()
V0 = V0Dialect(acks=AckMode.DETAILED, side_band=SideBand.LARGE)
CLONE = Fetch(wants=(A, B), done=True, ofs_delta=True)
MORE = Fetch(wants=(A, B), haves=(C, D), done=True, ofs_delta=True, thin_pack=True)


def key(
    fetch: Fetch,
    dialect: Dialect = V2,
    *,
    here: Sequence[ObjectId] = (A, B, C, D),
    deepen_not: tuple[ObjectId, ...] = (),
    tags: bytes = b"",
) -> str:
    """Return the key of a fetch where these objects are here."""

    def held(oids: Sequence[ObjectId]) -> Sequence[ObjectId]:
        return [oid for oid in oids if oid in here]

    said = normalised(fetch, dialect, held=held)
    question = SharedQuestion(
        fetch=said,
        dialect=dialect,
        common=tuple(held(said.haves)),
        deepen_not=deepen_not,
        tags=tags,
    )
    return key_of(question)


@pytest.mark.parametrize("dialect", [V2, V0])
@pytest.mark.parametrize(
    "same",
    [
        replace(CLONE, wants=(B, A)),
        replace(CLONE, wants=(B, A, B)),
        replace(CLONE, agent=b"git/9", session_id=b"x", server_options=(b"trace",)),
        replace(CLONE, thin_pack=True),
        replace(CLONE, deepen_relative=True),
        replace(CLONE, shallow=(D,)),
    ],
)
def test_what_does_not_matter_to_a_clone_does_not_change_its_key(
    same: Fetch, dialect: Dialect
) -> None:
    assert key(same, dialect, here=(A, B)) == key(CLONE, dialect, here=(A, B))


@pytest.mark.parametrize(
    "same",
    [
        replace(MORE, haves=(D, C)),
        replace(MORE, haves=(C, ObjectId(b"e" * 40), D)),
        replace(MORE, wait_for_done=True),
        replace(MORE, agent=b"git/9"),
    ],
)
def test_order_and_unknown_haves_do_not_matter_where_nothing_is_said_of_them(same: Fetch) -> None:
    assert key(same) == key(MORE)


def test_who_has_nothing_that_is_here_asks_what_a_clone_asks() -> None:
    assert key(MORE, here=(A, B)) == key(CLONE)
    assert key(replace(CLONE, done=False)) == key(CLONE)


def test_where_haves_are_acknowledged_their_order_matters() -> None:
    asking = replace(MORE, done=False)
    assert key(asking) != key(replace(asking, haves=(D, C)))
    assert key(asking) != key(MORE)


def test_version_2_says_nothing_of_unknown_haves() -> None:
    asking = replace(MORE, done=False)
    assert key(replace(asking, haves=(C, ObjectId(b"e" * 40), D))) == key(asking)


def test_in_version_2_a_have_that_became_known_is_another_question() -> None:
    asking = replace(MORE, done=False)
    assert len({key(asking), key(asking, here=(A, B, C)), key(asking, here=(A, B))}) == 3


@pytest.mark.parametrize("is_done", [False, True])
def test_in_version_0_the_very_haves_are_the_question(is_done: bool) -> None:
    """An ACK for what a client never named makes it die."""
    asking = replace(MORE, done=is_done)
    same = [
        replace(asking, haves=(D, C)),
        replace(asking, haves=(C, ObjectId(b"e" * 40), D)),
        replace(asking, haves=(C, ObjectId(b"f" * 40), D)),
    ]
    assert len({key(fetch, V0) for fetch in [asking, *same]}) == 4
    assert key(asking, V0) != key(asking, V0, here=(A, B))


@pytest.mark.parametrize(
    "other",
    [
        replace(MORE, wants=(A,)),
        replace(MORE, haves=(C,)),
        replace(MORE, thin_pack=False),
        replace(MORE, ofs_delta=False),
        replace(MORE, no_progress=True),
        replace(MORE, include_tag=True),
        replace(MORE, shallow=(C,)),
        replace(MORE, deepen=1),
        replace(MORE, deepen=1, deepen_relative=True),
        replace(MORE, deepen=2),
        replace(MORE, deepen_since=1),
        replace(MORE, filter_spec="blob:none"),
        replace(MORE, filter_spec="blob:limit=1"),
        replace(MORE, filter_spec="tree:1"),
        replace(MORE, filter_spec="object:type=tree"),
        replace(MORE, done=False),
        replace(MORE, done=False, wait_for_done=True),
    ],
)
def test_what_matters_makes_another_key(other: Fetch) -> None:
    keys = {key(fetch, dialect) for fetch in (MORE, other) for dialect in (V2, V0)}
    assert len(keys) == 4


def test_every_field_of_a_fetch_is_in_the_key_or_known_not_to_matter() -> None:
    """A field that is added to Fetch must be thought of here."""
    matter = {"wants", "haves", "done", "thin_pack", "ofs_delta", "no_progress", "include_tag"}
    matter |= {"wait_for_done", "shallow", "deepen", "deepen_relative", "deepen_since"}
    matter |= {"filter_spec", "deepen_not"}
    refused = {"want_refs", "packfile_uris", "sideband_all"}
    of_the_client = {"agent", "session_id", "server_options"}
    of_the_repository = {"object_format"}
    known = matter | refused | of_the_client | of_the_repository
    assert {field.name for field in fields(Fetch)} == known


@pytest.mark.parametrize(
    "other",
    [
        replace(V0, side_band=SideBand.SMALL),
        replace(V0, side_band=SideBand.NONE),
        replace(V0, acks=AckMode.MULTI_ACK),
        replace(V0, acks=AckMode.NONE),
        replace(V0, no_done=True),
        replace(V0, negotiates=False),
        V2,
    ],
)
def test_how_a_client_speaks_is_in_the_key(other: Dialect) -> None:
    assert key(CLONE, other) != key(CLONE, V0)


def test_two_spellings_of_one_filter_are_one_question() -> None:
    spellings = ["blob:none", "blob:limit=0", "combine:blob:none+blob:limit=5"]
    assert len({key(replace(CLONE, filter_spec=spec)) for spec in spellings}) == 1


def test_a_filter_that_is_not_known_has_no_key() -> None:
    with pytest.raises(ProtocolError):
        key(replace(CLONE, filter_spec="sparse:oid=main:x"))


def test_deepen_not_is_what_its_names_stand_for() -> None:
    by_name = replace(CLONE, deepen_not=(b"v1",))
    assert key(by_name, deepen_not=(C,)) == key(replace(CLONE, deepen_not=(b"w",)), deepen_not=(C,))
    assert key(by_name, deepen_not=(C,)) != key(by_name, deepen_not=(D,))


def test_tags_are_known_by_what_they_are_and_peel_to_in_any_order() -> None:
    assert tags_digest([(A, B), (C, D)]) == tags_digest([(C, D), (A, B)])
    assert len({tags_digest([]), tags_digest([(A, B)]), tags_digest([(A, C)])}) == 3
    assert key(CLONE, tags=tags_digest([(A, B)])) != key(CLONE, tags=tags_digest([(A, C)]))


@pytest.mark.parametrize(
    "fetch",
    [
        Fetch(),
        replace(CLONE, want_refs=(b"refs/heads/main",)),
        replace(CLONE, packfile_uris="https"),
        replace(CLONE, sideband_all=True),
    ],
)
def test_what_was_not_offered_is_not_ours_to_answer(fetch: Fetch) -> None:
    assert not is_ours_to_answer(fetch)
    assert is_ours_to_answer(CLONE)


@given(fetch_requests(), st.sampled_from([V2, V0]), st.data())
def test_to_normalise_twice_is_to_normalise_once(
    fetch: Fetch, dialect: Dialect, data: st.DataObject
) -> None:
    here = data.draw(st.sets(st.sampled_from([A, *fetch.haves, *fetch.shallow])))

    def held(oids: Sequence[ObjectId]) -> Sequence[ObjectId]:
        return [oid for oid in oids if oid in here]

    once = normalised(fetch, dialect, held=held)
    assert normalised(once, dialect, held=held) == once


@given(st.sets(object_ids, min_size=1), st.sets(object_ids), st.randoms(use_true_random=False))
def test_lists_that_meet_elsewhere_are_other_questions(
    wants: set[ObjectId], haves: set[ObjectId], shuffled: random.Random
) -> None:
    """No id can wander from one list into the next without changing the key."""
    moved = shuffled.choice(sorted(wants))
    fetch = Fetch(wants=tuple(wants), haves=tuple(haves - {moved}), done=True, thin_pack=True)
    other = replace(fetch, wants=tuple(wants - {moved}), haves=(*fetch.haves, moved))
    here = [*wants, *haves]
    assert key(fetch, here=here) != key(other, here=here)


# The answers themselves


@functools.cache
def grown() -> tuple[Repo, GrownLog, tempfile.TemporaryDirectory[str]]:
    """Return an origin and the log of its mirror; made once, never changed."""
    folder = tempfile.TemporaryDirectory()
    origin = Repo.create(Path(folder.name) / "origin")
    log = GrownLog(Path(folder.name) / "log")
    for number in range(4):
        text = b"".join(b"%d %d\n" % (line, number // (line + 1)) for line in range(40))
        origin.commit("main", {"a": text, "b": b"%d\n" % number})
        origin.commit("side", {"a": text, "c": b"%d\n" % number}, parent="main")
        origin.tag(f"v{number}", "refs/heads/main")
        origin.flush()
        log.fetch(origin)
    return origin, log, folder


@functools.cache
def commits_of_the_log() -> list[ObjectId]:
    """Return every commit of it."""
    lines = run_git("rev-list", "--all", repo=grown()[0].path).splitlines()
    return [ObjectId(line) for line in lines]


@functools.cache
def tips_of_the_log() -> list[ObjectId]:
    """Return where its branches are."""
    return sorted(oid for name, oid in grown()[0].refs().items() if name.startswith("refs/heads/"))


def answered(fetch: Fetch, dialect: Dialect) -> tuple[Selection, bytes]:
    """Answer a fetch freshly: what is said, and the pack."""
    _, log, folder = grown()
    with tempfile.TemporaryDirectory(dir=folder.name) as scratch:
        found = select(
            SelectJob(
                segments=tuple(log.segments),
                fetch=fetch,
                dialect=dialect,
                deepen_not=(),
                tags=(),
                inline=Path(scratch) / "inline",
                small=1 << 20,
            )
        )
        assert not isinstance(found.pieces, Pieces)  # it is small
        pack = b"" if found.pieces is None else found.pieces.data
        return replace(found, pieces=None), pack


@given(st.data())
def test_the_normalised_question_has_the_very_answer_of_the_one_that_was_asked(
    data: st.DataObject,
) -> None:
    table = grown()[1].table()
    ancestors, commits = commits_of_the_log(), tips_of_the_log()
    strangers = [ObjectId(b"%040x" % number) for number in (7, 8)]
    dialect = data.draw(st.sampled_from([V2, V0, replace(V0, acks=AckMode.NONE)]))
    pick = st.lists(st.sampled_from([*ancestors, *strangers]), unique=True, max_size=4)
    few = st.lists(st.sampled_from([*ancestors, *strangers]), unique=True, max_size=2)
    fetch = Fetch(
        wants=tuple(data.draw(st.permutations(commits))),
        haves=tuple(data.draw(pick)),
        shallow=tuple(data.draw(few)),
        done=data.draw(st.booleans()),
        wait_for_done=data.draw(st.booleans()),
        thin_pack=data.draw(st.booleans()),
        ofs_delta=data.draw(st.booleans()),
        deepen=data.draw(st.none() | st.integers(1, 3)),
        filter_spec=data.draw(st.none() | st.just("blob:none")),
    )

    def held(oids: Sequence[ObjectId]) -> Sequence[ObjectId]:
        return [oid for oid, row in zip(oids, table.find(oids), strict=True) if row >= 0]

    asked, said = answered(fetch, dialect), answered(normalised(fetch, dialect, held=held), dialect)
    assert set(asked[0].unshallow) == set(said[0].unshallow)
    assert replace(asked[0], unshallow=()) == replace(said[0], unshallow=())
    assert asked[1] == said[1]

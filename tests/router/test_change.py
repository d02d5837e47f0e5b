"""What another membership would move."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from goblet_router.change import change_of, shown
from goblet_shared.contract import NodeName
from goblet_shared.repo_key import RepoKey, parse
from goblet_shared.ring import Ring, moves, slot_of

NAMES = [NodeName(f"goblet-{number}") for number in range(1, 5)]
OLD, NEW = Ring.of(NAMES[:3]), Ring.of(NAMES)
KEYS = [parse(f"h.org/repo-{number}") for number in range(200)]
SIZES = st.dictionaries(st.sampled_from(KEYS), st.integers(1, 10**9), max_size=20)


@given(held=st.fixed_dictionaries(dict.fromkeys(NAMES[:3], SIZES)))
@settings(max_examples=20)
def test_it_names_each_held_repository_once_whose_slot_moves(
    held: dict[NodeName, dict[RepoKey, int]],
) -> None:
    change = change_of(OLD, NEW, held)
    assert change.slots == moves(OLD, NEW)
    there = {key for sizes in held.values() for key in sizes}
    assert {repo.key for repo in change.repos} == {
        key for key in there if OLD.owners(key)[0] != NEW.owners(key)[0]
    }
    assert len(change.repos) == len({repo.key for repo in change.repos})
    assert change.bytes == sum(repo.bytes for repo in change.repos)
    for repo in change.repos:
        assert (repo.old, repo.new) == (OLD.owners(repo.key)[0], NEW.owners(repo.key)[0])


def moving_key() -> RepoKey:
    return next(key for key in KEYS if slot_of(key) in moves(OLD, NEW))


def test_it_counts_the_owners_copy_before_anyone_elses() -> None:
    key = moving_key()
    owner, second, _ = OLD.owners(key)
    assert change_of(OLD, NEW, {owner: {key: 7}, second: {key: 9}}).bytes == 7
    assert change_of(OLD, NEW, {second: {key: 9}}).bytes == 9


def test_what_the_new_owner_holds_already_costs_nothing() -> None:
    key = moving_key()
    owner, new = OLD.owners(key)[0], NEW.owners(key)[0]
    change = change_of(OLD, NEW, {owner: {key: 7}, new: {key: 7}})
    assert [(repo.key, repo.bytes) for repo in change.repos] == [(key, 0)]


def test_people_and_programs_are_told_the_same() -> None:
    key = moving_key()
    change = change_of(OLD, NEW, {OLD.owners(key)[0]: {key: 2_500_000}})
    head, *rest = change.lines()
    assert f"{len(change.slots)} of 4096 slots" in head
    assert "1 repositories" in head
    assert any("2.5 MB" in line and key in line for line in rest)
    told = json.loads(json.dumps(change.as_dict()))
    assert len(told["slots"]) == len(change.slots)
    assert told["repositories"][0]["key"] == key
    assert told["bytes"] == change.bytes == 2_500_000


def test_without_members_nothing_moves() -> None:
    change = change_of(Ring.of([]), NEW, {NAMES[0]: {KEYS[0]: 1}})
    assert (change.slots, change.repos) == ({}, ())


def test_sizes_are_shown_in_the_unit_that_fits() -> None:
    assert [shown(size) for size in (0, 999, 1000, 2_500_000, 10**10)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "2.5 MB",
        "10.0 GB",
    ]

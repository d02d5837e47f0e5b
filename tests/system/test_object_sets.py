"""The objects of every answer lie between what git would send and what the refs reach.

Histories by chance, growing between fetches; clients in states that clients get
into; each asks the node and then the origin the same, by hand.
"""

import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from goblet_node.wire.refs import ObjectId
from goblet_node.wire.requests import Fetch
from goblet_testing.gitcli import GitFailed
from goblet_testing.histories import History
from goblet_testing.holders import Holder, told
from goblet_testing.packs import run_git
from goblet_testing.stand import Stand, start_stand

pytestmark = [pytest.mark.system, pytest.mark.slow]

INFINITE = 0x7FFFFFFF
FILTERS = ("blob:none", "blob:limit=20", "tree:0", "tree:1", "tree:2", "combine:blob:none+tree:3")
# -A: what no ref reaches stays, loose, since branches may come back to it.
PACKINGS = {
    "as-imported": None,
    "with-bitmaps": ("repack", "-Adq"),
    "without-bitmaps": ("repack", "-Adq", "--no-write-bitmap-index"),
}
_DEPTHS = st.sampled_from([1, 2, 3, 6, INFINITE])


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One client: what it fetched when it came first, and what it asks for now.

    `mine` and `yours` choose among the refs of their time; `None` stands for all.
    """

    holds: str
    """`nothing`, `one` ref or `all` of them, or all `shallow` or `filtered`."""
    mine: int
    yours: int | None
    depth: int
    filter_spec: str
    asks: str
    """For `more`, `depth`, `relative` depth, `since` a date, `not` a ref, or `filtered`."""
    days: int
    thin_pack: bool
    ofs_delta: bool
    include_tag: bool
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Age:
    """What happens between two refreshes of the mirror, and who comes after the second."""

    commits: int
    packing: str
    visits: list[Visit]


visits = st.builds(
    Visit,
    holds=st.sampled_from(["nothing", "one", "one", "all", "all", "shallow", "filtered"]),
    mine=st.integers(0, 20),
    yours=st.none() | st.integers(0, 20),
    depth=_DEPTHS,
    filter_spec=st.sampled_from(FILTERS),
    asks=st.sampled_from(["more", "more", "more", "depth", "relative", "since", "not", "filtered"]),
    days=st.integers(0, 3),
    thin_pack=st.booleans(),
    ofs_delta=st.booleans(),
    include_tag=st.booleans(),
    version=st.sampled_from([0, 2]),
)
ages = st.builds(
    Age,
    commits=st.integers(1, 8),
    packing=st.sampled_from(sorted(PACKINGS)),
    visits=st.lists(visits, min_size=1, max_size=3),
)


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """An origin and a node for all histories."""
    with start_stand(tmp_path_factory.mktemp("sets")) as stand:
        yield stand


# An example takes a second, and shrinking one some thousand examples: the seed says
# enough to look at what failed.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)


def live_through(stand: Stand, seed: int, times: list[Age]) -> None:
    """Let a history grow, and judge what the node answers to those who visit it."""
    name = f"sets/{secrets.token_hex(6)}"
    clients = stand.directory / "clients"
    history = History(stand.repo(name), seed)
    history.grow(1)
    try:
        for age in times:
            before = history.refs()
            holders = [
                make_holder(stand, name, clients / str(number), visit, before)
                for number, visit in enumerate(age.visits)
            ]
            history.grow(age.commits)
            packing = PACKINGS[age.packing]
            if packing is not None:
                run_git(*packing, repo=history.path)
            stand.warm(name)
            for holder, visit in zip(holders, age.visits, strict=True):
                judge(stand, name, holder, visit, history.refs())
            shutil.rmtree(clients)
    finally:
        shutil.rmtree(history.path)
        shutil.rmtree(clients, ignore_errors=True)


def make_holder(
    stand: Stand, name: str, path: Path, visit: Visit, refs: dict[str, ObjectId]
) -> Holder:
    """Return a client as the visit says that it is before the history grows."""
    every = tuple(sorted(set(refs.values())))
    tips = {"nothing": (), "one": (every[visit.mine % len(every)],)}.get(visit.holds, every)
    return Holder.of(
        path,
        stand.direct(name),
        tips,
        deepen=visit.depth if visit.holds == "shallow" else None,
        filter_spec=visit.filter_spec if visit.holds == "filtered" else None,
    )


def question(visit: Visit, holder: Holder, refs: dict[str, ObjectId]) -> Fetch:
    """Return what the client asks for now."""
    every = sorted(set(refs.values()))
    asks = visit.asks
    branches = sorted(name for name in refs if name.startswith("refs/heads/"))
    excluded = branches[visit.mine % len(branches)] if asks == "not" and branches else None
    relative = asks == "relative" and bool(holder.shallow)
    # Of the shallow commits git deepens also those that no want reaches, and we do not.
    wants_all = visit.yours is None or relative
    filter_spec = visit.filter_spec if asks == "filtered" and holder.objects == set() else None
    return Fetch(
        wants=tuple(every if wants_all else [every[(visit.yours or 0) % len(every)]]),
        haves=holder.tips,
        shallow=tuple(map(ObjectId, sorted(holder.shallow))),
        deepen=visit.depth if asks == "depth" or relative else None,
        deepen_relative=relative,
        deepen_since=1_700_000_000 + visit.days * 43_200 if asks == "since" else None,
        deepen_not=(excluded.encode(),) if excluded else (),
        # A client keeps the filter that it was cloned with.
        filter_spec=holder.filter_spec or filter_spec,
        thin_pack=visit.thin_pack,
        ofs_delta=visit.ofs_delta,
        include_tag=visit.include_tag,
        no_progress=True,
        done=True,
    )


def judge(stand: Stand, name: str, holder: Holder, visit: Visit, refs: dict[str, ObjectId]) -> None:
    """Ask the node, and hold its answer against the origin's and against the client."""
    fetch = question(visit, holder, refs)
    # Not thin: git makes deltas on what a client that filters never got, for it to fetch.
    theirs = told(stand.direct(name), replace(fetch, thin_pack=False), version=visit.version)
    with stand.answers_alone(name):
        ours = told(stand.url(name), fetch, version=visit.version)
    assert bool(ours.pack) == bool(theirs.pack), (ours, theirs)
    if not theirs.pack:
        # In version 0 git often dies without a word; we always say why.
        assert ours.error
        return
    assert (ours.shallow, ours.unshallow) == (theirs.shallow, theirs.unshallow)
    is_whole = fetch.filter_spec is None
    sent = holder.taken_in(ours, is_strict=is_whole)
    if is_whole:
        holder.check_connected(fetch.wants)
    # Only now: what git sent would make good for what the node left out.
    at_least = holder.taken_in(theirs, is_strict=False) - holder.objects
    assert at_least - sent - holder.objects == frozenset()
    assert sent - reached(stand.repo(name), fetch.wants) == frozenset()
    if not fetch.thin_pack:
        assert_stands_alone(holder, ours.pack)


def reached(repo: Path, wants: tuple[ObjectId, ...]) -> frozenset[bytes]:
    """Return all that the repository's refs and `wants` reach."""
    words = ("rev-list", "--objects", "--all", "--no-object-names", "--stdin")
    return frozenset(run_git(*words, repo=repo, stdin=b"\n".join(wants) + b"\n").split())


def assert_stands_alone(holder: Holder, pack: bytes) -> None:
    """Return if no delta in the pack has its base outside."""
    path = holder.path / "alone.pack"
    path.write_bytes(pack)
    try:
        run_git("index-pack", path, repo=holder.path)
    except GitFailed as exc:
        raise AssertionError(f"the pack is thin: {exc}") from exc


@settings(max_examples=25, phases=PHASES)
@given(seed=st.integers(0, 1 << 32), times=st.lists(ages, min_size=1, max_size=3))
def test_every_answer_holds_what_it_must_and_nothing_foreign(
    stand: Stand, seed: int, times: list[Age]
) -> None:
    live_through(stand, seed, times)


@pytest.mark.soak
@settings(max_examples=2000, phases=PHASES)
@given(seed=st.integers(0, 1 << 32), times=st.lists(ages, min_size=1, max_size=5))
def test_every_answer_holds_what_it_must_and_nothing_foreign_in_2000_histories(
    stand: Stand, seed: int, times: list[Age]
) -> None:
    live_through(stand, seed, times)

"""need: never too little, nothing that the wants do not reach, and little too much."""

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from goblet_node import objects
from goblet_node.errors import ProtocolError
from goblet_node.mirror import linking
from goblet_node.mirror.graph import Graph, reached
from goblet_node.mirror.links import Links, Numbers
from goblet_node.mirror.reader import LogReader
from goblet_node.serve.need import Question, need
from goblet_node.serve.shallow import boundary
from goblet_node.wire.fetch_lines import MAX_DEPTH
from goblet_node.wire.filters import parse_filter
from goblet_node.wire.refs import ObjectId
from goblet_testing.histories import History, random_history
from goblet_testing.packs import GrownLog, Repo, run_git

seeds = st.integers(0, 1 << 32)
FILTERS = (
    "blob:none",
    "blob:limit=1",
    "blob:limit=100",
    "tree:0",
    "tree:1",
    "tree:2",
    "tree:3",
    "object:type=commit",
    "object:type=tree",
    "object:type=blob",
    "object:type=tag",
)


class CountingGraph(Graph):
    """Knows of which objects it was asked what they refer to."""

    def __init__(self, log: GrownLog) -> None:
        super().__init__(log.table(), Links.load(log.links()))
        self.asked: set[ObjectId] = set()

    def targets(self, places: Numbers) -> Iterator[NDArray[np.uint32]]:
        """Note, and answer."""
        self.asked.update(self.oids(places.tolist()))
        return super().targets(places)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """An answer by object ids."""

    objects: frozenset[ObjectId]
    with_client: frozenset[ObjectId]


def ask(graph: Graph, question: Question) -> Sent:
    """Return what is needed; the rows of it are in order, and none is there twice."""
    needed = need(graph, question)
    for new, old in needed.alike:
        assert new in needed.rows
        assert old in needed.with_client
        assert graph.kind(new) == graph.kind(old)
    return Sent(objects=_oids(graph, needed.rows), with_client=_oids(graph, needed.with_client))


def _oids(graph: Graph, rows: NDArray[np.int64]) -> frozenset[ObjectId]:
    assert rows.dtype == np.int64
    assert np.all(np.diff(rows) > 0)
    return frozenset(graph.oids(rows.tolist()))


def closure(
    reader: LogReader, starts: Iterable[ObjectId], cut: AbstractSet[ObjectId] = frozenset()
) -> frozenset[ObjectId]:
    """Return all that `starts` reach, not through the parents of the commits in `cut`."""
    seen: set[ObjectId] = set()
    unread = list(starts)
    while unread:
        oid = unread.pop()
        if oid in seen:
            continue
        seen.add(oid)
        kind, content = reader.get_raw(oid)
        if kind == objects.COMMIT and oid in cut:
            unread.append(objects.parse_commit(content).tree)
        else:
            raw, _ = objects.raw_references(kind, content)
            unread += [objects.hex_id(raw[at : at + 20]) for at in range(0, len(raw), 20)]
    return frozenset(seen)


def rev_list(
    repo: Path, wants: Iterable[ObjectId], haves: Iterable[ObjectId] = (), *flags: str
) -> frozenset[ObjectId]:
    """Return the objects that git would send."""
    lines = [*wants, *(b"^" + oid for oid in haves)]
    said = run_git(
        "rev-list",
        "--objects",
        "--no-object-names",
        *flags,
        "--stdin",
        repo=repo,
        stdin=b"".join(line + b"\n" for line in lines),
    )
    return frozenset(ObjectId(oid) for oid in said.split())


@contextmanager
def scene(folder: Path, seed: int) -> Iterator[tuple[History, LogReader, Graph, list[ObjectId]]]:
    """Give a history that grew in two steps, its log, and all that may be wanted of it.

    Of every second one the trees are cut into bundles, small as they are.
    """
    history, log = random_history(folder / "repo", seed), GrownLog(folder / "log")
    with pytest.MonkeyPatch.context() as patch:
        if seed % 2:
            patch.setattr(linking, "_CUT_FROM", 2)
            patch.setattr(linking, "_CUT_MASK", 1)
        log.fetch(history.repo)
        history.grow(8)
        tips = sorted({*history.commits, *history.tags, *history.refs().values()})
        log.take(history.repo.pack(log.table().missing(tips), log.tips), tips)
    with LogReader(log.packs(), log.table()) as reader:
        yield history, reader, log.graph(), tips


def sample(history: History, oids: Sequence[ObjectId], most: int) -> tuple[ObjectId, ...]:
    return tuple(history.dice.sample(oids, min(len(oids), history.dice.randint(1, most))))


# Laws --------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=settings().max_examples // 5)
@given(seed=seeds)
def test_a_client_that_has_nothing_gets_what_git_sends(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Exactly that, whatever is wanted: commits, tags of tags, trees, blobs."""
    with scene(tmp_path_factory.mktemp("g"), seed) as (history, reader, graph, tips):
        for _ in range(3):
            wants = sample(history, tips, 4)
            sent = ask(graph, Question(wants=wants))
            assert sent.objects == rev_list(history.path, wants) == closure(reader, wants)
            assert not sent.with_client


@pytest.mark.slow
@settings(max_examples=settings().max_examples // 5)
@given(seed=seeds)
def test_a_client_has_all_that_it_wants_afterwards(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever it had before; and what it is said to have, it had."""
    with scene(tmp_path_factory.mktemp("g"), seed) as (history, reader, graph, tips):
        for _ in range(3):
            wants, haves = sample(history, tips, 3), sample(history, tips, 5)
            sent = ask(graph, Question(wants=wants, haves=haves))
            had, wanted = closure(reader, haves), closure(reader, wants)
            assert sent.objects <= wanted
            assert wanted <= sent.objects | had
            assert rev_list(history.path, wants, haves) - had <= sent.objects
            assert sent.with_client <= had
            assert sent.with_client.isdisjoint(sent.objects)


@pytest.mark.slow
@settings(max_examples=settings().max_examples // 5)
@given(seed=seeds)
def test_a_shallow_client_has_all_that_it_wants_afterwards(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It was cloned with some depth, has fetched plainly or not at all, and asks again."""
    with scene(tmp_path_factory.mktemp("g"), seed) as (history, reader, graph, _):
        dice = history.dice
        for _ in range(4):
            haves = sample(history, history.commits, 3)
            cut = boundary(graph, wants=haves, shallow=(), deepen=dice.randint(1, 4)).edge
            had = closure(reader, haves, cut)
            wants = sample(history, history.commits, 3)
            shallow = tuple(sorted(cut))
            edge = None
            if dice.random() < 0.7:
                try:
                    edge = boundary(
                        graph,
                        wants=wants,
                        shallow=shallow,
                        **dice.choice(
                            (
                                {"deepen": dice.randint(1, 6)},
                                {"deepen": dice.randint(1, 3), "deepen_relative": True},
                                {"deepen": MAX_DEPTH},
                                {"deepen_since": 1_700_000_000 + dice.randint(0, 2000)},
                                {"deepen_not": (dice.choice(history.commits),)},
                            )
                        ),
                    )
                except ProtocolError:
                    continue
            sent = ask(graph, Question(wants=wants, haves=haves, shallow=shallow, boundary=edge))
            cut_then = cut if edge is None else (cut - set(edge.unshallow)) | edge.edge
            has = sent.objects | had
            assert closure(reader, [*wants, *haves], cut_then) <= has
            assert sent.objects <= closure(reader, [*wants, *(edge.unshallow if edge else ())])
            assert sent.with_client <= had
            assert sent.with_client.isdisjoint(sent.objects)


@pytest.mark.slow
@settings(max_examples=settings().max_examples // 5)
@given(seed=seeds)
def test_filters_let_pass_what_git_lets_pass(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Exactly that for a client that has nothing, no less for one that has something.

    Nor less of wanted trees and blobs: of those git asks the filter after all if they
    lie in another tree that it has passed before.
    """
    with scene(tmp_path_factory.mktemp("g"), seed) as (history, reader, graph, tips):
        ends = [tip for tip in tips if reader.type_of(reader.peel(tip)) == objects.COMMIT]
        for spec in history.dice.sample(FILTERS, 3):
            flag = f"--filter={spec}"
            wants = sample(history, ends, 3)
            question = Question(wants=wants, filter=parse_filter(spec))
            assert ask(graph, question).objects == rev_list(history.path, wants, (), flag)
            wants, haves = sample(history, tips, 3), sample(history, history.commits, 2)
            alone = ask(graph, Question(wants=wants, filter=parse_filter(spec))).objects
            assert rev_list(history.path, wants, (), flag) <= alone <= closure(reader, wants)
            assert alone.issuperset(wants)
            sent = ask(graph, Question(wants=wants, haves=haves, filter=parse_filter(spec)))
            least = rev_list(history.path, wants, haves, flag) - closure(reader, haves)
            assert least <= sent.objects <= closure(reader, wants)
            assert sent.with_client <= set(haves)


@pytest.mark.slow
@settings(max_examples=settings().max_examples // 10)
@given(seed=seeds)
def test_combined_filters_let_pass_no_less_than_git_does(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """git leaves some out: a part that has seen an object at a great depth forgets it."""
    with scene(tmp_path_factory.mktemp("g"), seed) as (history, _, graph, tips):
        one, other = history.dice.sample(FILTERS, 2)
        wants = sample(history, tips, 3)
        both = [
            ask(graph, Question(wants=wants, filter=parse_filter(spec))).objects
            for spec in (one, other)
        ]
        spec = f"combine:{one}+{other}"
        sent = ask(graph, Question(wants=wants, filter=parse_filter(spec))).objects
        assert rev_list(history.path, wants, (), f"--filter={spec}") <= sent <= both[0] & both[1]


@pytest.mark.slow
@settings(max_examples=settings().max_examples // 10)
@given(seed=seeds)
def test_tags_are_included_whose_ends_are_sent(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with scene(tmp_path_factory.mktemp("g"), seed) as (history, reader, graph, _):
        wants, haves = sample(history, history.commits, 2), sample(history, history.commits, 2)
        without = ask(graph, Question(wants=wants, haves=haves)).objects
        tags = tuple((tag, reader.peel(tag)) for tag in history.tags)
        sent = ask(graph, Question(wants=wants, haves=haves, tags=tags)).objects
        expected = {tag for tag, end in tags if end in without}
        assert expected <= sent
        assert sent - without <= closure(reader, expected)
        assert all(reader.type_of(oid) == objects.TAG for oid in sent - without)
        assert {reader.peel(oid) for oid in sent - without} <= without


# Cases --------------------------------------------------------------------------


FILES = {f"folder{n}/file{m}": b"%d %d" % (n, m) for n in range(5) for m in range(5)}


PATHS = ("^{tree}", ":folder0", ":folder0/file0")


class Line:
    """Six commits on `main`, each with one file changed; c[0] is the oldest."""

    def __init__(self, folder: Path) -> None:
        self.origin = Repo.create(folder / "origin")
        self.log = GrownLog(folder / "log")
        for number in range(6):
            self.origin.commit("main", {**FILES, "folder0/file0": b"version %d" % number})
        self.origin.tag("inner", "refs/heads/main")
        self.origin.tag("outer", "refs/tags/inner")
        self.log.fetch(self.origin)
        listed = run_git("rev-list", "--reverse", "main", repo=self.origin.path).split()
        self.c = [ObjectId(oid) for oid in listed]

    def oid(self, name: str) -> ObjectId:
        """Return the object of this name."""
        return ObjectId(run_git("rev-parse", name, repo=self.origin.path).strip())

    def changed(self, *commits: ObjectId) -> set[ObjectId]:
        """Return these commits, and what each changes: its tree, the folder, the file."""
        return {*commits, *(self.oid(f"{c.decode()}{path}") for c in commits for path in PATHS)}

    def ask(self, **question: object) -> Sent:
        """Return the answer to a Question of these fields."""
        return ask(self.log.graph(), Question(**question))  # type: ignore[arg-type]


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line(tmp_path)


def test_only_what_changed_is_sent_to_a_client_that_is_behind(line: Line) -> None:
    sent = line.ask(wants=(line.c[5],), haves=(line.c[3],))
    assert sent.objects == line.changed(line.c[4], line.c[5])


def test_old_versions_that_were_compared_are_bases_for_thin_deltas(line: Line) -> None:
    sent = line.ask(wants=(line.c[5],), haves=(line.c[3],))
    assert line.changed(line.c[3]) <= sent.with_client


def test_what_changed_is_paired_with_its_parents_version_whatever_the_dates(
    tmp_path: Path,
) -> None:
    """Somebody's clock is behind: another branch, which the client has too, is the newest."""
    repo = Repo.create(tmp_path / "repo")
    repo.commit("main", {"f": b"1", "g": b"same"})
    old = repo.refs()["refs/heads/main"]
    repo.commit("other", {"x": b"another", "y": b"tree"}, parent="")
    repo.commit("main", {"f": b"2", "g": b"same"}, seconds=-1_000_000)
    refs = repo.refs()
    log = GrownLog(tmp_path / "log")
    log.take(repo.pack(repo.tips()), repo.tips())
    main, other = refs["refs/heads/main"], refs["refs/heads/other"]
    graph = log.graph()
    place, old_place = graph.places([main, old]).tolist()
    found = need(graph, Question(wants=(main,), haves=(old, other)))
    assert (graph.tree(place), graph.tree(old_place)) in found.alike


def test_what_changed_is_paired_with_the_version_that_the_client_has(line: Line) -> None:
    """A client that filters may lack it."""
    question = Question(wants=(line.c[5],), haves=(line.c[3],))
    graph = line.log.graph()
    names = [oid.decode() + path for oid in (line.c[5], line.c[3]) for path in PATHS]
    places = graph.places([line.oid(name) for name in names]).tolist()
    assert set(zip(places[:3], places[3:], strict=True)) <= set(need(graph, question).alike)
    assert need(graph, replace(question, filter=parse_filter("blob:limit=9"))).alike == ()


def test_nothing_is_sent_that_the_client_has(line: Line) -> None:
    assert line.ask(wants=(line.c[2],), haves=(line.c[4],)).objects == set()
    assert line.ask(wants=(line.c[2],), haves=(line.c[2],)).objects == set()


def test_a_moved_file_is_not_sent_again(line: Line) -> None:
    """Its blob lies at another path of a tree that was compared."""
    moved = {**FILES, "folder0/file0": b"version 5"}
    moved["folder1/moved"] = moved.pop("folder1/file1")
    line.origin.commit("main", moved)
    line.log.fetch(line.origin)
    tip = line.oid("main")
    sent = line.ask(wants=(tip,), haves=(line.c[5],))
    assert sent.objects == {tip, line.oid("main^{tree}"), line.oid("main:folder1")}


def test_ci_that_keeps_its_workspace_gets_no_unchanged_file_with_depth_1(line: Line) -> None:
    """The new commit has no parent in the answer, but the client's commit is much like it."""
    edge = boundary(line.log.graph(), wants=[line.c[5]], shallow=[line.c[2]], deepen=1)
    sent = line.ask(wants=(line.c[5],), haves=(line.c[2],), shallow=(line.c[2],), boundary=edge)
    assert sent.objects == line.changed(line.c[5])


def test_to_deepen_by_one_sends_only_what_the_older_commit_had_otherwise(line: Line) -> None:
    edge = boundary(
        line.log.graph(), wants=[line.c[5]], shallow=[line.c[4]], deepen=1, deepen_relative=True
    )
    sent = line.ask(wants=(line.c[5],), haves=(line.c[5],), shallow=(line.c[4],), boundary=edge)
    assert sent.objects == line.changed(line.c[3])


def test_below_a_shallow_commit_everything_is_sent_again(line: Line) -> None:
    """A client that is shallow at its only commit wants an ancestor of it."""
    sent = line.ask(wants=(line.c[1],), haves=(line.c[5],), shallow=(line.c[5],))
    assert line.changed(line.c[0], line.c[1]) <= sent.objects
    assert line.ask(wants=(line.c[1],), haves=(line.c[5],)).objects == set()


def test_a_commit_at_the_edge_comes_with_its_whole_tree(line: Line) -> None:
    edge = boundary(line.log.graph(), wants=[line.c[5]], shallow=(), deepen=1)
    sent = line.ask(wants=(line.c[5],), boundary=edge)
    with LogReader(line.log.packs(), line.log.table()) as reader:
        assert sent.objects == closure(reader, line.c[5:], cut=set(line.c))


def test_thousands_of_blobs_are_looked_up_and_no_tree_is_looked_at(line: Line) -> None:
    """That is how a partial clone fetches what it lacks."""
    listed = run_git("ls-tree", "-r", "main", repo=line.origin.path).splitlines()
    blobs = tuple(ObjectId(entry.split()[2]) for entry in listed)
    graph = CountingGraph(line.log)
    sent = ask(graph, Question(wants=blobs, filter=parse_filter("blob:none")))
    assert sent.objects == set(blobs)
    assert graph.asked == set()


def test_a_wanted_tree_comes_with_all_below_it_and_without_commits(line: Line) -> None:
    tree, listed = line.oid("main^{tree}"), run_git("ls-tree", "-rt", "main", repo=line.origin.path)
    below = {ObjectId(entry.split()[2]) for entry in listed.splitlines()}
    assert line.ask(wants=(tree,)).objects == {tree} | below


def test_a_filter_is_not_asked_about_what_is_wanted_by_its_id(line: Line) -> None:
    blob, tree = line.oid("main:folder1/file1"), line.oid("main:folder2")
    nothing = parse_filter("combine:tree:0+blob:none")
    assert line.ask(wants=(blob, tree), filter=nothing).objects == {blob, tree}


def test_a_tag_comes_with_the_tags_that_it_points_at(line: Line) -> None:
    outer, inner = line.oid("outer"), line.oid("inner")
    sent = line.ask(wants=(outer,), haves=(line.c[5],))
    assert sent.objects == {outer, inner}


def test_a_chain_of_tags_is_included_whole(line: Line) -> None:
    outer, inner = line.oid("outer"), line.oid("inner")
    tags = ((outer, line.c[5]),)
    assert line.ask(wants=(line.c[5],), haves=(line.c[4],), tags=tags).objects == {
        *line.changed(line.c[5]),
        outer,
        inner,
    }
    assert line.ask(wants=(line.c[4],), haves=(line.c[3],), tags=tags).objects == line.changed(
        line.c[4]
    )


def test_a_new_tag_on_what_the_client_has_comes_when_history_is_to_end_before_it(
    line: Line,
) -> None:
    """git sends the tagged commit again, since it cuts off what the client has, too."""
    outer, inner = line.oid("outer"), line.oid("inner")
    tags = ((outer, line.c[5]),)
    edge = boundary(line.log.graph(), wants=[line.c[5]], shallow=[], deepen=2)
    whole = line.ask(wants=(line.c[5],), haves=(line.c[5],), tags=tags)
    ending = line.ask(wants=(line.c[5],), haves=(line.c[5],), tags=tags, boundary=edge)
    assert whole.objects == set()
    assert ending.objects == {outer, inner}


def test_of_a_client_that_filters_only_its_haves_are_certain(line: Line) -> None:
    """It may lack every blob and tree that they reach."""
    sent = line.ask(wants=(line.c[5],), haves=(line.c[3],), filter=parse_filter("blob:none"))
    assert sent.with_client == {line.c[3]}
    assert line.oid("main^{tree}") in sent.objects


def test_a_tree_at_two_depths_counts_at_the_lesser(tmp_path: Path) -> None:
    """One order of names meets it deep first, the other does not."""
    origin, log = Repo.create(tmp_path / "origin"), GrownLog(tmp_path / "log")
    origin.commit("main", {"a/b/c/file": b"1", "z/file": b"1", "m/n/o/p": b"2", "b/p": b"2"})
    log.fetch(origin)
    tip = origin.tips()
    sent = ask(log.graph(), Question(wants=tip, filter=parse_filter("tree:3"))).objects
    assert sent == rev_list(origin.path, tip, (), "--filter=tree:3")
    assert run_git("rev-parse", "main:z/file", repo=origin.path).strip() in sent


def test_a_submodule_is_no_object_of_this_repository(tmp_path: Path) -> None:
    history = random_history(tmp_path / "repo", seed=1, commits=40)
    listed = run_git("log", "--all", "--raw", "--format=", repo=history.path)
    assert b"160000" in listed
    log = GrownLog(tmp_path / "log")
    log.fetch(history.repo)
    sent = ask(log.graph(), Question(wants=log.tips)).objects
    assert sent == rev_list(history.path, log.tips)


def test_an_object_that_the_log_lacks_is_a_key_error(line: Line) -> None:
    with pytest.raises(KeyError):
        line.ask(wants=(ObjectId(b"7" * 40),))


def test_no_tree_is_looked_at_of_history_behind_what_the_client_has(line: Line) -> None:
    graph = CountingGraph(line.log)
    ask(graph, Question(wants=(line.c[5],), haves=(line.c[4],)))
    listed = [
        entry.split()
        for start in ("main", "main~")
        for entry in run_git("ls-tree", "-rt", start, repo=line.origin.path).splitlines()
    ]
    near = {ObjectId(entry[2]) for entry in listed if entry[1] == b"tree"}
    roots = {line.oid("main^{tree}"), line.oid("main~^{tree}")}
    asked = {oid for oid in graph.asked if graph.kind(graph.table.row(oid)) == objects.TREE}
    assert roots <= asked <= near | roots


@pytest.mark.slow
@settings(max_examples=settings().max_examples // 10)
@given(seed=seeds)
def test_to_know_that_all_is_wanted_changes_nothing(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It only saves the walk, whatever the filter and whatever lies behind what is wanted."""
    with scene(tmp_path_factory.mktemp("g"), seed) as (history, reader, graph, tips):
        wanted = reached(graph, graph.places(tips))
        assert wanted.all()
        tags = tuple((tag, reader.peel(tag)) for tag in history.tags)
        for spec in (None, *history.dice.sample(FILTERS, 3)):
            question = Question(
                wants=tuple(tips), filter=None if spec is None else parse_filter(spec), tags=tags
            )
            told = replace(question, whole=len(graph))
            assert ask(graph, told) == ask(graph, question)


def test_a_revert_of_what_the_client_lacks_is_sent_with_all_below_it(line: Line) -> None:
    """Its tree is that of its grandparent; compared in the wrong order, neither is whole."""
    new = {"new/stays": b"stays", "new/file": b"1"}
    for content in (b"1", b"2", b"1"):
        line.origin.commit("main", {**FILES, **new, "new/file": content})
    line.log.fetch(line.origin)
    sent = line.ask(wants=(line.oid("main"),), haves=(line.c[5],))
    assert line.oid("main:new/stays") in sent.objects

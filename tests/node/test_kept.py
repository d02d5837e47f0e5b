"""kept: a worker reads no log twice, and does not keep all that it was asked about."""

from pathlib import Path

from goblet_node.serve.kept import KeptGraphs
from goblet_testing.packs import GrownLog, Repo


def grown_log(folder: Path, name: str) -> tuple[Repo, GrownLog]:
    """Make a log of one segment with three objects."""
    origin, log = Repo.create(folder / name), GrownLog(folder / f"log-{name}")
    origin.commit("main", {"file": name.encode()})
    log.fetch(origin)
    return origin, log


def test_a_log_is_read_once(tmp_path: Path) -> None:
    _, log = grown_log(tmp_path, "one")
    kept = KeptGraphs(most_objects=100)
    graph = kept.of(log.segments)
    assert len(graph) == 3
    assert kept.of(log.segments) is graph


def test_of_a_log_that_grew_only_what_is_new_is_read(tmp_path: Path) -> None:
    origin, log = grown_log(tmp_path, "one")
    kept = KeptGraphs(most_objects=100)
    kept.of(log.segments)
    origin.commit("main", {"file": b"more"})
    log.fetch(origin)
    expected = log.graph()
    log.segments[0].table.unlink()
    log.segments[0].links.unlink()
    graph = kept.of(log.segments)
    assert len(graph) == len(expected) == 6
    assert graph.places(log.tips).tolist() == expected.places(log.tips).tolist()
    assert graph.links.targets.tolist() == expected.links.targets.tolist()


def test_the_least_recently_used_is_dropped_when_there_are_too_many_objects(
    tmp_path: Path,
) -> None:
    logs = [grown_log(tmp_path, name)[1] for name in ("one", "two", "three")]
    kept = KeptGraphs(most_objects=6)
    first, second = kept.of(logs[0].segments), kept.of(logs[1].segments)
    assert kept.of(logs[0].segments) is first
    kept.of(logs[2].segments)
    assert kept.of(logs[0].segments) is first
    assert kept.of(logs[1].segments) is not second


def test_the_last_log_is_kept_however_large(tmp_path: Path) -> None:
    _, log = grown_log(tmp_path, "one")
    kept = KeptGraphs(most_objects=1)
    assert kept.of(log.segments) is kept.of(log.segments)


def test_a_log_without_segments_has_a_graph() -> None:
    assert len(KeptGraphs(most_objects=1).of([])) == 0

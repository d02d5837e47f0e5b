"""How does the cost of an answer grow with objects, with refs and with generations?

Makes repositories of growing size, lets a node mirror each, and asks for a full clone,
`blob:none`, `--depth 1` and the refs: the first time (nothing is recorded), and again;
beside `git http-backend` behind nginx, with bitmaps, on the same requests. Prints one
JSON line with a row a size. By default up to 50,000 objects, 1,000 refs and 30
generations, which takes about a minute; `--full` goes to 1,000,000, 10,000 and 1,000
and takes an hour.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from goblet_testing.asks import command_body
from goblet_testing.benching import (
    Cost,
    Goblet,
    OwnOrigin,
    Server,
    Verdict,
    kept_repo,
    make_project,
    own_origin,
    pack_with_bitmap,
    parser_of,
    report,
    start_goblet,
)
from goblet_testing.gitcli import git, refs_of
from goblet_testing.measuring import highest_rss_mb
from goblet_testing.nginx import Nginx, missing_programs
from goblet_testing.plotting import lines
from goblet_testing.recorded import fetch_body
from goblet_testing.repos import commit, count_objects, oid_of

# How many commits make about so many objects, with how many files.
OBJECTS = {1_000: (70, 100), 10_000: (1_150, 400), 50_000: (6_200, 700)}
MORE_OBJECTS = {100_000: (12_500, 900), 350_000: (44_000, 1_500), 1_000_000: (126_000, 3_000)}
REFS, MORE_REFS = (10, 1_000), (100, 10_000)
GENERATIONS, MORE_GENERATIONS = (1, 30), (10, 100, 1_000)
JUDGED = 350_000
Row = dict[str, Any]


def main() -> int:
    """Run the bench, print its line, and return its exit code."""
    parser = parser_of(__doc__)
    parser.add_argument("--full", action="store_true", help="go as far as the docstring says")
    parser.add_argument("--only", choices=("objects", "refs", "generations"), help="one of three")
    parser.add_argument("--most", type=int, help="leave out what is larger than this")
    parser.add_argument("--seconds", type=float, default=0.3, help="how long to ask again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="goblet-scale-") as directory:
        rows = measure(Path(directory), options)
    report(
        "scale",
        {"rows": rows, "max_rss_mb": max(row["max_rss_mb"] for row in rows)},
        verdicts=judge(rows),
        plot=options.plot,
        svg=lambda: lines("First answer, by objects", "objects", "s of wall time", curves(rows)),
    )
    return 0


def measure(directory: Path, options: argparse.Namespace) -> list[Row]:
    """Return a row for each size along each of the three axes."""
    root = directory / "host"
    root.mkdir()
    if (absent := missing_programs()) is not None:
        print(f"without the baseline: {absent}", file=sys.stderr)
    rows: list[Row] = []
    with ExitStack() as stack:
        origin = stack.enter_context(own_origin(root, directory / "log"))
        nginx = None if absent else stack.enter_context(Nginx(root, directory / "nginx"))
        sizes = Sizes(origin, nginx, root, directory, options)
        for axis, values in axes(options).items():
            for value in values:
                row = sizes.measure(axis, value)
                print(f"{axis} {value}: {len(row['answers'])} answers", file=sys.stderr)
                rows.append({"axis": axis, "size": value, **row})
    return rows


def axes(options: argparse.Namespace) -> dict[str, Sequence[int]]:
    """Return which sizes are to be measured."""
    found: dict[str, Sequence[int]] = {
        "objects": [*OBJECTS, *(MORE_OBJECTS if options.full else ())],
        "refs": sorted([*REFS, *(MORE_REFS if options.full else ())]),
        "generations": sorted([*GENERATIONS, *(MORE_GENERATIONS if options.full else ())]),
    }
    most = options.most or max(MORE_OBJECTS)
    return {
        axis: [value for value in values if value <= most]
        for axis, values in found.items()
        if options.only in (None, axis)
    }


class Sizes:
    """Makes a repository of a size, has a new node mirror it, and asks."""

    def __init__(
        self,
        origin: OwnOrigin,
        nginx: Nginx | None,
        root: Path,
        directory: Path,
        options: argparse.Namespace,
    ) -> None:
        self._origin = origin
        self._nginx = nginx
        self._root = root
        self._directory = directory
        self._options = options

    def measure(self, axis: str, size: int) -> Row:
        """Return what the answers cost at this size."""
        name = f"{axis}/{size}"
        repo = self._made(name, axis, size)
        with start_goblet(self._origin.url, self._directory / "goblet" / name) as goblet:
            goblet.fill(name, self._directory)
            if axis == "generations":
                self._grow(goblet, repo, name, size - 1)
            pack_with_bitmap(repo)
            answers = {
                question: self._ask(goblet.at_node(name), self._git(name), body)
                for question, body in questions(repo).items()
            }
            max_rss = highest_rss_mb([goblet.node.pid])
        return {
            "objects": count_objects(repo),
            "refs": len(refs_of(repo)),
            "answers": answers,
            "max_rss_mb": max_rss,
        }

    def _made(self, name: str, axis: str, size: int) -> Path:
        commits, files = {**OBJECTS, **MORE_OBJECTS}[size] if axis == "objects" else (300, 100)
        repo = kept_repo(
            self._options.repo_cache,
            self._root,
            lambda path: make_project(path, commits=commits, files=files),
            f"org/project-{commits}-{files}",
        )
        place = self._root / f"{name}.git"
        place.parent.mkdir(exist_ok=True)
        repo = repo.rename(place)
        if axis == "refs":
            tips = git("rev-list", "--max-count=300", "main", cwd=repo).stdout.split()
            made = [f"create refs/heads/many/{n} {tips[n % len(tips)]}\n" for n in range(size)]
            git("update-ref", "--stdin", cwd=repo, stdin="".join(made))
            git("pack-refs", "--all", cwd=repo)
        return repo

    def _grow(self, goblet: Goblet, repo: Path, name: str, generations: int) -> None:
        for number in range(generations):
            commit(repo, files={f"grown/{number % 20}.txt": f"generation {number}\n"})
            goblet.refresh(name)

    def _git(self, name: str) -> Server | None:
        if self._nginx is None:
            return None
        pids = tuple(self._nginx.pids)
        return Server(name="git", url=f"{self._nginx.bitmaps}/{name}.git", pids=pids)

    def _ask(self, node: Server, git_: Server | None, body: bytes) -> Row:
        found = {"node, first": short(node.asked(body, most=1))}
        node.asked(body, most=2)  # by now it is recorded, if it ever is
        found["node, again"] = short(node.asked(body, seconds=self._options.seconds))
        if git_ is not None:
            found["git"] = short(git_.asked(body, seconds=self._options.seconds))
        return found


def questions(repo: Path) -> dict[str, bytes]:
    """Return what is asked, as bodies of protocol version 2."""
    wants = sorted({oid for name, oid in refs_of(repo).items() if not name.endswith("^{}")})
    main = oid_of(repo, "main")
    return {
        "full": fetch_body(wants),
        "branch": fetch_body([main]),
        "blob:none": fetch_body(wants, "filter blob:none"),
        "depth 1": fetch_body([main], "deepen 1"),
        "one behind": fetch_body([main], haves=[oid_of(repo, "main~1")]),
        "ls-refs": command_body("ls-refs", ["peel", "symrefs", "ref-prefix refs/"]),
    }


def short(cost: Cost) -> Row:
    """Return what a row needs of a cost."""
    row = cost.row()
    return {key: row[key] for key in ("n", "median_ms", "p99_ms", "cpu_ms", "bytes", "cache")}


def curves(rows: Sequence[Row]) -> dict[str, list[tuple[float, float]]]:
    """Return the lines of the plot: wall seconds by objects."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for question in ("full", "blob:none", "depth 1") if row["axis"] == "objects" else ():
            for server in ("node, first", "git"):
                if server in row["answers"][question]:
                    point = (row["objects"], row["answers"][question][server]["median_ms"] / 1e3)
                    found.setdefault(f"{question}, {server}", []).append(point)
    return found


def judge(rows: Sequence[Row]) -> list[Verdict]:
    """Return the ratio that Goblet is held to, if its size was measured beside git."""
    return [
        Verdict(
            figure=f"first blob:none of {row['objects']} objects: wall, times git's with bitmaps",
            measured=found["node, first"]["median_ms"] / found["git"]["median_ms"],
            limit=1.5,
            is_least=False,
        )
        for row in rows
        if row["axis"] == "objects" and row["size"] == JUDGED
        for found in [row["answers"]["blob:none"]]
        if "git" in found
    ]


if __name__ == "__main__":
    sys.exit(main())

"""Who may import whom: the house's arrows run downward, and none runs in a circle."""

import ast
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

Graph = Mapping[str, frozenset[str]]
"""Module -> what it imports: modules of ours by their full name, others by their first word."""

PACKAGES = {"goblet_router": "router", "goblet_node": "node", "goblet_shared": "shared"}
ALLOWED = {
    "goblet_router": {"goblet_router", "goblet_shared"},
    "goblet_node": {"goblet_node", "goblet_shared"},
    "goblet_shared": {"goblet_shared"},
}

# The node's rooms from the top down: each may import itself and what follows.
# config stands on fill, which knows what an upstream's address looks like.
ROOMS = [
    *("cli", "app", "cluster", "access", "serve", "config", "fill", "mirror", "objects", "wire")
]
ROOM_OF = {
    **dict.fromkeys(["__main__", "wiring", "clustering", "base"], "cli"),
    **dict.fromkeys(
        [
            *("own", "body", "admin", "ensure", "peering"),
            *("limits", "passing", "questions", "visit"),
        ],
        "app",
    ),
}
MEASURED = {"cli", "app", "cluster", "access", "serve", "fill"}  # may import metrics

ONLY_IMPORTERS = {
    "uhashring": "goblet_shared.ring",
    "dns": "goblet_shared.dns_members",
    "dulwich": "goblet_node.objects",
}
CLOSED_TO = {
    "goblet_node.wire": {"trio", "anyio", "httpx"},
    "goblet_node.objects": {"trio", "anyio", "httpx"},
    "goblet_node.mirror": {"httpx"},
    "goblet_shared.repo_key": {"trio", "anyio", "httpx"},
    "goblet_shared.git_route": {"trio", "anyio", "httpx"},
}


def read_graph(sources: Mapping[str, str]) -> Graph:
    """Return the graph of these modules: name -> source text."""
    return {
        name: frozenset(resolved(imported_names(ast.parse(text), name), sources))
        for name, text in sources.items()
    }


def imported_names(tree: ast.AST, importer: str) -> Iterable[str]:
    """Yield every dotted name that is imported, wherever in the file that happens."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = importer.split(".")
            above = parts[: len(parts) - node.level] if node.level else []
            origin = ".".join([*above, *(node.module or "").split(".")]).strip(".")
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def resolved(names: Iterable[str], ours: Iterable[str]) -> Iterable[str]:
    """Yield the module that each name lies in, of other people's packages the first word."""
    known = set(ours)
    for name in names:
        if name.split(".")[0] not in PACKAGES:
            yield name.split(".")[0]
            continue
        while name not in known and "." in name:
            name = name.rpartition(".")[0]
        yield name


def violations(graph: Graph) -> list[str]:
    """Return one line for each import that the house does not allow."""
    found = [
        f"{module} imports {imported}"
        for module, imports in sorted(graph.items())
        for imported in sorted(imports)
        if not may_import(module, imported)
    ]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        found.append("a circle: " + " -> ".join(circle.args[1]))
    return found


def may_import(module: str, imported: str) -> bool:
    package = imported.split(".")[0]
    if package in PACKAGES and package not in ALLOWED[module.split(".")[0]]:
        return False
    if ONLY_IMPORTERS.get(package, module) != module:
        return False
    if any(is_in(module, place) and package in closed for place, closed in CLOSED_TO.items()):
        return False
    if is_in(module, "goblet_node") and is_in(imported, "goblet_node"):
        return room_may_import(room_of(module), room_of(imported))
    return True


def is_in(module: str, place: str) -> bool:
    return module == place or module.startswith(place + ".")


def room_of(module: str) -> str:
    """Return the room of a module of the node; a module that has none yet is a room by itself."""
    name = module.split(".")[1] if "." in module else ""
    return ROOM_OF.get(name, name)


def room_may_import(room: str, other: str) -> bool:
    if other in {"", "errors"} or room == other:
        return True
    if other == "metrics":
        return room in MEASURED
    return room in ROOMS and other in ROOMS and ROOMS.index(room) < ROOMS.index(other)


def sources_of_the_house() -> dict[str, str]:
    sources = {}
    for package, folder in PACKAGES.items():
        for path in (ROOT / folder / package).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join(parts).removesuffix(".__init__")
            sources[name] = path.read_text(encoding="utf-8")
    return sources


def test_the_house_keeps_its_arrows() -> None:
    assert violations(read_graph(sources_of_the_house())) == []


def test_the_house_was_read() -> None:
    """An empty graph would keep every rule."""
    graph = read_graph(sources_of_the_house())
    assert "uhashring" in graph["goblet_shared.ring"]
    assert "goblet_shared.repo_key" in graph["goblet_shared.git_route"]
    assert "goblet_node.wire.refs" in graph
    assert "goblet_router" in graph


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("goblet_router.app", "import goblet_node.app"),
        ("goblet_router.app", "from goblet_node import errors"),
        ("goblet_node.app", "from goblet_router.proxy import Proxy"),
        ("goblet_shared.ring", "import goblet_node"),
        ("goblet_shared.ring", "def f():\n    import goblet_router"),
        ("goblet_router.spread", "from uhashring import HashRing"),
        ("goblet_node.mirror.log", "import dulwich.pack"),
        ("goblet_node.wire.v2", "import trio"),
        ("goblet_node.wire.v2", "from anyio import to_thread"),
        ("goblet_node.mirror.log", "import httpx"),
        ("goblet_node.mirror.log", "import goblet_node.fill.refresh"),
        ("goblet_node.mirror.log", "from goblet_node.fill import refresh"),
        ("goblet_node.mirror.log", "from ..fill import refresh"),
        ("goblet_node.mirror.log", "from ..fill.refresh import Refresher"),
        ("goblet_node.mirror.log", "from goblet_node.metrics import NodeMetrics"),
        ("goblet_node.mirror.log", "from goblet_node.config import NodeSettings"),
        ("goblet_node.wire.refs", "from goblet_node.objects import hex_id"),
        ("goblet_node.fill.refresh", "from goblet_node.app import Node"),
        ("goblet_node.fill.refresh", "if TYPE_CHECKING:\n    from goblet_node.serve import plan"),
        ("goblet_node.app", "import goblet_node.cli"),
        ("goblet_node.errors", "import goblet_node.wire.refs"),
        ("goblet_node.attic", "import goblet_node.wire.refs"),
        ("goblet_node.mirror.log", "import goblet_node.mirror.log"),
    ],
)
def test_an_arrow_that_runs_the_wrong_way_is_found(module: str, text: str) -> None:
    sources = dict.fromkeys(
        [
            *("goblet_node", "goblet_node.app", "goblet_node.cli", "goblet_node.config"),
            *("goblet_node.metrics", "goblet_node.errors", "goblet_node.fill.refresh"),
            *(
                "goblet_node.serve.plan",
                "goblet_node.wire.refs",
                "goblet_node.fill",
                "goblet_node.objects",
            ),
            *("goblet_node.serve", "goblet_router", "goblet_router.proxy"),
        ],
        "",
    )
    assert violations(read_graph(sources)) == []
    assert len(violations(read_graph({**sources, module: text}))) == 1


def test_arrows_that_run_downward_are_let_be() -> None:
    graph = read_graph(
        {
            "goblet_node.cli": "import trio\nfrom goblet_node import app, config, metrics",
            "goblet_node.app": "from goblet_node.wire.refs import Ref\nimport goblet_shared.ring",
            "goblet_node.config": "from goblet_node.errors import NodeError",
            "goblet_node.metrics": "import prometheus_client",
            "goblet_node.errors": "from goblet_shared.errors import GobletError",
            "goblet_node.objects": "import dulwich",
            "goblet_node.wire.refs": "from goblet_node.wire import names",
            "goblet_node.wire.names": "from goblet_node import errors",
            "goblet_shared.ring": "from uhashring import HashRing",
            "goblet_shared.errors": "",
        }
    )
    assert violations(graph) == []


def test_a_circle_is_found_and_shown() -> None:
    graph = read_graph(
        {
            "goblet_shared.a": "import goblet_shared.b",
            "goblet_shared.b": "from goblet_shared.c import x",
            "goblet_shared.c": "from goblet_shared import a",
        }
    )
    (line,) = violations(graph)
    assert line.startswith("a circle: ")
    assert {"goblet_shared.a", "goblet_shared.b", "goblet_shared.c"} <= set(line.split())

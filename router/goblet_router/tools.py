"""The commands that look at a cluster, or change it: `goblet ring`, `warm`, `purge`."""

import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, TypeVar

import trio
import typer

from goblet_router.asking import Asker, AskFailed, Cluster, as_json, asker, one_line
from goblet_router.change import change_of, shown
from goblet_router.sources import NodeSource, Source, WarmSettings
from goblet_shared import repo_key
from goblet_shared.cluster_secret import ClusterSecret
from goblet_shared.contract import NodeName
from goblet_shared.errors import GobletError
from goblet_shared.members import Member, is_node_name
from goblet_shared.repo_key import RepoKey
from goblet_shared.ring import SLOTS, Ring, ring_id, slot_of
from goblet_shared.settings import takes

# So many repositories are warmed at once: more would only queue at their upstream.
_WARMED_AT_ONCE = 4
# A router answers what it knows, and asks nobody for it.
_ROUTER_WITHIN = 10.0
_SAID_EVERY = 10.0
_LOOKED_EVERY = 0.5

T = TypeVar("T")

ring_app = typer.Typer(help="Look at the ring: who owns what, and what a change would move.")

Repos = Annotated[
    list[str],
    typer.Argument(metavar="REPO...", help="github.com/org/repo, or its https URL."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@ring_app.command()
@takes(Source)
def show(settings: Source, json: AsJson = False) -> None:
    """Print the ring's id, and of each member how many slots it owns, its state and address."""
    cluster = _run(lambda: _members(settings))
    ring = cluster.ring
    owned = Counter(ring.placement)
    if json:
        members = [
            {
                "name": one.name,
                "url": one.url,
                "state": one.state,
                "is_on_ring": one.is_on_ring,
                "slots": owned[one.name],
            }
            for one in cluster.members
        ]
        about = {"ring": ring_id(ring), "epoch": cluster.epoch, "slots": SLOTS}
        print(as_json({**about, "members": members}))
        return
    epoch = "" if cluster.epoch is None else f", epoch {cluster.epoch}"
    print(f"ring {ring_id(ring)}, {SLOTS} slots{epoch}")
    for one in cluster.members:
        count = owned[one.name]
        about_it = [one.name, f"{count} slots", f"{count / SLOTS:.1%}", one.state, one.url]
        print("  ".join(word for word in about_it if word))


@ring_app.command()
@takes(Source)
def locate(settings: Source, repos: Repos, json: AsJson = False) -> None:
    """Print each repository's slot, and its owners in the order in which they are asked."""
    keys = _keys(repos)
    ring = _run(lambda: _members(settings)).ring
    if json:
        located = [
            {"key": key, "slot": slot_of(key), "owners": list(ring.owners(key))} for key in keys
        ]
        print(as_json(located))
        return
    for key in keys:
        print(f"{key}  slot {slot_of(key)}  {' '.join(ring.owners(key))}")


@ring_app.command()
@takes(NodeSource)
def diff(
    settings: NodeSource,
    add: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A node that would join; repeat it.")
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A node that would leave; repeat it.")
    ] = None,
    json: AsJson = False,
) -> None:
    """Print what would move if nodes joined or left: slots, repositories and bytes.

    Nodes are asked which mirrors they hold; of those that do not say, slots alone count.
    """

    async def body() -> None:
        async with _asking(settings) as (ask, cluster):
            old = cluster.ring
            new = _changed(old, add or (), remove or ())
            held: dict[NodeName, dict[RepoKey, int]] = {}
            unasked: dict[str, str] = {}

            async def look(node: Member) -> None:
                try:
                    held[node.name] = dict(await ask.mirrors(node))
                except AskFailed as exc:
                    unasked[node.name] = str(exc)

            async with trio.open_nursery() as nursery:
                for node in cluster.reachable():
                    nursery.start_soon(look, node)
        for one in cluster.members:
            if one.url is None:
                unasked[one.name] = f"{one.name}: its address is not known: give {one.name}=URL"
        change = change_of(old, new, held)
        if json:
            print(as_json({**change.as_dict(), "unasked": unasked}))
        else:
            print("\n".join(change.lines()))
        for why in unasked.values():
            _say(f"not counted: what {why}")

    _run(body)


@ring_app.command()
@takes(NodeSource)
def drain(
    settings: NodeSource,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The node that is to go.")],
    wait: Annotated[bool, typer.Option(help="Return when the node has ended.")] = True,
    wait_seconds: Annotated[
        float, typer.Option(min=0, help="How long to wait for that, at the most.")
    ] = 300.0,
) -> None:
    """Have a node hand over what it holds, finish what it answers, and end."""

    async def body() -> None:
        async with _asking(settings) as (ask, cluster):
            node = _named(cluster, name)
            await ask.drain(node)
            _say(f"{name} drains")
            if not wait:
                return
            with trio.move_on_after(wait_seconds) as waiting:
                await _until_gone(ask, node)
            if waiting.cancelled_caught:
                raise AskFailed(
                    f"{name} still drains after {wait_seconds:g} s: look at {node.url}/-/status"
                )

    _run(body)


@takes(WarmSettings)
def warm(settings: WarmSettings, repos: Repos) -> None:
    """Have the owners of repositories fetch what upstream has now, and return when they have.

    A repository that is not public is asked for with the credential that git's helpers
    have for the router's address, as for a clone through it; nobody is prompted.
    """
    keys = _keys(repos)

    async def body() -> None:
        async with asker(secret=None, patience=settings.warm_seconds) as ask:

            async def make(key: RepoKey) -> str:
                begun = trio.current_time()
                await ask.ensure(settings.router, key)
                return f"{key}  warm in {trio.current_time() - begun:.1f} s"

            await _each(keys, make, at_once=_WARMED_AT_ONCE)

    _run(body)


@takes(NodeSource)
def purge(settings: NodeSource, repos: Repos) -> None:
    """Delete what all nodes hold of repositories; the next clone fetches them anew.

    Whoever clones one just now may have to try again.
    """
    keys = _keys(repos)

    async def body() -> None:
        async with _asking(settings) as (ask, cluster):
            nodes = cluster.reachable()
            if len(nodes) < len(cluster.members):
                raise AskFailed("not every node's address is known: give each as NAME=URL")

            async def make(key: RepoKey) -> str:
                lines = []
                failures = []
                for node in nodes:
                    try:
                        freed = await ask.purge(node, key)
                    except AskFailed as exc:
                        failures.append(f"{key} may be held still by {exc}")
                        continue
                    if freed is not None:
                        lines.append(f"{key}  {node.name}  {shown(freed)} deleted")
                if failures:
                    raise AskFailed("\n".join([*lines, *failures]))
                return "\n".join(lines) or f"{key}  nobody held it"

            await _each(keys, make, at_once=1)

    _run(body)


async def _each(
    keys: Sequence[RepoKey], make: Callable[[RepoKey], Awaitable[str]], *, at_once: int
) -> None:
    """Do it for each repository and print what it gives; say now and then what is not done yet.

    Raises:
        AskFailed: it failed for some; the others were done all the same.
    """
    limit = trio.CapacityLimiter(at_once)
    undone = dict.fromkeys(keys)
    failed = 0

    async def one(key: RepoKey) -> None:
        nonlocal failed
        async with limit:
            try:
                print(await make(key), flush=True)
            except AskFailed as exc:
                failed += 1
                _say(str(exc))
            del undone[key]

    async def report() -> None:
        while True:
            await trio.sleep(_SAID_EVERY)
            if undone:  # else this wakes just when the last is done
                _say(f"{len(keys) - len(undone)} of {len(keys)} done; now at {next(iter(undone))}")

    async with trio.open_nursery() as reporting:
        reporting.start_soon(report)
        async with trio.open_nursery() as nursery:
            for key in tuple(undone):
                nursery.start_soon(one, key)
        reporting.cancel_scope.cancel()
    if failed:
        raise AskFailed(f"{failed} of {len(keys)} repositories failed")


async def _until_gone(ask: Asker, node: Member) -> None:
    told = ""
    while True:
        try:
            status = await ask.status(node)
        except AskFailed:
            status = {}  # it closes just now; the next look finds it gone
        if status is None:
            _say(f"{node.name} is gone")
            return
        state = status.get("state")
        if state not in (None, "draining"):
            _say(f"{node.name} ended, and is back: {one_line(str(state))}")
            return
        progress = one_line(str(status.get("progress") or ""))
        if progress != told:
            _say(f"{node.name}: {progress}")
            told = progress
        await trio.sleep(_LOOKED_EVERY)


async def _members(settings: Source) -> Cluster:
    if settings.node:
        return Cluster.of(settings.node)
    async with asker(secret=None, patience=_ROUTER_WITHIN) as ask:
        return await ask.cluster(settings.router)


@asynccontextmanager
async def _asking(settings: NodeSource) -> AsyncIterator[tuple[Asker, Cluster]]:
    path = settings.cluster_secret_file
    secret = None if path is None else ClusterSecret.read(path)
    async with asker(secret=secret, patience=settings.patience_seconds) as ask:
        given = settings.node
        yield ask, Cluster.of(given) if given else await ask.cluster(settings.router)


def _changed(ring: Ring, add: Sequence[str], remove: Sequence[str]) -> Ring:
    if not (add or remove):
        raise typer.BadParameter("name a node that joins or leaves", param_hint="--add, --remove")
    for name in add:
        if not is_node_name(name):
            raise typer.BadParameter(f"{name!r} is not a node's name", param_hint="--add")
        if name in ring.members:
            raise typer.BadParameter(f"{name} is on the ring already", param_hint="--add")
    for name in remove:
        if name not in ring.members:
            raise typer.BadParameter(f"{name} is not on the ring", param_hint="--remove")
    return Ring.of([*(name for name in ring.members if name not in remove), *map(NodeName, add)])


def _named(cluster: Cluster, name: str) -> Member:
    for node in cluster.reachable():
        if node.name == name:
            return node
    known = " ".join(node.name for node in cluster.reachable()) or "none"
    raise AskFailed(f"no node {name} with an address is known: known are {known}")


def _keys(repos: Sequence[str]) -> tuple[RepoKey, ...]:
    try:
        return tuple(dict.fromkeys(map(repo_key.parse, repos)))
    except GobletError as exc:
        raise typer.BadParameter(str(exc), param_hint="REPO") from None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _run(main: Callable[[], Awaitable[T]]) -> T:
    try:
        return trio.run(main)
    except GobletError as exc:
        _say(f"goblet: {exc}")
        raise typer.Exit(1) from None
    except BaseExceptionGroup as group:
        if group.split(KeyboardInterrupt)[1] is not None:
            raise
        raise KeyboardInterrupt from None  # Ctrl-C, which came to a task of its own

"""One router that uses several cores: processes that accept from the same socket.

Each is a whole router with its own connections and its own view of the members; they
share the address and the metrics, and nothing else. The parent serves nobody: it passes
signals on, and starts again what died.
"""

import signal
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import trio
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from goblet_router.child import Child
from goblet_router.config import RouterSettings
from goblet_router.errors import StartFailed
from goblet_shared.errors import GobletError
from goblet_shared.serve import listening_socket, stop_on_signals

# prometheus_client reads it when it is imported, and then keeps all values in files
# there, one a process, which whoever is asked adds up.
_METRICS = "PROMETHEUS_MULTIPROC_DIR"

# A worker that lived as long ran well, whatever ended it. One that dies sooner, so many
# times in a row, would do so for ever: a setting that only it can see to be wrong.
_LONG_ENOUGH = 10.0
_QUICK_DEATHS = 5
_FIRST_PAUSE = 0.1

# Workers end by themselves within their grace; what does not is killed so much later.
_MARGIN = 5.0


def pause_after(quick_deaths: int) -> float | None:
    """Return how long to wait before a worker is started again; None: give it up.

    `quick_deaths` is how many times in a row it ended soon after its start.
    """
    if quick_deaths >= _QUICK_DEATHS:
        return None
    return _FIRST_PAUSE * 2.0**quick_deaths


def shared_metrics(environment: Mapping[str, str]) -> CollectorRegistry | None:
    """Return what all workers of this router count together; None in a router without workers."""
    directory = environment.get(_METRICS)
    if directory is None:
        return None
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=directory)  # type: ignore[no-untyped-call]
    return registry


async def run_workers(
    settings: RouterSettings,
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    write_line: Callable[[str], None],
) -> None:
    """Run `settings.workers` processes of `command` until a signal comes.

    Each gets `--listen` for the socket that all share. `write_line` gets what they
    write. When this returns or raises, none of them lives.

    Raises:
        StartFailed: a worker died again and again, soon after its start.
        GobletError: the address cannot be listened at.
    """
    listener = listening_socket(settings.listen)
    stop = trio.Event()
    failure: GobletError | None = None
    with listener, tempfile.TemporaryDirectory(prefix="goblet-metrics-") as directory:
        crew = _Crew(
            command,
            listener=listener,
            metrics=Path(directory),
            environment=environment,
            write_line=write_line,
        )
        async with trio.open_nursery() as nursery:
            try:
                await nursery.start(stop_on_signals, stop)
                await crew.run(
                    settings.workers, stop, grace=settings.grace_seconds, let_go=listener.close
                )
            except GobletError as exc:
                failure = exc  # kept from the nursery, which would wrap it in a group
            finally:
                crew.kill()
                nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


class _Crew:
    """The workers that live."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        listener: socket.socket,
        metrics: Path,
        environment: Mapping[str, str],
        write_line: Callable[[str], None],
    ) -> None:
        self._command = [*command, f"--listen=fd://{listener.fileno()}"]
        self._inherit = (listener.fileno(),)
        self._metrics = metrics
        self._environment = {**environment, _METRICS: str(metrics)}
        self._write_line = write_line
        # All mutable state, changed without an await: who lives, and what ended it all.
        self._children: set[Child] = set()
        self._failure: StartFailed | None = None

    async def run(
        self, count: int, stop: trio.Event, *, grace: float, let_go: Callable[[], None]
    ) -> None:
        """Keep `count` workers running until `stop` is set, and then until they have ended.

        `let_go` closes our own hold of the socket: while it is open clients are let in,
        and when the workers have closed theirs nobody would answer them.

        Raises:
            StartFailed: one died again and again.
        """
        async with trio.open_nursery() as nursery:
            for number in range(1, count + 1):
                nursery.start_soon(self._keep, f"worker-{number}", stop, nursery.cancel_scope)
            await stop.wait()
            for child in self._children:
                child.ask_to_stop(signal.SIGTERM)
            let_go()
            nursery.cancel_scope.deadline = trio.current_time() + grace + _MARGIN
        if self._failure is not None:
            raise self._failure

    def kill(self) -> None:
        """Kill who still lives."""
        for child in self._children:
            child.kill()

    async def _keep(self, name: str, stop: trio.Event, all_of_us: trio.CancelScope) -> None:
        quick_deaths = 0
        while not stop.is_set():
            begun = trio.current_time()
            child = await self._run_one(name)
            if stop.is_set():
                return
            is_quick = trio.current_time() - begun < _LONG_ENOUGH
            quick_deaths = quick_deaths + 1 if is_quick else 0
            pause = pause_after(quick_deaths)
            if pause is None:
                self._failure = StartFailed(
                    f"{name} ended {quick_deaths} times in a row, at last with {child.fate}; "
                    f"its last lines:\n{child.last_lines}"
                )
                all_of_us.cancel()
                return
            self._write_line(f"{name} ended with {child.fate}: again in {pause:g} s")
            with trio.move_on_after(pause):
                await stop.wait()

    async def _run_one(self, name: str) -> Child:
        """Start a worker, and return when it has ended."""
        child = Child.start(
            name, self._command, inherit=self._inherit, environment=self._environment
        )
        self._children.add(child)
        await child.run(self._write_line)
        # Not if cancelled: it lives then, and `kill` must find it.
        self._children.discard(child)
        mark_process_dead(child.pid, path=str(self._metrics))  # type: ignore[no-untyped-call]
        return child

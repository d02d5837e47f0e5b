"""What benches measure of other processes: CPU time and memory. Imports little: starts fast."""

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parents[2]
_TICK = os.sysconf("SC_CLK_TCK")
_SAMPLE_EVERY = 0.05
# Of a line in /proc/PID/stat, counted from the state on: parent, own and children's times.
_PARENT, _OWN, _CHILDREN = 1, slice(11, 13), slice(13, 15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """What several measurements of one thing gave, in their own unit."""

    n: int
    median: float
    p99: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Return the spread of at least one value; p99 is the nearest rank."""
        ranked = sorted(values)
        return cls(
            n=len(ranked),
            median=median(ranked),
            p99=ranked[math.ceil(len(ranked) * 0.99) - 1],
        )


def cpu_seconds(roots: Sequence[int]) -> float:
    """Return the CPU time so far of these processes and all below them, those that ended too.

    Kernel and user time. Those that ended count through the parent that waited for
    them, in steps of a clock tick altogether; those that run, exactly.
    """
    return sum(_own_seconds(pid, words) + _ticks(words[_CHILDREN]) for pid, words in _below(roots))


def tree_of(roots: Sequence[int]) -> list[int]:
    """Return these processes and all that run below them."""
    return [pid for pid, _ in _below(roots)]


def rss_mb(pid: int, *, peak: bool = False) -> float:
    """Return the process's resident memory, now or at its highest, in 10^6 bytes; 0 if gone."""
    wanted = "VmHWM:" if peak else "VmRSS:"
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(wanted):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def highest_rss_mb(roots: Sequence[int]) -> float:
    """Return the most resident memory that one of these processes or those below has had."""
    return round(max((rss_mb(pid, peak=True) for pid in tree_of(roots)), default=0.0), 1)


class Watch:
    """What some processes take while a block runs: `wall` and `cpu` seconds, once it has ended."""

    def __init__(self, roots: Sequence[int]) -> None:
        self.wall = self.cpu = 0.0
        self._roots = roots

    def __enter__(self) -> Self:
        self._cpu, self._begun = cpu_seconds(self._roots), time.perf_counter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.wall = time.perf_counter() - self._begun
        self.cpu = cpu_seconds(self._roots) - self._cpu


class Sampler:
    """Notes the highest resident memory of each process while it is entered, in 10^6 bytes.

    `names` is asked again and again which processes there are, and what each is
    called. `peaks_mb` holds the worst process of each name, as the kernel counts it,
    and `counts` how many there were of a name at once.
    """

    def __init__(self, names: Callable[[], Mapping[int, str]]) -> None:
        self.peaks_mb: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self._names = names
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(_SAMPLE_EVERY):
            counts: dict[str, int] = {}
            for pid, name in self._names().items():
                peak = round(rss_mb(pid, peak=True), 1)
                self.peaks_mb[name] = max(self.peaks_mb.get(name, 0.0), peak)
                counts[name] = counts.get(name, 0) + 1
            for name, count in counts.items():
                self.counts[name] = max(self.counts.get(name, 0), count)


def _below(roots: Sequence[int]) -> list[tuple[int, list[str]]]:
    stats = dict(_all_stats())
    children: dict[int, list[int]] = {}
    for pid, words in stats.items():
        children.setdefault(int(words[_PARENT]), []).append(pid)
    found: dict[int, list[str]] = {}
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid in stats and pid not in found:
            found[pid] = stats[pid]
            waiting += children.get(pid, [])
    return list(found.items())


def _all_stats() -> Iterable[tuple[int, list[str]]]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                # The name in parentheses may hold anything; the state follows it.
                text = Path(f"/proc/{name}/stat").read_text()
                yield int(name), text.rpartition(")")[2].split()


def _own_seconds(pid: int, words: Sequence[str]) -> float:
    # The clock of another process, as clock_getcpuclockid(3) makes its id: exact to
    # the nanosecond, where the numbers in /proc are cut to ticks of 10 ms.
    with suppress(OSError):
        return time.clock_gettime(~pid << 3 | 2)
    return _ticks(words[_OWN])


def _ticks(words: Sequence[str]) -> float:
    return sum(map(int, words)) / _TICK

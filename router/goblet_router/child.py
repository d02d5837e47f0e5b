"""One process of the local cluster: started, listened to, and stopped for certain."""

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import trio

_TETHER = Path(__file__).with_name("tether.py")

# What is shown of a process that died early: a Python traceback's useful end.
_LAST_LINES = 20
_LONGEST_LINE = 64 * 1024


class Child:
    """A running process, its name, and the last lines that it wrote.

    It dies with us: also when we are killed, by the kernel's doing.
    """

    def __init__(self, name: str, popen: "subprocess.Popen[bytes]", output: int) -> None:
        self.name = name
        self._popen = popen
        self._output = trio.lowlevel.FdStream(output)
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._ended = trio.Event()

    @classmethod
    def start(
        cls,
        name: str,
        command: Sequence[str],
        *,
        inherit: Sequence[int] = (),
        environment: Mapping[str, str],
    ) -> "Child":
        """Start `command` with the file descriptors `inherit` open; the caller closes its own.

        Not through trio: it forks in a worker thread, and to the kernel the parent
        whose death kills the child is that thread, which ends when it has been
        idle for ten seconds.
        """
        output, theirs = os.pipe()
        try:
            popen = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_TETHER), str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                stderr=theirs,
                pass_fds=inherit,
                env=environment,
                # A Ctrl-C reaches the whole process group of the terminal. Ours
                # alone shall hear it: a child takes a second signal for haste.
                process_group=0,
            )
        except BaseException:
            os.close(output)
            raise
        finally:
            os.close(theirs)
        return cls(name, popen, output)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._popen.pid

    @property
    def last_lines(self) -> str:
        """What it wrote last."""
        return "\n".join(self._last)

    @property
    def fate(self) -> str:
        """How it ended, in words; it must have ended."""
        code = self._popen.returncode
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    async def run(self, write_line: Callable[[str], None]) -> None:
        """Pass on what the process writes, line by line under its name, until it has ended."""
        async with self._output, trio.open_nursery() as nursery:
            nursery.start_soon(self._reap, nursery.cancel_scope)
            await self._pass_on(write_line)
        self._ended.set()

    async def ended(self) -> None:
        """Wait until `run`, which must be running, has seen the process end."""
        await self._ended.wait()

    def ask_to_stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send the signal, unless the process has ended."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """Kill the process if it still runs; it is gone when this returns."""
        self._popen.kill()
        self._popen.wait()

    async def _reap(self, reading: trio.CancelScope) -> None:
        if self._popen.returncode is None:
            watched = os.pidfd_open(self.pid)
            try:
                await trio.lowlevel.wait_readable(watched)
            finally:
                os.close(watched)
            self._popen.wait()
        # Its workers may hold the pipe a little longer than it lived; what they
        # still say is not worth waiting for.
        reading.deadline = trio.current_time() + 1

    async def _pass_on(self, write_line: Callable[[str], None]) -> None:
        pending = b""
        while chunk := await self._output.receive_some():
            *lines, pending = (pending + chunk).split(b"\n")
            if len(pending) > _LONGEST_LINE:
                lines, pending = [*lines, pending], b""
            for line in lines:
                text = line.decode("utf-8", "replace")
                self._last.append(text)
                write_line(f"{self.name} | {text}")

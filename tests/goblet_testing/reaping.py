"""`python -m goblet_testing.reaping COMMAND...` runs a command and waits for all that it leaves.

fcgiwrap ignores the end of its children, so the kernel forgets what CPU time they
took. Children that are orphans by then come to this process, which waits for them:
so their time is found in its own.
"""

import ctypes
import os
import signal
import subprocess
import sys
from contextlib import suppress
from types import FrameType

_PR_SET_CHILD_SUBREAPER = 36


def main() -> int:
    """Run the command to its end, or to SIGTERM; return its exit code."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    # A group of its own: fcgiwrap's children go on when it alone is told to end.
    process = subprocess.Popen(sys.argv[1:], start_new_session=True)

    def pass_on(number: int, frame: FrameType | None) -> None:
        os.killpg(process.pid, number)

    signal.signal(signal.SIGTERM, pass_on)
    with suppress(ChildProcessError):  # none is left
        while True:
            pid, status = os.wait()
            if pid == process.pid:
                process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())

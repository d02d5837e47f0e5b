"""Become another program that cannot outlive the process which started it.

    python tether.py PARENT_PID PROGRAM ARGUMENT...

Run as a file, not imported: between fork and exec in the parent, Python code may
deadlock, so the child asks for it itself, in a fresh interpreter. Linux only.
"""

import ctypes
import os
import signal
import sys

# linux/prctl.h. The request survives exec of a program that is not setuid.
_PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Replace this process by `command`, killed by the kernel when `parent` dies."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        # It died before we asked, and nobody will tell us any more.
        sys.exit("the parent is gone")
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])

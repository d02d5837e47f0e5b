"""Work that gives way to all other work of the machine, in a worker process."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
J = TypeVar("J")

# The least that there is: whatever else wants the processor has it.
LAST = 19
# About a tenth of what others have who want the processor too.
BEHIND_OTHERS = 10


def niced(function: Callable[[J], T], job: J, niceness: int = LAST) -> T:
    """Return what the function makes of the job, or raise what it raises, at a low priority.

    On Linux a thread has a priority of its own, and cannot raise it again; worker
    processes are kept and used for other work. So the function runs in a thread that
    ends with it. Whoever cannot wait has the process killed.
    """
    with ThreadPoolExecutor(max_workers=1, initializer=_give_way, initargs=(niceness,)) as threads:
        return threads.submit(function, job).result()


def _give_way(niceness: int) -> None:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)

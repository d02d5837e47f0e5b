"""One living process a cache root."""

import errno
import fcntl
import os
from pathlib import Path

from goblet_node.errors import DiskFailed
from goblet_shared.errors import GobletError


class CacheRootInUse(GobletError):
    """Another process has this cache root open."""

    status = 503


class RootLock:
    """An exclusive lock on a cache root; the kernel lets go of it when the process dies.

    flock, not a file with a process id in it: after SIGKILL nothing has to be
    cleaned up, and no id is mistaken for another process's. The descriptor is
    not inherited, so worker processes that outlive the node do not hold it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Hold the lock.

        Raises:
            CacheRootInUse: somebody else holds it.
            DiskFailed: the file cannot be made or locked.
        """
        descriptor = -1
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            if descriptor != -1:
                os.close(descriptor)
            if exc.errno in (errno.EWOULDBLOCK, errno.EACCES) and descriptor != -1:
                raise CacheRootInUse(
                    f"the cache root {str(self._path.parent)!r} is in use by another process; "
                    "stop that one or give this one a root of its own"
                ) from exc
            raise DiskFailed(
                f"{str(self._path)!r} cannot be locked ({exc.strerror}); "
                "see to the cache root of this node"
            ) from exc
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go of the lock, if it is held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

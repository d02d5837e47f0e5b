"""One living process a cache root; that a killed one lets go is test_mirror_crash.py's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from goblet_node.errors import DiskFailed
from goblet_node.mirror.lock import CacheRootInUse, RootLock


def test_the_second_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    first, second = RootLock(tmp_path / "lock"), RootLock(tmp_path / "lock")
    first.acquire()
    with pytest.raises(CacheRootInUse, match=f"cache root '{tmp_path}' is in use") as refused:
        second.acquire()
    assert refused.value.status == 503
    first.release()
    second.acquire()
    second.release()


def test_releasing_twice_or_unlocked_is_no_failure(tmp_path: Path) -> None:
    lock = RootLock(tmp_path / "lock")
    lock.release()
    lock.acquire()
    lock.release()
    lock.release()


def test_a_refused_attempt_leaves_no_file_open(tmp_path: Path) -> None:
    first = RootLock(tmp_path / "lock")
    first.acquire()
    before = os.listdir("/proc/self/fd")
    for _ in range(10):
        with pytest.raises(CacheRootInUse):
            RootLock(tmp_path / "lock").acquire()
    assert len(os.listdir("/proc/self/fd")) == len(before)
    first.release()


def test_a_worker_process_does_not_inherit_the_lock(tmp_path: Path) -> None:
    """Even one that is started with every inheritable descriptor, and outlives its parent."""
    lock = RootLock(tmp_path / "lock")
    lock.acquire()
    command = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False
    ) as worker:
        try:
            assert worker.stdout is not None
            # Until it runs: on the way into exec a process still has our files.
            worker.stdout.readline()
            lock.release()
            successor = RootLock(tmp_path / "lock")
            successor.acquire()
            successor.release()
        finally:
            worker.communicate(b"\n")


def test_a_root_that_cannot_be_locked_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DiskFailed, match="cannot be locked"):
        RootLock(tmp_path / "nowhere" / "lock").acquire()

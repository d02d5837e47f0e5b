"""Processes that are heard, stopped, and never outlive their parent."""

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from goblet_router import tether
from goblet_router.child import Child
from goblet_testing.router import until

PYTHON = (sys.executable, "-I", "-S", "-c")


def start(code: str, *, inherit: tuple[int, ...] = ()) -> Child:
    return Child.start("one", [*PYTHON, code], inherit=inherit, environment={"COLOUR": "blue"})


async def run(code: str) -> tuple[Child, list[str]]:
    """Run a child to its end, and return it with what it was heard to say."""
    lines: list[str] = []
    child = start(code)
    await child.run(lines.append)
    return child, lines


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def test_what_a_child_says_is_heard_under_its_name_line_by_line() -> None:
    code = "import sys; print('out'); sys.stdout.flush(); print('err\\nend', file=sys.stderr)"
    child, lines = await run(code)
    assert lines == ["one | out", "one | err", "one | end"]
    assert child.last_lines == "out\nerr\nend"
    assert child.fate == "exit code 0"


async def test_a_line_without_end_is_cut_and_not_collected() -> None:
    _, lines = await run("print('x' * 200_000, end='')")
    assert all(len(line) < 150_000 for line in lines)
    assert lines


async def test_a_child_sees_the_environment_given_and_only_that() -> None:
    _, lines = await run("import os; print(sorted(set(os.environ) - {'LC_CTYPE'}))")
    assert lines == ["one | ['COLOUR']"]


async def test_a_child_inherits_exactly_the_files_given() -> None:
    given, other = os.open("/dev/null", os.O_RDONLY), os.open("/dev/null", os.O_RDONLY)
    try:
        os.set_inheritable(other, True)
        code = "import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd')))"
        lines: list[str] = []
        await start(code, inherit=(given,)).run(lines.append)
    finally:
        os.close(given)
        os.close(other)
    # One more is the listing's own.
    opened = json.loads(lines[0].removeprefix("one | "))
    assert {0, 1, 2, given} <= set(opened)
    assert len(opened) == 5
    assert other not in opened


async def test_a_child_is_asked_to_stop_and_says_how_it_ended() -> None:
    child = start("import time; print('up', flush=True); time.sleep(60)")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(child.run, lambda _: child.ask_to_stop())
        with trio.fail_after(5):
            await child.ended()
    assert child.fate == "signal SIGTERM"


async def test_a_killed_child_is_gone_at_once_even_if_nobody_listens() -> None:
    child = start("import time; time.sleep(60)")
    child.kill()
    assert not is_alive(child.pid)
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)
    await child.run(lambda _: None)


async def test_a_ctrl_c_at_the_terminal_does_not_reach_a_child() -> None:
    _, lines = await run("import os; print(os.getpgid(0) == os.getpid())")
    assert lines == ["one | True"]


@pytest.mark.slow
async def test_a_grandchild_that_holds_the_pipe_open_does_not_hold_us() -> None:
    code = (
        "import subprocess, sys;"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).pid)"
    )
    with trio.fail_after(10):
        _, lines = await run(code)
    os.kill(int(lines[0].split()[-1]), signal.SIGKILL)


PARENT = """
import os, sys, time, trio
from goblet_router.child import Child

async def main():
    child = Child.start(
        "one",
        [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"],
        environment=os.environ,
    )
    print(child.pid, flush=True)
    await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.slow
async def test_a_child_dies_with_a_parent_that_is_killed() -> None:
    async with trio.open_nursery() as nursery:
        parent = await trio.lowlevel.open_process([sys.executable, "-c", PARENT], stdout=-1)
        assert parent.stdout is not None
        async with parent.stdout:
            child = int(await parent.stdout.receive_some())
        # The child has become its program only when it no longer is the tether.
        await until(lambda: b"tether" not in Path(f"/proc/{child}/cmdline").read_bytes())
        assert is_alive(child)
        parent.kill()
        await parent.wait()
        await until(lambda: not is_alive(child))
        nursery.cancel_scope.cancel()


async def test_a_tether_whose_parent_is_gone_already_starts_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "started"
    command = [sys.executable, str(tether.__file__), "1", "/bin/touch", str(trace)]
    done = await trio.run_process(command, check=False, capture_stderr=True)
    assert done.returncode == 1
    assert done.stderr == b"the parent is gone\n"
    assert not trace.exists()

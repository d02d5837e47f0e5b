"""The command `goblet`."""

import re
import runpy
import signal
import subprocess
import sys
from importlib.metadata import version

import pytest
import trio
from typer.testing import CliRunner, Result

from goblet_router.cli import app
from goblet_router.config import RouterSettings
from goblet_testing.router import owners
from goblet_testing.unruly import unruly_node


def goblet(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_version_says_the_distributions() -> None:
    assert goblet("--version").output == f"goblet {version('goblet-cluster')}\n"


def test_locate_prints_the_owners_in_order() -> None:
    nodes = [f"--node={name}" for name in ("a", "b=http://h:1", "c")]
    got = goblet("ring", "locate", "https://GitHub.com/org/repo.git", *nodes)
    assert got.exit_code == 0
    order = " ".join(owners("github.com/org/repo", "a", "b", "c"))
    assert re.fullmatch(rf"github\.com/org/repo  slot \d+  {order}\n", got.output)


def test_locate_refuses_what_is_no_repository_in_a_sentence() -> None:
    got = goblet("ring", "locate", "git@github.com:org/repo", "--node", "a")
    assert got.exit_code == 2
    assert "REPO" in got.output


def test_show_accounts_for_every_slot() -> None:
    got = goblet("ring", "show", "--node", "a", "--node", "b", "--node", "a")
    assert got.exit_code == 0
    assert sum(map(int, re.findall(r"^\w+  (\d+) slots", got.output, re.M))) == 4096


def test_help_names_every_setting_of_the_router() -> None:
    text = CliRunner().invoke(app, ["router", "--help"], env={"COLUMNS": "200"}).output
    for name in RouterSettings.model_fields:
        assert f"--{name.replace('_', '-')}" in text


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["router", "--node", "a=ftp://h"], "--node"),
        (["router", "--first-byte-seconds", "0"], "--first-byte-seconds"),
        (["up", "--nodes", "0"], "--nodes"),
    ],
)
def test_a_wrong_setting_is_a_usage_error_that_names_it(arguments: list[str], named: str) -> None:
    got = goblet(*arguments)
    assert got.exit_code == 2
    assert named in got.output


def test_an_address_in_use_is_one_sentence_and_exit_code_1() -> None:
    got = goblet("router", "--listen", "nowhere.invalid:80")
    assert got.exit_code == 1
    assert got.output.startswith("goblet: cannot listen at nowhere.invalid:80")
    assert got.output.count("\n") == 1


def test_importing_main_runs_nothing() -> None:
    """Worker processes run their parent's __main__ again under another name."""
    assert callable(runpy.run_module("goblet_router.__main__", run_name="__mp_main__")["main"])


@pytest.mark.slow
async def test_a_router_process_serves_until_it_is_told_to_stop() -> None:
    async with unruly_node() as node:
        command = [sys.executable, "-m", "goblet_router", "router", "--node", f"a={node.url}"]
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0].socket
        number = listener.fileno()
        process = await trio.lowlevel.open_process(
            [*command, "--listen", f"fd://{number}"], pass_fds=[number], stderr=subprocess.PIPE
        )
        port = listener.getsockname()[1]
        listener.close()
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"GET /-/ring HTTP/1.1\r\nHost: x\r\n\r\n")
            with trio.fail_after(20):
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
            process.send_signal(signal.SIGTERM)
            with trio.fail_after(5):
                assert await process.wait() == 0
        assert process.stderr is not None
        async with process.stderr:
            logged = b"".join([chunk async for chunk in process.stderr])
        assert b"Traceback" not in logged

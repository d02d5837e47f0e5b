"""Run the real git command, untouched by this machine's configuration.

Every function raises `GitFailed`, which carries git's own words, unless told
not to check. Nothing here reads or writes the user's settings, credentials or
proxies.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import trio

AUTHOR_DATE = "1700000000 +0000"
"""When everything happens that git dates itself: equal inputs give equal object ids."""

_SETTINGS = {
    "init.defaultBranch": "main",
    "advice.detachedHead": "false",
    # A clone or fetch must not leave a process behind that packs in the background.
    "gc.auto": "0",
    "maintenance.auto": "false",
    "protocol.file.allow": "always",
    "safe.directory": "*",
}


class GitFailed(Exception):
    """git ended with an error, or not in time; the text holds its command and its stderr."""

    def __init__(self, args: tuple[str, ...], returncode: int | str, stderr: str) -> None:
        super().__init__(f"git {' '.join(args)}: {returncode}\n{stderr.strip()}")
        self.stderr = stderr


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloned:
    """One clone of a storm; `seconds` is its own time, not that of its place in the queue."""

    dest: Path
    returncode: int
    seconds: float
    stderr: str


def hermetic_env(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which git knows only what the tests tell it."""
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "LC_ALL": "C.UTF-8",
        # Not a directory, so neither .gitconfig nor .netrc can be found below it.
        "HOME": os.devnull,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_AUTHOR_NAME": "A U Thor",
        "GIT_AUTHOR_EMAIL": "author@example.test",
        "GIT_AUTHOR_DATE": AUTHOR_DATE,
        "GIT_COMMITTER_NAME": "C O Mitter",
        "GIT_COMMITTER_EMAIL": "committer@example.test",
        "GIT_COMMITTER_DATE": AUTHOR_DATE,
        "GIT_CONFIG_COUNT": str(len(_SETTINGS)),
    }
    if "TMPDIR" in os.environ:
        env["TMPDIR"] = os.environ["TMPDIR"]
    for number, (name, value) in enumerate(_SETTINGS.items()):
        env[f"GIT_CONFIG_KEY_{number}"] = name
        env[f"GIT_CONFIG_VALUE_{number}"] = value
    env.update(extra or {})
    return env


def git(
    *args: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str = "",
    check: bool = True,
    timeout: float = 120.0,
) -> CompletedProcess[str]:
    """Run git to its end; `env` comes on top of the hermetic one, `timeout` is in seconds.

    Raises:
        GitFailed: it ended with another code than 0 and `check` is set, or it was
            still running after `timeout`; then it and its children are killed.
    """
    words = tuple(map(str, args))
    with subprocess.Popen(
        ["git", *words],
        cwd=cwd,
        env=hermetic_env(env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="surrogateescape",
        # git-remote-http holds the pipes too: killing git alone would leave us reading.
        start_new_session=True,
    ) as process:
        try:
            stdout, stderr = process.communicate(stdin, timeout=timeout)
        except BaseException as exc:
            os.killpg(process.pid, signal.SIGKILL)
            _, stderr = process.communicate()
            if isinstance(exc, subprocess.TimeoutExpired):
                raise GitFailed(words, f"still running after {timeout:g} s", stderr) from exc
            raise
    if check and process.returncode != 0:
        raise GitFailed(words, process.returncode, stderr)
    return CompletedProcess(["git", *words], process.returncode, stdout, stderr)


async def git_async(
    *args: str | Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
) -> CompletedProcess[str]:
    """Run git to its end without blocking trio; a cancelled caller ends git too.

    Raises:
        GitFailed: it ended with another code than 0 and `check` is set.
    """
    words = tuple(map(str, args))
    done = await trio.run_process(
        ["git", *words],
        cwd=cwd,
        env=hermetic_env(env),
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        start_new_session=True,
        deliver_cancel=_kill_group,
    )
    stdout = done.stdout.decode(errors="surrogateescape")
    stderr = done.stderr.decode(errors="surrogateescape")
    if check and done.returncode != 0:
        raise GitFailed(words, done.returncode, stderr)
    return CompletedProcess(["git", *words], done.returncode, stdout, stderr)


def clone(url: str | Path, dest: Path, *flags: str, timeout: float = 120.0) -> Path:
    """Clone `url` to `dest` and return `dest`."""
    git("clone", "--quiet", *flags, url, dest, timeout=timeout)
    return dest


def fsck(repo: Path) -> None:
    """Return if every object of `repo` is there and sound; raise `GitFailed` if not."""
    git("fsck", "--full", "--strict", "--no-dangling", cwd=repo, timeout=300)


def refs_of(where: str | Path, *, env: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return HEAD and all refs (tags peeled too, as `name^{}`) of a URL or a directory."""
    lines = git("ls-remote", "--quiet", where, env=env).stdout.splitlines()
    return {name: oid for oid, name in (line.split("\t", 1) for line in lines)}


async def storm(
    n: int,
    url: str,
    directory: Path,
    *flags: str,
    at_once: int = 16,
    check: bool = True,
    env: Mapping[str, str] | None = None,
) -> list[Cloned]:
    """Clone `url` `n` times, at most `at_once` at a time, into `directory`/clone-000 and so on.

    Raises:
        GitFailed: a clone failed and `check` is set; raised after all have ended.
    """
    limit = trio.CapacityLimiter(at_once)
    results: dict[int, Cloned] = {}

    async def one(number: int) -> None:
        dest = directory / f"clone-{number:03}"
        async with limit:
            begun = time.perf_counter()
            done = await git_async("clone", "--quiet", *flags, url, dest, check=False, env=env)
        results[number] = Cloned(
            dest=dest,
            returncode=done.returncode,
            seconds=time.perf_counter() - begun,
            stderr=done.stderr,
        )

    async with trio.open_nursery() as nursery:
        for number in range(n):
            nursery.start_soon(one, number)
    clones = [results[number] for number in range(n)]
    failed = [cloned for cloned in clones if cloned.returncode != 0]
    if check and failed:
        words = ("clone", *flags, url, f"({len(failed)} of {n} failed)")
        raise GitFailed(words, failed[0].returncode, failed[0].stderr)
    return clones


async def _kill_group(process: trio.Process) -> None:
    # git-remote-http is git's child and outlives it where the connection stalls.
    os.killpg(process.pid, signal.SIGKILL)

"""A git host that the tests own: real `git http-backend`, users, a log, faults on cue.

`python -m goblet_testing.origin --root DIR` runs one as its own process, so that
what it costs is not counted with the test's or the bench's.
"""

import argparse
import hmac
import json
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

import trio

from goblet_testing.backend import backend_program, cgi_env
from goblet_testing.faults_on_cue import Cues, Fault
from goblet_testing.origin_http import OriginServer
from goblet_testing.seen import Asked, Kind, Seen

PATIENCE = 20.0
"""How long a test waits for what must happen, in seconds, before it fails."""


class Origin:
    """Serves the bare repositories below `root`, `org/name` and `org/name.git` alike.

    A context manager. `users` (name -> password) and `private` (repository -> who may read
    it) may be changed at any time; a repository that is not in `private` is
    public. Without or with a wrong credential the answer is 401, to a user who may
    not it is `refusal` (403, or 404 as hosts answer that hide what they have).
    Runs in threads of this process: its methods may be called from anywhere.
    """

    def __init__(
        self,
        root: Path,
        *,
        listen: tuple[str, int] = ("127.0.0.1", 0),
        users: Mapping[str, str] | None = None,
        private: Mapping[str, Iterable[str]] | None = None,
        refusal: int = 403,
        log_file: Path | None = None,
    ) -> None:
        self.root = root
        self.users = dict(users or {})
        self.private = {repo: set(names) for repo, names in (private or {}).items()}
        self.refusal = refusal
        self.cues = Cues()
        self._listen = listen
        self._log_file = log_file
        # Guards the log; notified with each line.
        self._logged = threading.Condition()
        self._log: list[Seen] = []
        self._port = 0

    def __enter__(self) -> Self:
        self._stderr = tempfile.TemporaryFile()
        listener = socket.create_server(self._listen, backlog=256)
        self._port = listener.getsockname()[1]
        self._server = OriginServer(listener, self, backend_program(), self._stderr)
        self._server.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.end()
        self._stderr.close()
        if self._server.broken and error is None:
            raise ExceptionGroup(
                "the origin's handlers raised",
                [exc for exc in self._server.broken if isinstance(exc, Exception)],
            )

    @property
    def url(self) -> str:
        """The origin's base URL, without a slash at its end."""
        return f"http://{self._listen[0]}:{self._port}"

    def url_of(self, repo: str, *, user: str | None = None) -> str:
        """Return the clone URL of `repo`, with the credential of `user` in it if given."""
        base = self.url
        if user is not None:
            base = base.replace("://", f"://{user}:{self.users[user]}@", 1)
        return f"{base}/{repo}.git"

    @property
    def log(self) -> list[Seen]:
        """What was asked and answered, in the order in which it ended.

        A request is here before its client can see the end of the answer; one
        that was cut off, as soon as that was noticed.
        """
        with self._logged:
            return list(self._log)

    def packs(self) -> list[Seen]:
        """Return the requests that asked for a pack."""
        return [seen for seen in self.log if seen.wants_pack]

    def wait_for_log(self, enough: Callable[[list[Seen]], bool]) -> list[Seen]:
        """Return the log as soon as `enough` says so of it.

        Raises:
            TimeoutError: it did not within `PATIENCE`.
        """
        with self._logged:
            if not self._logged.wait_for(lambda: enough(list(self._log)), PATIENCE):
                raise TimeoutError(f"not in the log within {PATIENCE:g} s; it holds {self._log}")
            return list(self._log)

    def clear_log(self) -> None:
        """Forget what was asked so far."""
        with self._logged:
            self._log.clear()

    def misbehave(
        self,
        fault: Fault,
        *,
        kind: Kind | None = None,
        repo: str | None = None,
        times: int | None = None,
    ) -> None:
        """Let the next `times` requests of this kind and repository go wrong; None is any, all."""
        self.cues.add(fault, kind=kind, repo=repo, times=times)

    def behave(self) -> None:
        """Do everything right from now on, and let go on who waits."""
        self.cues.clear()
        self.cues.release()

    def hold_fetches(self, *, repo: str | None = None) -> None:
        """Keep every request for a pack waiting, until `release`."""
        for kind in ("fetch", "v0"):
            self.misbehave(Fault(hold=True), kind=kind, repo=repo)

    def release(self) -> None:
        """Let held and stalled requests go on, and keep no further ones waiting."""
        self.cues.release()

    def wait_until_held(self, count: int = 1) -> None:
        """Return when `count` requests wait at once, held or stalled.

        Raises:
            TimeoutError: they did not come within `PATIENCE`.
        """
        if not self.cues.wait_held(count, seconds=PATIENCE):
            raise TimeoutError(f"{count} held requests did not come within {PATIENCE:g} s")

    async def until_held(self, count: int = 1) -> None:
        """Return when `count` requests wait at once; for trio, otherwise `wait_until_held`."""
        await trio.to_thread.run_sync(self.wait_until_held, count, abandon_on_cancel=True)

    def backend_stderr(self) -> str:
        """Return what git complained about so far."""
        # Not read(): the children write at the offset that they share with us.
        return os.pread(self._stderr.fileno(), 1 << 20, 0).decode(errors="replace")

    def judge(self, repo: str, user: str | None, password: str) -> int:
        """Return 200, or the status with which `user` is refused."""
        known = user is not None and hmac.compare_digest(
            self.users.get(user, "").encode(), password.encode()
        )
        if user is not None and not (known and user in self.users):
            return 401
        readers = self.private.get(repo)
        if readers is None or (user is not None and user in readers):
            return 200
        return 401 if user is None else self.refusal

    def begin(self, asked: Asked, headers: dict[str, str], user: str | None) -> dict[str, str]:
        """Return the CGI variables for a request that may pass."""
        return cgi_env(self.root, asked, headers, user)

    def note(self, seen: Seen) -> None:
        """Add a line to the log."""
        with self._logged:
            self._log.append(seen)
            self._logged.notify_all()
            if self._log_file is not None:
                with self._log_file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(seen.to_json()) + "\n")


def main() -> None:
    """Serve until SIGTERM or Ctrl-C; the first line on stdout is the URL."""
    parser = argparse.ArgumentParser(description="A git host for tests and benches.")
    parser.add_argument("--root", type=Path, required=True, help="where the bare repositories lie")
    parser.add_argument("--listen", default="127.0.0.1:0", help="HOST:PORT; port 0 takes any")
    parser.add_argument("--log", type=Path, help="append one JSON line a request to this file")
    options = parser.parse_args()
    host, _, port = options.listen.rpartition(":")
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    with Origin(options.root, listen=(host, int(port)), log_file=options.log) as origin:
        print(origin.url, flush=True)
        ended.wait()


if __name__ == "__main__":
    main()

"""nginx on loopback: `git http-backend` behind fcgiwrap, and files by sendfile.

From Debian's packages `nginx-light` and `fcgiwrap`. Runs as the current user, with
everything that it writes in a directory of its own, and without its service.
"""

import os
import shlex
import shutil
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from goblet_testing.backend import UPLOAD_PACK, backend_program
from goblet_testing.gitcli import hermetic_env
from goblet_testing.measuring import ROOT
from goblet_testing.processes import Running

_PLACES = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
_START_LIMIT = 10.0
_TEMPORARY = ("client_body", "fastcgi", "proxy", "scgi", "uwsgi")

# sendfile and keep-alive as in Debian's own nginx.conf. Answers of the backend are
# passed on as they come: in nginx's default they make the way over a temporary file,
# which costs git another copy of every large pack.
_CONFIG = """\
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
{user}
events {{ worker_connections 1024; }}
http {{
    access_log off;
    default_type application/octet-stream;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    client_max_body_size 0;
    {temporary}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location /files/ {{ alias {files}/; }}
        location ~ ^/(bitmaps|plain)(?<repo>/.*)$ {{
            fastcgi_pass unix:{directory}/cgi.sock;
            fastcgi_buffering off;
            fastcgi_read_timeout 600s;
            fastcgi_param SCRIPT_FILENAME {directory}/$1;
            fastcgi_param PATH_INFO $repo;
            fastcgi_param QUERY_STRING $query_string;
            fastcgi_param REQUEST_METHOD $request_method;
            fastcgi_param CONTENT_TYPE $content_type;
            fastcgi_param CONTENT_LENGTH $content_length;
            fastcgi_param REMOTE_ADDR $remote_addr;
        }}
    }}
}}
"""

# In the background, so that its parent is gone when it ends and whoever reaps orphans
# learns what it took. POSIX gives a command in the background no stdin: hence fd 3.
_SCRIPT = """\
#!/bin/sh
exec 3<&0
{backend} <&3 3<&- &
"""


def missing_programs() -> str | None:
    """Return a sentence that says what is not installed, or None if everything is there."""
    absent = [name for name in ("nginx", "fcgiwrap") if shutil.which(name, path=_PLACES) is None]
    if not absent:
        return None
    return f"{' and '.join(absent)} not found: apt-get install nginx-light fcgiwrap"


class Nginx:
    """Serves the bare repositories below `root` and what is put into `files`.

    A context manager. `bitmaps` and `plain` are base URLs of `git http-backend`: the
    second lets git not use the repositories' bitmaps. `directory` gets configuration,
    logs and sockets.
    """

    def __init__(self, root: Path, directory: Path) -> None:
        self.files = directory / "files"
        self.pids: list[int] = []
        """The processes below which all work is done."""
        self._root = root
        self._directory = directory
        self._base = ""
        self._stack = ExitStack()

    @property
    def bitmaps(self) -> str:
        """Where git answers, with bitmaps if the repository has them."""
        return f"{self._base}/bitmaps"

    @property
    def plain(self) -> str:
        """Where git answers without bitmaps."""
        return f"{self._base}/plain"

    def url_of(self, file: str) -> str:
        """Return the URL of a file in `files`."""
        return f"{self._base}/files/{file}"

    def __enter__(self) -> Self:
        self.files.mkdir(parents=True, exist_ok=True)
        port = _free_port()
        self._base = f"http://127.0.0.1:{port}"
        self._write_scripts()
        config = self._directory / "nginx.conf"
        config.write_text(
            _CONFIG.format(
                directory=self._directory,
                files=self.files,
                port=port,
                # Its workers would be nobody's, who may not read our directory.
                user="user root;" if os.geteuid() == 0 else "",
                temporary=" ".join(
                    f"{name}_temp_path {self._directory}/{name};" for name in _TEMPORARY
                ),
            )
        )
        try:
            sock = self._directory / "cgi.sock"
            cgi = ["fcgiwrap", "-f", "-c", str(max(2, os.cpu_count() or 2)), "-s", f"unix:{sock}"]
            self._start("cgi", [sys.executable, "-m", "goblet_testing.reaping", *_found(cgi)])
            self._start("nginx", _found(["nginx", "-c", str(config), "-p", str(self._directory)]))
            _wait_until_connected(port, sock)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _start(self, name: str, command: list[str]) -> None:
        running = Running(
            command,
            log_file=self._directory / f"{name}.log",
            env={"PYTHONPATH": str(ROOT / "tests")},
        )
        self._stack.enter_context(running)
        self.pids.append(running.pid)

    def _write_scripts(self) -> None:
        for name, use in (("bitmaps", "true"), ("plain", "false")):
            settings = hermetic_env(
                {
                    **UPLOAD_PACK,
                    "GIT_CONFIG_COUNT": str(int(UPLOAD_PACK["GIT_CONFIG_COUNT"]) + 1),
                    f"GIT_CONFIG_KEY_{UPLOAD_PACK['GIT_CONFIG_COUNT']}": "pack.useBitmaps",
                    f"GIT_CONFIG_VALUE_{UPLOAD_PACK['GIT_CONFIG_COUNT']}": use,
                    "GIT_PROJECT_ROOT": str(self._root),
                    "GIT_HTTP_EXPORT_ALL": "1",
                }
            )
            lines = [f"export {key}={shlex.quote(value)}" for key, value in settings.items()]
            backend = shlex.quote(str(backend_program()))
            script = self._directory / name
            head, rest = _SCRIPT.format(backend=backend).split("\n", 1)
            script.write_text("\n".join([head, *lines, rest]))
            script.chmod(0o755)


def _found(command: list[str]) -> list[str]:
    program = shutil.which(command[0], path=_PLACES)
    if program is None:
        raise FileNotFoundError(missing_programs())
    return [program, *command[1:]]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def _wait_until_connected(port: int, sock: Path) -> None:
    deadline = time.monotonic() + _START_LIMIT
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            if sock.exists():
                return
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(f"nginx or fcgiwrap did not start within {_START_LIMIT:g} s")
        time.sleep(0.02)

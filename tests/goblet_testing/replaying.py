"""A client that repeats one request and throws the answers away, so cheaply that servers show.

`replay` runs it as its own process, `python -m goblet_testing.replaying`: raw sockets,
one kept connection a stream, bodies read into one buffer a stream and dropped.
"""

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from goblet_testing.measuring import ROOT, Spread

GIT_POST = {
    "Content-Type": "application/x-git-upload-pack-request",
    "Accept": "application/x-git-upload-pack-result",
    "Git-Protocol": "version=2",
    "User-Agent": "git/2.39.5",
}
"""What git says of itself with a POST to git-upload-pack."""
_BUFFER = 1 << 18
_PATIENCE = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One request, and how often: until `seconds` are over or `most` were sent by each stream.

    At least once. Without a `body` it is a GET.
    """

    url: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: dict(GIT_POST))
    streams: int = 1
    seconds: float = 1.0
    most: int = 1_000_000
    status: int = 200
    """What every answer must have."""
    pause_after: float = 0.0
    """Seconds to wait before the first request, all streams being connected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What came of a job. Seconds are each request's own, until its answer's last byte."""

    seconds: tuple[float, ...]
    wall: float
    """From the first request's beginning to the last one's end."""
    body_bytes: int
    """Of one answer, the median: git's own answers differ by some bytes from time to time."""
    cache: str | None
    """How the last answer came about, by the server's Goblet-Cache."""

    @property
    def spread(self) -> Spread:
        """The seconds of one request."""
        return Spread.of(self.seconds)

    @property
    def per_second(self) -> float:
        """Requests a second, over all streams."""
        return len(self.seconds) / self.wall

    @property
    def mb_per_second(self) -> float:
        """Bytes of bodies a second over all streams, in 10^6."""
        return self.per_second * self.body_bytes / 1e6


class ReplayFailed(Exception):
    """An answer had another status than it should, or broke off."""


def replay(job: Job) -> Replayed:
    """Run a job in a process of its own.

    Raises:
        ReplayFailed: an answer was not as it should be.
    """
    words = {**asdict(job), "body": None if job.body is None else job.body.hex()}
    done = subprocess.run(
        [sys.executable, "-m", "goblet_testing.replaying"],
        env={"PYTHONPATH": str(ROOT / "tests")},
        input=json.dumps(words),
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise ReplayFailed(f"{job.url}: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return Replayed(**{**found, "seconds": tuple(found["seconds"])})


def main() -> None:
    """Do the job on stdin and write what came of it to stdout."""
    words: dict[str, Any] = json.load(sys.stdin)
    body = None if words["body"] is None else bytes.fromhex(words["body"])
    job = Job(**{**words, "body": body})
    streams = [_Stream(job) for _ in range(job.streams)]
    time.sleep(job.pause_after)
    threads = [threading.Thread(target=stream.run) for stream in streams]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - begun
    failure = next((stream.failure for stream in streams if stream.failure is not None), None)
    if failure is not None:
        raise failure
    result = Replayed(
        seconds=tuple(round(one, 6) for stream in streams for one in stream.seconds),
        wall=wall,
        body_bytes=int(median(size for stream in streams for size in stream.sizes)),
        cache=streams[-1].cache,
    )
    json.dump(asdict(result), sys.stdout)


class _Stream:
    """One connection, on which the request is sent again and again."""

    def __init__(self, job: Job) -> None:
        parts = urllib.parse.urlsplit(job.url)
        assert parts.hostname is not None
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        lines = [f"{'GET' if job.body is None else 'POST'} {target} HTTP/1.1"]
        lines += [
            f"Host: {parts.netloc}",
            *(f"{name}: {job.headers[name]}" for name in job.headers),
        ]
        lines += [] if job.body is None else [f"Content-Length: {len(job.body)}"]
        self._request = "\r\n".join([*lines, "\r\n"]).encode() + (job.body or b"")
        self._job = job
        self._where = (parts.hostname, parts.port or 80)
        self._socket = self._connected()
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        # What was received and not looked at yet: _buffer[_at:_end].
        self._at = self._end = 0
        self.seconds: list[float] = []
        self.sizes: list[int] = []
        self.cache: str | None = None
        self.failure: Exception | None = None

    def run(self) -> None:
        """Send and read until the job is done; an exception is kept in `failure`."""
        try:
            until = time.perf_counter() + self._job.seconds
            while True:
                begun = time.perf_counter()
                self._once()
                now = time.perf_counter()
                self.seconds.append(now - begun)
                if now >= until or len(self.seconds) >= self._job.most:
                    break
        except Exception as exc:
            self.failure = exc
        finally:
            self._socket.close()

    def _once(self) -> None:
        self._socket.sendall(self._request)
        status, headers = self._head()
        if status != self._job.status:
            raise ReplayFailed(f"answered {status} {headers}")
        self.cache = headers.get("goblet-cache")
        if headers.get("transfer-encoding") == "chunked":
            size = self._drop_chunks()
        else:
            size = int(headers["content-length"])
            self._drop(size)
        self.sizes.append(size)
        if headers.get("connection") == "close":
            self._socket.close()
            self._socket = self._connected()

    def _connected(self) -> socket.socket:
        connection = socket.create_connection(self._where, timeout=_PATIENCE)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _head(self) -> tuple[int, dict[str, str]]:
        head = b""
        while b"\r\n\r\n" not in head:
            if self._at == self._end:
                self._receive()
            head += self._buffer[self._at : self._end]
            self._at = self._end
        text, _, early = head.partition(b"\r\n\r\n")
        # What follows the head was received last, so it is in the buffer still.
        self._at = self._end - len(early)
        first, *lines = text.decode("latin-1").split("\r\n")
        pairs = (line.split(":", 1) for line in lines)
        headers = {name.lower(): value.strip().lower() for name, value in pairs}
        return int(first.split()[1]), headers

    def _drop_chunks(self) -> int:
        total = 0
        while size := int(self._line().split(b";")[0], 16):
            total += size
            self._drop(size + 2)
        while self._line():  # trailers
            pass
        return total

    def _line(self) -> bytes:
        line = b""
        while True:
            end = self._buffer.find(b"\n", self._at, self._end)
            if end >= 0:
                line += self._buffer[self._at : end]
                self._at = end + 1
                return line.rstrip(b"\r")
            line += self._buffer[self._at : self._end]
            self._receive()

    def _drop(self, count: int) -> None:
        while count > (here := self._end - self._at):
            count -= here
            self._receive()
        self._at += count

    def _receive(self) -> None:
        self._at, self._end = 0, self._socket.recv_into(self._view)
        if self._end == 0:
            raise ReplayFailed("the answer broke off")


if __name__ == "__main__":
    main()

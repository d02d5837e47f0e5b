"""Clients that clone through a router again and again, while something happens to its nodes."""

import hashlib
import http.client
import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from goblet_testing import asks

_MOST = 20_000
_PAUSE = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Got:
    """What one client got of one clone; `failure` is empty if that was a whole pack."""

    repo: str
    at: float
    seconds: float
    node: str | None = None
    cache: str | None = None
    failure: str = ""


class Load:
    """So many clients, each of which clones one repository after another. A context manager.

    `repos` is a name and a clone URL each; their refs must not move. A client asks for
    the refs and then for the whole pack by bare requests, each on a connection of its own.
    Leaving waits for the clones that are under way.
    """

    def __init__(self, repos: Mapping[str, str], *, clients: int) -> None:
        # All mutable state, shared by threads: appended to and read whole, both at once.
        self.got: list[Got] = []
        self._over = threading.Event()
        order = sorted(repos.items())
        starts = [len(order) * number // clients for number in range(clients)]
        self._threads = [
            threading.Thread(target=self._clone_all, args=(order[start:] + order[:start],))
            for start in starts
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    @property
    def failures(self) -> list[Got]:
        """The clones that failed so far."""
        return [got for got in self.got if got.failure]

    def since(self, moment: float) -> list[Got]:
        """Return what came of the clones that began at `moment` (time.monotonic) or later."""
        return [got for got in self.got if got.at >= moment]

    def wait_for(self, count: int, *, within: float = 60.0) -> None:
        """Return when so many further clones have ended.

        Raises:
            TimeoutError: they have not within so many seconds.
        """
        enough = len(self.got) + count
        deadline = time.monotonic() + within
        while len(self.got) < enough:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{enough - len(self.got)} of {count} clones are missing")
            time.sleep(_PAUSE)

    def _clone_all(self, repos: Sequence[tuple[str, str]]) -> None:
        for repo, url in itertools.islice(itertools.cycle(repos), _MOST):
            if self._over.is_set():
                return
            self.got.append(_clone(repo, url))
            time.sleep(_PAUSE)


def _clone(repo: str, url: str) -> Got:
    at = time.monotonic()
    try:
        listed = asks.ls_refs(url, "HEAD", "refs/heads/", "refs/tags/")
        answer = asks.fetch(url, sorted(set(listed.refs.values()))) if listed.refs else listed
    except (OSError, http.client.HTTPException) as exc:
        failure = f"{type(exc).__name__}: {exc}"
        return Got(repo=repo, at=at, seconds=time.monotonic() - at, failure=failure)
    return Got(
        repo=repo,
        at=at,
        seconds=time.monotonic() - at,
        node=answer.node,
        cache=answer.cache,
        failure=_failure_of(answer),
    )


def _failure_of(answer: asks.Answer) -> str:
    if answer.status != 200:
        return f"{answer.status} {answer.text}"
    pack = answer.pack if answer.is_complete else b""
    if pack[:4] != b"PACK" or hashlib.sha1(pack[:-20]).digest() != pack[-20:]:
        return f"no whole pack, but {len(pack)} bytes of one: {answer.text[-200:]}"
    return ""

"""What goes wrong with an upstream, as our errors: nothing of httpx leaves `fill`."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx
import trio

from goblet_node.errors import ProtocolError, UpstreamDown, UpstreamError, UpstreamTooSlow
from goblet_node.fill.reading import collect, is_encoded, passed
from goblet_shared.errors import GobletError

# What a refusal's own text may cost: hosts write one sentence.
MAX_REFUSAL = 4096
# What says that this caller may not, or that there is nothing to be had.
FINAL = frozenset({401, 403, 404})


class Refused(GobletError):
    """Upstream answered the caller's own question with an error; it goes back as it came."""

    def __init__(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        super().__init__(f"upstream answered {status}")
        self.status = status
        self.headers = tuple(headers)
        self.body = body

    @property
    def is_final(self) -> bool:
        """Whether it says that this caller may not, or that there is nothing to be had."""
        return self.status in (401, 403, 404)

    @property
    def retry_after(self) -> float | None:
        """How many seconds upstream asks to be left alone, if it said so."""
        said = dict(self.headers).get(b"retry-after")
        return None if said is None else seconds_until(said.decode("latin-1"), now=time.time())


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Raise what httpx, trio and the readers of the wire raise as an UpstreamError."""
    try:
        yield
    except (httpx.TimeoutException, trio.TooSlowError) as exc:
        raise UpstreamTooSlow(f"{host_of(url)} did not answer in time: try again later") from exc
    except ProtocolError as exc:
        raise UpstreamError(f"{host_of(url)} answers what git would not: {exc}") from exc
    except httpx.InvalidURL as exc:
        raise UpstreamError(f"{host_of(url)} leads to a URL that cannot be asked") from exc
    except (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError) as exc:
        raise UpstreamDown(_unasked(url, exc)) from exc
    except httpx.HTTPError as exc:
        raise UpstreamError(_unasked(url, exc)) from exc


async def refusal_of(response: httpx.Response) -> GobletError:
    """Read an answer that is not 200 into the error that its client should see."""
    status = response.status_code
    if status >= 500:
        said = response.headers.get("retry-after")
        return UpstreamDown(
            f"{response.url.host} answered {status}: try again later",
            retry_after=None if said is None else seconds_until(said, now=time.time()),
        )
    if status < 400:
        return unexpected(response)
    # That it refuses matters more than its words.
    body = b"" if is_encoded(response) else await collect(response, MAX_REFUSAL, or_cut=True)
    kept = tuple(
        (name, value)
        for name, value in passed(response.headers)
        if name not in (b"content-encoding", b"content-length")
    )
    return Refused(status, kept, body)


def unexpected(response: httpx.Response) -> UpstreamError:
    """Return what is to be said of a status that no git server answers with."""
    return UpstreamError(
        f"{response.url.host} answered {response.status_code} where git expects 200"
    )


def seconds_until(said: str, *, now: float) -> float | None:
    """Return how far off the time of a Retry-After is, None if it says nothing of use.

    `now` is in seconds since 1970, which only its form as a date needs.
    """
    if re.fullmatch(r"[0-9]{1,9}", said):
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def host_of(url: str) -> str:
    """Return a URL's host, which is all of it that a client is told."""
    return urlsplit(url).hostname or ""


def _unasked(url: str, failure: httpx.HTTPError) -> str:
    return f"{host_of(url)} could not be asked ({type(failure).__name__}): try again later"

"""Every failure of an upstream is one of our errors, with a sentence that names its host alone."""

import httpx
import pytest
import trio

from goblet_node.errors import (
    DiskFailed,
    ProtocolError,
    UpstreamDown,
    UpstreamError,
    UpstreamTooSlow,
)
from goblet_node.fill.failures import (
    MAX_REFUSAL,
    Refused,
    refusal_of,
    seconds_until,
    translated,
)
from goblet_shared.errors import GobletError

URL = "https://user:secret@upstream.test/org/repo"


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (httpx.ConnectTimeout("late"), UpstreamTooSlow),
        (httpx.PoolTimeout("late"), UpstreamTooSlow),
        (trio.TooSlowError(), UpstreamTooSlow),
        (ProtocolError("a torn packet"), UpstreamError),
        (httpx.ConnectError("nobody there"), UpstreamDown),
        (httpx.RemoteProtocolError("no HTTP"), UpstreamDown),
        (httpx.LocalProtocolError("ours"), UpstreamError),
        (httpx.InvalidURL("nowhere"), UpstreamError),
    ],
)
def test_each_failure_is_told_as_ours(failure: Exception, expected: type[GobletError]) -> None:
    with pytest.raises(expected, match=r"upstream\.test") as told, translated(URL):
        raise failure
    assert type(told.value) is expected
    assert "secret" not in str(told.value)


def test_what_is_ours_already_stays_what_it_is() -> None:
    for error in (DiskFailed("full"), Refused(404, (), b"")):
        with pytest.raises(type(error)) as told, translated(URL):
            raise error
        assert told.value is error


async def test_a_refusal_is_its_status_its_headers_and_the_beginning_of_its_words() -> None:
    response = httpx.Response(
        403,
        headers={"content-type": "text/plain", "set-cookie": "session=1"},
        stream=httpx.ByteStream(b"x" * 10_000),
        request=httpx.Request("GET", URL),
    )
    refusal = await refusal_of(response)
    assert isinstance(refusal, Refused)
    assert refusal.status == 403
    assert refusal.headers == ((b"content-type", b"text/plain"),)
    assert refusal.body == b"x" * MAX_REFUSAL


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("Wed, 21 Oct 2015 07:28:10 GMT", 10.0),
        ("Wed, 21 Oct 2015 07:27:00 GMT", 0.0),
        ("soon", None),
        ("-1", None),
        ("9" * 12, None),
        ("Wed, 99 Oct 2015 07:28:10 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(said: str, expected: float | None) -> None:
    assert seconds_until(said, now=1445412480.0) == expected


async def test_a_5xx_is_an_outage_that_says_how_long() -> None:
    response = httpx.Response(
        503, headers={"retry-after": "7"}, request=httpx.Request("GET", URL), content=b""
    )
    failure = await refusal_of(response)
    assert isinstance(failure, UpstreamDown)
    assert failure.retry_after == 7.0

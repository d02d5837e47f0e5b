"""Who may ask what only members may."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from goblet_shared.asgi import Scope
from goblet_shared.cluster_secret import (
    MAX_SKEW,
    BadSecret,
    ClusterSecret,
    NotAMember,
    check_administrator,
)

SECRET = b"0123456789abcdef" * 2


def scope(
    *, client: str = "10.0.0.1", headers: tuple[tuple[bytes, bytes], ...] = (), query: bytes = b""
) -> Scope:
    return {
        "method": "POST",
        "raw_path": b"/-/drain",
        "query_string": query,
        "client": (client, 1234),
        "headers": list(headers),
    }


def test_what_a_member_signed_is_believed() -> None:
    _, value = ClusterSecret(SECRET).header("GET", b"/-/peer/mirrors?x=1", b"body")
    ClusterSecret(SECRET).check(value, "GET", b"/-/peer/mirrors?x=1", b"body")


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [("POST", b"/a", b""), ("GET", b"/b", b""), ("GET", b"/a?x", b""), ("GET", b"/a", b"x")],
)
def test_a_proof_holds_for_what_was_asked_alone(method: str, target: bytes, body: bytes) -> None:
    secret = ClusterSecret(SECRET)
    _, value = secret.header("GET", b"/a")
    with pytest.raises(NotAMember, match="with its secret"):
        secret.check(value, method, target, body)


@pytest.mark.parametrize("value", [None, b"", b".", b"1", b"1.", b"x.y", b"\xff.\xff", b"1.2.3"])
def test_what_is_no_proof_is_refused(value: bytes | None) -> None:
    with pytest.raises(NotAMember):
        ClusterSecret(SECRET).check(value, "GET", b"/a")


def test_another_clusters_proof_is_refused() -> None:
    _, value = ClusterSecret(b"x" * 32).header("GET", b"/a")
    with pytest.raises(NotAMember):
        ClusterSecret(SECRET).check(value, "GET", b"/a")


@pytest.mark.parametrize("late", [MAX_SKEW + 2, -MAX_SKEW - 2])
def test_a_proof_grows_old(late: float) -> None:
    _, value = ClusterSecret(SECRET, clock=lambda: 1e9).header("GET", b"/a")
    with pytest.raises(NotAMember, match="clocks"):
        ClusterSecret(SECRET, clock=lambda: 1e9 + late).check(value, "GET", b"/a")


def test_a_file_may_end_with_a_line_break(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(SECRET + b"\n")
    _, value = ClusterSecret.read(tmp_path / "secret").header("GET", b"/a")
    ClusterSecret(SECRET).check(value, "GET", b"/a")


def test_a_file_without_a_secret_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"hunter2\n")
    with pytest.raises(BadSecret, match="openssl") as caught:
        ClusterSecret.read(tmp_path / "short")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(BadSecret, match="No such file"):
        ClusterSecret.read(tmp_path / "none")


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.8.8", "::1"])
def test_the_machine_itself_may_administrate(client: str) -> None:
    check_administrator(scope(client=client), None)


def test_others_may_with_the_secret_alone() -> None:
    secret = ClusterSecret(SECRET)
    for asked in (scope(), scope(client="127.0.0.1", headers=((b"x-forwarded-for", b"8.8.8.8"),))):
        for known in (None, secret):
            with pytest.raises(NotAMember):
                check_administrator(asked, known)
    check_administrator(scope(headers=(secret.header("POST", b"/-/drain"),)), secret)
    check_administrator(
        scope(headers=(secret.header("POST", b"/-/drain?a=1", b"x"),), query=b"a=1"), secret, b"x"
    )


def test_a_wrong_proof_from_the_machine_itself_is_refused() -> None:
    asked = scope(client="127.0.0.1", headers=((b"goblet-peer", b"1.2"),))
    with pytest.raises(NotAMember):
        check_administrator(asked, ClusterSecret(SECRET))


@pytest.mark.parametrize(
    ("headers", "is_ours"),
    [
        ([(b"host", b"127.0.0.1:8081")], True),
        ([(b"host", b"[::1]:8081")], True),
        ([(b"host", b"[::1]")], True),
        ([(b"host", b"localhost")], True),
        ([(b"host", b"goblet-1:8081")], True),
        ([(b"host", b"rebound.example:8081")], False),
        ([(b"host", b"rebound.example.")], False),
        ([(b"host", b"127.0.0.1.example:8081")], False),
        ([(b"host", b"127.0.0.1:8081"), (b"origin", b"http://evil.example")], False),
        ([(b"host", b"127.0.0.1:8081"), (b"origin", b"null")], False),
        ([(b"host", b"127.0.0.1:8081"), (b"sec-fetch-site", b"cross-site")], False),
    ],
)
def test_a_page_in_a_browser_on_the_machine_may_not_administrate(
    headers: list[tuple[bytes, bytes]], is_ours: bool
) -> None:
    asked = scope(client="127.0.0.1", headers=tuple(headers))
    with nullcontext() if is_ours else pytest.raises(NotAMember, match="at its address"):
        check_administrator(asked, None)

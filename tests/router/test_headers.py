"""Which headers pass the router."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_router.headers import (
    for_client,
    for_node,
    for_upstream,
    from_upstream,
    may_outgrow,
    redirected,
    request_id,
)
from goblet_shared.contract import PEER_HEADER, NodeName

NODE = NodeName("goblet-2")

HOP_BY_HOP = [
    b"connection",
    b"keep-alive",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
]

tokens = st.text("abcdefghij-XYZ", min_size=1, max_size=8).map(str.encode)
fields = st.lists(st.tuples(tokens, st.binary(max_size=8)), max_size=8)


def to_node(*headers: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    return for_node(headers, peer=None, request_id="id")


@pytest.mark.parametrize("name", HOP_BY_HOP)
def test_hop_by_hop_headers_stop_here_in_both_directions(name: bytes) -> None:
    headers = [(name.title(), b"x"), (b"Git-Protocol", b"version=2")]
    assert name not in dict(for_client(headers, node=NODE))
    if name != b"transfer-encoding":
        assert name not in dict(to_node(*headers))
    assert dict(to_node(*headers))[b"git-protocol"] == b"version=2"


@given(fields, tokens)
def test_what_connection_names_stops_here(headers: list[tuple[bytes, bytes]], name: bytes) -> None:
    sent = [*headers, (name, b"secret"), (b"Connection", b"close, " + name.upper())]
    assert name.lower() not in dict(for_client(sent, node=NODE))
    assert name.lower() not in dict(to_node(*sent))


def test_everything_else_passes_in_order_and_repeated() -> None:
    headers = [(b"authorization", b"Basic x"), (b"accept", b"a"), (b"accept", b"b")]
    assert to_node(*headers)[:3] == headers


def test_nothing_is_added_for_a_node_but_the_request_id_and_the_peer() -> None:
    assert for_node([], peer="10.0.0.9", request_id="abc") == [
        (b"x-request-id", b"abc"),
        (b"x-forwarded-for", b"10.0.0.9"),
    ]


def test_the_peer_is_added_behind_what_earlier_proxies_said() -> None:
    sent = for_node([(b"X-Forwarded-For", b"192.0.2.1")], peer="10.0.0.9", request_id="abc")
    assert [value for name, value in sent if name == b"x-forwarded-for"] == [
        b"192.0.2.1",
        b"10.0.0.9",
    ]


def test_host_and_expect_are_not_the_clients_to_say() -> None:
    named = dict(to_node((b"Host", b"goblet:8080"), (b"Expect", b"100-continue")))
    assert named.keys() == {b"x-request-id"}


def test_a_proof_of_being_a_member_is_never_passed_on() -> None:
    """A client that has read one could have it carried to another node."""
    assert PEER_HEADER not in dict(to_node((b"Goblet-Peer", b"1700000000.abcdef")))
    assert PEER_HEADER not in dict(for_upstream([(b"Goblet-Peer", b"1700000000.abcdef")]))


@given(fields)
def test_an_upstream_gets_nothing_that_it_has_no_use_for(
    headers: list[tuple[bytes, bytes]],
) -> None:
    needed = [(b"Authorization", b"Basic x"), (b"Git-Protocol", b"version=2")]
    sent = for_upstream([*headers, *needed, (b"Content-Length", b"7")])
    assert {(name.lower(), value) for name, value in needed} <= set(sent)
    assert {name for name, _ in sent} <= {
        *(b"accept", b"accept-encoding", b"accept-language", b"authorization", b"pragma"),
        *(b"content-encoding", b"content-length", b"content-type", b"git-protocol"),
        *(b"transfer-encoding", b"user-agent"),
    }


@pytest.mark.parametrize("value", [b"Negotiate YII=", b"NTLM TlR=", b"negotiate x"])
def test_a_credential_that_vouches_for_a_connection_does_not_go_upstream(value: bytes) -> None:
    """Upstream may take all that follows on the connection for the same caller's."""
    assert for_upstream([(b"Authorization", value)]) == []


@given(fields)
def test_an_upstreams_answer_says_once_that_it_passed_by(
    headers: list[tuple[bytes, bytes]],
) -> None:
    got = from_upstream([*headers, (b"Goblet-Cache", b"whole"), (b"Set-Cookie", b"a=b")])
    assert [value for name, value in got if name == b"goblet-cache"] == [b"bypass"]
    assert b"set-cookie" not in dict(got)


def test_a_redirect_is_not_remembered() -> None:
    assert redirected(b"http://n/x") == [
        (b"location", b"http://n/x"),
        (b"cache-control", b"no-store"),
    ]


def test_a_length_is_passed_on() -> None:
    assert dict(to_node((b"Content-Length", b"7")))[b"content-length"] == b"7"


def test_connection_cannot_take_a_length_away() -> None:
    sent = to_node((b"Content-Length", b"7"), (b"Connection", b"content-length"))
    assert dict(sent)[b"content-length"] == b"7"


def test_a_chunked_body_stays_chunked_whatever_length_is_claimed() -> None:
    sent = dict(to_node((b"Content-Length", b"7"), (b"Transfer-Encoding", b"chunked")))
    assert sent[b"transfer-encoding"] == b"chunked"
    assert b"content-length" not in sent


def test_a_node_that_says_its_name_keeps_it() -> None:
    assert for_client([(b"Goblet-Node", b"goblet-7")], node=NODE) == [(b"goblet-node", b"goblet-7")]


def test_a_node_that_does_not_is_named() -> None:
    assert for_client([], node=NODE) == [(b"goblet-node", b"goblet-2")]


def test_a_nodes_date_and_request_id_give_way_to_ours() -> None:
    headers = [(b"Date", b"now"), (b"X-Request-Id", b"other"), (b"Goblet-Node", b"n")]
    assert dict(for_client(headers, node=NODE)).keys() == {b"goblet-node"}


@pytest.mark.parametrize("good", [b"a", b"A-1_b.c", b"x" * 64])
def test_a_sane_request_id_is_taken(good: bytes) -> None:
    assert request_id([(b"X-Request-Id", good)]) == good.decode()


@pytest.mark.parametrize("bad", [b"", b"x" * 65, b"a b", b"a\n", b"a\xff", b'"'])
def test_any_other_request_id_is_replaced(bad: bytes) -> None:
    made = request_id([(b"x-request-id", bad)])
    assert made.encode() != bad
    assert made.isalnum()


def test_no_two_requests_get_the_same_id() -> None:
    assert len({request_id([]) for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("headers", "may"),
    [
        ([], False),
        ([(b"Content-Length", b"10")], False),
        ([(b"Content-Length", b"11")], True),
        ([(b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"1")], True),
    ],
)
def test_only_a_known_length_within_the_limit_is_sure_to_fit(
    headers: list[tuple[bytes, bytes]], may: bool
) -> None:
    assert may_outgrow(headers, 10) is may

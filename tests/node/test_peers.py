"""Other members are asked with proof, at their own address alone, and what they say is judged."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from goblet_node.fill.connections import open_client
from goblet_node.fill.peers import (
    MAX_LIST,
    Offer,
    PeerFailed,
    PeerMirror,
    PeerMoved,
    Peers,
    decode_offer,
    encode_offer,
)
from goblet_shared.asgi import Receive, Scope, Send
from goblet_shared.cluster_secret import ClusterSecret, target_of
from goblet_shared.contract import PEER_HEADER, NodeName
from goblet_shared.members import Member, MemberState
from goblet_shared.repo_key import RepoKey
from goblet_testing.neighbours import SECRET
from goblet_testing.serving import serving

KEY = RepoKey("origin.test/org/a b+c%41é")
ONE = NodeName("goblet-1")


class Peer:
    """A peer that answers everything in one way; `asked` are the requests that it got."""

    def __init__(self) -> None:
        self.status = 200
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.pause = 0.0
        self.asked: list[tuple[str, bytes, Mapping[bytes, bytes], bytes]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        said = await receive()
        self.asked.append((scope["method"], target_of(scope), dict(scope["headers"]), said["body"]))
        length = (b"content-length", b"%d" % len(self.body))
        await send(
            {
                "type": "http.response.start",
                "status": self.status,
                "headers": [length, *self.headers],
            }
        )
        half = len(self.body) // 2
        await send({"type": "http.response.body", "body": self.body[:half], "more_body": True})
        await trio.sleep(self.pause)
        await send({"type": "http.response.body", "body": self.body[half:]})


@asynccontextmanager
async def asking(peer: Peer) -> AsyncIterator[tuple[Peers, Member]]:
    async with (
        serving(peer) as server,
        open_client(
            most=5, proxy=None, connect_timeout=1, write_timeout=1, pool_timeout=1
        ) as client,
    ):
        host, port = server.address[:2]
        member = Member(name=ONE, url=f"http://{host}:{port}")
        yield (
            Peers(
                me=NodeName("goblet-9"),
                member={ONE: member}.get,
                secret=ClusterSecret(SECRET),
                client=client,
                question_timeout=0.5,
                idle_timeout=0.2,
            ),
            member,
        )


async def test_every_question_proves_that_a_member_asks_just_this() -> None:
    peer = Peer()
    peer.body = b'{"mirrors": []}'
    async with asking(peer) as (peers, _):
        await peers.mirrors(ONE)
        await peers.has(ONE, KEY)
        peer.status = 202
        await peers.hand_over(ONE, [KEY])
        secret = ClusterSecret(SECRET)
        for method, target, headers, body in peer.asked:
            secret.check(headers[PEER_HEADER], method, target, body)
        assert json.loads(peer.asked[-1][3]) == {"from": "goblet-9", "keys": [KEY]}


@pytest.mark.parametrize(
    ("status", "body", "state"),
    [
        (200, b"ready\n", MemberState.READY),
        (503, b"joining: 3 of 4 mirrors copied\n", MemberState.JOINING),
        (404, b"draining\n", MemberState.DRAINING),
        (200, b"<html>", None),
        (502, b"bad gateway", None),
        (302, b"ready\n", None),
    ],
)
async def test_a_member_is_what_it_says_of_itself(
    status: int, body: bytes, state: MemberState | None
) -> None:
    peer = Peer()
    peer.status, peer.body = status, body
    async with asking(peer) as (peers, member):
        assert await peers.probe(member) is state
        peer.pause = 0.4
        assert await peers.probe(member) is None
        nobody = Member(name=ONE, url="http://127.0.0.1:9")
        assert await peers.probe(nobody) is None


async def test_what_a_member_holds_is_read_and_judged() -> None:
    peer = Peer()
    async with asking(peer) as (peers, _):
        held = {"key": KEY, "bytes": 7, "used_at": 1.5}
        peer.body = json.dumps({"mirrors": [held]}).encode()
        assert await peers.mirrors(ONE) == (PeerMirror(key=KEY, bytes=7, used_at=1.5),)
        for wrong in (
            *(b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"mirrors": [{}]}'),
            json.dumps({"mirrors": [{**held, "key": "../../etc"}]}).encode(),
            json.dumps({"mirrors": [{**held, "key": 5}]}).encode(),
            json.dumps({"mirrors": [{**held, "bytes": "many"}]}).encode(),
        ):
            peer.body = wrong
            with pytest.raises(PeerFailed, match="goblet-1"):
                await peers.mirrors(ONE)


async def test_what_a_member_is_to_copy_is_read_and_judged() -> None:
    peer = Peer()
    async with asking(peer) as (peers, _):
        peer.body = json.dumps({"awaited": [KEY]}).encode()
        assert await peers.awaited(ONE) == {KEY}
        for wrong in (
            b"",
            b"[]",
            b"{}",
            b"[" * 100_000,
            b'{"awaited": [5]}',
            b'{"awaited": ["x"]}',
        ):
            peer.body = wrong
            with pytest.raises(PeerFailed, match="does not say what it is to copy"):
                await peers.awaited(ONE)


@pytest.mark.parametrize("host", ["a..b", "a" * 64, ".", "xn--a"])
async def test_a_host_that_cannot_be_looked_up_is_a_failure_as_any_other(host: str) -> None:
    async with asking(Peer()) as (peers, _):
        assert await peers.probe(Member(name=ONE, url=f"http://{host}:80")) is None


async def test_whoever_is_no_member_is_not_asked() -> None:
    async with asking(Peer()) as (peers, _):
        with pytest.raises(PeerFailed, match="goblet-2 is not a member"):
            await peers.has(NodeName("goblet-2"), KEY)


async def test_a_redirect_leads_nowhere() -> None:
    peer, elsewhere = Peer(), Peer()
    async with asking(peer) as (peers, _), asking(elsewhere) as (_, other):
        peer.status, peer.headers = 302, [(b"location", other.url.encode())]
        with pytest.raises(PeerFailed, match="answered 302"):
            await peers.has(ONE, KEY)
        with pytest.raises(PeerFailed, match="answered 302"):
            await peers.offer(ONE, KEY)
        assert elsewhere.asked == []


async def test_whether_a_mirror_is_held_is_a_status() -> None:
    peer = Peer()
    async with asking(peer) as (peers, _):
        assert await peers.has(ONE, KEY)
        peer.status = 404
        assert not await peers.has(ONE, KEY)
        assert await peers.offer(ONE, KEY) is None
        peer.status = 403
        with pytest.raises(PeerFailed, match="is its cluster secret ours"):
            await peers.has(ONE, KEY)
        peer.status, peer.body = 500, b"on fire\n\n" * 1000
        with pytest.raises(PeerFailed, match="goblet-1 answered 500"):
            await peers.offer(ONE, KEY)


async def test_who_is_slow_or_gone_or_talks_too_much_or_in_riddles_has_failed() -> None:
    peer = Peer()
    async with asking(peer) as (peers, _):
        peer.body, peer.pause = b"12", 0.4
        with pytest.raises(PeerFailed, match="goblet-1 did not answer in time"):
            await peers.mirrors(ONE)
        peer.pause, peer.body = 0.0, bytes(MAX_LIST + 1)
        with pytest.raises(PeerFailed, match="more than"):
            await peers.mirrors(ONE)
        peer.headers, peer.body = [(b"content-encoding", b"gzip")], b"x"
        with pytest.raises(PeerFailed, match="content-encoding"):
            await peers.mirrors(ONE)
        gone = Member(name=ONE, url="http://127.0.0.1:9")
        peers._member = {ONE: gone}.get
        with pytest.raises(PeerFailed, match="goblet-1 could not be asked"):
            await peers.mirrors(ONE)


@pytest.mark.parametrize(
    ("status", "said", "error"),
    [
        (206, b"bytes 3-9/10", None),
        (206, b"bytes 3-9/11", PeerMoved),
        (206, b"bytes 0-9/10", PeerMoved),
        (206, b"", PeerMoved),
        (200, b"bytes 3-9/10", PeerFailed),
        (404, b"", PeerMoved),
        (416, b"", PeerMoved),
        (500, b"", PeerFailed),
    ],
)
async def test_a_file_goes_on_from_where_it_was_asked_or_not_at_all(
    status: int, said: bytes, error: type[Exception] | None
) -> None:
    peer = Peer()
    peer.status, peer.body, peer.headers = status, b"3456789", [(b"content-range", said)]

    async with asking(peer) as (peers, _):

        async def read() -> bytes:
            async with peers.file(ONE, KEY, "seg", begin=3, size=10) as pieces:
                return b"".join([piece async for piece in pieces])

        if error is None:
            assert await read() == b"3456789"
            assert peer.asked[0][2][b"range"] == b"bytes=3-"
        else:
            with pytest.raises(error):
                await read()


@given(
    st.builds(
        Offer,
        sizes=st.dictionaries(st.text(max_size=10), st.integers(0, 1 << 60), max_size=5),
        used_at=st.floats(0, 1e10),
        manifest=st.binary(max_size=20).map(lambda line: line.replace(b"\n", b"") + b"\n"),
        refs=st.binary(max_size=50),
    )
)
def test_an_offer_travels_unchanged(offer: Offer) -> None:
    assert decode_offer(encode_offer(offer)) == offer


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_what_is_no_offer_is_a_value_error_and_nothing_else(body: bytes) -> None:
    with pytest.raises(ValueError, match="not an offer"):
        decode_offer(body)


@pytest.mark.parametrize(
    "head",
    [
        b'{"files": {"a": Infinity}, "used_at": 0}',
        b'{"files": {}, "used_at": NaN}',
        b'{"files": {}, "used_at": Infinity}',
        b'{"files": {}, "used_at": -1}',
    ],
)
def test_an_offer_with_a_number_that_is_none_is_no_offer(head: bytes) -> None:
    with pytest.raises(ValueError, match=r"not an offer|no time"):
        decode_offer(head + b"\n{}\n")

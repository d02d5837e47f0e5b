"""Whatever bytes arrive, a parser says what they mean or what is wrong with them, soon."""

import random
import re
import resource
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from goblet_node.wire import v0, v2, v2_client
from goblet_node.wire.fetch_reader import FetchReader
from goblet_node.wire.filters import parse_filter
from goblet_node.wire.pktline import PacketReader
from goblet_node.wire.requests import Limits
from goblet_shared.errors import GobletError
from goblet_shared.git_route import parse_target
from goblet_testing.asks import FLUSH, pkt_line
from goblet_testing.fuzz import request_seeds, spoiled

IDS = [f"{number:040x}" for number in range(1, 12)]
REQUESTS = request_seeds(IDS)
LIMITS = Limits(wants=100, haves=100, shallow=100, refs=100)
SLOWEST = 0.5
"""Seconds of processor time for one input of a few KiB: thousands of times what it takes."""
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]")
ROOM = 64 << 20
"""Bytes that the process may grow by."""


def read_in_pieces(data: bytes) -> None:
    """Feed a packet reader byte by byte at first, then all."""
    reader = PacketReader()
    for piece in (*(data[at : at + 1] for at in range(min(9, len(data)))), data[9:]):
        reader.feed(piece)
        while reader.next_packet() is not None:
            pass


def read_an_answer(data: bytes) -> None:
    """Take an upstream's answer to a fetch."""
    reader = FetchReader()
    for piece in (data[:7], data[7:]):
        reader.feed(piece)
        for _ in reader.events():
            pass
    reader.end()


def read_a_target(data: bytes) -> None:
    """Take a request line apart."""
    path, _, query = data.partition(b"?")
    parse_target(method="POST" if data.endswith(b"pack") else "GET", raw_path=path, query=query)


ADVERTISED = "version 2\n", "agent=git/2\n", "ls-refs=unborn\n", "fetch=shallow filter\n"
ANSWERS = [
    pkt_line("acknowledgments\n") + pkt_line(f"ACK {IDS[0]}\n") + pkt_line("ready\n") + b"0001"
    + pkt_line("packfile\n") + pkt_line("\x01PACKdata") + pkt_line("\x02counting") + FLUSH,
    pkt_line("packfile\n") + pkt_line("\x01PACK") + pkt_line("\x03it broke") + FLUSH,
    pkt_line("ERR not our ref"),
]  # fmt: skip
LISTINGS = [
    pkt_line(f"{IDS[0]} HEAD symref-target:refs/heads/main\n")
    + pkt_line(f"{IDS[0]} refs/heads/main\n")
    + pkt_line(f"{IDS[1]} refs/tags/v1 peeled:{IDS[0]}\n")
    + FLUSH,
    pkt_line("unborn HEAD symref-target:refs/heads/main\n") + FLUSH,
]
ADVERTISEMENTS = [
    b"".join(map(pkt_line, ADVERTISED)) + FLUSH,
    pkt_line("# service=git-upload-pack\n") + FLUSH
    + pkt_line(f"{IDS[0]} HEAD\0multi_ack thin-pack side-band-64k agent=git/2\n")
    + pkt_line(f"{IDS[0]} refs/heads/main\n") + FLUSH,
]  # fmt: skip
FILTERS = [b"blob:none", b"blob:limit=1k", b"tree:3", b"combine:blob:none+tree:1"]
FILTERS += [b"object:type=commit", b"combine:combine:tree%3A1+blob:none", b"sparse:oid=a"]
TARGETS = [b"/github.com/org/repo.git/info/refs?service=git-upload-pack"]
TARGETS += [b"http://github.com/org/%41/git-upload-pack", b"/gitlab.com/a/b/c/info/lfs/objects"]

READERS: dict[str, tuple[Callable[[bytes], object], list[bytes]]] = {
    "v2": (lambda data: v2.parse_request(data, limits=LIMITS), REQUESTS),
    "v0": (lambda data: v0.parse_request(data, limits=LIMITS), REQUESTS),
    "packets": (read_in_pieces, REQUESTS),
    "answer": (read_an_answer, ANSWERS),
    "listing": (v2_client.parse_ls_refs, LISTINGS),
    "advertisement": (v2_client.parse_advertisement, ADVERTISEMENTS),
    "filter": (lambda data: parse_filter(data.decode(errors="replace")), FILTERS),
    "target": (read_a_target, TARGETS),
}


def bombard(name: str, seed: int, times: int) -> tuple[int, int]:
    """Read so many spoiled inputs; return how many were understood, and how many refused."""
    read, seeds = READERS[name]
    dice = random.Random(seed)
    understood = refused = 0
    sentences: set[str] = set()
    for number in range(times):
        data = spoiled(dice, seeds)
        begun = time.thread_time()
        try:
            read(data)
            understood += 1
        except GobletError as exc:
            sentences.add(str(exc))
            refused += 1
        except Exception as exc:
            raise AssertionError(f"{name} {seed}, input {number}: {data!r}") from exc
        took = time.thread_time() - begun
        assert took < SLOWEST, f"{name} {seed}, input {number} took {took:.2f} s: {data!r}"
    assert not {one for one in sentences if not one or UNPRINTABLE.search(one)}
    return understood, refused


def grown_to() -> int:
    """Return the most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_spoiled_input_is_read_or_refused_with_a_sentence(name: str) -> None:
    before = grown_to()
    understood, refused = bombard(name, seed=1, times=4_000)
    assert understood > 40
    assert refused > 400
    assert grown_to() - before < ROOM


@pytest.mark.soak
@pytest.mark.parametrize("name", READERS)
def test_a_million_spoiled_inputs_are_read_or_refused_with_a_sentence(name: str) -> None:
    before = grown_to()
    for seed in range(2, 12):
        understood, refused = bombard(name, seed=seed, times=1_000_000 // len(READERS) // 10)
        assert understood
        assert refused
    assert grown_to() - before < ROOM


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v2", "v0"])
def test_endless_haves_are_refused_where_the_limit_is(name: str) -> None:
    read, _ = READERS[name]
    wants = [f"want {IDS[0]}\n"]
    head = pkt_line("command=fetch\n") + b"0001" if name == "v2" else b""
    between = FLUSH if name == "v0" else b""
    haves = b"".join(pkt_line(f"have {number:040x}\n") for number in range(1, 50_000))
    begun = time.thread_time()
    with pytest.raises(GobletError, match="more than 100 have lines"):
        read(head + b"".join(map(pkt_line, wants)) + between + haves + FLUSH)
    assert time.thread_time() - begun < 2


@pytest.mark.slow
def test_a_filter_that_nests_without_end_costs_little() -> None:
    spec = "blob:none"
    for _ in range(12):
        spec = "combine:" + spec.replace("%", "%25").replace(":", "%3A").replace("+", "%2B")
    begun = time.thread_time()
    for data in (spec, "combine:" + "+".join(["tree:1"] * 100_000), "combine:" * 50_000):
        with suppress(GobletError):
            parse_filter(data)
    assert time.thread_time() - begun < 2

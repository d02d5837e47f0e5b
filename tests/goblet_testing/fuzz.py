"""Spoil what a git client or an upstream says, by chance and without end.

Everything comes from one `random.Random`, so a seed and a number name an input.
"""

import gzip
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from goblet_testing.asks import DELIM, FLUSH, command_body, pkt_line

_LENGTH = re.compile(rb"[0-9a-f]{4}")
_OID = re.compile(rb"[0-9a-f]{40}")
_LENGTHS = (
    *(b"0000", b"0001", b"0002", b"0003", b"0004", b"0005", b"fff0", b"fff1", b"ffff"),
    *(b"-001", b"+0a1", b"0x1f", b"    ", b"\0\0\0\0", b"0_1f"),
)
_NUMBERS = (b"0", b"1", b"-1", b"2147483647", b"2147483648", b"9" * 30, b"1e9", b"01", b"")
_POST_HEAD = b"Content-Type: application/x-git-upload-pack-request\r\n"
_ODD_TYPES = (b"", b"text/html", b"application/x-git-receive-pack-request", b"a" * 5000, b"\xff")
_ODD_ENCODINGS = (b"", b"identity", b"gzip", b"x-gzip", b"br", b"deflate", b"gzip, gzip", b"\xff")


def spoiled(dice: random.Random, seeds: Sequence[bytes], *, most: int = 6) -> bytes:
    """Return one of `seeds` changed at up to `most` places, or cut, or joined with another."""
    data = dice.choice(seeds)
    for _ in range(dice.randint(0, most)):
        data = dice.choice(_WAYS)(dice, data, seeds)
    return data


def _flip(dice: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    at = dice.randrange(len(data) + 1)
    return data[:at] + bytes([dice.randrange(256)]) + data[at + 1 :]


def _cut(dice: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    return data[: dice.randrange(len(data) + 1)]


def _drop(dice: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    at = dice.randrange(len(data) + 1)
    return data[:at] + data[at + dice.choice((1, 4, 50)) :]


def _double(dice: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    at = dice.randrange(len(data) + 1)
    piece = data[at : at + dice.choice((4, 9, 54, 200))]
    return data[:at] + piece * dice.choice((2, 3, 50)) + data[at:]


def _insert(dice: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    at = dice.randrange(len(data) + 1)
    what = dice.choice((*_LENGTHS, b"\0", b"\n", b" ", b"\xff\xfe", dice.randbytes(8)))
    return data[:at] + what + data[at:]


def _lie_about_length(dice: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    return _instead(dice, _LENGTH, data, dice.choice(_LENGTHS))


def _other_id(dice: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    ids = [*_OID.findall(dice.choice(seeds)), b"0" * 40, b"f" * 40, b"F" * 40, b"a" * 64]
    return _instead(dice, _OID, data, dice.choice(ids))


def _other_number(dice: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    return _instead(dice, re.compile(rb"(?<= )\d+(?=\n)"), data, dice.choice(_NUMBERS))


def _splice(dice: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    other = dice.choice(seeds)
    return data[: dice.randrange(len(data) + 1)] + other[dice.randrange(len(other) + 1) :]


def _instead(dice: random.Random, what: re.Pattern[bytes], data: bytes, new: bytes) -> bytes:
    places = [match.span() for match in what.finditer(data)]
    if not places:
        return data
    start, end = dice.choice(places)
    return data[:start] + new + data[end:]


_WAYS = (
    *(_flip, _cut, _drop, _double, _insert),
    *(_lie_about_length, _other_id, _other_number, _splice),
)


@dataclass
class Questions:
    """Fetches that are well-formed and that no sane client asks. `ids` are real objects' names."""

    ids: Sequence[str]
    names: Sequence[str] = ("main", "refs/heads/main", "v0.0", "nowhere", "HEAD", "-x", "a b")
    filters: Sequence[str] = (
        *("blob:none", "blob:limit=0", "blob:limit=1g", "tree:0", "tree:99999", "tree:-1"),
        *("object:type=commit", "object:type=blob", "object:type=x", "sparse:oid=main:x"),
        *("combine:blob:none+tree:1", "combine:", "combine:combine:tree%3A0+blob:none", "%00"),
    )
    _made: int = field(default=0, init=False)

    def v2(self, dice: random.Random) -> bytes:
        """Return a body in protocol version 2."""
        lines = [f"want {oid}" for oid in self._some(dice, 1)]
        flags = ["thin-pack", "ofs-delta", "no-progress", "include-tag", "wait-for-done", "done"]
        lines += [flag for flag in (*flags, "done", "deepen-relative") if dice.random() < 0.5]
        lines += self._limits(dice)
        lines += [f"have {oid}" for oid in self._some(dice, 0)]
        dice.shuffle(lines)
        return command_body("fetch", lines)

    def v0(self, dice: random.Random) -> bytes:
        """Return a body in protocol version 0."""
        words = ["multi_ack", "multi_ack_detailed", "no-done", "thin-pack"]
        words += ["side-band", "side-band-64k"]
        words += ["ofs-delta", "no-progress", "include-tag", "filter", "deepen-relative", "agent=x"]
        said = " ".join(word for word in words if dice.random() < 0.5)
        first, *others = self._some(dice, 1)
        lines = [f"want {first} {said}\n", *(f"want {oid}\n" for oid in others)]
        body = b"".join(map(pkt_line, [*lines, *(f"{line}\n" for line in self._limits(dice))]))
        haves = [pkt_line(f"have {oid}\n") for oid in self._some(dice, 0)]
        for at in sorted(dice.sample(range(len(haves) + 1), dice.randrange(2)), reverse=True):
            haves.insert(at, FLUSH)
        end = dice.choice((FLUSH, pkt_line("done\n"), b""))
        return body + FLUSH + b"".join(haves) + end

    def _limits(self, dice: random.Random) -> list[str]:
        lines = []
        if dice.random() < 0.3:
            lines += [f"shallow {oid}" for oid in self._some(dice, 0)]
        roll = dice.random()
        if roll < 0.2:
            lines.append(f"deepen {dice.choice((1, 2, 3, 100, 2147483647))}")
        elif roll < 0.3:
            lines.append(f"deepen-since {dice.choice((1, 1_600_050_000, 9_999_999_999))}")
        elif roll < 0.4:
            lines.append(f"deepen-not {dice.choice(self.names)}")
        if dice.random() < 0.2:
            lines.append(f"filter {dice.choice(self.filters)}")
        return lines

    def _some(self, dice: random.Random, least: int) -> list[str]:
        found = dice.sample(self.ids, dice.choice((least, 1, 1, 2, 9)))
        self._made += 1
        # Rarely: an object that nobody has costs the origin two questions.
        return found + ([f"{dice.getrandbits(160):040x}"] if self._made % 97 == 0 else [])


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One HTTP request as it goes over the wire. `is_whole`: the server can know where it ends."""

    data: bytes
    is_whole: bool


def shots(
    dice: random.Random, *, path: str, questions: Questions, seeds: Sequence[bytes]
) -> Iterator[Shot]:
    """Yield requests to the repository at `path` for ever, each worse than it should be."""
    while True:
        kind = dice.random()
        version2 = b"Git-Protocol: version=2\r\n"
        if kind < 0.35:
            ask, protocol = dice.choice(((questions.v2, version2), (questions.v0, b"")))
            yield _post(path, protocol, ask(dice))
        elif kind < 0.75:
            protocol = dice.choice((version2, version2, b"", b"Git-Protocol: version=1\r\n"))
            yield _wrapped(dice, path, protocol, spoiled(dice, seeds))
        elif kind < 0.85:
            yield _odd_head(dice, path)
        else:
            whole = _post(path, version2, spoiled(dice, seeds)).data
            # Of a connection on which nothing was said, nothing is to be expected.
            if (data := spoiled(dice, [whole])).strip():
                yield Shot(data=data, is_whole=False)


def _post(path: str, head: bytes, body: bytes) -> Shot:
    head = _POST_HEAD + head + b"Content-Length: %d\r\n" % len(body)
    return Shot(data=_request("POST", f"{path}/git-upload-pack", head, body), is_whole=True)


def _wrapped(dice: random.Random, path: str, head: bytes, body: bytes) -> Shot:
    """Send the body compressed, in chunks, or with a length that is not its own."""
    way = dice.randrange(7)
    if way == 0:
        return _post(path, head + b"Content-Encoding: gzip\r\n", gzip.compress(body, 1))
    if way == 1:
        broken = spoiled(dice, [gzip.compress(body, 1)])
        return _post(path, head + b"Content-Encoding: gzip\r\n", broken)
    if way == 2:
        return _post(path, head + b"Content-Encoding: %b\r\n" % dice.choice(_ODD_ENCODINGS), body)
    if way in (3, 4):
        pieces = [body[at : at + 100] for at in range(0, len(body), 100)]
        chunked = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
        chunked += b"0\r\n\r\n"
        if way == 4:
            chunked = spoiled(dice, [chunked])
        head = _POST_HEAD + head + b"Transfer-Encoding: chunked\r\n"
        request = _request("POST", f"{path}/git-upload-pack", head, chunked)
        return Shot(data=request, is_whole=way == 3)
    if way == 5:
        head = _POST_HEAD + head + b"Content-Length: %d\r\n" % (len(body) + 1)
        return Shot(data=_request("POST", f"{path}/git-upload-pack", head, body), is_whole=False)
    return _post(path, head, body)


def _odd_head(dice: random.Random, path: str) -> Shot:
    """Ask for what is not there, in ways that are not so."""
    method = dice.choice(("GET", "POST", "HEAD", "PUT", "OPTIONS", "CONNECT", "get", "\x7f"))
    tails = ("/info/refs", "/info/refs?service=git-upload-pack", "/git-upload-pack", "/HEAD", "")
    tail = dice.choice((*tails, "/info/refs?service=x&service=y", "/%2e%2e/git-upload-pack"))
    host = dice.choice((path, path, "/evil.test/a/b", "/..%2f..", "/%ff/a", "//", "/" + "a" * 9000))
    kind = b"Content-Type: %b\r\n" % dice.choice(_ODD_TYPES)
    protocol = b"Git-Protocol: %b\r\n" % dice.choice((b"version=2", b"version=99", b":::", b"\xff"))
    credential = dice.choice((b"", b"Authorization: Basic %%%\r\n", b"Authorization: \xff\r\n"))
    head = kind + protocol + credential + b"Content-Length: 4\r\n"
    return Shot(data=_request(method, host + tail, head, b"0000"), is_whole=False)


def _request(method: str, target: str, head: bytes, body: bytes) -> bytes:
    line = f"{method} {target} HTTP/1.1\r\nHost: goblet.test\r\n".encode("latin-1")
    return line + head + b"\r\n" + body


def request_seeds(ids: Sequence[str]) -> list[bytes]:
    """Return bodies that git sends, in both dialects; `ids` name objects."""
    a, b, c = ids[:3]
    capabilities = "multi_ack_detailed no-done side-band-64k thin-pack ofs-delta agent=git/2.39.5"
    v0 = [
        *(f"want {a} {capabilities}\n", f"want {b}\n", f"shallow {c}\n", "deepen 2\n"),
    ]
    arguments = ["thin-pack", "no-progress", "include-tag", "ofs-delta", f"shallow {c}"]
    arguments += ["deepen 3", "deepen-relative", "filter blob:limit=1k", f"want {a}", f"want {b}"]
    negotiation = [f"have {oid}" for oid in ids]
    return [
        command_body("ls-refs", ["peel", "symrefs", "unborn", "ref-prefix refs/heads/"]),
        command_body("ls-refs", [f"ref-prefix refs/{number}" for number in range(20)]),
        command_body("fetch", [*arguments, "done"]),
        command_body("fetch", [f"want {a}", *negotiation]),
        command_body("fetch", [f"want {a}", "deepen-since 1600000000", "deepen-not v1", "done"]),
        pkt_line("command=fetch\n") + pkt_line("agent=git/2.39.5\n") + DELIM + FLUSH,
        b"".join(map(pkt_line, v0)) + FLUSH + pkt_line(f"have {c}\n") + pkt_line("done\n"),
        b"".join(map(pkt_line, v0[:2]))
        + FLUSH
        + b"".join(pkt_line(f"have {oid}\n") for oid in ids)
        + FLUSH,
        FLUSH,
    ]

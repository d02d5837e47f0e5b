"""Clients whose every object is known, and what a pack makes of them: the judge of answers.

A `Holder` is a bare repository filled by the origin's own answer to a first
request. What it is sent later is taken in by git's own index-pack.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from goblet_node.wire.answers import AckMode, SideBand, V0Dialect
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.requests import Fetch
from goblet_node.wire.v2_client import encode_request
from goblet_testing import asks
from goblet_testing.dialects import encode_v0_request
from goblet_testing.packs import make_bare, run_git
from goblet_testing.seen import pkt_lines

_V0 = V0Dialect(acks=AckMode.DETAILED, side_band=SideBand.LARGE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An answer to a fetch that said `done`: what a client would hear."""

    cache: str | None
    shallow: frozenset[bytes]
    unshallow: frozenset[bytes]
    pack: bytes
    error: bytes
    """What the server said instead of a pack, or behind half of one."""


def told(url: str, fetch: Fetch, *, version: int) -> Told:
    """Ask the repository at `url` in this protocol version."""
    if version == 2:
        answer = asks.post(url, encode_request(fetch))
    else:
        answer = asks.post(url, encode_v0_request(fetch, _V0), headers={})
    assert answer.status == 200, answer.text
    lines = [line.rstrip(b"\n") for line in pkt_lines(iter([answer.body]))]
    return Told(
        cache=answer.cache,
        shallow=_after(b"shallow ", lines),
        unshallow=_after(b"unshallow ", lines),
        pack=answer.pack,
        error=b"".join(sorted(_after(b"ERR ", lines) | _after(b"\x03", lines))),
    )


@dataclass
class Holder:
    """A client: what its refs named when it last fetched, and what it has."""

    path: Path
    tips: tuple[ObjectId, ...] = ()
    filter_spec: str | None = None
    shallow: frozenset[bytes] = frozenset()
    objects: frozenset[bytes] = field(default_factory=frozenset)

    @classmethod
    def of(
        cls,
        path: Path,
        url: str,
        tips: tuple[ObjectId, ...],
        *,
        deepen: int | None = None,
        filter_spec: str | None = None,
    ) -> "Holder":
        """Make a client at `path` that has fetched these tips from the origin at `url`."""
        holder = cls(make_bare(path), tips=tips, filter_spec=filter_spec)
        if tips:
            fetch = Fetch(
                wants=tips, deepen=deepen, filter_spec=filter_spec, ofs_delta=True, done=True
            )
            said = told(url, fetch, version=2)
            assert not said.error, said.error
            holder.shallow = said.shallow
            holder.objects = holder.taken_in(said, is_strict=filter_spec is None)
            holder.name(tips)
        return holder

    def taken_in(self, said: Told, *, is_strict: bool) -> frozenset[bytes]:
        """Take a pack in and return the objects that it held, without bases that git added.

        Raises:
            GitFailed: index-pack finds an object broken or, if `is_strict`, missing.
        """
        self.cut(said)
        checks = ["--strict", "--fsck-objects"] if is_strict else ["--fsck-objects", "--promisor"]
        words = ("index-pack", *checks, "--fix-thin", "--stdin")
        kept = run_git(*words, repo=self.path, stdin=said.pack).split()[-1].decode()
        index = (self.path / f"objects/pack/pack-{kept}.idx").read_bytes()
        return frozenset(_ids_in_order(index)[: struct.unpack(">I", said.pack[8:12])[0]])

    def cut(self, said: Told) -> None:
        """End the history where the server said that it ends now."""
        ends = (self.shallow | said.shallow) - said.unshallow
        (self.path / "shallow").write_bytes(b"".join(oid + b"\n" for oid in sorted(ends)))

    def name(self, tips: Iterable[ObjectId]) -> None:
        """Let refs point at these objects."""
        for number, oid in enumerate(tips):
            (self.path / f"refs/tags/t{number}").write_bytes(oid + b"\n")

    def check_connected(self, tips: Iterable[ObjectId]) -> None:
        """Return if all that `tips` reach is here, down to where the history ends.

        Raises:
            GitFailed: something is missing.
        """
        asked = b"".join(oid + b"\n" for oid in tips)
        run_git("rev-list", "--objects", "--quiet", "--stdin", repo=self.path, stdin=asked)


def _after(word: bytes, lines: Iterable[bytes]) -> frozenset[bytes]:
    return frozenset(line.removeprefix(word) for line in lines if line.startswith(word))


def _ids_in_order(index: bytes) -> list[bytes]:
    """Return the ids in a version 2 index of a pack below 2 GiB, by their offsets."""
    (count,) = struct.unpack_from(">I", index, 8 + 255 * 4)
    ids = 8 + 256 * 4
    offsets = struct.unpack_from(f">{count}I", index, ids + count * 24)
    found = ((offset, index[ids + at * 20 :][:20]) for at, offset in enumerate(offsets))
    return [oid.hex().encode() for _, oid in sorted(found)]

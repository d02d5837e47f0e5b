"""Ask real git in both dialects of the protocol: it is the judge of what we answer."""

import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from goblet_node.wire import v2
from goblet_node.wire.answers import AckMode, SideBand, V0Dialect
from goblet_node.wire.pktline import Band, Marker, Packet, decode_all, encode, split_band
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.requests import Fetch
from goblet_node.wire.v2_client import encode_request
from goblet_testing.gitcli import hermetic_env
from goblet_testing.upload_pack import answer

_SIDE_BANDS = {SideBand.SMALL: "side-band", SideBand.LARGE: "side-band-64k"}


def speak(repo: Path, body: bytes, *, version: int) -> bytes:
    """Return git's answer to a POST with this body from a client of this version.

    Raises:
        CalledProcessError: git refused; its `stderr` says why.
    """
    return subprocess.run(
        ["git", "upload-pack", "--strict", "--stateless-rpc", str(repo)],
        env=hermetic_env({"GIT_PROTOCOL": f"version={version}"}),
        input=body,
        capture_output=True,
        check=True,
        timeout=60,
    ).stdout


def encode_v0_request(fetch: Fetch, dialect: V0Dialect) -> bytes:
    """Return the body by which a client of version 0 or 1 asks for this."""
    first, *others = [b"want " + oid for oid in fetch.wants] or [b""]
    lines = [b" ".join([first, *_capabilities(fetch, dialect)]), *others] if first else []
    lines += [b"shallow " + oid for oid in fetch.shallow]
    lines += [b"deepen %d" % fetch.deepen] if fetch.deepen else []
    lines += [b"deepen-since %d" % fetch.deepen_since] if fetch.deepen_since else []
    lines += [b"deepen-not " + name for name in fetch.deepen_not]
    lines += [b"filter " + fetch.filter_spec.encode()] if fetch.filter_spec else []
    packets: list[Packet] = [*(line + b"\n" for line in lines), Marker.FLUSH]
    if dialect.negotiates:
        packets += [b"have " + oid + b"\n" for oid in fetch.haves]
        packets.append(b"done\n" if fetch.done else Marker.FLUSH)
    return b"".join(map(encode, packets))


def _capabilities(fetch: Fetch, dialect: V0Dialect) -> Iterable[bytes]:
    chosen = {
        dialect.acks.value: dialect.acks is not AckMode.NONE,
        "no-done": dialect.no_done,
        _SIDE_BANDS.get(dialect.side_band, ""): dialect.side_band is not SideBand.NONE,
        "thin-pack": fetch.thin_pack,
        "ofs-delta": fetch.ofs_delta,
        "no-progress": fetch.no_progress,
        "include-tag": fetch.include_tag,
        "deepen-relative": fetch.deepen_relative,
        "filter": fetch.filter_spec is not None,
    }
    yield from (word.encode() for word, is_chosen in chosen.items() if is_chosen)
    yield from [b"agent=" + fetch.agent] if fetch.agent is not None else []
    yield from [b"session-id=" + fetch.session_id] if fetch.session_id is not None else []


def pack_by_git(repo: Path, fetch: Fetch, common: Sequence[ObjectId]) -> tuple[bytes, bytes]:
    """Return the pack that git would send in the end, and what it says meanwhile."""
    asked = replace(fetch, haves=tuple(common), done=True, agent=None, object_format="sha1")
    _, _, banded = answer(repo, encode_request(asked)).partition(v2.PACKFILE_SECTION)
    bands: dict[Band, list[bytes]] = {band: [] for band in Band}
    for packet in decode_all(banded):
        if isinstance(packet, bytes):
            band, data = split_band(packet)
            bands[band].append(data)
    return b"".join(bands[Band.PACK]), b"".join(bands[Band.PROGRESS])

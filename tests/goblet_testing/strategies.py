"""What hypothesis draws: the values of the git protocol, and ways to spoil their bytes."""

from hypothesis import strategies as st

from goblet_node.wire.names import is_ref_name
from goblet_node.wire.pktline import Marker, Packet
from goblet_node.wire.refs import ObjectId, Ref
from goblet_node.wire.requests import Fetch, LsRefs

object_ids: st.SearchStrategy[ObjectId] = st.binary(min_size=20, max_size=20).map(
    lambda raw: ObjectId(b"%040x" % (int.from_bytes(raw, "big") or 1))
)
"""SHA-1 ids, never the one that is all zeros."""

sha256_ids: st.SearchStrategy[ObjectId] = st.binary(min_size=32, max_size=32).map(
    lambda raw: ObjectId(raw.hex().encode())
)

# Few letters, so that names collide, begin with each other and break rules.
_parts = st.text(alphabet="ab.@-{é", min_size=1, max_size=6).map(str.encode)

ref_names: st.SearchStrategy[bytes] = (
    st.tuples(st.sampled_from([b"refs/heads", b"refs/tags", b"refs/pull"]), _parts, _parts)
    .map(b"/".join)
    .filter(is_ref_name)
)
"""Valid full names below refs/."""

lines = st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b"n").replace(b"\0", b"0"))
"""Bytes that may stand in a line of a request: anything but newline and NUL."""

packets: st.SearchStrategy[list[Packet]] = st.lists(
    st.one_of(st.sampled_from(Marker), st.binary(max_size=300)), max_size=12
)


@st.composite
def refs(draw: st.DrawFn, max_size: int = 8) -> tuple[Ref, ...]:
    """Draw what a repository may advertise: names once each, maybe a HEAD, maybe an unborn one."""
    names = draw(st.lists(ref_names, unique=True, max_size=max_size))
    drawn = [
        Ref(name=name, oid=draw(object_ids), peeled=draw(st.none() | object_ids)) for name in names
    ]
    if draw(st.booleans()):
        target = draw(ref_names)
        oid = draw(st.none() | object_ids)
        drawn.insert(0, Ref(name=b"HEAD", oid=oid, symref_target=target))
    return tuple(drawn)


_preamble: dict[str, st.SearchStrategy[object]] = {
    "agent": st.none() | lines,
    "session_id": st.none() | lines,
    "server_options": st.lists(lines, max_size=3).map(tuple),
}

ls_refs_requests: st.SearchStrategy[LsRefs] = st.builds(
    LsRefs,
    peel=st.booleans(),
    symrefs=st.booleans(),
    unborn=st.booleans(),
    prefixes=st.lists(lines, unique=True, max_size=5).map(tuple),
    object_format=st.sampled_from(["sha1", "sha256"]),
    **_preamble,
)

_texts = st.none() | st.text(
    alphabet=st.characters(codec="utf-8", exclude_characters="\n\0"), min_size=1, max_size=20
)
_numbers = st.integers(min_value=1, max_value=2**31 - 1)


@st.composite
def fetch_requests(draw: st.DrawFn) -> Fetch:
    """Draw any fetch that git would take: ids once each, `deepen` never beside its rivals."""
    object_format = draw(st.sampled_from(["sha1", "sha256"]))
    ids = st.lists(
        object_ids if object_format == "sha1" else sha256_ids, unique=True, max_size=4
    ).map(tuple)
    by_depth = draw(st.booleans())
    return draw(
        st.builds(
            Fetch,
            wants=ids,
            want_refs=st.lists(ref_names, unique=True, max_size=3).map(tuple),
            haves=ids,
            done=st.booleans(),
            thin_pack=st.booleans(),
            ofs_delta=st.booleans(),
            no_progress=st.booleans(),
            include_tag=st.booleans(),
            wait_for_done=st.booleans(),
            sideband_all=st.booleans(),
            shallow=ids,
            deepen=_numbers if by_depth else st.none(),
            deepen_relative=st.booleans(),
            deepen_since=st.none() if by_depth else st.none() | _numbers,
            deepen_not=(
                st.just(())
                if by_depth
                else st.lists(lines.filter(len), unique=True, max_size=3).map(tuple)
            ),
            filter_spec=_texts,
            packfile_uris=_texts,
            object_format=st.just(object_format),
            **_preamble,
        )
    )


@st.composite
def cuts(draw: st.DrawFn, wire: bytes) -> list[bytes]:
    """Draw `wire` in pieces, cut anywhere, some of them empty."""
    at = sorted(draw(st.lists(st.integers(0, len(wire)), max_size=10)))
    return [wire[start:end] for start, end in zip([0, *at], [*at, len(wire)], strict=True)]


@st.composite
def mutations(draw: st.DrawFn, wire: bytes) -> bytes:
    """Draw `wire` with a few bytes replaced, removed, inserted or doubled, or its end cut off."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(wire)))
        end = draw(st.integers(start, min(len(wire), start + 8)))
        instead = draw(st.binary(max_size=6) | st.just(wire[start:end] * 2))
        wire = wire[:start] + instead + wire[end:]
    return wire[: draw(st.integers(0, len(wire)))] if draw(st.booleans()) else wire

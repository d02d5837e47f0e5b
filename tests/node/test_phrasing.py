"""What is asked of a mirror, or of a repository that has none, said as all say it."""

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import trio

from goblet_node.fill.refs import MIRRORED, Listing, RefsDesk
from goblet_node.fill.upstream import Grant
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.log import Mirror
from goblet_node.mirror.store import MirrorStore
from goblet_node.serve import phrasing as phrasing_module
from goblet_node.serve.phrasing import FEW, REMEMBERED_BODY, TOLD_WITHIN, Phrased, Phrasing
from goblet_node.serve.sending import Asked
from goblet_node.wire.answers import Dialect, V0Dialect, V2Dialect
from goblet_node.wire.pktline import encode
from goblet_node.wire.refs import ObjectId, Ref
from goblet_node.wire.requests import Fetch
from goblet_node.wire.v2_client import Advertisement
from goblet_shared.repo_key import RepoKey
from goblet_testing.mirrors import blob_id, grow, heads

KEY = RepoKey("example.org/one")
ONE, TWO, TAG, NEWER = b"one\n", b"two\n", b"a tag\n", b"another tag\n"
NOWHERE = ObjectId(b"1" * 40)
CLONE = Fetch(wants=(blob_id(ONE),), done=True)
SHALLOW = Fetch(wants=(blob_id(ONE),), done=True, deepen=1, include_tag=True)


def tag(name: bytes, content: bytes) -> Ref:
    """Return an annotated tag, as upstream lists it, on the first object."""
    return Ref(name=b"refs/tags/" + name, oid=blob_id(content), peeled=blob_id(ONE))


class Said:
    """An upstream that lists these refs."""

    def __init__(self, refs: Sequence[Ref]) -> None:
        self.refs = refs

    async def ls_refs(
        self, grant: Grant, prefixes: Sequence[bytes] | None, *, read: Callable[[bytes], Listing]
    ) -> Listing:
        lines = [
            b"%s %s%s\n" % (ref.oid, ref.name, b" peeled:" + ref.peeled if ref.peeled else b"")
            for ref in self.refs
        ]
        return read(b"".join([*map(encode, lines), b"0000"]))


def asked(fetch: Fetch, body: bytes | None = None, dialect: Dialect | None = None) -> Asked:
    """Return a request that says this; its bytes stand for it, and are no other's."""
    said = repr(fetch).encode() if body is None else body
    return Asked(fetch=fetch, dialect=dialect or V2Dialect(), body=said, headers={})


class Asking:
    """Phrases fetches before a clock of its own."""

    def __init__(self, nursery: trio.Nursery, refs: Sequence[Ref]) -> None:
        self.now = 0.0
        self.said = Said(refs)
        self.desk = RefsDesk(upstream=self.said, nursery=nursery, clock=lambda: self.now)
        self.phrasing = Phrasing(desk=self.desk)

    async def list_refs(self) -> None:
        grant = Grant(
            key=KEY,
            url="http://upstream.test/one",
            authorization=None,
            crossed_hosts=False,
            advertisement=Advertisement(version=2, features={}),
        )
        await self.desk.ask(grant, MIRRORED)

    async def __call__(self, fetch: Fetch, mirror: Mirror | None = None) -> Phrased:
        return await self.phrasing.phrase(KEY, asked(fetch), mirror)


@pytest.fixture
async def asking(nursery: trio.Nursery) -> Asking:
    return Asking(nursery, [*heads(main=ONE), tag(b"v1", TAG)])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MirrorStore]:
    store = MirrorStore(tmp_path, disk=Disk())
    store.open()
    yield store
    store.close()


async def test_haves_are_those_that_the_mirror_holds(store: MirrorStore, asking: Asking) -> None:
    mirror = grow(store, KEY, heads(a=ONE, b=TWO), [ONE, TWO])
    fetch = Fetch(wants=(blob_id(ONE),), haves=(NOWHERE, blob_id(TWO)), done=True)
    first = await asking(fetch, mirror)
    assert first.fetch.haves == (blob_id(TWO),)
    again = await asking(Fetch(wants=fetch.wants, haves=(blob_id(TWO),), done=True), mirror)
    assert first.key == again.key is not None


async def test_many_haves_are_looked_up_like_few(store: MirrorStore, asking: Asking) -> None:
    mirror = grow(store, KEY, heads(a=ONE, b=TWO), [ONE, TWO])
    strangers = [ObjectId(b"%040x" % number) for number in range(1, FEW + 2)]
    many = Fetch(wants=(blob_id(ONE),), haves=(*strangers, blob_id(TWO)), done=True)
    few = Fetch(wants=(blob_id(ONE),), haves=(blob_id(TWO),), done=True)
    assert (await asking(many, mirror)).key == (await asking(few, mirror)).key


async def test_a_mirror_with_another_tag_is_asked_another_question(
    store: MirrorStore, asking: Asking
) -> None:
    before = grow(store, KEY, (*heads(a=ONE), tag(b"v1", TAG)), [ONE, TAG])
    keys = [(await asking(SHALLOW, before)).key for _ in range(2)]
    branch = grow(store, KEY, (*heads(a=ONE, b=TWO), tag(b"v1", TAG)), [TWO])
    keys.append((await asking(SHALLOW, branch)).key)
    assert len(set(keys)) == 1
    after = grow(store, KEY, (*heads(a=ONE), tag(b"v2", NEWER)), [NEWER])
    assert (await asking(SHALLOW, after)).key != keys[0]
    plain = Fetch(wants=(blob_id(ONE),), done=True, deepen=1)
    assert (await asking(plain, before)).key == (await asking(plain, after)).key


async def test_what_was_recorded_cold_is_asked_for_alike_when_there_is_a_mirror(
    store: MirrorStore, asking: Asking
) -> None:
    await asking.list_refs()
    cold = await asking(SHALLOW)
    mirror = grow(store, KEY, (*heads(main=ONE), tag(b"v1", TAG)), [ONE, TAG])
    assert (await asking(SHALLOW, mirror)).key == cold.key is not None


async def test_tags_of_a_cold_repository_are_known_while_its_listing_is_new(
    asking: Asking,
) -> None:
    unknown = (await asking(SHALLOW)).key
    await asking.list_refs()
    known = (await asking(SHALLOW)).key
    asking.said.refs = [*asking.said.refs, tag(b"v2", NEWER)]
    await asking.list_refs()
    newer = (await asking(SHALLOW)).key
    asking.now += TOLD_WITHIN
    assert (await asking(SHALLOW)).key == unknown
    assert len({unknown, known, newer}) == 3


async def test_deepen_not_is_what_it_stands_for_now(store: MirrorStore, asking: Asking) -> None:
    by_name = Fetch(wants=(blob_id(ONE),), done=True, deepen_not=(b"side",))
    before = grow(store, KEY, heads(main=ONE, side=TWO), [ONE, TWO])
    first = await asking(by_name, before)
    after = grow(store, KEY, heads(main=ONE, side=ONE), [])
    assert first.key != (await asking(by_name, after)).key
    assert (await asking(by_name)).key is None  # cold, and nothing was listed
    await asking.list_refs()
    by_known_name = Fetch(wants=(blob_id(ONE),), done=True, deepen_not=(b"main",))
    assert (await asking(by_known_name)).key is not None


@pytest.mark.parametrize(
    "fetch",
    [
        Fetch(),
        Fetch(want_refs=(b"refs/heads/main",)),
        Fetch(wants=CLONE.wants, filter_spec="sparse:oid=main:x"),
        Fetch(wants=CLONE.wants, deepen_not=(b"nowhere",)),
    ],
)
async def test_what_is_not_ours_or_not_right_is_left_as_it_was_asked(
    store: MirrorStore, asking: Asking, fetch: Fetch
) -> None:
    """Whoever answers says what is wrong with it; nothing is recorded."""
    mirror = grow(store, KEY, heads(a=ONE), [ONE])
    assert (await asking(fetch, mirror)).key is None
    assert (await asking(fetch)).key is None


async def test_what_a_client_has_means_nothing_where_nothing_is(asking: Asking) -> None:
    fetch = Fetch(wants=CLONE.wants, haves=(blob_id(TWO),), done=True)
    assert await asking(fetch) == Phrased(fetch=fetch, key=None)
    assert (await asking(CLONE)).key is not None


async def test_what_was_asked_of_a_mirror_is_known_until_the_mirror_changes(
    store: MirrorStore, asking: Asking
) -> None:
    mirror = grow(store, KEY, heads(a=ONE), [ONE])
    fetch = Fetch(wants=(blob_id(ONE),), haves=(blob_id(TWO),), done=True)
    assert asking.phrasing.known(asked(fetch), mirror) is None
    before = await asking(fetch, mirror)
    assert asking.phrasing.known(asked(fetch), mirror) is before
    # Now the mirror holds what the client has: another question.
    grown = grow(store, KEY, heads(a=ONE, b=TWO), [TWO])
    assert asking.phrasing.known(asked(fetch), grown) is None
    assert (await asking(fetch, grown)).key != before.key


async def test_the_same_bytes_in_another_dialect_are_another_question(
    store: MirrorStore, asking: Asking
) -> None:
    mirror = grow(store, KEY, heads(a=ONE), [ONE])
    await asking.phrasing.phrase(KEY, asked(CLONE, b"same"), mirror)
    assert asking.phrasing.known(asked(CLONE, b"same"), mirror) is not None
    assert asking.phrasing.known(asked(CLONE, b"same", V0Dialect()), mirror) is None


async def test_what_is_remembered_is_bounded_and_no_body_in_it_is_long(
    store: MirrorStore, asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phrasing_module, "MAX_REMEMBERED", 2)
    mirror = grow(store, KEY, heads(a=ONE), [ONE])
    long = b"x" * (REMEMBERED_BODY + 1)
    for body in (b"first", b"second", long, b"third"):
        await asking.phrasing.phrase(KEY, asked(CLONE, body), mirror)
        if body == b"second":
            assert asking.phrasing.known(asked(CLONE, b"first"), mirror) is not None
    known = [
        body
        for body in (b"first", b"second", long, b"third")
        if asking.phrasing.known(asked(CLONE, body), mirror) is not None
    ]
    assert known == [b"first", b"third"]


async def test_a_mirror_that_is_gone_is_not_kept_by_what_was_asked_of_it(
    store: MirrorStore, asking: Asking
) -> None:
    mirror = grow(store, KEY, heads(a=ONE), [ONE])
    await asking(CLONE, mirror)
    gone = weakref.ref(mirror)
    store.drop(KEY)
    del mirror
    gc.collect()
    assert gone() is None

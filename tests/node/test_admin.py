"""What an operator asks of a node, as an ASGI application over a real store."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from goblet_node.admin import build_admin
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.store import MirrorStore
from goblet_shared.cluster_secret import ClusterSecret
from goblet_shared.repo_key import RepoKey, parse
from goblet_testing.mirrors import grow, heads

ONE, OTHER = parse("github.com/org/one"), parse("github.com/org/other")
SECRET = ClusterSecret(b"s" * 32)
PURGE = f"/-/purge?repo={ONE}"


class Admin:
    """The routes over a store with two mirrors, and the recordings that were discarded."""

    def __init__(self, store: MirrorStore) -> None:
        self.store = store
        self.discarded: list[RepoKey] = []
        self.forgotten: list[RepoKey] = []

    def client(
        self, address: str = "127.0.0.1", *, secret: ClusterSecret | None = SECRET
    ) -> httpx.AsyncClient:
        routes = build_admin(
            mirrors=self.store,
            discard=self.discarded.append,
            secret=secret,
            forget=self.forgotten.append,
        )
        app = Starlette(routes=routes)
        transport = httpx.ASGITransport(app=app, client=(address, 1))
        return httpx.AsyncClient(transport=transport, base_url="http://n")


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[Admin]:
    store = MirrorStore(tmp_path, disk=Disk())
    store.open()
    for key, content in ((ONE, b"1"), (OTHER, b"2")):
        grow(store, key, heads(main=content), [content])
    yield Admin(store)
    store.close()


async def test_it_lists_what_is_held_and_when_it_was_used(admin: Admin) -> None:
    admin.store.touch(ONE)
    got = await admin.client().get("/-/mirrors")
    held = got.json()["mirrors"]
    assert [one["key"] for one in held] == [ONE, OTHER]
    assert {one["key"]: one["bytes"] for one in held} == admin.store.sizes()
    assert all(abs(one["used_at"] - time.time()) < 60 for one in held)


async def test_a_purged_repository_is_gone_with_its_recordings_and_no_other(admin: Admin) -> None:
    size = admin.store.sizes()[ONE]
    directory = admin.store.get(ONE)
    assert directory is not None
    got = await admin.client().post(PURGE)
    assert got.json() == {"repo": ONE, "was_held": True, "bytes": size}
    assert admin.store.keys() == (OTHER,)
    assert not directory.directory.exists()
    assert admin.discarded == admin.forgotten == [ONE]


async def test_to_purge_what_is_not_held_is_no_error(admin: Admin) -> None:
    got = await admin.client().post("/-/purge", params={"repo": "https://github.com/org/none.git"})
    assert got.json() == {"repo": "github.com/org/none", "was_held": False, "bytes": 0}
    assert len(admin.store.keys()) == 2


async def test_strangers_learn_and_change_nothing(admin: Admin) -> None:
    for secret in (SECRET, None):
        stranger = admin.client("192.0.2.1", secret=secret)
        assert (await stranger.get("/-/mirrors")).status_code == 403
        assert (await stranger.post(PURGE)).status_code == 403
    assert (await admin.client().post(PURGE, headers={"x-forwarded-for": "x"})).status_code == 403
    assert len(admin.store.keys()) == 2
    assert not admin.discarded


async def test_who_knows_the_secret_may_ask_from_elsewhere(admin: Admin) -> None:
    name, proof = SECRET.header("POST", PURGE.encode())
    got = await admin.client("192.0.2.1").post(PURGE, headers={name.decode(): proof.decode()})
    assert got.status_code == 200
    assert admin.store.keys() == (OTHER,)


@pytest.mark.parametrize("question", ["", "?repo=a&repo=b", "?repo=../x", "?repo=a@b:c"])
async def test_what_is_not_one_repository_is_refused_in_a_sentence(
    admin: Admin, question: str
) -> None:
    got = await admin.client().post(f"/-/purge{question}")
    assert got.status_code == 400
    assert got.text.endswith("\n")
    assert len(admin.store.keys()) == 2


async def test_nothing_is_purged_by_looking(admin: Admin) -> None:
    assert (await admin.client().get(PURGE)).status_code == 405
    assert len(admin.store.keys()) == 2

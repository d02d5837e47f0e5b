"""What is cold is had from other members first, and never from them and upstream at once."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from goblet_node.fill.refs import MIRRORED
from goblet_node.mirror.log import Mirror
from goblet_shared.repo_key import RepoKey
from goblet_testing import repos
from goblet_testing.housing import REPO, housing
from goblet_testing.origin import Origin

pytestmark = pytest.mark.slow


class Copies:
    """Brings nothing; notes what it was asked for, and may be under way for ever."""

    def __init__(self) -> None:
        self.brought: list[RepoKey] = []
        self.begun: list[RepoKey] = []
        self.under_way = False

    def is_under_way(self, key: RepoKey) -> bool:
        return self.under_way

    async def bring(self, key: RepoKey) -> Mirror | None:
        self.brought.append(key)
        await trio.lowlevel.checkpoint()
        return None

    def begin(self, key: RepoKey) -> None:
        self.begun.append(key)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    root = tmp_path_factory.mktemp("root")
    repo = repos.make_repo(root / "made.git", commits=3)
    shutil.move(repo, root / f"{REPO}.git")
    with Origin(root) as origin:
        yield origin


async def test_a_cold_repository_that_is_listed_is_had_from_a_member_and_not_from_upstream(
    origin: Origin, tmp_path: Path
) -> None:
    copies = Copies()
    async with housing(origin, tmp_path, copies=copies) as house:
        listing = await house.desk.ask(house.grant, MIRRORED)
        await house.heard(listing)
        assert copies.begun == [house.grant.key]
        assert house.store.get(house.grant.key) is None
        await house.refresh()
        await house.heard(listing)
        assert copies.begun == [house.grant.key]


async def test_no_first_fetch_begins_while_a_copy_is_under_way(
    origin: Origin, tmp_path: Path
) -> None:
    copies = Copies()
    async with housing(origin, tmp_path, copies=copies) as house:
        copies.under_way = True
        assert house.refresher.start(house.grant) is None
        copies.under_way = False
        await house.refresh()
        # What came meanwhile from elsewhere is refreshed like any mirror.
        copies.under_way = True
        await house.refresh()


async def test_members_are_not_asked_for_what_upstream_sends_already(
    origin: Origin, tmp_path: Path
) -> None:
    copies = Copies()
    async with housing(origin, tmp_path, copies=copies) as house:
        await house.refresher.copied(house.grant.key)
        assert copies.brought == [house.grant.key]
        refresh = house.refresher.start(house.grant)
        assert refresh is not None
        await house.refresher.copied(house.grant.key)
        assert copies.brought == [house.grant.key]
        await refresh.ended.wait()

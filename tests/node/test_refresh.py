"""Refreshes of a mirror from a real origin, into a real store, through a real worker."""

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from goblet_node.errors import MirrorDamaged, UpstreamError
from goblet_node.fill import refresh as refresh_module
from goblet_node.fill.failures import Refused
from goblet_node.fill.policy import MirrorPolicy, Standing, TooLargeToMirror
from goblet_node.fill.refs import MIRRORED, Listing
from goblet_node.mirror.log import Mirror
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.requests import Fetch
from goblet_testing import repos
from goblet_testing.faults_on_cue import Fault
from goblet_testing.gitcli import git
from goblet_testing.housing import REPO, housing
from goblet_testing.origin import Origin

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repos.make_repo(tmp_path_factory.mktemp("template") / "repo.git", commits=20)


@pytest.fixture
def origin(template: Path, tmp_path: Path) -> Iterator[Origin]:
    shutil.copytree(template, tmp_path / "root" / f"{REPO}.git")
    with Origin(tmp_path / "root") as origin:
        yield origin


async def test_a_mirror_follows_its_origin(origin: Origin, tmp_path: Path) -> None:
    async with housing(origin, tmp_path) as house:
        await house.refresh()
        assert house.holds_what_the_origin_has()
        repos.commit(house.repo, files={"new": "new\n"})
        repos.add_tag(house.repo, "v9")
        await house.refresh()
        assert house.holds_what_the_origin_has()
        assert len(house.mirror.segments) == 2
        assert house.mirror.current.is_clean
        repos.force_push(house.repo)
        repos.delete_branch(house.repo, "side/0")
        await house.refresh()
        assert house.holds_what_the_origin_has()
        assert not house.mirror.current.is_clean


async def test_what_is_known_is_not_sent_again(origin: Origin, tmp_path: Path) -> None:
    async with housing(origin, tmp_path) as house:
        await house.refresh()
        whole = house.mirror.segments[0].objects
        repos.commit(house.repo, files={"new": "new\n"})
        await house.refresh()
        assert house.mirror.segments[1].objects == 3 < whole
        packs = len(origin.packs())
        git("branch", "again", "main", cwd=house.repo)  # a new name for a known commit
        await house.refresh()
        assert house.holds_what_the_origin_has()
        assert len(origin.packs()) == packs
        assert len(house.mirror.segments) == 2


async def test_many_refreshes_at_once_are_one(origin: Origin, tmp_path: Path) -> None:
    async with housing(origin, tmp_path) as house:
        origin.hold_fetches()
        first = house.refresher.start(house.grant)
        assert first is not None
        await origin.until_held(1)
        assert all(house.refresher.start(house.grant) is first for _ in range(5))
        origin.release()
        await first.ended.wait()
        assert house.refresher.flying(house.grant.key) is None
        assert len(origin.packs()) == 1


async def test_a_refresh_that_fails_leaves_the_mirror_and_is_not_tried_again_at_once(
    origin: Origin, tmp_path: Path
) -> None:
    async with housing(origin, tmp_path) as house:
        await house.refresh()
        before = house.mirror
        repos.commit(house.repo, files={"new": "new\n"})
        origin.misbehave(Fault(cut_after=100), kind="fetch")
        with pytest.raises(UpstreamError):
            await house.refresh()
        assert house.mirror is before
        assert house.refresher.start(house.grant) is None
        assert list((tmp_path / "cache/scratch").iterdir()) == []


async def test_a_pack_that_upstream_damaged_is_not_taken_in(origin: Origin, tmp_path: Path) -> None:
    async with housing(origin, tmp_path) as house:
        await house.refresh()
        before = house.mirror
        origin.misbehave(Fault(corrupt_pack_at=40), kind="fetch")
        repos.commit(house.repo, files={"new": "new\n"})
        with pytest.raises(UpstreamError):
            await house.refresh()
        assert house.mirror is before


async def test_an_object_is_brought_by_its_name_and_counts_as_an_orphan(
    origin: Origin, tmp_path: Path
) -> None:
    async with housing(origin, tmp_path) as house:
        oid = ObjectId(repos.commit(house.repo, "pull", files={"x": "x\n"}, parent="main").encode())
        git("update-ref", "refs/pull/1/head", oid.decode(), cwd=house.repo)
        repos.delete_branch(house.repo, "pull")
        await house.refresh()
        assert house.mirror.missing([oid]) == [oid]
        await house.refresher.bring(house.grant, [oid])
        assert house.mirror.missing([oid]) == []
        assert house.mirror.current.orphans == (oid,)
        git("branch", "pull", oid.decode(), cwd=house.repo)
        await house.refresh()
        assert house.mirror.current.is_clean


async def test_what_nobody_has_cannot_be_brought_and_holds_nothing_back(
    origin: Origin, tmp_path: Path
) -> None:
    async with housing(origin, tmp_path) as house:
        await house.refresh()
        with pytest.raises(UpstreamError, match="not our ref"):
            await house.refresher.bring(house.grant, [ObjectId(b"1" * 40)])
        repos.commit(house.repo, files={"new": "new\n"})
        await house.refresh()
        assert house.holds_what_the_origin_has()


async def test_a_refresh_and_a_bring_at_once_are_taken_in_one_on_top_of_the_other(
    origin: Origin, tmp_path: Path
) -> None:
    async with housing(origin, tmp_path) as house:
        await house.refresh()
        oid = ObjectId(repos.commit(house.repo, "pull", files={"x": "x\n"}, parent="main").encode())
        git("update-ref", "refs/pull/1/head", oid.decode(), cwd=house.repo)
        repos.delete_branch(house.repo, "pull")
        repos.commit(house.repo, files={"new": "new\n"})
        origin.hold_fetches()
        async with trio.open_nursery() as both:
            both.start_soon(house.refresh)
            both.start_soon(house.refresher.bring, house.grant, [oid])
            await origin.until_held(2)
            origin.release()
        assert house.holds_what_the_origin_has()
        assert house.mirror.missing([oid]) == []
        assert len(house.mirror.segments) == 3


async def test_a_damaged_mirror_is_dropped_and_its_successor_is_not(
    origin: Origin, tmp_path: Path
) -> None:
    """A slow reader of the old log meets the damage after the new one was filled."""
    async with housing(origin, tmp_path) as house:
        await house.refresh()
        old = house.mirror
        await house.refresher.drop(old, MirrorDamaged("seen"))
        assert house.store.get(house.grant.key) is None
        repos.commit(house.repo, files={"new": "new\n"})
        await house.refresh()
        await house.refresher.drop(old, MirrorDamaged("seen late"))
        assert house.holds_what_the_origin_has()


async def test_what_a_client_was_told_is_what_a_cold_fetch_asks_for(
    origin: Origin, tmp_path: Path
) -> None:
    """Somebody pushes between a client's ls-refs and its fetch."""
    async with housing(origin, tmp_path) as house:
        told = await house.desk.ask(house.grant, None)
        await house.refresher.heard(house.grant, told)
        repos.commit(house.repo, files={"new": "new\n"})
        origin.clear_log()
        await house.refresh()
        assert [seen.kind for seen in origin.log] == ["fetch"]
        assert house.mirror.tips == told.tips


async def test_a_listing_that_was_begun_earlier_and_comes_later_sets_no_ref_back(
    origin: Origin, tmp_path: Path
) -> None:
    async with housing(origin, tmp_path) as house:
        older = await house.desk.ask(house.grant, MIRRORED)
        await house.refresh()
        repos.commit(house.repo, files={"new": "new\n"})
        newer = await house.desk.ask(house.grant, MIRRORED)
        await house.heard(newer)
        assert house.mirror.tips == newer.tips
        await house.heard(older)
        assert house.mirror.tips == newer.tips != older.tips
        await house.heard(await house.desk.ask(house.grant, MIRRORED))
        await house.heard(older)
        assert house.holds_what_the_origin_has()


async def test_a_push_that_is_heard_of_during_a_refresh_is_brought_by_the_next(
    origin: Origin, tmp_path: Path
) -> None:
    """Whoever asks for it waits for that one, and does not have it fetched by its name."""
    async with housing(origin, tmp_path) as house:
        await house.refresh()
        repos.commit(house.repo, files={"new": "new\n"})
        origin.hold_fetches()
        await house.refresher.heard(
            house.grant, first := await house.desk.ask(house.grant, MIRRORED)
        )
        flying = house.refresher.flying(house.grant.key)
        await origin.until_held(1)
        assert house.refresher.start(house.grant) is flying
        assert house.refresher.start(house.grant, first) is flying
        repos.commit(house.repo, files={"newer": "newer\n"})
        newer = await house.desk.ask(house.grant, MIRRORED)
        await house.refresher.heard(house.grant, newer)
        await house.refresher.heard(house.grant, first)
        following = house.refresher.start(house.grant)
        assert following is not None
        assert following is not flying
        assert house.refresher.start(house.grant, newer) is following
        origin.release()
        await following.ended.wait()
        assert following.error is None
        assert house.mirror.tips == newer.tips
        assert house.refresher.flying(house.grant.key) is None
        assert house.mirror.current.is_clean


async def test_when_a_refresh_fails_so_does_the_one_that_waited_for_it(
    origin: Origin, tmp_path: Path
) -> None:
    async with housing(origin, tmp_path) as house:
        await house.refresh()
        repos.commit(house.repo, files={"new": "new\n"})
        origin.misbehave(Fault(cut_after=100), kind="fetch")
        first = await house.desk.ask(house.grant, MIRRORED)
        repos.commit(house.repo, files={"newer": "newer\n"})
        newer = await house.desk.ask(house.grant, MIRRORED)
        flying = house.refresher.start(house.grant, first)
        following = house.refresher.start(house.grant, newer)
        assert flying is not None
        assert following is not None
        await following.ended.wait()
        assert isinstance(following.error, UpstreamError)
        assert following.error is flying.error
        assert house.refresher.start(house.grant) is None


async def test_a_disk_that_refuses_does_not_keep_upstreams_refs_from_who_asked(
    origin: Origin, tmp_path: Path
) -> None:
    async with housing(origin, tmp_path) as house:
        await house.refresh()
    async with housing(origin, tmp_path) as house:
        refs_file = house.mirror.directory / house.mirror.current.refs_file
        refs_file.unlink()
        refs_file.mkdir()
        await house.heard(await house.desk.ask(house.grant, MIRRORED))
        assert house.store.get(house.grant.key) is not None


async def test_a_credential_that_is_refused_meanwhile_holds_back_nobody_elses_refresh(
    origin: Origin, tmp_path: Path
) -> None:
    async with housing(origin, tmp_path) as house:
        await house.refresh()
        repos.commit(house.repo, files={"new": "new\n"})
        origin.misbehave(Fault(status=403), kind="fetch")
        first = await house.desk.ask(house.grant, MIRRORED)
        repos.commit(house.repo, files={"newer": "newer\n"})
        newer = await house.desk.ask(house.grant, MIRRORED)
        origin.clear_log()
        flying = house.refresher.start(house.grant, first)
        following = house.refresher.start(house.grant, newer)
        assert flying is not None
        assert following is not None
        await following.ended.wait()
        assert isinstance(flying.error, Refused)
        assert [seen.kind for seen in origin.log].count("fetch") == 2
        origin.behave()
        await house.refresh()
        assert house.holds_what_the_origin_has()


async def test_an_eviction_that_had_begun_does_not_take_the_mirror_from_a_refresh(
    origin: Origin, tmp_path: Path
) -> None:
    """Without it, the thin pack that comes is good for nothing."""
    async with housing(origin, tmp_path) as house:
        await house.refresh()
        repos.commit(house.repo, files={"new": "new\n"})
        origin.hold_fetches()
        refresh = house.refresher.start(house.grant)
        assert refresh is not None
        await origin.until_held(1)
        assert house.store.evict(house.grant.key, only=house.mirror) == 0
        origin.release()
        await refresh.ended.wait()
        assert refresh.error is None
        assert house.holds_what_the_origin_has()


async def test_a_mirror_that_was_evicted_while_refs_were_compared_is_not_fetched_anew(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is cold again, and being listed is not being cloned."""
    async with housing(origin, tmp_path) as house:
        await house.refresh()
        mirror = house.mirror
        repos.commit(house.repo, files={"new": "new\n"})
        listing = await house.desk.ask(house.grant, MIRRORED)
        agree = refresh_module._agree

        def evicting(mirror: Mirror, listing: Listing) -> bool:
            assert house.store.evict(mirror.key, only=mirror)
            return agree(mirror, listing)

        monkeypatch.setattr(refresh_module, "_agree", evicting)
        await house.heard(listing)
        assert house.store.get(mirror.key) is None


async def test_a_listing_is_not_held_in_memory_by_the_mirror_that_agrees_with_it(
    origin: Origin, tmp_path: Path
) -> None:
    """A million refs are 300 MB, which the desk counts and lets go of."""
    async with housing(origin, tmp_path) as house:
        await house.refresh()
        listing = await house.desk.ask(house.grant, None)
        await house.refresher.heard(house.grant, listing)
        assert house.refresher.flying(house.grant.key) is None
        assert gc.get_referrers(listing.mirrored) == [listing]


async def test_what_the_mirror_holds_already_starts_nothing_also_after_a_restart(
    origin: Origin, tmp_path: Path
) -> None:
    """Then its refs are read from the disk to be compared."""
    for _ in range(2):
        async with housing(origin, tmp_path) as house:
            if house.store.get(house.grant.key) is None:
                await house.refresh()
            for _ in range(2):
                listing = await house.desk.ask(house.grant, MIRRORED)
                await house.refresher.heard(house.grant, listing)
                assert house.refresher.flying(house.grant.key) is None


async def test_a_repository_that_the_policy_excludes_is_not_fetched(
    origin: Origin, tmp_path: Path
) -> None:
    async with housing(origin, tmp_path, policy=MirrorPolicy(never=["origin.test/*"])) as house:
        assert house.refresher.start(house.grant) is None
        assert house.refresher.standing(house.grant.key, Fetch(done=True)) is Standing.NEVER


async def test_too_many_refs_are_not_fetched_and_not_tried_again_at_once(
    origin: Origin, tmp_path: Path
) -> None:
    async with housing(origin, tmp_path, policy=MirrorPolicy(max_refs=3)) as house:
        with pytest.raises(TooLargeToMirror):
            await house.refresh()
        assert origin.packs() == []
        assert house.refresher.start(house.grant) is None
        standing = house.refresher.standing(house.grant.key, Fetch(done=True))
        assert standing is Standing.TOO_LARGE


async def test_forwarded_fetches_count_once_a_job(origin: Origin, tmp_path: Path) -> None:
    async with housing(origin, tmp_path, policy=MirrorPolicy(after=2)) as house:
        key = house.grant.key
        told = await house.desk.ask(house.grant, MIRRORED)
        clone = Fetch(wants=(min(told.tips),), filter_spec="blob:none", done=True)
        lazy = Fetch(wants=(ObjectId(b"1" * 40),), filter_spec="blob:none", done=True)
        for fetch in (clone, lazy, lazy, lazy):
            house.refresher.note_forwarded(key, fetch)
            assert house.refresher.standing(key, lazy) is Standing.SELDOM
        assert house.refresher.standing(key, clone) is Standing.OFTEN


async def test_a_stopping_node_ends_its_refreshes(origin: Origin, tmp_path: Path) -> None:
    async with housing(origin, tmp_path) as house:
        origin.misbehave(Fault(stall_after=1000), kind="fetch")
        refresh = house.refresher.start(house.grant)
        assert refresh is not None
        await origin.until_held(1)
    assert refresh.ended.is_set()
    assert refresh.spool is not None
    assert refresh.spool.error is not None
    assert list((tmp_path / "cache/scratch").iterdir()) == []
    origin.behave()


async def test_it_is_known_when_upstream_last_said_what_a_mirror_has(
    origin: Origin, tmp_path: Path
) -> None:
    async with housing(origin, tmp_path) as house:
        await house.refresh()
        first = house.refresher.confirmed(house.mirror)
        assert first is not None
        listing = await house.desk.ask(house.grant, MIRRORED)
        await house.heard(listing)
        assert house.refresher.confirmed(house.mirror) == listing.begun > first
        before = house.mirror
        repos.commit(house.repo, files={"new": "new\n"})
        await house.refresh()
        after = house.refresher.confirmed(house.mirror)
        assert after is not None
        assert after > listing.begun
        assert house.refresher.confirmed(before) is None, "its refs are those of another time"

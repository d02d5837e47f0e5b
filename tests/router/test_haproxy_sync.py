"""Following while something is broken; with a HAProxy that runs, tests/system does."""

import logging
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from goblet_router.haproxy.placement import Placement
from goblet_router.haproxy.render import CONFIG, render
from goblet_router.haproxy.runtime import RuntimeApi
from goblet_router.haproxy.settings import HAProxySettings
from goblet_router.haproxy.sync import Sync
from goblet_shared.members import members_of


class Turning:
    """A placement that a test sets."""

    def __init__(self, placement: Placement | None = None) -> None:
        self.placement = placement
        self.turned = trio.Event()

    async def changed(self) -> None:
        await self.turned.wait()


PLACEMENT = Placement.over(members_of({"a": "http://127.0.0.1:81", "b": "http://127.0.0.1:82"}))


def sync_of(following: Turning, directory: Path) -> tuple[Sync, HAProxySettings]:
    settings = HAProxySettings(socket=directory / "absent", sync_seconds=2.0)
    api = RuntimeApi(settings.socket)
    return Sync(following, api, directory=directory / "out", settings=settings), settings


async def test_nothing_is_written_as_long_as_nothing_is_known(tmp_path: Path) -> None:
    sync, _ = sync_of(Turning(), tmp_path)
    assert not await sync.turn()
    assert not await trio.Path(tmp_path / "out").exists()


async def test_files_are_written_also_while_haproxy_does_not_run_and_that_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    sync, settings = sync_of(Turning(PLACEMENT), tmp_path)
    assert not await sync.turn()
    assert not await sync.turn()
    files = {file.name: file.read_text() for file in (tmp_path / "out").iterdir()}
    assert files == render(PLACEMENT, settings)
    wrote, missing = caplog.messages
    assert wrote.startswith(f"wrote {CONFIG}, rank0.map, ")
    assert "is HAProxy running, with the rendered file?; trying again" in missing


async def test_a_disk_that_fails_does_not_keep_haproxy_from_being_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "out").write_text("where the files should go")
    sync, _ = sync_of(Turning(PLACEMENT), tmp_path)
    assert not await sync.turn()
    assert "cannot be written" in caplog.messages[0]
    assert "is HAProxy running" in caplog.messages[1]


async def test_a_name_that_cannot_be_resolved_is_told_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = {"a": "http://127.0.0.1:81", "b": "http://b.invalid:82"}
    sync, _ = sync_of(Turning(Placement.over(members_of(nodes))), tmp_path)
    await sync.turn()
    assert sum("b.invalid cannot be resolved" in message for message in caplog.messages) == 1


class Asked(Turning):
    """Knows no placement, and notes when it is asked for one."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.turned = trio.Event()

    @property
    def placement(self) -> None:  # type: ignore[override]
        self.times.append(trio.current_time())


async def test_a_change_is_followed_at_once_and_haproxy_looked_at_again_in_time(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    following = Asked()
    sync, settings = sync_of(following, tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sync.run)
        await trio.sleep(0.5)
        following.turned.set()
        following.turned = trio.Event()
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    begun = following.times[0]
    pause = settings.sync_seconds
    assert [time - begun for time in following.times] == pytest.approx(
        [0, 0.5, 0.5 + pause, 0.5 + 2 * pause]
    )

"""Follows a placement: the files on disk and a running HAProxy are brought to it at each change."""

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from goblet_router.haproxy.files import write_files
from goblet_router.haproxy.following import Following
from goblet_router.haproxy.placement import Placement
from goblet_router.haproxy.reconcile import reconcile, told
from goblet_router.haproxy.render import address_of, render
from goblet_router.haproxy.runtime import HAProxyUnreachable, RuntimeApi
from goblet_router.haproxy.settings import HAProxySettings
from goblet_shared.contract import NodeName
from goblet_shared.errors import GobletError

_log = logging.getLogger(__name__)

# Some hundred commands, each of which a HAProxy that is well answers at once.
_TURN_LIMIT = 30.0
# Names that take longer are asked for again in the next turn.
_NAMES_LIMIT = 5.0


class Sync:
    """Keeps the files in `directory` and a running HAProxy at what `following` says."""

    def __init__(
        self, following: Following, api: RuntimeApi, *, directory: Path, settings: HAProxySettings
    ) -> None:
        self._following = following
        self._api = api
        self._directory = directory
        self._settings = settings
        # All mutable state: what was complained of last, so that it is logged once, and
        # the addresses that names had last, so that one of several is kept.
        self._trouble: dict[str, str] = {}
        self._addresses: dict[NodeName, str] = {}

    async def run(self) -> None:
        """Follow until cancelled. Trouble is logged and tried again; it ends nothing."""
        while True:
            await self.turn()
            with trio.move_on_after(self._settings.sync_seconds):
                await self._following.changed()

    async def turn(self) -> bool:
        """Write the files and bring HAProxy to the placement of now; say whether all of it is so.

        The files come first: a HAProxy that starts in this moment starts right. A disk
        that fails does not keep the running HAProxy from following.
        """
        placement = self._following.placement
        if placement is None:
            return False
        written = await self._try("files", self._write, placement)
        applied = await self._try("haproxy", self._apply, placement)
        return written and applied

    async def _write(self, placement: Placement) -> None:
        files = render(placement, self._settings)
        changed = await trio.to_thread.run_sync(write_files, self._directory, files)
        if changed:
            _log.info("wrote %s in %s", ", ".join(changed), self._directory)

    async def _apply(self, placement: Placement) -> None:
        await self._resolve(placement)
        try:
            with trio.fail_after(_TURN_LIMIT):
                done = await reconcile(
                    self._api, placement, addresses=self._addresses, settings=self._settings
                )
        except trio.TooSlowError:
            raise HAProxyUnreachable(
                f"HAProxy was not brought up to date within {_TURN_LIMIT:g} s"
            ) from None
        for step in done:
            _log.info("%s", told(step))

    async def _resolve(self, placement: Placement) -> None:
        """Learn the members' addresses; a name that cannot be resolved now keeps what it had."""
        hosts = {member.name: address_of(member) for member in placement.members}
        for gone in self._addresses.keys() - hosts.keys():
            del self._addresses[gone]
        with trio.move_on_after(_NAMES_LIMIT):
            async with trio.open_nursery() as nursery:
                for name, (host, port) in hosts.items():
                    nursery.start_soon(self._resolve_one, name, host, port)

    async def _resolve_one(self, name: NodeName, host: str, port: int) -> None:
        try:
            found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
        except OSError as exc:
            self._complain(f"address of {name}", f"{host} cannot be resolved: {exc}")
            return
        self._trouble.pop(f"address of {name}", None)
        addresses = [str(info[4][0]) for info in found]
        if self._addresses.get(name) not in addresses:
            self._addresses[name] = addresses[0]

    async def _try(
        self, what: str, act: Callable[[Placement], Awaitable[None]], placement: Placement
    ) -> bool:
        try:
            await act(placement)
        except GobletError as exc:
            self._complain(what, str(exc))
            return False
        if self._trouble.pop(what, None) is not None:
            _log.info("%s: well again", what)
        return True

    def _complain(self, what: str, why: str) -> None:
        if self._trouble.get(what) != why:
            _log.warning("%s; trying again", why)
        self._trouble[what] = why

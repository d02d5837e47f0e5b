"""Where `sync` learns what HAProxy should place by: a watch of its own, or a router's ring."""

import json
import logging
from typing import Protocol

import httpx
import trio

from goblet_router.haproxy.placement import Placement
from goblet_shared.contract import NodeName
from goblet_shared.errors import GobletError
from goblet_shared.members import Member, members_of
from goblet_shared.ring import SLOTS, Ring, ring_id
from goblet_shared.watch import MemberWatch

_log = logging.getLogger(__name__)

# A ring of a thousand nodes is some 100 KB.
_MAX_PAGE = 4 * 1024 * 1024


class NoPlacement(GobletError):
    """The members cannot be learned."""


class Following(Protocol):
    """Knows the placement of now."""

    @property
    def placement(self) -> Placement | None:
        """What HAProxy should place by; None as long as nothing is known."""

    async def changed(self) -> None:
        """Return when the placement is another than it was at the call."""


class WatchedMembers:
    """Follows a watch that runs in this process."""

    def __init__(self, watch: MemberWatch) -> None:
        self._watch = watch

    @property
    def placement(self) -> Placement | None:
        """What HAProxy should place by; None as long as nobody is known."""
        if not self._watch.ring.members:
            return None
        members = tuple(Member(name=view.name, url=view.url) for view in self._watch.views)
        return Placement(members=members, ring=self._watch.ring)

    async def changed(self) -> None:
        """Return when members, states or ring have changed."""
        await self._watch.changed()


class RouterRing:
    """Follows the page /-/ring of a router. What the router cannot say now stays as it was."""

    def __init__(
        self, url: str, client: httpx.AsyncClient, *, interval: float, patience: float
    ) -> None:
        self._page = f"{url}/-/ring"
        self._client = client
        self._interval = interval
        self._patience = patience
        self._placement: Placement | None = None
        self._trouble = ""
        self._turned = trio.Event()

    @property
    def placement(self) -> Placement | None:
        """The ring that the router showed last."""
        return self._placement

    async def changed(self) -> None:
        """Return when the router shows another ring or other addresses."""
        await self._turned.wait()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look again and again; started after the first look, whatever came of it."""
        await self._look()
        task_status.started()
        while True:
            await trio.sleep(self._interval)
            await self._look()

    async def look(self) -> Placement:
        """Return the placement that the router shows now.

        Raises:
            NoPlacement: it does not answer, or places by other rules than this version.
        """
        try:
            with trio.fail_after(self._patience):
                answer = await self._client.get(self._page)
        except (httpx.HTTPError, trio.TooSlowError) as exc:
            why = str(exc) or type(exc).__name__
            raise NoPlacement(f"the router's {self._page} does not answer: {why}") from None
        if answer.status_code != 200 or len(answer.content) > _MAX_PAGE:
            raise NoPlacement(f"the router's {self._page} answers {answer.status_code}")
        return placement_in(answer.content, page=self._page)

    async def _look(self) -> None:
        try:
            placement = await self.look()
        except NoPlacement as exc:
            if str(exc) != self._trouble:
                _log.warning("%s; HAProxy stays as it is", exc)
            self._trouble = str(exc)
            return
        self._trouble = ""
        if placement != self._placement:
            self._placement = placement
            # A trio.Event cannot be cleared: whoever waits holds the old one.
            self._turned.set()
            self._turned = trio.Event()


def placement_in(text: bytes, *, page: str) -> Placement:
    """Return the placement that a router's /-/ring shows; `page` names it in errors.

    Raises:
        NoPlacement: it shows none, or places by other rules than this version.
    """
    try:
        shown = json.loads(text)
        members = members_of({each["name"]: each["url"] for each in shown["members"]})
        ring = Ring.of(NodeName(each["name"]) for each in shown["members"] if each["is_on_ring"])
        said, slots = shown["ring"], shown["slots"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise NoPlacement(f"{page} does not show a ring: {exc!r}") from None
    if not ring.members:
        raise NoPlacement(f"{page} shows a ring without members")
    if (said, slots) != (ring_id(ring), SLOTS):
        raise NoPlacement(
            f"{page} shows ring {said!r}, which is {ring_id(ring)!r} here: "
            "use the version of goblet that the router has"
        )
    return Placement(members=members, ring=ring)

"""What one answer says before its pack, and whether the pack follows. Pure: the caller looks.

The rules are git 2.39's upload-pack.c: process_haves_and_send_acks and upload_pack_v2
for version 2, receive_needs and get_common_commits, without state, for versions 0 and
1. Two differences, both on purpose. A have that a request repeats is acknowledged
once. And a client of version 0 that chose neither kind of multi_ack hears one ACK, as
`gitprotocol-pack` promises it: upload-pack repeats it while each further have is a
parent of the first.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TypeAlias

from goblet_node.wire.answers import NAK, READY, AckMode, Dialect, Status, Turn, V0Dialect, ack
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.requests import Fetch

Ready: TypeAlias = Callable[[Sequence[ObjectId]], bool]
"""Whether every want reaches one of these haves, so that to hear of more would save little.

It must stay true when haves are added: not every beginning of the haves is asked about.
git's own (ok_to_give_up) counts the parents of haves as haves, passes wants that are no
commits after peeling, and walks into no parent that is older than the oldest have.
"""

_COMMON = {
    AckMode.DETAILED: Status.COMMON,
    AckMode.MULTI_ACK: Status.CONTINUE,
    AckMode.NONE: Status.PLAIN,
}


def negotiate(
    fetch: Fetch,
    dialect: Dialect,
    *,
    common: Sequence[ObjectId],
    shallow: Sequence[ObjectId],
    ready: Ready,
) -> Turn:
    """Return the turn that answers `fetch`, from a client that speaks `dialect`.

    `common` and `shallow` are the haves and the shallow commits of the client that
    the mirror holds, in the order of the request. `ready` is never asked about no
    haves, is not asked where the answer does not depend on it, and at most once in
    version 2 and 2 + log2(len(common)) times in version 0.
    """
    if isinstance(dialect, V0Dialect):
        return _v0_turn(fetch, dialect, common=common, ready=ready)
    return _v2_turn(fetch, common=common, shallow=shallow, ready=ready)


def foregone(fetch: Fetch, dialect: Dialect) -> Turn | None:
    """Return the turn that answers `fetch` whatever else the mirror holds, if that carries a pack.

    So the head can be sent before anybody looked for objects. The mirror holds all
    `shallow` commits of the request. None where the turn depends on what is found: on
    where a depth cuts history, or on which haves are here.
    """
    if fetch.has_depth:
        return None
    if fetch.haves and (isinstance(dialect, V0Dialect) or not fetch.done):
        return None
    turn = negotiate(fetch, dialect, common=(), shallow=fetch.shallow, ready=lambda _: False)
    return turn if turn.has_pack else None


def _v2_turn(
    fetch: Fetch, *, common: Sequence[ObjectId], shallow: Sequence[ObjectId], ready: Ready
) -> Turn:
    if fetch.wants_nothing and not fetch.wait_for_done:
        return Turn()
    tells_boundary = fetch.has_depth or bool(shallow)
    if fetch.done or not fetch.haves:
        return Turn(tells_boundary=tells_boundary, has_pack=True)
    lines = [ack(oid) for oid in common] or [NAK]
    if not common or fetch.wait_for_done or not ready(common):
        return Turn(acknowledgments=tuple(lines))
    return Turn(acknowledgments=(*lines, READY), tells_boundary=tells_boundary, has_pack=True)


def _v0_turn(fetch: Fetch, dialect: V0Dialect, *, common: Sequence[ObjectId], ready: Ready) -> Turn:
    # The boundary opens every answer to a request for depth, an answer without a pack
    # too: the client sends its wants with each POST and reads the boundary after each.
    if fetch.wants_nothing or not dialect.negotiates:
        return Turn(tells_boundary=fetch.has_depth)
    readiness = _Readiness(common, ready)
    lines, said_ready = _each_have(fetch, dialect.acks, common, readiness)
    if fetch.done:
        has_pack = True
        lines += _last_word(dialect.acks, common)
    else:
        has_only_common = len(common) == len(fetch.haves)
        if dialect.acks is AckMode.DETAILED and has_only_common and readiness.at(len(common)):
            lines.append(ack(common[-1], Status.READY))
            said_ready = True
        if dialect.acks is not AckMode.NONE or not common:
            lines.append(NAK)
        has_pack = dialect.no_done and said_ready
        if has_pack:
            lines.append(ack(common[-1]))
    return Turn(acknowledgments=tuple(lines), tells_boundary=fetch.has_depth, has_pack=has_pack)


def _each_have(
    fetch: Fetch, mode: AckMode, common: Sequence[ObjectId], readiness: "_Readiness"
) -> tuple[list[bytes], bool]:
    """Return what is said of the haves one by one, and whether the word "ready" was said."""
    held = frozenset(common)
    lines: list[bytes] = []
    met = 0
    said_ready = False
    for oid in fetch.haves:
        if oid in held:
            met += 1
            if mode is not AckMode.NONE or met == 1:
                lines.append(ack(oid, _COMMON[mode]))
        elif mode is not AckMode.NONE and readiness.at(met):
            # A have that is not here, and it does not matter: acknowledging it all
            # the same makes the client stop following that line of history.
            said_ready = mode is AckMode.DETAILED
            lines.append(ack(oid, Status.READY if said_ready else Status.CONTINUE))
    return lines, said_ready


def _last_word(mode: AckMode, common: Sequence[ObjectId]) -> list[bytes]:
    """Return what stands between the acknowledgments and the pack after `done`."""
    if not common:
        return [NAK]
    return [] if mode is AckMode.NONE else [ack(common[-1])]


class _Readiness:
    """From which have on the client could stop, found with few questions.

    upload-pack walks the history again after each unknown have; a request of 100,000
    haves, every other one unknown, must not cost 50,000 walks.
    """

    def __init__(self, common: Sequence[ObjectId], ready: Ready) -> None:
        self._common = common
        self._ready = ready

    def at(self, count: int) -> bool:
        """Whether the first `count` of the common haves suffice."""
        if count == 0 or not self._all_suffice:
            return False
        return count == len(self._common) or count >= self._fewest

    @cached_property
    def _all_suffice(self) -> bool:
        return self._ready(self._common)

    @cached_property
    def _fewest(self) -> int:
        counts = range(1, len(self._common))
        return 1 + bisect_left(counts, True, key=lambda count: self._ready(self._common[:count]))

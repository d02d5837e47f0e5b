"""One mirror on its way here: its files, fetched from whoever has them, and checked.

The files of a pack log are immutable, and a pack's name tells its checksum. So a transfer
that breaks off goes on where it stopped, with the same peer or with another one, and
with one whose log has changed meanwhile it keeps what both logs have.
"""

import os
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import trio

from goblet_node.errors import DiskFailed, MirrorDamaged
from goblet_node.fill.pace import Pace
from goblet_node.fill.peers import Offer, PeerFailed, PeerMoved, Peers
from goblet_node.fill.room import Claim
from goblet_node.metrics import NodeMetrics
from goblet_node.mirror.adopt import check_log, check_pack, described
from goblet_node.mirror.log import Segment
from goblet_node.mirror.manifest import Manifest
from goblet_shared.contract import NodeName

# How often in a row a file is asked for without a byte of it coming.
_TRIES = 3
_PAUSE = 0.2
# How often a peer's log may change while it is copied: small segments are joined at
# intervals that are long beside a copy.
_OFFERS = 3
# What is gathered before a thread writes it.
_WRITTEN_AT_ONCE = 1 << 20


class Speed:
    """How fast a transfer goes. Whoever waits for it may hurry it at any time."""

    def __init__(self, pace: Pace | None) -> None:
        """Go at a pace that is shared with others; None is as fast as it can."""
        self._pace = pace
        self._hurried = trio.Event()
        if pace is None:
            self.hurry()

    def hurry(self) -> None:
        """Let it go as fast as it can from now on."""
        self._hurried.set()

    async def passed(self, bytes: int) -> None:
        """Return when more may come after these."""
        if self._pace is not None and not self._hurried.is_set():
            with trio.move_on_at(self._pace.draw(bytes)):
                await self._hurried.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A mirror whose files lie in a scratch folder and are sound; `refs` is its refs file."""

    manifest: Manifest
    refs: bytes
    used_at: float


class Transfer:
    """Brings the files of one repository's mirror into `scratch`, from one peer after another."""

    def __init__(
        self,
        scratch: Path,
        *,
        peers: Peers,
        claim: Claim,
        speed: Speed,
        accept: Callable[[Offer], None],
        metrics: NodeMetrics,
    ) -> None:
        """Have `claim` be what the files take; `accept` raises if an offer is not to be had."""
        self._scratch = scratch
        self._peers = peers
        self._claim = claim
        self._speed = speed
        self._accept = accept
        self._metrics = metrics
        # All mutable state: how many bytes of each file are here, and which packs are sound.
        self._here: dict[str, int] = {}
        self._sound: set[str] = set()

    async def fetch(self, node: NodeName) -> Received:
        """Return the mirror that `node` holds, once all of it is here and was checked.

        Raises:
            PeerFailed: `node` does not give all of it, or has none.
            MirrorDamaged: What it gives is not sound.
            NoRoom: There is no room for it.
            DiskFailed: The disk refused.
            GobletError: What `accept` raises.
        """
        # A pack's name tells what it holds; what lies beside it may differ from peer to peer.
        await self._forget_tables()
        for _ in range(_OFFERS):
            offer = await self._peers.offer(node, self._claim.key)
            if offer is None:
                raise PeerFailed(f"{node} holds no mirror of {self._claim.key} any more")
            self._accept(offer)
            try:
                return await self._fetch(node, offer)
            except PeerMoved:
                continue
        raise PeerFailed(f"{node} changes its mirror of {self._claim.key} all the time")

    async def _fetch(self, node: NodeName, offer: Offer) -> Received:
        key = self._claim.key
        manifest = await trio.to_thread.run_sync(
            lambda: described(offer.manifest, offer.refs, key=key, directory=self._scratch)
        )
        named = {path.name for segment in manifest.segments for path in segment.files}
        await self._forget([name for name in self._here if name not in named])
        await self._claim.grow_to(offer.bytes)
        self._claim.shrink_to(offer.bytes)
        for segment in manifest.segments:
            await self._fetch_segment(node, segment, offer.sizes)
        try:
            sound = await trio.to_thread.run_sync(check_log, manifest, offer.refs)
        except MirrorDamaged:
            # The packs are what their names say, so it is what lies beside them.
            await self._forget_tables()
            raise
        return Received(manifest=sound, refs=offer.refs, used_at=offer.used_at)

    async def _fetch_segment(
        self, node: NodeName, segment: Segment, sizes: Mapping[str, int]
    ) -> None:
        if sizes.get(segment.pack.name) != segment.bytes:
            raise MirrorDamaged(f"{segment.pack.name!r} is not as large as its manifest says")
        for path in segment.files:
            if path.name not in sizes:
                raise PeerFailed(f"{node} offers a mirror without {path.name}")
            await self._fetch_file(node, path, sizes[path.name])
        if segment.pack.name not in self._sound:
            try:
                await trio.to_thread.run_sync(check_pack, segment)
            except MirrorDamaged:
                await self._forget([segment.pack.name])
                raise
            self._sound.add(segment.pack.name)

    async def _fetch_file(self, node: NodeName, path: Path, size: int) -> None:
        """Have all of a file here, going on where it broke off as long as some of it comes."""
        failures = 0
        while (begin := self._here.get(path.name, 0)) < size:
            try:
                await self._fetch_rest(node, path, size)
            except PeerMoved:
                raise
            except PeerFailed:
                failures = 1 if self._here.get(path.name, 0) > begin else failures + 1
                if failures == _TRIES:
                    raise
                # Full jitter: several copies broke off together if the peer did.
                await trio.sleep(random.uniform(0, _PAUSE * 2**failures))

    async def _fetch_rest(self, node: NodeName, path: Path, size: int) -> None:
        name, begin = path.name, self._here.get(path.name, 0)
        gathered = bytearray()
        left = size - begin
        try:
            async with self._peers.file(
                node, self._claim.key, name, begin=begin, size=size
            ) as pieces:
                async for piece in pieces:
                    if len(piece) > left:
                        raise PeerFailed(f"{node} sends more than the {size} bytes of {name}")
                    left -= len(piece)
                    gathered += piece
                    self._metrics.peer_received_bytes.inc(len(piece))
                    if len(gathered) >= _WRITTEN_AT_ONCE:
                        gathered = await self._keep(path, gathered)
                    await self._speed.passed(len(piece))
            if left:
                raise PeerFailed(f"{node} ended {name} before its end")
        finally:
            # What came is not asked for again; who is cancelled asks for nothing more.
            await self._keep(path, gathered)

    async def _keep(self, path: Path, data: bytearray) -> bytearray:
        """Write what came next of a file; return a new buffer for what comes then."""
        if data:
            begin = self._here.get(path.name, 0)
            await trio.to_thread.run_sync(_write, path, data, begin)
            self._here[path.name] = begin + len(data)
        return bytearray()

    async def _forget_tables(self) -> None:
        """Delete what is here beside packs."""
        await self._forget([name for name in self._here if not name.endswith(".pack")])

    async def _forget(self, names: Iterable[str]) -> None:
        """Delete these files, as far as they are here."""
        gone = [name for name in names if name in self._here]
        for name in gone:
            del self._here[name]
            self._sound.discard(name)
        if gone:
            await trio.to_thread.run_sync(_remove, [self._scratch / name for name in gone])


def _write(path: Path, data: bytes | bytearray, position: int) -> None:
    """Write all of `data` at `position`, where the file ends. If it raises, some may be there."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            left = memoryview(data)
            while left:
                written = os.pwrite(descriptor, left, position)
                left, position = left[written:], position + written
        finally:
            os.close(descriptor)
    except OSError as exc:
        raise DiskFailed(
            f"the disk refused to keep {path.name!r} ({exc.strerror}); "
            "see to the cache disk of this node"
        ) from exc


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)

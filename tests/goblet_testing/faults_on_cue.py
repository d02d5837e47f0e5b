"""What the origin can be told to do wrong, and the gate at which requests wait."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from goblet_testing.seen import Asked, Kind

PIECE = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong with one answer; byte counts are of the response's body.

    `status`, `html` and `redirect_to` replace the answer; the others act on the
    true one and may be combined.
    """

    delay: float = 0.0
    """Seconds before the head of the answer."""
    hold: bool = False
    """Wait before git is asked, until released."""
    stall_after: int | None = None
    """Send this many bytes, then nothing until released."""
    cut_after: int | None = None
    """Send this many bytes, then close the connection without an end."""
    rate: float | None = None
    """Bytes per second, at most."""
    corrupt_pack_at: int | None = None
    """Flip the bits of the pack's byte at this offset."""
    status: int | None = None
    retry_after: int | None = None
    """Seconds, as a Retry-After header beside `status`."""
    redirect_to: str | None = None
    """The repository's new URL or path; the endpoint and query are appended."""
    redirect_status: int = 302
    html: bool = False
    """Answer 200 with a login page, as a captive proxy does."""


class Deed(Enum):
    """What happens between two bytes of an answer."""

    STALL = auto()
    CUT = auto()


@dataclass(slots=True, kw_only=True)
class _Rule:
    fault: Fault
    kind: Kind | None
    repo: str | None
    left: int | None

    def takes(self, asked: Asked) -> bool:
        return self.kind in (None, asked.kind) and self.repo in (None, asked.repo)


class Cues:
    """Which requests go wrong, and those that wait for `release`. Safe between threads."""

    def __init__(self) -> None:
        # All state below is read and changed only with the condition held.
        self._changed = threading.Condition()
        self._rules: list[_Rule] = []
        self._epoch = 0
        self._held = 0
        self._stopped = False

    def add(self, fault: Fault, *, kind: Kind | None, repo: str | None, times: int | None) -> None:
        """Let the next `times` requests (None: all) that match go wrong."""
        with self._changed:
            self._rules.append(_Rule(fault=fault, kind=kind, repo=repo, left=times))

    def take(self, asked: Asked) -> Fault:
        """Return the fault of the oldest rule that matches, and count it as used."""
        with self._changed:
            for rule in self._rules:
                if rule.takes(asked):
                    if rule.left is not None:
                        rule.left -= 1
                        if rule.left == 0:
                            self._rules.remove(rule)
                    return rule.fault
        return Fault()

    def clear(self) -> None:
        """Forget every rule; who waits goes on waiting."""
        with self._changed:
            self._rules.clear()

    def release(self) -> None:
        """Let all who are held or stalled go on, and hold or stall nobody from now on."""
        with self._changed:
            self._rules = [
                rule
                for rule in self._rules
                if not rule.fault.hold and rule.fault.stall_after is None
            ]
            self._epoch += 1
            self._changed.notify_all()

    def stop(self) -> None:
        """Let all who wait go on for ever, because the origin ends."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def arrive(self) -> int:
        """Count one more who waits; return what `is_open` wants to know it by."""
        with self._changed:
            self._held += 1
            self._changed.notify_all()
            return self._epoch

    def leave(self) -> None:
        """Count one less who waits."""
        with self._changed:
            self._held -= 1
            self._changed.notify_all()

    def wait_open(self, epoch: int, *, seconds: float) -> bool:
        """Wait up to `seconds`; return whether who arrived at `epoch` was released since."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._stopped or self._epoch != epoch, timeout=seconds
            )

    def pause(self, seconds: float) -> bool:
        """Sleep, but not beyond the origin's end; return whether it ended."""
        with self._changed:
            return self._changed.wait_for(lambda: self._stopped, timeout=seconds)

    def wait_held(self, count: int, *, seconds: float) -> bool:
        """Return whether `count` requests wait at once within `seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._held >= count, timeout=seconds)


def with_deeds(pieces: Iterator[bytes], fault: Fault) -> Iterator[bytes | Deed]:
    """Cut an answer into what can be sent at once, with a deed exactly where `fault` says."""
    marks = [(fault.stall_after, Deed.STALL), (fault.cut_after, Deed.CUT)]
    due = sorted(
        ((at, deed) for at, deed in marks if at is not None), key=lambda mark: mark[0], reverse=True
    )
    largest = PIECE if fault.rate is None else max(1, min(PIECE, int(fault.rate / 20)))
    sent = 0
    for piece in pieces:
        rest = memoryview(piece)
        while rest:
            while due and due[-1][0] == sent:
                yield due.pop()[1]
            size = min(len(rest), largest)
            if due:
                size = min(size, due[-1][0] - sent)
            yield bytes(rest[:size])
            sent += size
            rest = rest[size:]
    while due and due[-1][0] == sent:
        yield due.pop()[1]


class PackWatch:
    """Sees pack data pass in an answer's side-band, and flips one byte of it if told.

    `packed` is true once pack data passed. An answer without side-band, which no
    git of the last fifteen years asks for, counts as none.
    """

    def __init__(self, corrupt_at: int | None) -> None:
        self.packed = False
        self._corrupt_at = corrupt_at
        self._offset = 0
        self._left = 0
        self._band = False
        self._head = bytearray()
        self._framed = True

    def passes(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the same bytes, but for the one to be flipped."""
        for piece in pieces:
            if not self._framed or (self.packed and self._corrupt_at is None):
                yield piece
                continue
            changed = bytearray(piece)
            try:
                self._scan(changed)
            except ValueError:
                self._framed = False
            yield bytes(changed)

    def _scan(self, data: bytearray) -> None:
        at = 0
        while at < len(data):
            if self._left:
                size = min(self._left, len(data) - at)
                if self._band:
                    self._pack_data(data, at, size)
                self._left -= size
                at += size
                continue
            # A packet's head: its length and, if it holds anything, the first byte.
            self._head.append(data[at])
            at += 1
            if len(self._head) == 4 and int(self._head, 16) <= 4:
                self._head.clear()
            elif len(self._head) == 5:
                self._left = int(self._head[:4], 16) - 5
                self._band = self._head[4] == 1
                self._head.clear()

    def _pack_data(self, data: bytearray, at: int, size: int) -> None:
        self.packed = True
        if self._corrupt_at is not None and 0 <= self._corrupt_at - self._offset < size:
            data[at + self._corrupt_at - self._offset] ^= 0xFF
        self._offset += size

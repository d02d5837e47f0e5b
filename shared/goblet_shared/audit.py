"""Who asked for what, and what they got: one JSON line an event, apart from the log."""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from goblet_shared.errors import GobletError


class BadAudit(GobletError):
    """The file for audit lines cannot be written."""


class Audit(Protocol):
    """Takes events."""

    def write(self, event: str, fields: Mapping[str, object]) -> None:
        """Take note of an event; never waits and never raises."""
        ...


class NoAudit:
    """Takes note of nothing."""

    def write(self, event: str, fields: Mapping[str, object]) -> None:
        """Forget an event."""


class AuditFile:
    """Appends events to a file, a line each."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open `path` for appending; `clock` gives seconds since 1970.

        Raises:
            BadAudit: that cannot be done.
        """
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as exc:
            raise BadAudit(f"{path} cannot be written: {exc.strerror}") from exc
        self._clock = clock

    def write(self, event: str, fields: Mapping[str, object]) -> None:
        """Append an event."""
        line = json.dumps({"time": round(self._clock(), 3), "event": event, **fields})
        os.write(self._file, line.encode() + b"\n")

    def close(self) -> None:
        """Write no more."""
        os.close(self._file)

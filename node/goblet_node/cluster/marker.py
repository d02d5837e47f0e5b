"""The note in a cache root that its node was ready before, under its name."""

import logging
from pathlib import Path

from goblet_node.errors import DiskFailed
from goblet_node.mirror.disk import Disk
from goblet_node.mirror.layout import aside
from goblet_shared.contract import NodeName

log = logging.getLogger(__name__)


class Marker:
    """A file that holds the name under which the node was ready.

    With it a restarted node is ready at once: its mirrors are warm. A cache root that
    was moved to another name holds other repositories than that name owns.
    """

    def __init__(self, path: Path, name: NodeName, *, disk: Disk) -> None:
        self._path = path
        self._name = name
        self._disk = disk

    def is_set(self) -> bool:
        """Say whether the node was ready before; one that cannot be read says no."""
        try:
            return self._path.read_text(encoding="utf-8").strip() == self._name
        except FileNotFoundError:
            return False
        except (OSError, UnicodeDecodeError) as exc:
            log.warning("%s cannot be read, so the node joins as a new one: %s", self._path, exc)
            return False

    def set(self) -> None:
        """Note that the node is ready, durably. If the disk refuses, that is logged.

        Then the next start joins anew, which costs time and nothing else.
        """
        try:
            self._disk.write_new(aside(self._path), f"{self._name}\n".encode())
            self._disk.publish(aside(self._path), self._path)
        except DiskFailed as exc:
            log.warning("the next start will join anew: %s", exc)

"""Who the members are, asked again and again: a fixed list, a file that changes, the DNS."""

import json
import math
import tomllib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trio

from goblet_shared.dns_name import DnsName
from goblet_shared.listing import DiscoveryFailed, Listing, Source
from goblet_shared.member_settings import MemberSettings
from goblet_shared.members import Member, members_of

# Many times what a ring may have of nodes; what is larger is some other file.
_MOST_BYTES = 1024 * 1024

# What was read of a file, and who is in it.
_Read = tuple[bytes, tuple[Member, ...]]


def source_of(settings: MemberSettings) -> Source:
    """Return the source that the settings name; the fixed list if they name none.

    Raises:
        DiscoveryFailed: the DNS is to be asked, and this machine knows no server of it.
    """
    if settings.members_file is not None:
        return FileMembers(settings.members_file, poll=settings.members_poll_seconds)
    if settings.members_dns is not None:
        # Only those who use it pay for it: 70 ms.
        from goblet_shared.dns_members import DnsMembers, system_resolver

        return DnsMembers(DnsName.parse(settings.members_dns), resolver=system_resolver())
    return ListedMembers(settings.members)


class ListedMembers:
    """A fixed list."""

    def __init__(self, members: tuple[Member, ...]) -> None:
        self._listing = Listing(members=members, ask_again_in=math.inf)

    async def look(self) -> Listing:
        """Return the list."""
        return self._listing


class FileMembers:
    """A file, read again every `poll` seconds.

    All of it, each time: that is cheaper than it sounds, and no rename, symbolic link
    that is swapped, or clock that stands still can hide a change. Whoever writes it
    writes another and renames that; half a file could be a shorter list.
    """

    def __init__(self, path: Path, *, poll: float) -> None:
        self._path = path
        self._poll = poll
        # All mutable state: what was read last, and who was in it.
        self._read: _Read | None = None

    async def look(self) -> Listing:
        """Return whom the file names.

        Raises:
            DiscoveryFailed: it cannot be read, is not well-formed, or names nobody.
        """
        try:
            # A disk that hangs, or a megabyte of TOML, holds up a thread and nobody else.
            self._read = await trio.to_thread.run_sync(
                self._read_anew, self._read, abandon_on_cancel=True
            )
        except OSError as exc:
            raise self._failed(f"cannot be read: {exc.strerror or exc}") from exc
        except ValueError as exc:
            raise self._failed(str(exc)) from exc
        return Listing(members=self._read[1], ask_again_in=self._poll)

    def _read_anew(self, before: _Read | None) -> _Read:
        with self._path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if before is not None and before[0] == content:
            return before
        return content, members_in(content)

    def _failed(self, problem: str) -> DiscoveryFailed:
        return DiscoveryFailed(f"{self._path}: {problem}", ask_again_in=self._poll)


def members_in(content: bytes) -> tuple[Member, ...]:
    """Return the members that a file names, sorted by name.

    What begins with a brace is JSON, anything else TOML.

    Raises:
        ValueError: it is not well-formed (the text says where), or names nobody.
    """
    if len(content) > _MOST_BYTES:
        raise ValueError(f"larger than {_MOST_BYTES} bytes: not a list of members")
    text = content.decode("utf-8")
    kind, read = ("JSON", _json) if text.lstrip().startswith("{") else ("TOML", tomllib.loads)
    try:
        table = read(text)
    except RecursionError:
        raise ValueError(f"not valid {kind}: nested too deeply") from None
    except ValueError as exc:
        raise ValueError(f"not valid {kind}: {exc}") from None
    return members_of(_nodes(table))


def _json(text: str) -> dict[str, Any]:
    table: dict[str, Any] = json.loads(text, object_pairs_hook=_without_doubles)
    return table


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # JSON readers take the last of two; TOML's refuses both, and is right.
    table = dict(pairs)
    if len(table) < len(pairs):
        (double, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{double!r} is there twice")
    return table


def _nodes(table: Mapping[str, Any]) -> dict[str, str]:
    nodes = table.get("nodes")
    if not isinstance(nodes, dict) or len(table) > 1:
        raise ValueError("want one table, nodes, of names and URLs")
    if not nodes:
        raise ValueError("names no node: those of before stay")
    for name, url in nodes.items():
        if not isinstance(url, str):
            raise ValueError(f"the URL of node {name[:80]!r}: want a text such as http://HOST:PORT")
    return nodes

"""HAProxy's runtime API: commands over its stats socket, and what they show.

As doc/management.txt of HAProxy 2.6 describes it, section 9.3. One connection a command.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from goblet_shared.contract import NodeName
from goblet_shared.errors import GobletError

# HAProxy takes a command with its payload into one buffer (tune.bufsize, 16,384 by
# default) and cuts the connection where more comes.
PAYLOAD_BYTES = 8192

_VERSION = re.compile(r"New version created: (\d+)")
_FORCED_MAINTENANCE = 1  # SRV_ADMF_FMAINT of `srv_admin_state`


class HAProxyUnreachable(GobletError):
    """Nothing answers at the socket, or it may not be opened."""


class HAProxyRefused(GobletError):
    """HAProxy did not do what it was asked; the text has its own words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenServer:
    """A server as a running HAProxy has it."""

    name: NodeName
    number: int
    """Its id."""
    address: str
    port: int
    host: str | None
    """The name whose address it follows, if it has one."""
    weight: int
    is_in_maintenance: bool


class RuntimeApi:
    """Asks a running HAProxy at its socket. Deadlines are the caller's."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def ask(self, command: str, payload: Iterable[str] = ()) -> str:
        """Return what HAProxy answers to a command; `payload` are lines that go with it.

        Raises:
            HAProxyUnreachable: it cannot be asked.
        """
        lines = "".join(f"{line}\n" for line in payload)
        text = f"{command} <<\n{lines}\n" if lines else f"{command}\n"
        answer = bytearray()
        try:
            async with await trio.open_unix_socket(self._path) as stream:
                await stream.send_all(text.encode())
                async for part in stream:
                    answer += part
        except (OSError, RuntimeError, trio.BrokenResourceError) as exc:
            raise HAProxyUnreachable(_why_not(self._path, exc)) from None
        return answer.decode("utf-8", "replace").strip()

    async def do(self, command: str, payload: Iterable[str] = (), *, says: str = "") -> str:
        """Return the answer to a command that answers nothing, or something with `says`, if it did.

        Raises:
            HAProxyRefused: it answered something else.
            HAProxyUnreachable: it cannot be asked.
        """
        answer = await self.ask(command, payload)
        if (answer or says) and not (says and says in answer):
            raise HAProxyRefused(f"HAProxy did not take {command!r}: {answer or 'no answer'}")
        return answer

    async def servers(self, backend: str) -> Mapping[NodeName, SeenServer]:
        """Return the servers of a backend by name.

        Raises:
            HAProxyRefused: it has no such backend.
            HAProxyUnreachable: it cannot be asked.
        """
        return servers_in(await self.ask(f"show servers state {backend}"))

    async def map(self, name: str, version: int | None = None) -> Mapping[int, NodeName]:
        """Return a map of slots: the one in use, or a version that is being prepared.

        Raises:
            HAProxyRefused: it has no such map.
            HAProxyUnreachable: it cannot be asked.
        """
        at = "" if version is None else f"@{version} "
        return map_in(await self.ask(f"show map {at}{name}"))

    async def replace_map(self, name: str, of: Mapping[int, NodeName]) -> None:
        """Put a map in the place of the one in use, all at once; on errors that one stays.

        Raises:
            HAProxyRefused: it did not take the map as it was sent.
            HAProxyUnreachable: it cannot be asked.
        """
        created = await self.do(f"prepare map {name}", says="New version created")
        found = _VERSION.search(created)
        if found is None:
            raise HAProxyRefused(f"HAProxy made no version of map {name}: {created}")
        version = int(found[1])
        for lines in _parts([f"{slot} {node}" for slot, node in sorted(of.items())]):
            await self.do(f"add map @{version} {name}", lines)
        if await self.map(name, version) != of:
            raise HAProxyRefused(f"HAProxy's new map {name} is not what it was sent")
        await self.do(f"commit map @{version} {name}")


def servers_in(text: str) -> Mapping[NodeName, SeenServer]:
    """Return what `show servers state` shows, by name.

    Raises:
        HAProxyRefused: the text is something else.
    """
    lines = text.splitlines()
    if len(lines) < 2 or lines[0] != "1" or not lines[1].startswith("# "):
        raise HAProxyRefused(
            f"HAProxy did not show its servers, is it run with the rendered file? {text}"
        )
    columns = lines[1].removeprefix("# ").split()
    rows = [dict(zip(columns, line.split(), strict=False)) for line in lines[2:] if line]
    try:
        return {NodeName(row["srv_name"]): _server(row) for row in rows}
    except (KeyError, ValueError) as exc:
        raise HAProxyRefused(f"HAProxy shows its servers in a way unknown here: {exc!r}") from None


def map_in(text: str) -> Mapping[int, NodeName]:
    """Return what `show map` shows: slot -> name.

    Raises:
        HAProxyRefused: the text is something else.
    """
    found = {}
    for line in filter(None, text.splitlines()):
        words = line.split()
        if len(words) != 3 or not words[0].startswith("0x") or not words[1].isdecimal():
            raise HAProxyRefused(f"HAProxy did not show a map of slots: {line}")
        found[int(words[1])] = NodeName(words[2])
    return found


def _server(row: Mapping[str, str]) -> SeenServer:
    return SeenServer(
        name=NodeName(row["srv_name"]),
        number=int(row["srv_id"]),
        address=row["srv_addr"],
        port=int(row["srv_port"]),
        host=None if row["srv_fqdn"] == "-" else row["srv_fqdn"],
        weight=int(row["srv_uweight"]),
        is_in_maintenance=bool(int(row["srv_admin_state"]) & _FORCED_MAINTENANCE),
    )


def _parts(lines: Sequence[str]) -> Iterable[Sequence[str]]:
    """Cut lines into runs that one command carries."""
    part: list[str] = []
    size = 0
    for line in lines:
        if part and size + len(line) + 1 > PAYLOAD_BYTES:
            yield part
            part, size = [], 0
        part.append(line)
        size += len(line) + 1
    if part:
        yield part


def _why_not(path: Path, exc: Exception) -> str:
    match exc:
        case FileNotFoundError():
            how = "there is no such socket: is HAProxy running, with the rendered file?"
        case PermissionError():
            how = "this user may not open it: run as HAProxy's user, or in its group"
        case ConnectionRefusedError():
            how = "nobody listens there: is HAProxy running?"
        case _:
            how = str(exc) or type(exc).__name__
    return f"HAProxy's socket {path}: {how}"

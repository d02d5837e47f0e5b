"""HAProxy's runtime API; the real one is asked in tests/system."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio

from goblet_router.haproxy.runtime import (
    PAYLOAD_BYTES,
    HAProxyRefused,
    HAProxyUnreachable,
    RuntimeApi,
    map_in,
    servers_in,
)
from goblet_shared.contract import NodeName

SERVERS = """\
1
# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight \
srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state \
srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl \
srv_check_port srv_check_addr srv_agent_addr srv_agent_port
3 goblet 112856 goblet-2 127.0.0.1 2 0 100 100 1 15 3 3 6 0 0 1 - 35799 - 0 0 - - 0
3 goblet 427102 goblet-3 10.0.0.3 0 5 0 100 1 15 3 3 6 0 0 1 h.example 80 - 0 0 - - 0

"""


@asynccontextmanager
async def answering(reply: Callable[[str], str]) -> AsyncIterator[tuple[RuntimeApi, list[str]]]:
    """Yield an API whose socket answers each command with `reply`, and the commands it got."""
    got: list[str] = []

    async def serve_one(stream: trio.SocketStream) -> None:
        text = ""
        while not text.endswith("\n") or ("<<" in text and not text.endswith("\n\n")):
            text += (await stream.receive_some()).decode()
        got.append(text)
        await stream.send_all(f"{reply(text)}\n\n".encode())
        await stream.aclose()

    with TemporaryDirectory(prefix="api-") as short:
        path = Path(short) / "s"
        listener = trio.socket.socket(trio.socket.AF_UNIX)
        await listener.bind(str(path))
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve_one, [trio.SocketListener(listener)])
            yield RuntimeApi(path), got
            nursery.cancel_scope.cancel()


def test_servers_are_read_with_what_decides_about_them() -> None:
    servers = servers_in(SERVERS)
    assert [*servers] == ["goblet-2", "goblet-3"]
    two, three = servers.values()
    assert (two.number, two.address, two.port, two.host) == (112856, "127.0.0.1", 35799, None)
    assert (two.weight, two.is_in_maintenance) == (100, False)
    assert (three.host, three.weight, three.is_in_maintenance) == ("h.example", 0, True)


@pytest.mark.parametrize(
    "text", ["", "Can't find backend.", "2\n# a b\n", "1\n# srv_name\nx\n", "1\nno header\n"]
)
def test_what_is_no_list_of_servers_is_refused(text: str) -> None:
    with pytest.raises(HAProxyRefused, match="HAProxy"):
        servers_in(text)


def test_a_map_is_read_by_slot() -> None:
    assert map_in("0x1a 0 goblet-1\n0x2b 4095 goblet-2\n\n") == {0: "goblet-1", 4095: "goblet-2"}
    assert map_in("") == {}
    for text in ("Unknown map identifier.", "0x1 a b", "0x1 1", "x1 1 a"):
        with pytest.raises(HAProxyRefused, match="did not show a map"):
            map_in(text)


async def test_a_command_that_is_not_taken_is_an_error_in_haproxys_words() -> None:
    async with answering(lambda _: "No such server.") as (api, got):
        with pytest.raises(HAProxyRefused, match=r"'enable server a/b': No such server\."):
            await api.do("enable server a/b")
        assert got == ["enable server a/b\n"]
    async with answering(lambda _: "") as (api, _):
        await api.do("enable server a/b")
        with pytest.raises(HAProxyRefused, match="no answer"):
            await api.do("add server a/b", says="registered")


async def test_a_map_is_sent_in_pieces_checked_and_only_then_put_in_place() -> None:
    wanted = {slot: NodeName(f"goblet-{slot % 7}") for slot in range(4096)}
    sent: list[str] = []

    def reply(text: str) -> str:
        if text.startswith("prepare"):
            return "New version created: 7"
        if text.startswith("add map @7 rank0.map <<"):
            sent.extend(text.splitlines()[1:-1])
            return ""
        if text.startswith("show map @7 rank0.map"):
            return "\n".join(f"0x{number:x} {line}" for number, line in enumerate(sent))
        return ""

    async with answering(reply) as (api, got):
        await api.replace_map("rank0.map", wanted)
    assert sent == [f"{slot} {name}" for slot, name in wanted.items()]
    assert got[0] == "prepare map rank0.map\n"
    assert got[-1] == "commit map @7 rank0.map\n"
    pieces = [text for text in got if text.startswith("add")]
    assert len(pieces) > 1
    assert all(len(text) < PAYLOAD_BYTES + 100 for text in pieces)


async def test_a_map_that_arrived_otherwise_is_not_put_in_place() -> None:
    answers = {"prepare": "New version created: 1", "show": "0x1 1 goblet-2"}
    async with answering(lambda text: answers.get(text.split()[0], "")) as (api, got):
        with pytest.raises(HAProxyRefused, match="is not what it was sent"):
            await api.replace_map("rank0.map", {1: NodeName("goblet-1")})
    assert not any(text.startswith("commit") for text in got)


async def test_a_haproxy_that_cannot_be_asked_is_told_apart(tmp_path: Path) -> None:
    with TemporaryDirectory(prefix="api-") as short:
        path = Path(short) / "s"
        with pytest.raises(HAProxyUnreachable, match="is HAProxy running, with the rendered file"):
            await RuntimeApi(path).ask("show info")
        listener = trio.socket.socket(trio.socket.AF_UNIX)
        await listener.bind(str(path))
        listener.close()
        with pytest.raises(HAProxyUnreachable, match="nobody listens there"):
            await RuntimeApi(path).ask("show info")

"""A DNS server on loopback, over UDP and TCP, that answers from a table."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import trio

_PLAIN_PAYLOAD = 512


class DnsServer:
    """What the DNS knows: records by name and kind, and what it does instead of answering."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.ttl = 5
        self.records: dict[tuple[str, str], list[str]] = {}
        """As in a zone file: `records["nodes.example.", "A"] = ["10.0.0.1"]`."""
        self.is_silent = False
        self.rcode = dns.rcode.NOERROR
        self.asked: list[tuple[str, str]] = []
        """The kind of each question, and whether it came by `udp` or `tcp`."""

    def answer(self, wire: bytes, how: str) -> bytes | None:
        """Return the answer to a question; None if there shall be none."""
        question = dns.message.from_wire(wire)
        (asked,) = question.question
        kind = dns.rdatatype.to_text(asked.rdtype)
        self.asked.append((kind, how))
        if self.is_silent:
            return None
        response = dns.message.make_response(question)
        response.flags |= dns.flags.RA
        name = asked.name.to_text().lower()
        if (name, kind) in self.records:
            texts = self.records[name, kind]
            if texts:
                found = dns.rrset.from_text_list(asked.name, self.ttl, "IN", kind, texts)
                response.answer.append(found)
        elif not any(known == name for known, _ in self.records):
            response.set_rcode(dns.rcode.NXDOMAIN)
        if self.rcode is not dns.rcode.NOERROR:
            response.set_rcode(self.rcode)
        fits = question.payload if question.edns >= 0 else _PLAIN_PAYLOAD
        wire = response.to_wire(max_size=0xFFFF)
        if how == "udp" and len(wire) > fits:
            response.answer.clear()
            response.flags |= dns.flags.TC
            wire = response.to_wire()
        return wire

    async def serve_udp(self, sock: trio.socket.SocketType) -> None:
        """Answer datagrams until cancelled."""
        while True:
            wire, client = await sock.recvfrom(0xFFFF)
            if (answer := self.answer(wire, "udp")) is not None:
                await sock.sendto(answer, client)

    async def serve_tcp(self, stream: trio.SocketStream) -> None:
        """Answer the one question of a connection."""
        async with stream:
            received = b""
            while len(received) < 2 or len(received) < 2 + int.from_bytes(received[:2], "big"):
                if not (data := await stream.receive_some()):
                    return
                received += data
            if (answer := self.answer(received[2:], "tcp")) is not None:
                await stream.send_all(len(answer).to_bytes(2, "big") + answer)


@asynccontextmanager
async def dns_server() -> AsyncIterator[DnsServer]:
    """Run a server until the block ends."""
    sock, listener = await _same_port()
    with sock:
        server = DnsServer(sock.getsockname()[1])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.serve_udp, sock)
            await nursery.start(partial(trio.serve_listeners, server.serve_tcp, [listener]))
            yield server
            nursery.cancel_scope.cancel()


async def _same_port() -> tuple[trio.socket.SocketType, trio.SocketListener]:
    while True:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        sock = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        try:
            await sock.bind(listener.socket.getsockname())
        except OSError:  # somebody has the port for UDP
            sock.close()
            await listener.aclose()
        else:
            return sock, listener

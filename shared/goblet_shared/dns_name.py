"""How a setting says what to ask the DNS for."""

import re
from dataclasses import dataclass
from typing import Final

_NAME = r"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?"
_SERVICES = re.compile(rf"srv:(?P<name>(?P<service>_[A-Za-z0-9-]{{1,15}})\._tcp\.{_NAME})")
_ADDRESSES = re.compile(rf"a:(?P<name>{_NAME}):(?P<port>[0-9]{{1,5}})")
# RFC 1035, 3.1, as text without the final dot.
_LONGEST: Final = 253
_TLS_SERVICE: Final = "_https"


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsName:
    """What is asked of the DNS: SRV records, or addresses if there is a `port`."""

    name: str
    port: int | None
    scheme: str

    @classmethod
    def parse(cls, written: str) -> "DnsName":
        """Return what `srv:_SERVICE._tcp.NAME` or `a:NAME:PORT` asks for.

        The service `_https` stands for nodes behind TLS.

        Raises:
            ValueError: it is neither.
        """
        found = _SERVICES.fullmatch(written) or _ADDRESSES.fullmatch(written)
        if found is None or len(found["name"].rstrip(".")) > _LONGEST:
            raise ValueError(f"{written!r}: want srv:_http._tcp.NAME or a:NAME:PORT")
        name = found["name"]
        if found.re is _SERVICES:
            is_tls = found["service"].lower() == _TLS_SERVICE
            return cls(name=name, port=None, scheme="https" if is_tls else "http")
        port = int(found["port"])
        if not 0 < port < 1 << 16:
            raise ValueError(f"{written!r}: want a port from 1 to 65535")
        return cls(name=name, port=port, scheme="http")

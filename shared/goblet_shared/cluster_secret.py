"""What only members of one cluster know, and how a request proves that its sender does.

The secret never travels. A request carries the time and an HMAC of what it asks, so
that whoever reads one can neither ask anything else nor ask the same much later.
"""

import hashlib
import hmac
import ipaddress
import re
import time
from collections.abc import Callable
from pathlib import Path

from goblet_shared import asgi
from goblet_shared.contract import PEER_HEADER
from goblet_shared.errors import GobletError

# What `openssl rand -hex 16` prints is as long; less could be guessed.
MIN_BYTES = 32
# Who has these was sent by a proxy, or by a page in a browser.
_OF_OTHERS = (b"x-forwarded-for", b"forwarded", b"origin", b"sec-fetch-site")
_PORT = re.compile(r":[0-9]*$")
# How far the clocks of two machines may be apart, and how long what was read of one
# request can be sent again.
MAX_SKEW = 300.0


class BadSecret(GobletError):
    """The file with the secret cannot be read, or holds none that is of use."""


class NotAMember(GobletError):
    """A request for members alone came without proof, or with one that does not hold."""

    status = 403


class ClusterSecret:
    """Signs requests to other members, and checks theirs."""

    def __init__(self, secret: bytes, *, clock: Callable[[], float] = time.time) -> None:
        """Take at least `MIN_BYTES` bytes; `clock` gives seconds since 1970.

        Raises:
            BadSecret: it is shorter.
        """
        if len(secret) < MIN_BYTES:
            raise BadSecret(
                f"a cluster secret has at least {MIN_BYTES} bytes: "
                "make one with `openssl rand -hex 32`"
            )
        self._secret = secret
        self._clock = clock

    @classmethod
    def read(cls, path: Path) -> "ClusterSecret":
        """Return the secret in a file, without the white space around it.

        Raises:
            BadSecret: the file cannot be read, or holds too little.
        """
        try:
            return cls(path.read_bytes().strip())
        except OSError as exc:
            raise BadSecret(f"{path} cannot be read: {exc.strerror}") from exc
        except BadSecret as exc:
            raise BadSecret(f"{path}: {exc}") from None

    def header(self, method: str, target: bytes, body: bytes = b"") -> tuple[bytes, bytes]:
        """Return the header line that proves that a member asks this, now.

        `target` is the request target as it goes out, with its query.
        """
        now = b"%d" % self._clock()
        return PEER_HEADER, now + b"." + self._proof(now, method, target, body)

    def check(self, value: bytes | None, method: str, target: bytes, body: bytes = b"") -> None:
        """Return if `value`, of the header line, proves that a member asked this just now.

        Raises:
            NotAMember: it does not.
        """
        said, _, proof = (value or b"").partition(b".")
        if not hmac.compare_digest(proof, self._proof(said, method, target, body)):
            raise NotAMember("only members of this cluster may ask this, with its secret")
        if abs(self._clock() - int(said)) > MAX_SKEW:
            raise NotAMember(
                f"this was asked more than {MAX_SKEW:g} s ago: are the members' clocks right?"
            )

    def _proof(self, now: bytes, method: str, target: bytes, body: bytes) -> bytes:
        # No part holds a line break, but for the last, which has a fixed length.
        said = b"\n".join((now, method.encode(), target, hashlib.sha256(body).digest()))
        return hmac.digest(self._secret, said, "sha256").hex().encode()


def target_of(scope: asgi.Scope) -> bytes:
    """Return a request's target as it was signed."""
    query: bytes = scope["query_string"]
    path: bytes = scope["raw_path"]
    return path + b"?" + query if query else path


def check_administrator(scope: asgi.Scope, secret: ClusterSecret | None, body: bytes = b"") -> None:
    """Return if a request comes from this machine, or from whoever knows the secret.

    What a proxy passed on, which says so in X-Forwarded-For, does not come from here. Nor
    does what a page in a browser on this machine asks, which anybody may have written: it
    has an Origin, or, if its own name was made to lead here, a Host with a dot.

    Raises:
        NotAMember: it comes from elsewhere, without proof.
    """
    value = asgi.header(scope, PEER_HEADER)
    if value is None and _is_local(scope):
        return
    if secret is None:
        raise NotAMember(
            "this may be asked from the machine itself, at its address, or with a cluster secret"
        )
    secret.check(value, scope["method"], target_of(scope), body)


def _is_local(scope: asgi.Scope) -> bool:
    client = scope.get("client")
    if client is None or any(asgi.header(scope, name) is not None for name in _OF_OTHERS):
        return False
    return _is_loopback(client[0]) and _is_ours(asgi.header(scope, b"host") or b"")


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _is_ours(host: bytes) -> bool:
    """Say whether a Host is an address, or a name that no stranger can have in the DNS."""
    name = _PORT.sub("", host.decode("latin-1"))
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return "." not in name
    return True

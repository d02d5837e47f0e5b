"""Who asks: what a request says of its caller, as far as that is believed."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field

from goblet_shared import asgi

# So many hex digits tell the callers of a house apart, and are of no use to guess with.
_FINGERPRINT = 12
ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks.

    `name` is that of a token or of a trusted proxy's word; without one a caller is known
    by its credential alone. `authorization` is its own, for upstream. `fingerprint` stands
    for the credential where a person reads it. `allow` are the rules of the repositories
    that it may ask for where upstream is asked with another's credential.
    """

    name: str | None = None
    tenant: str | None = None
    authorization: str | None = field(default=None, repr=False)
    fingerprint: str = ANONYMOUS
    address: str = "-"
    allow: tuple[str, ...] = ()


class Callers:
    """Tells who asks."""

    def __init__(self, *, key: bytes | None = None) -> None:
        """Take the `key` of fingerprints; without one they are this process's own."""
        self._key = key or secrets.token_bytes(32)

    def identify(self, scope: asgi.Scope) -> Caller:
        """Return who asks."""
        authorization = authorization_of(scope)
        client = scope.get("client")
        return Caller(
            authorization=authorization,
            fingerprint=self._fingerprint(authorization),
            address=client[0] if client else "-",
        )

    def _fingerprint(self, credential: str | None) -> str:
        if credential is None:
            return ANONYMOUS
        proof = hmac.digest(self._key, credential.encode("latin-1"), hashlib.sha256)
        return proof.hex()[:_FINGERPRINT]


def authorization_of(scope: asgi.Scope) -> str | None:
    """Return the credential that a request carries, if it is one for this request alone."""
    credential = asgi.header(scope, b"authorization")
    # Upstream is asked over connections that all callers share.
    if credential is None or asgi.is_of_a_connection(credential):
        return None
    return credential.decode("latin-1")

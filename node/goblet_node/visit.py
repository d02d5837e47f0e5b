"""One request to a node, and what is known of it: for the log, the audit and its answer."""

import re
import secrets
import time
from collections.abc import Mapping

from goblet_node.access.callers import Caller
from goblet_node.serve.reply import Reply
from goblet_shared import asgi, contract, repo_key
from goblet_shared.audit import Audit
from goblet_shared.git_route import Route

_SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Visit:
    """Gathers what there is to say of a request, and says it at its end."""

    def __init__(self, scope: asgi.Scope, *, audit: Audit) -> None:
        given = asgi.header(scope, contract.REQUEST_ID_HEADER) or b""
        sane = _SANE_REQUEST_ID.fullmatch(given) is not None
        self.request_id = given if sane else secrets.token_hex(8).encode()
        self._method = scope["method"]
        self._begun = time.monotonic()
        self._audit = audit
        # All mutable state; one task writes it.
        self.route: Route | None = None
        self.endpoint = "none"
        self.caller: Caller | None = None
        self.error = ""

    def decided(self, verdict: str, *, status: int = 200) -> None:
        """Write down whether the caller may have what it asks for, as soon as that is known."""
        self._audit.write("access", {**self._who(), "verdict": verdict, "status": status})

    def ended(self, reply: Reply) -> None:
        """Write down what the caller got."""
        outcome = "error" if self.error else "ok"
        answer = {
            "status": reply.status,
            "plan": reply.cache,
            "bytes": reply.sent,
            "seconds": round(time.monotonic() - self._begun, 3),
            "outcome": outcome,
        }
        self._audit.write("answer", {**self._who(), **answer})

    def line(self, reply: Reply) -> str:
        """Return the line of the log about it: no secret, and nothing that forges a field."""
        return (
            f"method={self._method} key={self._repository()} endpoint={self.endpoint} "
            f"status={reply.status or '-'} bytes={reply.sent} "
            f"seconds={time.monotonic() - self._begun:.3f} cache={reply.cache or '-'} "
            f"id={self.request_id.decode()}"
            + (f" note={reply.note!r}" if reply.note else "")
            + (f" error={self.error!r}" if self.error else "")
        )

    def _who(self) -> Mapping[str, object]:
        caller = self.caller or Caller()
        return {
            "id": self.request_id.decode(),
            "caller": caller.name,
            "credential": caller.fingerprint,
            "tenant": caller.tenant,
            "address": caller.address,
            "repository": self._repository(),
            "endpoint": self.endpoint,
        }

    def _repository(self) -> str:
        """Return the repository, percent-encoded: a space in it forges no field."""
        if self.route is None:
            return "-"
        return f"{repo_key.host_of(self.route.key)}/{repo_key.url_path(self.route.key)}"

"""A git host on loopback that speaks both dialects: what it says is ours, the packs are git's."""

from collections.abc import Sequence
from pathlib import Path

from goblet_node.serve.negotiate import negotiate
from goblet_node.wire import v0, v2
from goblet_node.wire.answers import Dialect, V2Dialect
from goblet_node.wire.pktline import encode_error
from goblet_node.wire.requests import Fetch, LsRefs
from goblet_testing.ancestry import History, cut_by_git
from goblet_testing.dialects import pack_by_git
from goblet_testing.loopback import LoopbackServer
from goblet_testing.upload_pack import refs_of_git

_FEATURES = v2.Advertised(fetch=("shallow", "wait-for-done", "filter"), server_option=True)


class Host(LoopbackServer):
    """A git host on loopback for clients of every version: packs are git's, all else is ours.

    `turns` holds, for every fetch that a client made, its request, its dialect and
    the head that we answered. `refusal` is said instead of a head, `breakage` after
    half of the pack.
    """

    def __init__(self, repo: Path, *, capabilities: Sequence[str] = v0.CAPABILITIES) -> None:
        self.turns: list[tuple[Fetch, Dialect, bytes]] = []
        self.refusal: str | None = None
        self.breakage: str | None = None
        self._repo = repo
        self._capabilities = capabilities
        super().__init__()

    def taken(self) -> list[tuple[Fetch, Dialect, bytes]]:
        """Return the turns so far and forget them."""
        taken, self.turns = self.turns, []
        return taken

    def advertise(self, said: str) -> bytes:
        """Return what `GET info/refs` gives to a client that said this of its version."""
        if said == "version=2":
            return v2.encode_advertisement(agent="goblet/test", features=_FEATURES)
        return b"".join(
            v0.encode_advertisement(
                refs_of_git(self._repo),
                agent="goblet/test",
                version=1 if said == "version=1" else 0,
                capabilities=self._capabilities,
            )
        )

    def answer(self, said: str, body: bytes) -> bytes:
        """Return the answer to a POST from a client that said this of its version."""
        dialect: Dialect = V2Dialect()
        if said == "version=2":
            request = v2.parse_request(body)
            if isinstance(request, LsRefs):
                return b"".join(v2.encode_ls_refs(refs_of_git(self._repo), request))
        else:
            request, dialect = v0.parse_request(body)
        if self.refusal is not None:
            return encode_error(self.refusal)
        return self._fetch(request, dialect)

    def _fetch(self, fetch: Fetch, dialect: Dialect) -> bytes:
        history = History(self._repo)
        common = history.held(fetch.haves)
        cut = cut_by_git(self._repo, fetch)
        turn = negotiate(
            fetch,
            dialect,
            common=common,
            shallow=history.held(fetch.shallow),
            ready=history.ready(fetch, dialect, cut),
        )
        head = dialect.head(turn, shallow=cut.shallow, unshallow=cut.unshallow)
        self.turns.append((fetch, dialect, head))
        if not turn.has_pack:
            return head
        pack, progress = pack_by_git(self._repo, fetch, common)
        said = [head, dialect.keepalive, dialect.progress(progress)]
        if self.breakage is not None:
            return b"".join([*said, dialect.pack(pack[:20]), dialect.error(self.breakage)])
        return b"".join([*said, dialect.pack(pack), dialect.end])

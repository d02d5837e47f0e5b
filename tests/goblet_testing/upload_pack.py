"""Real `git upload-pack` as the judge of wire code, asked directly or through our own front."""

import subprocess
from pathlib import Path

from goblet_node.wire.refs import Ref
from goblet_node.wire.requests import Fetch, LsRefs
from goblet_node.wire.v2 import Advertised, encode_advertisement, encode_ls_refs, parse_request
from goblet_node.wire.v2_client import encode_ls_refs_request, parse_ls_refs
from goblet_testing.gitcli import hermetic_env
from goblet_testing.loopback import LoopbackServer


def advertise(repo: Path, *, version: int) -> bytes:
    """Return what git says in answer to `GET info/refs`, without http-backend's service line."""
    return _run(repo, "--http-backend-info-refs", b"", version=version)


def answer(repo: Path, body: bytes) -> bytes:
    """Return git's answer to a POST with this body.

    Raises:
        CalledProcessError: git refused; its `stderr` says why.
    """
    return _run(repo, "--stateless-rpc", body, version=2)


def refs_of_git(repo: Path) -> tuple[Ref, ...]:
    """Return all refs that git advertises, as our reader takes them."""
    return parse_ls_refs(
        answer(repo, encode_ls_refs_request(prefixes=None, unborn=True, agent="goblet/test"))
    )


def _run(repo: Path, mode: str, body: bytes, *, version: int) -> bytes:
    return subprocess.run(
        ["git", "upload-pack", "--strict", mode, str(repo)],
        env=hermetic_env({"GIT_PROTOCOL": f"version={version}"}),
        input=body,
        capture_output=True,
        check=True,
        timeout=60,
    ).stdout


class Front(LoopbackServer):
    """A git host on loopback: the refs and the reading are ours, the packs are upload-pack's.

    `asked` holds every request that a client made, as parse_request read it.
    """

    def __init__(self, repo: Path, *, features: Advertised) -> None:
        self.asked: list[LsRefs | Fetch] = []
        self._repo = repo
        self._features = features
        super().__init__()

    def advertise(self, said: str) -> bytes:
        """Return our advertisement, in version 2 whatever was said."""
        return encode_advertisement(agent="goblet/test", features=self._features)

    def answer(self, said: str, body: bytes) -> bytes:
        """Return refs as we write them, packs as git does."""
        request = parse_request(body)
        self.asked.append(request)
        if isinstance(request, LsRefs):
            return b"".join(encode_ls_refs(refs_of_git(self._repo), request))
        return answer(self._repo, body)

    def fetches(self) -> list[Fetch]:
        """Return the fetches so far and forget everything asked."""
        fetches = [request for request in self.asked if isinstance(request, Fetch)]
        self.asked.clear()
        return fetches

"""The POST bodies that real git sends, recorded between it and a server."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from goblet_testing import asks
from goblet_testing.gitcli import git
from goblet_testing.loopback import LoopbackServer
from goblet_testing.repos import oid_of

_ADVERTISED = "info/refs?service=git-upload-pack"


class Recorder(LoopbackServer):
    """Stands between git and the repository at `target`, and keeps what git posts.

    A context manager; clone `url`. `bodies` are those of the requests for packs, without
    content encoding, in the order in which they came.
    """

    def __init__(self, target: str) -> None:
        self.bodies: list[bytes] = []
        self._target = target
        super().__init__()

    def advertise(self, said: str) -> bytes:
        """Return what the server says."""
        return asks.ask(f"{self._target}/{_ADVERTISED}", headers={"Git-Protocol": said}).body

    def answer(self, said: str, body: bytes) -> bytes:
        """Return what the server says, and keep the request if it is for a pack."""
        if b"command=fetch" in body[:64]:
            self.bodies.append(body)
        return asks.post(self._target, body).body

    def last(self) -> bytes:
        """Return the latest request for a pack, and forget all.

        Raises:
            LookupError: there was none.
        """
        if not self.bodies:
            raise LookupError("git asked for no pack")
        body = self.bodies[-1]
        self.bodies.clear()
        return body


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What git asks for when it does something usual: a name and the POST body."""

    name: str
    body: bytes


def record_usual(target: str, directory: Path, *, branch: str = "main") -> list[Recorded]:
    """Clone and fetch from `target` with real git in four usual ways; return what it posted.

    `directory` gets the clones: `full` is a bare clone of everything.
    """
    with Recorder(target) as recorder:
        full = directory / "full"
        git("clone", "--quiet", "--bare", recorder.url, full, timeout=600)
        found = [Recorded(name="full", body=recorder.last())]
        for name, *flags in (("depth 1", "--depth=1"), ("blob:none", "--filter=blob:none")):
            clone = directory / name.replace(":", "-").replace(" ", "-")
            git("clone", "--quiet", "--bare", *flags, recorder.url, clone, timeout=600)
            found.append(Recorded(name=name, body=recorder.last()))
        behind = one_behind(full, directory / "behind", branch=branch)
        git("fetch", "--quiet", "--no-tags", recorder.url, f"refs/heads/{branch}", cwd=behind)
        found.append(Recorded(name="one behind", body=recorder.last()))
    return found


def fetch_body(wants: Sequence[str], *arguments: str, haves: Sequence[str] = ()) -> bytes:
    """Return what git would post for these objects, with nothing left to negotiate."""
    lines = ["thin-pack", "no-progress", "ofs-delta", *arguments]
    lines += [f"want {oid}" for oid in wants] + [f"have {oid}" for oid in haves]
    return asks.command_body("fetch", [*lines, "done"])


def one_behind(full: Path, dest: Path, *, branch: str) -> Path:
    """Make `dest` a bare clone of `full` as it was one commit of `branch` ago; return it."""
    git("init", "--quiet", "--bare", dest)
    before = oid_of(full, f"refs/heads/{branch}~1")
    git("fetch", "--quiet", "--no-tags", full, f"{before}:refs/heads/{branch}", cwd=dest)
    return dest

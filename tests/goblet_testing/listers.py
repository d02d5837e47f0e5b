"""An upstream's refs in memory: for tests of what is asked of it, when, and by whom."""

from collections.abc import Callable, Sequence

import trio

from goblet_node.fill.failures import Refused
from goblet_node.fill.refs import Listing
from goblet_node.fill.upstream import Grant
from goblet_node.wire.pktline import encode
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.v2_client import Advertisement
from goblet_shared import repo_key


def oid(digit: str) -> ObjectId:
    """Return the id of 40 times this digit."""
    return ObjectId(digit.encode() * 40)


def body_of(*names: str, digit: str = "1") -> bytes:
    """Return an answer to ls-refs with these refs, all of which point to one object."""
    lines = [b"%s %s\n" % (oid(digit), name.encode()) for name in names]
    return b"".join([*map(encode, lines), b"0000"])


def grant_to(
    repo: str = "org/repo", authorization: str | None = None, *, version: int = 2
) -> Grant:
    """Return a grant for a repository of an upstream that speaks this version."""
    return Grant(
        key=repo_key.parse(f"upstream.test/{repo}"),
        url=f"http://upstream.test/{repo}",
        authorization=authorization,
        crossed_hosts=False,
        advertisement=Advertisement(version=version, features={"fetch": "shallow", "ls-refs": ""}),
    )


class FakeLister:
    """Has one body for all questions, counts them, and can be made to be slow, fail or refuse."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.asked: list[tuple[str, Sequence[bytes] | None]] = []
        self.refused: set[str | None] = set()
        self.failure: Exception | None = None
        self.seconds = 0.0

    async def ls_refs(
        self,
        grant: Grant,
        prefixes: Sequence[bytes] | None,
        *,
        read: Callable[[bytes], Listing],
    ) -> Listing:
        """Answer with the body as it was when the question came."""
        self.asked.append((grant.key, prefixes))
        body = self.body
        await trio.sleep(self.seconds)
        if self.failure is not None:
            raise self.failure
        if grant.authorization in self.refused:
            raise Refused(401, (), b"")
        return read(body)

"""Ask upstream itself, for a request that no node has answered.

Under the allow-list that nodes go by, with the caller's own credential, so that upstream
decides who may read. Nothing is remembered: it is as if the client had asked the host.
"""

from urllib.parse import urlsplit

from goblet_router import headers
from goblet_router.answer import Answer
from goblet_router.body import ReplayableBody
from goblet_router.errors import NodeFailed, UpstreamFailed
from goblet_router.lane import Ask
from goblet_router.lanes import Lanes
from goblet_shared.asgi import Scope
from goblet_shared.contract import NodeName
from goblet_shared.errors import BadRequest
from goblet_shared.git_route import Endpoint, Route, must_be_served, parse_target
from goblet_shared.members import Member
from goblet_shared.repo_key import host_of, url_path
from goblet_shared.upstreams import INFO_REFS, Upstreams, origin_of

_REDIRECTS = frozenset((301, 302, 303, 307, 308))


class Bypass:
    """The way to the upstreams, past the nodes."""

    def __init__(self, *, upstreams: Upstreams, lanes: Lanes, replay_bytes: int) -> None:
        """Take `lanes` of its own."""
        self._upstreams = upstreams
        self._lanes = lanes
        self._replay_bytes = replay_bytes

    async def begin(
        self, route: Route, scope: Scope, body: ReplayableBody
    ) -> tuple[Answer, headers.Headers]:
        """Return upstream's answer, which the caller closes, and the headers for the client.

        Raises:
            NotServed: it is no clone or fetch.
            HostNotAllowed: the host is not on the list.
            UpstreamFailed: upstream gave no answer, or none that git could use.
            ClientGone, ClientTooSlow: from the body.
        """
        must_be_served(route)
        url = self._upstreams.repository_url(route.key, dot_git=route.dot_git)
        parts = urlsplit(url)
        member = Member(name=NodeName(host_of(route.key)), url=f"{parts.scheme}://{parts.netloc}")
        question = INFO_REFS if route.endpoint is Endpoint.INFO_REFS else "/git-upload-pack"
        ask = Ask(
            method=scope["method"],
            target=f"{parts.path}{question}".encode("ascii"),
            headers=headers.for_upstream(scope["headers"]),
            body=body,
            may_outgrow=headers.may_outgrow(scope["headers"], self._replay_bytes),
        )
        try:
            answer = await self._lanes.of(member).begin(ask)
        except NodeFailed as exc:
            raise UpstreamFailed(str(exc)) from exc
        try:
            return answer, self._fields(answer, route, scope, url)
        except BaseException:
            await answer.aclose()
            raise

    async def aclose(self) -> None:
        """Close the connections that are kept."""
        await self._lanes.aclose()

    def _fields(self, answer: Answer, route: Route, scope: Scope, url: str) -> headers.Headers:
        fields = headers.from_upstream(answer.headers)
        if answer.status not in _REDIRECTS:
            return fields
        location = dict(headers.lowered(answer.headers)).get(b"location", b"").decode("latin-1")
        ours = None
        if route.endpoint is Endpoint.INFO_REFS:
            ours = our_location(location, route, url, self._upstreams, raw_path=scope["raw_path"])
        if ours is None:
            raise UpstreamFailed(
                f"{host_of(route.key)} redirects this repository (status {answer.status}) to where "
                "a credential must not go: ask for it by its present address"
            )
        return [*fields, (b"location", ours)]


def our_location(
    location: str, route: Route, asked: str, upstreams: Upstreams, *, raw_path: bytes
) -> bytes | None:
    """Return where on this router a redirect of upstream's info/refs leads; None if nowhere.

    `asked` is the repository's URL upstream. Only a redirect on the same scheme, host
    and port is followed, which is what a renamed repository gets: on any other the
    client's credential would go to someone else. The client comes back here with its
    next questions, in the form of target that it wrote this one in.
    """
    base = upstreams.redirected(asked, location) if location else None
    if base is None or origin_of(base) != origin_of(asked):
        return None
    dot_git = ".git" if route.dot_git else ""
    root = asked.removesuffix(f"{url_path(route.key)}{dot_git}")
    if not base.startswith(root):
        return None
    host = "" if not raw_path.startswith(b"/") else f"/{host_of(route.key)}"
    target = f"{host}/{base.removeprefix(root)}{INFO_REFS}"
    path, _, query = target.partition("?")
    whole = path if host else f"/{host_of(route.key)}{path}"
    try:
        parse_target(method="GET", raw_path=whole.encode("ascii"), query=query.encode("ascii"))
    except (BadRequest, UnicodeEncodeError):
        return None
    return target.encode("ascii")

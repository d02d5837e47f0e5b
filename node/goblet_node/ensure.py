"""`POST /-/ensure`: have a mirror hold what upstream has now, before a job relies on it.

A clone may share an answer that upstream gave a moment ago, and during an outage one
that is older. Who must not asks for it here, with the credential of any clone.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl

import trio

from goblet_node.fill.refresh import Refresher
from goblet_node.fill.refs import MIRRORED, Listing, RefsDesk, question_for
from goblet_node.fill.upstream import Grant
from goblet_node.mirror.store import MirrorMoved, MirrorStore
from goblet_node.wire.names import as_object_id, is_ref_name, shown
from goblet_node.wire.refs import ObjectId
from goblet_node.wire.v2_client import RemoteError
from goblet_shared import repo_key
from goblet_shared.errors import BadRequest, GobletError
from goblet_shared.git_route import UPLOAD_PACK, Endpoint, Route

ENSURE = b"/-/ensure"
# A job names the branch and the commit that it is about to build.
MAX_NAMED = 100
# How often it is tried anew if the mirror is evicted, or another's refresh fails, meanwhile.
_TRIES = 3


class MethodNotAllowed(BadRequest):
    """Something other than a POST, which alone may cause work."""

    status = 405


class NotUpstream(GobletError):
    """Upstream does not have what was named."""

    status = 404


class NotMirrored(GobletError):
    """This node may not have a mirror of the repository, or cannot speak its protocol."""

    status = 409


class NotYet(GobletError):
    """The mirror is not there in time; the work goes on."""

    status = 504


@dataclass(frozen=True, slots=True, kw_only=True)
class Ensured:
    """What is to be here: a repository as upstream has it now, and these of its refs and commits.

    `route` is that of a clone.
    """

    route: Route
    refs: tuple[bytes, ...]
    commits: tuple[ObjectId, ...]


def parse_ensure(*, method: str, query: bytes) -> Ensured:
    """Return what a request asks to have ensured.

    Raises:
        BadRequest: with a sentence that says what is wrong.
    """
    if method != "POST":
        raise MethodNotAllowed(f"ensure takes POST, not {method[:20]!r}")
    # Latin-1 both ways, as in git_route: every byte is a character.
    text = query.decode("latin-1")
    given: dict[str, list[bytes]] = {"repo": [], "ref": [], "commit": []}
    for name, value in parse_qsl(text, keep_blank_values=True, encoding="latin-1"):
        if name not in given:
            raise BadRequest(f"no parameter {name[:40]!a} is known here: want repo, ref, commit")
        given[name].append(value.encode("latin-1"))
    if len(given["repo"]) != 1:
        raise BadRequest("want repo=HOST/PATH, once")
    if len(given["ref"]) + len(given["commit"]) > MAX_NAMED:
        raise BadRequest(f"want at most {MAX_NAMED} refs and commits at once")
    for ref in given["ref"]:
        if not is_ref_name(ref):
            raise BadRequest(f"{shown(ref)} is no full name of a ref: want refs/heads/NAME")
    return Ensured(
        route=_route_to(given["repo"][0]),
        refs=tuple(dict.fromkeys(given["ref"])),
        commits=tuple(dict.fromkeys(map(_commit, given["commit"]))),
    )


class Ensurer:
    """Insists: asks upstream anew, and returns when the mirror has what it says."""

    def __init__(
        self,
        *,
        desk: RefsDesk,
        refresher: Refresher,
        store: MirrorStore,
        within: float,
    ) -> None:
        """Wait at most `within` seconds."""
        self._desk = desk
        self._refresher = refresher
        self._store = store
        self._within = within

    async def ensure(self, asked: Ensured, grant: Grant) -> Mapping[str, object]:
        """Return what the mirror has now of what was asked, as JSON says it.

        Cancelling the caller stops its waiting, not the work. Raises Refused, NotUpstream,
        NotMirrored, NotYet, UpstreamError.
        """
        began = time.monotonic()
        with trio.move_on_after(self._within):
            refs = await self._brought(asked, grant)
            return {
                "repo": asked.route.key,
                "refs": {name.decode(errors="replace"): oid.decode() for name, oid in refs.items()},
                "commits": [oid.decode() for oid in asked.commits],
                "seconds": round(time.monotonic() - began, 3),
            }
        raise NotYet(
            f"{asked.route.key} is not here after {self._within:g} s: "
            "it goes on being fetched, ask again"
        )

    async def _brought(self, asked: Ensured, grant: Grant) -> Mapping[bytes, ObjectId]:
        if not grant.can_be_mirrored:
            raise NotMirrored(f"{grant.key} has a protocol or object format that is not mirrored")
        question = question_for(asked.refs) if asked.refs else MIRRORED
        for tried in range(_TRIES):
            listing = await self._desk.ask_anew(grant, question)
            refs = _named(asked, listing)
            await self._follow(grant, listing)
            try:
                await self._hold(grant, {*refs.values(), *asked.commits})
            except MirrorMoved:
                if tried == _TRIES - 1:
                    raise
                continue
            return refs
        raise AssertionError("unreachable")  # the last try returns or raises

    async def _follow(self, grant: Grant, listing: Listing) -> None:
        """Return when the mirror, made if need be, has come to a listing or to a later one."""
        if self._store.get(grant.key) is None:
            await self._refresher.copied(grant.key)
        for tried in range(_TRIES):
            # Of another's refresh the credential may be refused, which says nothing of ours.
            is_ours = self._refresher.flying(grant.key) is None
            refresh = self._refresher.start(grant, listing, insist=True)
            if refresh is None:
                raise NotMirrored(f"{grant.key} is too large, or never to be mirrored here")
            await refresh.ended.wait()
            if refresh.error is None:
                return
            if is_ours or tried == _TRIES - 1:
                raise refresh.error

    async def _hold(self, grant: Grant, oids: set[ObjectId]) -> None:
        """Return when the mirror has these objects, whether a ref that it holds reaches them."""
        mirror = self._store.get(grant.key)
        if mirror is None:
            raise MirrorMoved(f"the mirror of {grant.key} was dropped meanwhile: ask again")
        with self._store.reading(mirror):
            missing = await trio.to_thread.run_sync(mirror.missing, oids)
        if not missing:
            return
        try:
            await self._refresher.bring(grant, missing)
        except RemoteError as exc:
            raise NotUpstream(
                f"the upstream of {grant.key} does not have all that was asked for: {exc}"
            ) from exc


def _named(asked: Ensured, listing: Listing) -> Mapping[bytes, ObjectId]:
    found = {ref.name: ref.oid for ref in listing.refs if ref.oid is not None}
    lacking = [name for name in asked.refs if name not in found]
    if lacking:
        names = ", ".join(map(shown, lacking))
        raise NotUpstream(f"the upstream of {asked.route.key} does not have {names}")
    return {name: found[name] for name in asked.refs}


def _route_to(repo: bytes) -> Route:
    try:
        text = repo.decode()
    except UnicodeDecodeError:
        raise BadRequest(f"repo={shown(repo)} is not UTF-8") from None
    return Route(
        key=repo_key.parse(text),
        endpoint=Endpoint.INFO_REFS,
        service=UPLOAD_PACK,
        dot_git=text.rstrip("/").lower().endswith(".git"),
    )


def _commit(text: bytes) -> ObjectId:
    oid = as_object_id(text)
    if oid is None:
        raise BadRequest(f"{shown(text)} is no commit: want 40 hexadecimal digits")
    return oid

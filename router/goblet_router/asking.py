"""What the commands ask of a cluster's processes over HTTP, and what they are told."""

import json
import os
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

import httpx
import trio

from goblet_shared import repo_key
from goblet_shared.cluster_secret import ClusterSecret
from goblet_shared.contract import NodeName
from goblet_shared.errors import BadRequest, GobletError
from goblet_shared.members import Member, MemberState, is_node_name, members_of
from goblet_shared.repo_key import RepoKey, host_of, url_path
from goblet_shared.ring import Ring

# A credential helper may ask a keyring that is locked, and wait for ever.
_CREDENTIAL_WITHIN = 30.0
_SHOWN = 300
_ASKED_AGAIN_AFTER = 1.0

# What is raised by taking JSON of somebody else for ours.
_NOT_OURS = (KeyError, TypeError, ValueError, AttributeError, OverflowError, BadRequest)


class AskFailed(GobletError):
    """A router or node could not be asked, or refused; the text says who, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A member as a router lists it; `url` and `state` are None where only names were given."""

    name: NodeName
    url: str | None = None
    state: str | None = None
    is_on_ring: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The members of a cluster, and how often the router that said so has changed its ring."""

    members: tuple[Listed, ...]
    epoch: int | None = None

    @property
    def ring(self) -> Ring:
        """The ring over those that are on it."""
        return Ring.of(member.name for member in self.members if member.is_on_ring)

    def reachable(self) -> tuple[Member, ...]:
        """Return those that have an address."""
        return tuple(
            Member(name=one.name, url=one.url) for one in self.members if one.url is not None
        )

    @classmethod
    def of(cls, words: Sequence[str]) -> Self:
        """Return the members that are written as NAME or NAME=URL.

        Raises:
            ValueError: one of them is neither.
        """
        members = []
        for word in sorted(set(words)):
            name, equals, url = word.partition("=")
            if not is_node_name(name):
                raise ValueError(f"{name[:40]!r} is not a node's name: want NAME or NAME=URL")
            where = members_of({name: url})[0].url if equals else None
            members.append(Listed(name=NodeName(name), url=where))
        return cls(members=tuple(members))


class Asker:
    """Asks routers and nodes one question at a time, as who knows the cluster's secret."""

    def __init__(
        self, client: httpx.AsyncClient, *, secret: ClusterSecret | None, patience: float
    ) -> None:
        """Without a secret, what is for members alone is asked of nodes on this machine only.

        Each answer may take `patience` seconds.
        """
        self._client = client
        self._secret = secret
        self._patience = patience

    async def cluster(self, router: str) -> Cluster:
        """Return the members as a router has them.

        Raises:
            AskFailed: it does not answer, or not as a router does.
        """
        told = await self._json("the router", "GET", f"{router}/-/ring")
        try:
            members = tuple(map(_listed, told["members"]))
            return Cluster(members=members, epoch=int(told["epoch"]))
        except _NOT_OURS:
            raise AskFailed(f"{router}/-/ring is not that of a Goblet router") from None

    async def mirrors(self, node: Member) -> Mapping[RepoKey, int]:
        """Return how many bytes each mirror of a node takes.

        Raises:
            AskFailed: it does not answer, or not to us.
        """
        told = await self._json(node.name, "GET", f"{node.url}/-/mirrors")
        try:
            return {repo_key.parse(str(one["key"])): int(one["bytes"]) for one in told["mirrors"]}
        except _NOT_OURS:
            raise AskFailed(f"{node.name}: {node.url}/-/mirrors is not that of a node") from None

    async def purge(self, node: Member, key: RepoKey) -> int | None:
        """Have a node delete what it holds of a repository; return its bytes, None if nothing.

        Raises:
            AskFailed: it does not answer, or not to us, or its disk refused.
        """
        question = urlencode({"repo": key})
        told = await self._json(node.name, "POST", f"{node.url}/-/purge?{question}")
        try:
            return int(told["bytes"]) if told["was_held"] else None
        except _NOT_OURS:
            raise AskFailed(f"{node.name}: {node.url}/-/purge is not that of a node") from None

    async def drain(self, node: Member) -> None:
        """Tell a node to hand over what it holds and to end.

        Raises:
            AskFailed: it does not answer, or not to us.
        """
        await self._answer(node.name, "POST", f"{node.url}/-/drain")

    async def status(self, node: Member) -> Mapping[str, Any] | None:
        """Return what a node says of itself; None if nobody listens there.

        Raises:
            AskFailed: somebody listens, and does not answer as a node does.
        """
        try:
            return await self._json(node.name, "GET", f"{node.url}/-/status")
        except AskFailed as exc:
            if isinstance(exc.__cause__, httpx.ConnectError):
                return None
            raise

    async def ensure(self, router: str, key: RepoKey) -> None:
        """Return when the repository's owner holds what upstream has now.

        Asked without a credential first, and with what git's helpers know for the
        router's address if that is refused: as git would ask for a clone through it.

        Raises:
            AskFailed: it cannot be had, or not by us.
        """
        said = "no answer"
        with trio.move_on_after(self._patience):
            while True:
                answer = await self._ensured(router, key)
                if answer.status_code != HTTPStatus.GATEWAY_TIMEOUT:
                    _checked(key, answer)
                    return
                # Its owner waits less long than we do, and goes on with it.
                said = _said(answer)
                await trio.sleep(_ASKED_AGAIN_AFTER)
        raise AskFailed(f"{key}: not warm after {self._patience:g} s: {said}")

    async def _ensured(self, router: str, key: RepoKey) -> httpx.Response:
        url = f"{router}/-/ensure?{urlencode({'repo': key})}"
        answer = await self._sent(key, "POST", url)
        if answer.status_code == 401:
            known = await credential_for(router, key)
            if known is None:
                raise AskFailed(
                    f"{key}: its host wants a credential, and git has none for {router}: "
                    f"store one with `git credential approve`"
                )
            answer = await self._sent(key, "POST", url, {"authorization": known})
        return answer

    async def _json(self, who: str, method: str, url: str) -> dict[str, Any]:
        answer = await self._answer(who, method, url)
        try:
            told = answer.json()
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise AskFailed(f"{who}: {url} answered {_said(answer)!r}, which is not ours")
        return told

    async def _answer(self, who: str, method: str, url: str) -> httpx.Response:
        return _checked(who, await self._sent(who, method, url))

    async def _sent(
        self, who: str, method: str, url: str, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        try:
            request = self._client.build_request(method, url, headers=headers)
            if self._secret is not None:
                name, proof = self._secret.header(method, request.url.raw_path)
                request.headers[name.decode()] = proof.decode()
            # In all, and not for each piece: an answer may come drop by drop for ever.
            with trio.fail_after(self._patience):
                return await self._client.send(request)
        except trio.TooSlowError as exc:
            place = url.partition("?")[0]
            raise AskFailed(f"{who}: {place}: no answer in {self._patience:g} s") from exc
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            place = url.partition("?")[0]
            raise AskFailed(f"{who}: {place}: {exc or type(exc).__name__}") from exc


@asynccontextmanager
async def asker(*, secret: ClusterSecret | None, patience: float) -> AsyncIterator[Asker]:
    """Give an asker who waits `patience` seconds for each answer; its connections end with it."""
    # Not by a proxy that the environment names: these are processes of our own cluster.
    async with httpx.AsyncClient(trust_env=False, timeout=None) as client:
        yield Asker(client, secret=secret, patience=patience)


async def credential_for(router: str, key: RepoKey) -> str | None:
    """Return the Authorization that git would send for a repository; nobody is asked for it."""
    parts = urlsplit(router)
    asked = {"protocol": parts.scheme, "host": parts.netloc}
    asked["path"] = f"{host_of(key)}/{url_path(key)}"
    written = "".join(f"{name}={value}\n" for name, value in asked.items()) + "\n"
    # An empty GIT_ASKPASS is nobody to ask, and keeps git from looking for another.
    unattended = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": ""}
    with trio.move_on_after(_CREDENTIAL_WITHIN):
        try:
            done = await trio.run_process(
                ["git", "credential", "fill"],
                stdin=written.encode(),
                env=unattended,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
        except OSError:
            return None
        lines = done.stdout.decode(errors="replace").splitlines()
        told = dict(line.split("=", 1) for line in lines if "=" in line)
        if done.returncode == 0 and {"username", "password"} <= told.keys():
            pair = f"{told['username']}:{told['password']}"
            return f"Basic {b64encode(pair.encode()).decode()}"
    return None


def _checked(who: str, answer: httpx.Response) -> httpx.Response:
    if not answer.is_success:
        raise AskFailed(f"{who}: {answer.status_code} {_said(answer)}")
    return answer


def _listed(one: Mapping[str, Any]) -> Listed:
    """Return a member as a router tells of it; raises `_NOT_OURS` if no router of ours does."""
    (member,) = members_of({one["name"]: one["url"]})
    state = MemberState(one["state"])
    return Listed(
        name=member.name, url=member.url, state=state.value, is_on_ring=one["is_on_ring"] is True
    )


def _said(answer: httpx.Response) -> str:
    return one_line(answer.text)


def one_line(said: str) -> str:
    """Return what somebody else said as it may be shown: short, nothing that a terminal obeys."""
    line = " ".join(said[:_SHOWN].split())
    return "".join(letter for letter in line if letter.isprintable())


def as_json(value: object) -> str:
    """Return a value as the commands print it with --json."""
    return json.dumps(value, indent=2)

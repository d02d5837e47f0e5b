"""The one canonical name of a repository, and the only place that makes it."""

import re
from typing import NewType
from urllib.parse import quote

from goblet_shared.errors import BadRequest

RepoKey = NewType("RepoKey", str)
"""`host/path`, for example `github.com/org/repo`. Made only by this module."""

# Several times what any forge hands out (GitHub: an owner has at most 39
# characters, a repository 100), and short enough that a log line, a header or a
# manifest that carries a key stays readable.
MAX_KEY_BYTES = 1024

# DNS allows no longer name (RFC 1035, 2.3.4).
_MAX_HOST = 253
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = re.compile(rf"(?P<name>{_LABEL}(?:\.{_LABEL})*)(?::(?P<port>[1-9][0-9]{{0,4}}))?")
_MAX_PORT = 65535

_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})?")
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_SCP = re.compile(r"[^/]*:(?![0-9]+(?:/|\Z)).*", re.DOTALL)
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}

# C0, DEL and C1: what Unicode calls Cc. In a log line or a header they forge.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_DOT_GIT = ".git"
_SHOWN = 80


class BadRepoKey(BadRequest):
    """What was given does not name a repository, or names it ambiguously."""


def parse(target: str) -> RepoKey:
    """Return the key of a repository as a person writes it.

    `https://GitHub.com/org/repo.git/` is percent-decoded, as a URL is.
    `github.com/org/repo` without a scheme is taken literally, as keys are printed:
    so `parse(key) == key` for every key, also for one that holds a `%`.

    Raises:
        BadRepoKey: with a sentence that says what is wrong.
    """
    try:
        raw = target.encode()
    except UnicodeEncodeError:
        raise BadRepoKey(f"{_shown(target)} is not valid Unicode text") from None
    url = _URL.fullmatch(target)
    if url is not None:
        return _from_url(url["scheme"].lower(), url["rest"])
    if "@" in target.partition("/")[0] or _SCP.fullmatch(target):
        # Not echoed: what stands before an @ may be a password.
        raise BadRepoKey("a repository is named HOST/PATH or https://HOST/PATH, not USER@HOST:PATH")
    host, _, path = raw.replace(b"%", b"%25").partition(b"/")
    return from_target(host, path)


def from_target(host: bytes, path: bytes) -> RepoKey:
    """Return the key of the repository `path` on `host`, both raw from a request target.

    `path` begins after the slash that ends the host. Both are percent-decoded
    exactly once, here; bytes that stand for themselves and bytes that are escaped
    mean the same. Trailing slashes and one `.git`, in any letter case, are dropped.

    Raises:
        BadRepoKey: when host or path are malformed, when a part of the path is
            empty, `.` or `..`, when an escape hides a slash, when there are control
            characters or backslashes, or when dropping `.git` leaves no name or
            another `.git` (a second reading would then give a different key).
    """
    key = RepoKey(f"{_canonical_host(host)}/{'/'.join(_canonical_parts(path))}")
    length = len(key.encode())
    if length > MAX_KEY_BYTES:
        raise BadRepoKey(
            f"the repository name {_shown(key)} has {length} bytes, more than {MAX_KEY_BYTES}"
        )
    return key


def host_of(key: RepoKey) -> str:
    """Return the host of a key, with its port if the key has one."""
    return key.partition("/")[0]


def url_path(key: RepoKey) -> str:
    """Return the path of a key, percent-encoded, without a slash at either end.

    `from_target(host_of(key), url_path(key))` is the key again.
    """
    return quote(key.partition("/")[2], safe="/")


def decode_parts(path: bytes) -> list[str]:
    """Return the parts of a raw path, each percent-decoded once and harmless by itself.

    No part is empty, `.` or `..`, or holds a slash, a backslash or a control
    character, whatever bytes came in.

    Raises:
        BadRepoKey: when that cannot be had.
    """
    return [_decode_part(part, path) for part in path.split(b"/")]


def has_dot_git(path: bytes) -> bool:
    """Tell whether a raw repository path is written with its `.git`."""
    return _percent_decode(path).rstrip(b"/").lower().endswith(_DOT_GIT.encode())


def _from_url(scheme: str, rest: str) -> RepoKey:
    if scheme not in _DEFAULT_PORTS:
        raise BadRepoKey(f"a repository is named by http or https, not by {_shown(scheme)}")
    authority, _, path = rest.partition("/")
    if "@" in authority:
        raise BadRepoKey("a repository is named without a user: leave out what stands before the @")
    if "?" in rest or "#" in rest:
        raise BadRepoKey("a repository is named without ? and #: write them as %3F and %23")
    return from_target(authority.removesuffix(_DEFAULT_PORTS[scheme]).encode(), path.encode())


def _canonical_host(raw: bytes) -> str:
    # Matched before it is lowered: the Kelvin sign, lowered, is an ASCII k.
    host = _utf8(_percent_decode(raw), raw)
    match = _HOST.fullmatch(host)
    if match is None or len(match["name"]) > _MAX_HOST:
        raise BadRepoKey(
            f"{_shown(raw)} is not a host name: want letters, digits, dots and hyphens, "
            "and at most a port after a colon"
        )
    if match["port"] is not None and int(match["port"]) > _MAX_PORT:
        raise BadRepoKey(f"the port of {_shown(raw)} is above {_MAX_PORT}")
    return host.lower()


def _canonical_parts(raw: bytes) -> list[str]:
    path = raw.rstrip(b"/")
    if not path:
        raise BadRepoKey("the path names a host but no repository: want /HOST/PATH")
    parts = decode_parts(path)
    name = parts[-1]
    if not name.lower().endswith(_DOT_GIT):
        return parts
    # Looked at again after the cut: `...git` would leave `..`.
    parts[-1] = name[: -len(_DOT_GIT)]
    if parts[-1] in {"", ".", ".."} or parts[-1].lower().endswith(_DOT_GIT):
        raise BadRepoKey(f"{_shown(name)} without its .git is not a repository's name")
    return parts


def _decode_part(raw: bytes, path: bytes) -> str:
    part = _utf8(_percent_decode(raw), raw)
    if part in {"", ".", ".."}:
        raise BadRepoKey(f"the path {_shown(path)} has a part that is empty, '.' or '..'")
    if "/" in part or "\\" in part:
        raise BadRepoKey(f"{_shown(raw)} holds an escaped slash or a backslash")
    if _CONTROL.search(part):
        raise BadRepoKey(f"{_shown(raw)} holds a control character")
    return part


def _percent_decode(raw: bytes) -> bytes:
    def byte(escape: re.Match[bytes]) -> bytes:
        if escape[1] is None:
            raise BadRepoKey(f"{_shown(raw)} holds a % that two hexadecimal digits do not follow")
        return bytes.fromhex(escape[1].decode())

    return _ESCAPE.sub(byte, raw)


def _utf8(text: bytes, raw: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise BadRepoKey(f"{_shown(raw)} is not valid UTF-8") from None


def _shown(what: str | bytes) -> str:
    """Return `what` as one short line that is safe in a log and in an answer."""
    text = what if isinstance(what, str) else what.decode("utf-8", "backslashreplace")
    return ascii(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")

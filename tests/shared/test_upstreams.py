"""Which URLs a node will ask, and which it never will."""

import pytest

from goblet_shared import repo_key
from goblet_shared.upstreams import INFO_REFS, BadUpstream, HostNotAllowed, Upstreams

HOSTS = Upstreams(
    allowed=["github.com"],
    mapped={"origin.test": "http://127.0.0.1:9000/", "GitLab.Example": "https://git.example/base"},
)


@pytest.mark.parametrize(
    ("repo", "dot_git", "url"),
    [
        ("github.com/org/repo", True, "https://github.com/org/repo.git"),
        ("github.com/org/repo", False, "https://github.com/org/repo"),
        ("origin.test/a/b/c", False, "http://127.0.0.1:9000/a/b/c"),
        ("gitlab.example/a", True, "https://git.example/base/a.git"),
    ],
)
def test_a_repository_has_a_url_below_its_hosts_base(repo: str, dot_git: bool, url: str) -> None:
    assert HOSTS.repository_url(repo_key.parse(repo), dot_git=dot_git) == url


def test_a_path_is_encoded_again_never_pasted() -> None:
    key = repo_key.from_target(b"github.com", b"org/a%3Fb%23c%20d")
    assert HOSTS.repository_url(key, dot_git=False) == "https://github.com/org/a%3Fb%23c%20d"


def test_other_hosts_are_refused_with_what_to_do() -> None:
    with pytest.raises(HostNotAllowed, match=r"--upstream evil\.test=https://evil\.test"):
        HOSTS.repository_url(repo_key.parse("evil.test/org/repo"), dot_git=False)


ASKED = "https://github.com/org/repo"


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("https://github.com/new/name" + INFO_REFS, "https://github.com/new/name"),
        ("/new/name.git" + INFO_REFS, "https://github.com/new/name.git"),
        ("http://127.0.0.1:9000/x" + INFO_REFS, "http://127.0.0.1:9000/x"),
        ("https://git.example/elsewhere" + INFO_REFS, "https://git.example/elsewhere"),
        ("/new/@name" + INFO_REFS, "https://github.com/new/@name"),
    ],
)
def test_a_redirect_within_the_list_is_followed(location: str, url: str) -> None:
    assert HOSTS.redirected(ASKED, location) == url


@pytest.mark.parametrize(
    "location",
    [
        "https://evil.test/org/repo" + INFO_REFS,
        "http://github.com/org/repo" + INFO_REFS,  # another scheme is another origin
        "https://github.com:8443/org/repo" + INFO_REFS,
        "https://user:secret@github.com/org/repo" + INFO_REFS,
        "https://github.com/login",
        "file:///etc/passwd",
        # Whatever is appended to this base would be part of its query or fragment.
        "https://github.com/a?x=" + INFO_REFS,
        "https://github.com/a?" + INFO_REFS,
        "https://github.com/a#" + INFO_REFS,
        "https://@github.com/a" + INFO_REFS,
        # Nothing that can be asked.
        "https://github.com:99999/a" + INFO_REFS,
        "https://github.com:x/a" + INFO_REFS,
        "https://[::1" + INFO_REFS,
        "https://github.com/a\x00b" + INFO_REFS,
        "https://github.com/a\tb" + INFO_REFS,
        "https://github.com/" + 70_000 * "a" + INFO_REFS,
    ],
)
def test_any_other_redirect_is_not(location: str) -> None:
    assert HOSTS.redirected(ASKED, location) is None


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x",
        "https://",
        "https://user:hunter2@host",
        "https://host/?q",
        "https://host/#f",
        "https://user:hunter2@host:99999",
        "https://[::1",
    ],
)
def test_an_upstream_that_cannot_be_used_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(BadUpstream) as refused:
        Upstreams(allowed=(), mapped={"name": url})
    assert "hunter2" not in str(refused.value)

"""Which hosts may be named, as router and node are both told."""

import pytest
from pydantic import ValidationError

from goblet_shared.repo_key import parse
from goblet_shared.upstream_settings import UpstreamSettings
from goblet_shared.upstreams import HostNotAllowed


def test_the_usual_hosts_are_allowed_and_others_added_by_name() -> None:
    upstreams = UpstreamSettings(upstream={"own.example": "http://10.0.0.9:3000/git"}).upstreams
    for repo, url in (
        ("github.com/a/b", "https://github.com/a/b"),
        ("own.example/a/b", "http://10.0.0.9:3000/git/a/b"),
    ):
        assert upstreams.repository_url(parse(repo), dot_git=False) == url
    with pytest.raises(HostNotAllowed):
        upstreams.repository_url(parse("other.example/a/b"), dot_git=False)


def test_a_list_of_ones_own_replaces_the_usual_one() -> None:
    upstreams = UpstreamSettings(allow_host=["gitlab.com"]).upstreams
    with pytest.raises(HostNotAllowed):
        upstreams.repository_url(parse("github.com/a/b"), dot_git=False)


@pytest.mark.parametrize(
    ("setting", "wrong"),
    [
        ("upstream", {"h.org": "ftp://h.org"}),
        ("upstream", {"h.org": "https://me:hunter2@h.org"}),
        ("upstream", {"h.org": "https://h.org?x=1"}),
        ("allow_host", ["h.org:99999"]),
    ],
)
def test_a_url_that_is_no_upstreams_is_refused_without_its_password(
    setting: str, wrong: object
) -> None:
    with pytest.raises(ValidationError) as caught:
        UpstreamSettings.model_validate({setting: wrong})
    assert "hunter2" not in str(caught.value)

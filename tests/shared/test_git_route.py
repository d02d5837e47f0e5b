"""A raw request target becomes one route, or one sentence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblet_shared.errors import BadRequest
from goblet_shared.git_route import (
    Endpoint,
    NotServed,
    Route,
    is_own,
    must_be_served,
    parse_target,
)
from goblet_shared.repo_key import BadRepoKey, parse

UPLOAD = b"service=git-upload-pack"


def get(raw_path: bytes, query: bytes = UPLOAD) -> Route:
    return parse_target(method="GET", raw_path=raw_path, query=query)


def post(raw_path: bytes, query: bytes = b"") -> Route:
    return parse_target(method="POST", raw_path=raw_path, query=query)


ENDPOINTS = [
    ("GET", b"/info/refs", UPLOAD, Endpoint.INFO_REFS),
    ("POST", b"/git-upload-pack", b"", Endpoint.UPLOAD_PACK),
    ("POST", b"/git-receive-pack", b"", Endpoint.RECEIVE_PACK),
    ("POST", b"/info/lfs/objects/batch", b"", Endpoint.LFS),
]
REPOSITORIES = [
    b"github.com/org/repo",
    b"GitHub.COM/org/repo.git",
    b"github.com/org/repo.GIT/",
    b"github.com/%6frg/rep%6F%2egit//",
]
AS_SENT = [b"/%s%s", b"http://%s%s", b"https://%s%s", b"HTTP://%s%s", b"/%s%s/", b"http://%s%s//"]


@pytest.mark.parametrize("form", AS_SENT)
@pytest.mark.parametrize("repository", REPOSITORIES)
@pytest.mark.parametrize(("method", "suffix", "query", "endpoint"), ENDPOINTS)
def test_every_form_of_every_spelling_gives_one_key_and_its_endpoint(
    form: bytes, repository: bytes, method: str, suffix: bytes, query: bytes, endpoint: Endpoint
) -> None:
    if endpoint is Endpoint.LFS and form.endswith(b"/"):
        suffix = suffix.rstrip(b"/")
    route = parse_target(method=method, raw_path=form % (repository, suffix), query=query)
    assert route.key == "github.com/org/repo"
    assert route.endpoint is endpoint
    assert route.dot_git == (b"git/" in (repository + b"/").lower())
    assert route.service == ("git-upload-pack" if endpoint is Endpoint.INFO_REFS else None)
    assert route.lfs_path == ("objects/batch" if endpoint is Endpoint.LFS else "")


@pytest.mark.parametrize(
    ("raw_path", "key"),
    [
        (b"/gitlab.com/a/b/c/repo/info/refs", "gitlab.com/a/b/c/repo"),
        (b"/h.org/info/info/refs", "h.org/info"),
        (b"/h.org/info/refs/info/refs", "h.org/info/refs"),
        (b"/h.org/info/lfs/info/refs", "h.org/info/lfs"),
        (b"/h.org/git-upload-pack/r/info/refs", "h.org/git-upload-pack/r"),
        (b"/h.org/objects/HEAD/info/refs", "h.org/objects/HEAD"),
        (b"/healthz/repo/info/refs", "healthz/repo"),
        (b"http://h.org:80/r/info/refs", "h.org/r"),
        (b"https://h.org:443/r/info/refs", "h.org/r"),
        (b"http://h.org:443/r/info/refs", "h.org:443/r"),
        (b"/h.org:80/r/info/refs", "h.org:80/r"),
    ],
)
def test_the_endpoint_is_cut_from_the_end(raw_path: bytes, key: str) -> None:
    assert get(raw_path).key == key


def test_a_repository_may_be_called_like_an_endpoint() -> None:
    assert post(b"/h.org/a/git-upload-pack/git-upload-pack").key == "h.org/a/git-upload-pack"
    assert post(b"/h.org/a/info/lfs/git-receive-pack").key == "h.org/a/info/lfs"


def test_lfs_is_cut_at_the_last_place_that_something_follows() -> None:
    route = post(b"/h.org/info/lfs/info/lfs/locks/a%20b/unlock")
    assert (route.key, route.lfs_path) == ("h.org/info/lfs", "locks/a%20b/unlock")


@pytest.mark.parametrize("rest", [b"..", b"a/%2e%2e/b", b"a//b", b"a%2Fb", b"%00", b"%ff"])
def test_no_lfs_path_climbs_out_of_lfs(rest: bytes) -> None:
    with pytest.raises(BadRepoKey):
        post(b"/h.org/r/info/lfs/" + rest)


def test_receive_pack_can_be_asked_for_as_a_service() -> None:
    assert get(b"/h.org/r/info/refs", b"service=git-receive-pack").service == "git-receive-pack"


def test_other_parameters_of_the_query_are_let_be() -> None:
    assert get(b"/h.org/r/info/refs", b"a&x=1&" + UPLOAD + b"&y=%FF").service == "git-upload-pack"


@pytest.mark.parametrize(
    ("method", "raw_path", "query", "said"),
    [
        ("GET", b"/h.org/r/info/refs", b"", "smart HTTP"),
        ("GET", b"/h.org/r/info/refs", b"Service=git-upload-pack", "smart HTTP"),
        ("GET", b"/h.org/r/HEAD", b"", "smart HTTP"),
        ("GET", b"/h.org/r/objects/info/packs", b"", "smart HTTP"),
        ("GET", b"/h.org/r/objects/ab/cdef", b"", "smart HTTP"),
        ("GET", b"/h.org/r/info/refs", b"service=git-upload-archive", "git-upload-archive"),
        ("GET", b"/h.org/r/info/refs", b"service=", "known"),
        ("GET", b"/h.org/r/info/refs", UPLOAD + b"&" + UPLOAD, "more than once"),
        ("GET", b"/h.org/r/info/refs", b"service=%FF%0A" + b"x" * 99, "known"),
        ("POST", b"/h.org/r/info/refs", UPLOAD, "takes GET"),
        ("HEAD", b"/h.org/r/info/refs", UPLOAD, "takes GET"),
        ("GET", b"/h.org/r/git-upload-pack", b"", "takes POST"),
        ("GET", b"/h.org/r/git-receive-pack", b"", "takes POST"),
        ("PUT", b"/h.org/r/info/lfs/objects/x", b"", "takes GET or POST"),
        ("CONNECT", b"h.org:443", b"", "insteadOf"),
        ("GET", b"/h.org/r", b"", "want /HOST/PATH"),
        ("GET", b"/h.org/r/info/lfs", b"", "want /HOST/PATH"),
        ("GET", b"/", b"", "want /HOST/PATH"),
        ("GET", b"", b"", "want /HOST/PATH"),
        ("OPTIONS", b"*", b"", "want /HOST/PATH"),
        ("GET", b"ftp://h.org/r/info/refs", UPLOAD, "want /HOST/PATH"),
        ("GET", b"http://joe:hunter2@h.org/r/info/refs", UPLOAD, "before an @"),
        ("GET", b"http://h.org/info/refs", UPLOAD, "no repository"),
        ("GET", b"/h.org/info/refs", UPLOAD, "no repository"),
        ("GET", b"http:///r/info/refs", UPLOAD, "host name"),
        ("GET", b"//h.org/r/info/refs", UPLOAD, "host name"),
    ],
)
def test_what_is_not_served_is_refused_with_a_sentence(
    method: str, raw_path: bytes, query: bytes, said: str
) -> None:
    with pytest.raises(BadRequest, match=said.replace("*", r"\*")) as refusal:
        parse_target(method=method, raw_path=raw_path, query=query)
    sentence = str(refusal.value)
    assert refusal.value.status == 400
    assert "hunter2" not in sentence
    assert sentence.isascii()
    assert sentence.isprintable()
    assert len(sentence) < 250


METHODS = st.one_of(st.sampled_from(["GET", "POST", "CONNECT", "PUT"]), st.text(max_size=5))
PIECES = st.sampled_from(
    b"/ // http:// HTTPS:// h.org :80 @ info /info/refs /git-upload-pack /info/lfs/ .. %2e .git "
    b"% %2F a ? \xff".split()
)
TARGETS = st.one_of(st.binary(), st.lists(PIECES, max_size=10).map(b"".join))
QUERIES = st.one_of(st.binary(), st.just(UPLOAD))


@given(METHODS, TARGETS, QUERIES)
def test_any_bytes_give_a_harmless_route_or_a_bad_request(
    method: str, raw_path: bytes, query: bytes
) -> None:
    try:
        route = parse_target(method=method, raw_path=raw_path, query=query)
    except BadRequest:
        return
    assert parse(route.key) == route.key
    assert not {"", ".", ".."} & set(route.key.split("/"))
    assert (route.service is not None) == (route.endpoint is Endpoint.INFO_REFS)
    assert ".." not in route.lfs_path.split("/")
    assert bool(route.lfs_path) == (route.endpoint is Endpoint.LFS)


@pytest.mark.parametrize(
    "raw_path", [b"/", b"/healthz", b"/readyz", b"/metrics", b"/-/ring", b"/-/", b"/-/a/info/refs"]
)
def test_our_own_pages_are_known(raw_path: bytes) -> None:
    assert is_own(raw_path)


@pytest.mark.parametrize(
    "raw_path",
    [
        b"/healthz/",
        b"/-",
        b"/metrics/r/info/refs",
        b"http://h/healthz",
        b"http://h/-/ring",
        b"",
        b"//",
    ],
)
def test_nothing_else_is_ours(raw_path: bytes) -> None:
    assert not is_own(raw_path)


@given(st.binary())
def test_no_repository_is_shadowed_by_our_own_room(rest: bytes) -> None:
    with pytest.raises(BadRequest):
        get(b"/-/" + rest)


@pytest.mark.parametrize(
    ("method", "path", "query", "sentence"),
    [
        ("GET", b"/h.org/r/info/refs", b"service=git-receive-pack", "pushInsteadOf"),
        ("POST", b"/h.org/r/git-receive-pack", b"", "pushInsteadOf"),
        ("POST", b"/h.org/r/info/lfs/objects/batch", b"", "lfs.url"),
        ("GET", b"/h.org/r/info/refs", b"service=git-upload-pack", None),
        ("POST", b"/h.org/r/git-upload-pack", b"", None),
    ],
)
def test_only_clones_and_fetches_are_served(
    method: str, path: bytes, query: bytes, sentence: str | None
) -> None:
    route = parse_target(method=method, raw_path=path, query=query)
    if sentence is None:
        must_be_served(route)
        return
    with pytest.raises(NotServed, match=sentence) as caught:
        must_be_served(route)
    assert caught.value.status == 403

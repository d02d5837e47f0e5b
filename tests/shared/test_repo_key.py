"""One repository, one key: however it is spelled, and whatever bytes are sent."""

import re
import string
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from goblet_shared import repo_key
from goblet_shared.errors import BadRequest
from goblet_shared.repo_key import BadRepoKey, RepoKey, from_target, host_of, parse, url_path

LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,6}[a-z0-9])?", fullmatch=True)
HOSTS = st.builds(
    lambda labels, port: ".".join(labels) + port,
    st.lists(LABELS, min_size=1, max_size=3),
    st.sampled_from(["", ":1", ":80", ":8080", ":65535"]),
)
PARTS = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/\\"), min_size=1, max_size=8
).filter(lambda part: part not in {".", ".."})
NAMES = PARTS.filter(lambda name: not name.lower().endswith(".git"))
PATHS = st.builds(
    lambda groups, name: "/".join([*groups, name]), st.lists(PARTS, max_size=3), NAMES
)


@st.composite
def spellings(draw: st.DrawFn, host: str, path: str) -> tuple[bytes, bytes]:
    """Return host and path as some client might write them."""
    dot_git = draw(st.sampled_from(["", ".git", ".GIT", ".Git"]))
    cased = "".join(draw(st.sampled_from([letter, letter.upper()])) for letter in host)
    return (
        draw(escaped(cased)),
        draw(escaped(path + dot_git)) + b"/" * draw(st.integers(0, 3)),
    )


@st.composite
def escaped(draw: st.DrawFn, text: str) -> bytes:
    """Return the UTF-8 bytes of `text`, any of them percent-encoded, in either letter case."""
    written = b""
    for byte in text.encode():
        if byte == ord("/") or (byte != ord("%") and draw(st.booleans())):
            written += bytes([byte])
        else:
            written += draw(st.sampled_from([b"%%%02X", b"%%%02x"])) % byte
    return written


def dangers_in(key: RepoKey) -> list[str]:
    """Return what of a key could leave the cache root or forge a log line."""
    found = [part for part in key.split("/") if part in {"", ".", ".."}]
    return found + re.findall(r"[\x00-\x1f\x7f-\x9f\\]", key)


@pytest.mark.slow
@given(HOSTS, PATHS, st.data())
def test_every_spelling_of_one_repository_gives_one_key(
    host: str, path: str, data: st.DataObject
) -> None:
    assert from_target(*data.draw(spellings(host, path))) == f"{host}/{path}"


@pytest.mark.slow
@given(HOSTS, PATHS, HOSTS, PATHS, st.data())
def test_two_repositories_never_share_a_key(
    host: str, path: str, other_host: str, other_path: str, data: st.DataObject
) -> None:
    one = from_target(*data.draw(spellings(host, path)))
    other = from_target(*data.draw(spellings(other_host, other_path)))
    assert (one == other) == ((host, path) == (other_host, other_path))


@given(HOSTS, PATHS)
def test_parsing_a_key_gives_the_key_again(host: str, path: str) -> None:
    key = from_target(quote(host).encode(), quote(path).encode())
    assert parse(key) == key
    assert from_target(host_of(key).encode(), url_path(key).encode()) == key


@pytest.mark.slow
@given(HOSTS, PATHS)
def test_a_url_and_the_plain_form_name_the_same_repository(host: str, path: str) -> None:
    key = parse(f"{host}/{path}")
    for scheme, default in (("http", ":80"), ("https", ":443"), ("HTTPS", ":443")):
        without = host.removesuffix(default)
        assert parse(f"{scheme}://{host}/{quote(path)}.git/") == f"{without}/{path}"
    assert key == f"{host}/{path}"


PIECES = rb". .. / %2e %2F %5c \ %00 % %25 .git a 2e %C3%A9 %FF %C2%85 %g1 %20".split()
HOSTILE = st.lists(
    st.sampled_from([*PIECES, b" ", b"\n", b"\x7f", b"\xff", b"\xc3\xa9"]), max_size=12
).map(b"".join)


@given(st.one_of(st.binary(max_size=30), st.just(b"h.org")), st.one_of(st.binary(), HOSTILE))
@example(b"h.org", b"...git")
@example(b"h.org", b"a/..git")
@example(b"h.org", b"%2e%2E/a")
def test_no_bytes_make_a_key_that_is_dangerous_or_read_differently_again(
    host: bytes, path: bytes
) -> None:
    try:
        key = from_target(host, path)
    except BadRepoKey:
        return
    assert dangers_in(key) == []
    assert parse(key) == key
    assert from_target(host_of(key).encode(), url_path(key).encode()) == key


@given(st.text())
def test_what_a_person_types_gives_a_key_or_a_bad_repo_key(target: str) -> None:
    try:
        key = parse(target)
    except BadRepoKey:
        return
    assert dangers_in(key) == []


@pytest.mark.parametrize(
    ("host", "path", "said"),
    [
        (b"h.org", b"a/../b", "'..'"),
        (b"h.org", b"a/%2e%2e/b", "'..'"),
        (b"h.org", b"a/./b", "'..'"),
        (b"h.org", b"a//b", "empty"),
        (b"h.org", b"/a", "empty"),
        (b"h.org", b"...git", "without its .git"),
        (b"h.org", b"..git", "without its .git"),
        (b"h.org", b".git", "without its .git"),
        (b"h.org", b"a/b.git.GIT", "without its .git"),
        (b"h.org", b"a%2Fb", "escaped slash"),
        (b"h.org", b"a%5Cb", "backslash"),
        (b"h.org", b"a\\b", "backslash"),
        (b"h.org", b"a%00", "control character"),
        (b"h.org", b"a%0a", "control character"),
        (b"h.org", b"a%7F", "control character"),
        (b"h.org", b"a%C2%9B", "control character"),
        (b"h.org", b"a%", "hexadecimal"),
        (b"h.org", b"a%g1", "hexadecimal"),
        (b"h.org", b"a%1", "hexadecimal"),
        (b"h.org", b"a%FE", "UTF-8"),
        (b"h.org", b"a\xff", "UTF-8"),
        (b"h.org", b"%C0%AF", "UTF-8"),
        (b"h.org", b"%ED%A0%80", "UTF-8"),
        (b"h.org", b"", "no repository"),
        (b"h.org", b"//", "no repository"),
        (b"h.org", b"a" * 1019, "1025 bytes"),
        (b"", b"a", "host name"),
        (b".", b"a", "host name"),
        (b"h..org", b"a", "host name"),
        (b"h.org.", b"a", "host name"),
        (b"-h.org", b"a", "host name"),
        (b"h_org", b"a", "host name"),
        (b"h.org:", b"a", "host name"),
        (b"h.org:0", b"a", "host name"),
        (b"h.org:080", b"a", "host name"),
        (b"h.org:65536", b"a", "port"),
        (b"h.org\n", b"a", "host name"),
        (b"[::1]", b"a", "host name"),
        ("\u212a.org".encode(), b"a", "host name"),
        (b"a." * 127 + b"aa", b"a", "host name"),
    ],
)
def test_what_is_refused_is_refused_with_a_short_sentence(
    host: bytes, path: bytes, said: str
) -> None:
    with pytest.raises(BadRepoKey, match=re.escape(said)) as refusal:
        from_target(host, path)
    sentence = str(refusal.value)
    assert len(sentence) < 250
    assert sentence.isprintable()
    assert sentence.isascii()


def test_a_bad_key_is_a_bad_request() -> None:
    assert issubclass(BadRepoKey, BadRequest)
    assert BadRepoKey.status == 400


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("github.com/org/repo", "github.com/org/repo"),
        ("https://GitHub.com/org/repo.git/", "github.com/org/repo"),
        ("https://github.com:443/org/Repo", "github.com/org/Repo"),
        ("http://github.com:443/org/repo", "github.com:443/org/repo"),
        ("gitlab.com/a/b/c/repo.GIT", "gitlab.com/a/b/c/repo"),
        ("localhost:8080/repo", "localhost:8080/repo"),
        ("https://h.org/a%20b", "h.org/a b"),
        ("h.org/a%20b", "h.org/a%20b"),
        ("h.org/a:b@c", "h.org/a:b@c"),
        ("h.org/" + "a" * 1018, "h.org/" + "a" * 1018),
    ],
)
def test_what_people_type(typed: str, key: str) -> None:
    assert parse(typed) == key


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("git@github.com:org/repo.git", "not USER@HOST:PATH"),
        ("github.com:org/repo", "not USER@HOST:PATH"),
        ("https://user:hunter2@github.com/org/repo", "without a user"),
        ("user:hunter2@github.com/org/repo", "not USER@HOST:PATH"),
        ("ssh://github.com/org/repo", "http or https"),
        ("https://github.com/org/repo?x=1", "without ?"),
        ("github.com", "no repository"),
        ("", "no repository|host name"),
        ("h.org/\ud800", "Unicode"),
    ],
)
def test_what_people_type_wrongly_is_explained_without_their_password(
    typed: str, said: str
) -> None:
    with pytest.raises(BadRepoKey, match=said.replace("?", r"\?")) as refusal:
        parse(typed)
    assert "hunter2" not in str(refusal.value)


def test_letter_case_of_the_path_is_part_of_the_identity() -> None:
    assert from_target(b"H.org", b"Org/repo") != from_target(b"h.org", b"org/repo")


@pytest.mark.parametrize(
    ("path", "written"),
    [(b"a/b.git", True), (b"a/b%2eGiT//", True), (b"a/b", False), (b"a.git/b", False)],
)
def test_whether_the_client_wrote_dot_git_is_seen(path: bytes, written: bool) -> None:
    assert repo_key.has_dot_git(path) is written


def test_a_key_is_shown_without_what_a_terminal_would_obey() -> None:
    with pytest.raises(BadRepoKey) as refusal:
        from_target(b"h.org", "a\u202e%00".encode() + string.ascii_letters.encode() * 9)
    assert str(refusal.value).isascii()
    assert len(str(refusal.value)) < 250

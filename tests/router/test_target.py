"""The target that a node gets says what the client asked, in one form."""

from hypothesis import given, settings
from hypothesis import strategies as st

from goblet_router.target import target_of
from goblet_shared.errors import BadRequest
from goblet_shared.git_route import parse_target

parts = st.text("abcXYZ.é %~", min_size=1, max_size=6)
targets = st.builds(
    "{}/{}{}{}".format,
    st.sampled_from(["/github.com", "http://GitHub.com", "/localhost:3000"]),
    st.lists(parts, min_size=1, max_size=3).map(
        lambda found: "/".join("".join(f"%{byte:02x}" for byte in part.encode()) for part in found)
    ),
    st.sampled_from(["", ".git", "/", ".GIT/"]),
    st.sampled_from(
        ["/info/refs", "/git-upload-pack", "/git-receive-pack", "/info/lfs/objects/batch"]
    ),
)


@settings(max_examples=60)
@given(targets)
def test_a_node_reads_the_same_route_from_the_target_that_we_send(target: str) -> None:
    query = b"service=git-upload-pack&x=1"
    for method in ("GET", "POST"):
        try:
            route = parse_target(method=method, raw_path=target.encode(), query=query)
        except BadRequest:
            continue
        path, _, sent = target_of(route, query).partition(b"?")
        assert parse_target(method=method, raw_path=path, query=sent) == route
        assert path.startswith(b"/")


def test_the_query_of_an_lfs_request_passes_and_any_other_does_not() -> None:
    lfs = parse_target(method="GET", raw_path=b"/h.org/r/info/lfs/locks", query=b"id=7")
    assert target_of(lfs, b"id=7") == b"/h.org/r/info/lfs/locks?id=7"
    refs = b"service=git-upload-pack&token=secret"
    route = parse_target(method="GET", raw_path=b"/h.org/r/info/refs", query=refs)
    assert target_of(route, refs) == b"/h.org/r/info/refs?service=git-upload-pack"

"""The request target that a node gets: path form, however the client spelled it. Pure."""

from goblet_shared.git_route import Endpoint, Route
from goblet_shared.repo_key import host_of, url_path


def target_of(route: Route, query: bytes) -> bytes:
    """Return the target for a route; `query` is the client's, and matters to LFS alone."""
    dot_git = ".git" if route.dot_git else ""
    path = f"/{host_of(route.key)}/{url_path(route.key)}{dot_git}/{route.endpoint.value}"
    if route.endpoint is Endpoint.INFO_REFS:
        return f"{path}?service={route.service}".encode("ascii")
    if route.endpoint is Endpoint.LFS:
        question = b"?" + query if query else b""
        return f"{path}/{route.lfs_path}".encode("ascii") + question
    return path.encode("ascii")

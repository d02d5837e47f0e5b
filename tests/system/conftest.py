"""Repositories and an origin for the system tests.

What several tests read is made once a test run; who changes a repository takes
a copy.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from goblet_testing.origin import Origin
from goblet_testing.repos import make_large, make_repo
from goblet_testing.stand import Stand, start_stand


@pytest.fixture(scope="session")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with `org/small`, `org/other` and `secret/repo`. Only to be read."""
    root = tmp_path_factory.mktemp("origin")
    make_repo(root / "org/small.git", seed=1)
    make_repo(root / "org/other.git", seed=2, commits=20)
    make_repo(root / "secret/repo.git", seed=3, commits=20)
    return root


@pytest.fixture(scope="session")
def large_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with `org/large`, more than 50,000 objects, which takes seconds. Only to be read."""
    root = tmp_path_factory.mktemp("large")
    make_large(root / "org/large.git")
    return root


@pytest.fixture
def own_root(shared_root: Path, tmp_path: Path) -> Path:
    """A copy of `shared_root` that the test may change."""
    return Path(shutil.copytree(shared_root, tmp_path / "own-origin"))


@pytest.fixture
def origin(shared_root: Path) -> Iterator[Origin]:
    """An origin before `shared_root`: alice may read `secret/repo`, bob may not."""
    users = {"alice": "wonder", "bob": "builder"}
    with Origin(shared_root, users=users, private={"secret/repo": {"alice"}}) as origin:
        yield origin


@pytest.fixture(scope="session")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """An origin with alice and bob, and a node; `template` is a repository to copy.

    For tests that have repositories of their own and need nothing special of the node.
    """
    directory = tmp_path_factory.mktemp("stand")
    make_repo(directory / "root/template.git")
    with start_stand(directory, users={"alice": "wonder", "bob": "builder"}) as stand:
        yield stand


@pytest.fixture
def name(request: pytest.FixtureRequest, stand: Stand) -> Iterator[str]:
    """A repository of the test's own at the stand's origin, which behaves again afterwards."""
    name = "org/" + re.sub("[^a-z0-9_]+", "-", request.node.name)
    stand.copy(name, "template")
    yield name
    stand.origin.behave()
    stand.origin.private.pop(name, None)

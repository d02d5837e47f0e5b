"""Every way in which git asks for a repository, answered by a warm mirror alone.

Each answer is held against what the origin itself gives to the same words.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from goblet_testing import asks, repos
from goblet_testing.clients import set_url
from goblet_testing.compare import Shown, assert_same, assert_sound, shown
from goblet_testing.gitcli import clone, git, refs_of
from goblet_testing.rich import SINCE, make_rich
from goblet_testing.stand import Stand, start_stand

pytestmark = [pytest.mark.system, pytest.mark.slow]

RICH = "org/rich"
VERSIONS = ("0", "1", "2")
ALSO_IN_1 = {"full", "since-of-all", "without-blobs", "one-behind", "deepen", "unshallow"}
"""What is asked in version 1 each time, and not only in long runs: it is 0 with one more line."""

CLONES = {
    "full": [],
    "bare": ["--bare"],
    "mirror": ["--mirror"],
    "single-branch": ["--single-branch"],
    "one-branch": ["--single-branch", "--branch=side/0"],
    "one-tag": ["--single-branch", "--branch=of-a-tag"],
    "no-tags": ["--no-tags"],
    "depth-1": ["--depth=1"],
    "depth-1-of-all": ["--depth=1", "--no-single-branch"],
    "depth-3-of-all": ["--depth=3", "--no-single-branch"],
    "depth-of-everything": ["--depth=2147483647", "--no-single-branch"],
    "since": [f"--shallow-since={SINCE}"],
    "since-of-all": [f"--shallow-since={SINCE}", "--no-single-branch"],
    "exclude-a-tag": ["--shallow-exclude=v0.1"],
    "exclude-a-branch": ["--shallow-exclude=side/1", "--no-single-branch"],
    "without-blobs": ["--filter=blob:none"],
    "small-blobs": ["--filter=blob:limit=100"],
    "blobs-below-1k": ["--filter=blob:limit=1k"],
    "no-trees": ["--filter=tree:0"],
    "top-trees": ["--filter=tree:1"],
    "trees-two-deep": ["--filter=tree:2", "--bare"],
    "commits-only": ["--filter=object:type=commit", "--bare"],
    "trees-only": ["--filter=object:type=tree", "--bare"],
    "combined": ["--filter=combine:blob:limit=1k+tree:2", "--bare"],
    "shallow-and-without-blobs": ["--depth=2", "--filter=blob:none"],
}
FILTERED = [name for name, flags in CLONES.items() if "--filter" in str(flags)]

FETCHES: dict[str, tuple[str, list[str]]] = {
    "one-behind": ("behind-1", []),
    "a-hundred-behind": ("behind-100", []),
    "from-one-branch-to-all": ("side", []),
    "nothing-new": ("all", []),
    "with-all-tags": ("behind-1", ["--tags"]),
    "without-tags": ("behind-100", ["--no-tags"]),
    "only-the-tags": ("untagged", ["--tags"]),
    "one-tag": ("untagged", ["refs/tags/of-a-tag:refs/tags/of-a-tag"]),
    "deepen": ("shallow", ["--deepen=2"]),
    "deepen-all-branches": ("shallow-all", ["--deepen=3"]),
    "depth": ("shallow", ["--depth=5"]),
    "shallower": ("shallow-all", ["--depth=1"]),
    "unshallow": ("shallow", ["--unshallow"]),
    "unshallow-all-branches": ("shallow-all", ["--unshallow"]),
    "shallow-since": ("shallow", [f"--shallow-since={SINCE}"]),
    "shallow-exclude": ("shallow", ["--shallow-exclude=v0.1"]),
    "more-branches-of-a-shallow-one": ("shallow", []),
    "a-full-one-made-shallow": ("behind-1", ["--depth=2"]),
}
OBJECTS = {
    "commit": "main~40",
    "side-commit": "side/1",
    "tag": "of-a-tag-of-a-tag",
    "tree": "main~7:part1",
    "blob": "main~90:part0/area0/file0.txt",
}


def in_versions(names: Iterable[str]) -> list[object]:
    """Return each name with each version, to be one test."""
    return [
        pytest.param(name, version, marks=[pytest.mark.soak] if is_rare else [])
        for name in names
        for version in VERSIONS
        for is_rare in [version == "1" and name not in ALSO_IN_1]
    ]


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """An origin with one rich repository, and a node whose mirror of it is warm."""
    directory = tmp_path_factory.mktemp("clients")
    make_rich(directory / f"root/{RICH}.git")
    with start_stand(directory) as stand:
        stand.warm(RICH)
        yield stand


class Direct:
    """What the origin itself gives, asked once for each words; and clients to start from."""

    def __init__(self, stand: Stand, directory: Path) -> None:
        self._stand = stand
        self._directory = directory
        self._shown: dict[str, Shown] = {}

    def cloned(self, name: str) -> Shown:
        """Return what a clone of this name from the origin shows."""

        def make(dest: Path) -> None:
            clone(self._stand.direct(RICH), dest, *CLONES[name])

        return self._once(f"clone-{name}", make)

    def fetched(self, name: str, version: str) -> Shown:
        """Return what a fetch of this name from the origin makes of its client.

        In the same protocol version: which tags follow differs between them.
        """
        start, flags = FETCHES[name]

        def make(dest: Path) -> None:
            self.client(start, dest)
            git("fetch", "--quiet", "origin", *flags, cwd=dest, env=speak(version))

        return self._once(f"fetch-{name}-{version}", make)

    def client(self, start: str, dest: Path, *, url: str | None = None) -> Path:
        """Give `dest` a client in this state, whose origin is at `url` if given."""
        template = self._directory / start
        if not template.exists():
            self._make_client(start, template)
        shutil.copytree(template, dest, symlinks=True)
        set_url(dest, url or self._stand.direct(RICH))
        return dest

    def _make_client(self, start: str, dest: Path) -> None:
        url = self._stand.direct(RICH)
        if start.startswith("behind-"):
            repo = self._stand.repo(RICH)
            oid = repos.oid_of(repo, f"main~{start.removeprefix('behind-')}")
            git("init", "--quiet", dest)
            git("remote", "add", "origin", url, cwd=dest)
            git("fetch", "--quiet", "origin", f"{oid}:refs/remotes/origin/main", cwd=dest)
            return
        flags = {
            "all": [],
            "untagged": ["--no-tags"],
            "side": ["--single-branch", "--branch=side/0", "--no-tags"],
            "shallow": ["--depth=1"],
            "shallow-all": ["--depth=2", "--no-single-branch"],
        }
        clone(url, dest, *flags[start])
        if start in ("side", "shallow"):
            every = "+refs/heads/*:refs/remotes/origin/*"
            git("config", "remote.origin.fetch", every, cwd=dest)

    def _once(self, name: str, make: Callable[[Path], None]) -> Shown:
        if name not in self._shown:
            make(self._directory / name)
            self._shown[name] = shown(self._directory / name)
        return self._shown[name]


@pytest.fixture(scope="module")
def direct(stand: Stand, tmp_path_factory: pytest.TempPathFactory) -> Direct:
    """Answers of the origin itself."""
    return Direct(stand, tmp_path_factory.mktemp("direct"))


def speak(version: str) -> dict[str, str]:
    """Return the environment in which every git process, lazy fetches too, speaks `version`."""
    return {"GIT_CONFIG_PARAMETERS": f"'protocol.version'='{version}'"}


@pytest.mark.parametrize(("name", "version"), in_versions(CLONES))
def test_every_clone_is_the_origins(
    stand: Stand, direct: Direct, tmp_path: Path, name: str, version: str
) -> None:
    expected = direct.cloned(name)
    with stand.answers_alone(RICH):
        git("clone", "--quiet", *CLONES[name], stand.url(RICH), tmp_path / "c", env=speak(version))
    # git asks the filter about a tree that a tag points at, and we do not: more is allowed.
    below = ["rev-list", "--objects", "--no-object-names", "of-a-tree"] if name in FILTERED else []
    besides = git(*below, cwd=stand.repo(RICH)).stdout.split() if below else []
    assert_same(tmp_path / "c", expected, besides=frozenset(besides))


@pytest.mark.parametrize(("name", "version"), in_versions(FETCHES))
def test_every_fetch_is_the_origins(
    stand: Stand, direct: Direct, tmp_path: Path, name: str, version: str
) -> None:
    start, flags = FETCHES[name]
    expected = direct.fetched(name, version)
    client = direct.client(start, tmp_path / "c", url=stand.url(RICH))
    with stand.answers_alone(RICH):
        git("fetch", "--quiet", "origin", *flags, cwd=client, env=speak(version))
    assert_same(client, expected)


@pytest.mark.parametrize(
    ("name", "version"),
    [*((name, "2") for name in FILTERED), ("without-blobs", "0"), ("no-trees", "0")],
)
def test_what_a_filter_left_out_is_fetched_when_it_is_needed(
    stand: Stand, tmp_path: Path, name: str, version: str
) -> None:
    """Lazily by a checkout, in bulk by a diff: blobs and trees by their ids, without haves."""
    env, dest = speak(version), tmp_path / "c"
    flags = [flag for flag in CLONES[name] if flag != "--bare"]
    with stand.answers_alone(RICH):
        git("clone", "--quiet", "--no-checkout", *flags, stand.url(RICH), dest, env=env)
        git("checkout", "--quiet", "HEAD", cwd=dest, env=env)
        git("fetch", "--quiet", "origin", "refs/heads/side/1", cwd=dest, env=env)
        diff = git("diff", "HEAD", "FETCH_HEAD", cwd=dest, env=env).stdout
    repo = stand.repo(RICH)
    assert diff == git("diff", "main", "side/1", cwd=repo).stdout
    assert git("ls-files", cwd=dest).stdout == (
        git("ls-tree", "-r", "--name-only", "main", cwd=repo).stdout
    )
    assert git("status", "--porcelain", cwd=dest).stdout == ""
    assert_sound(dest)


@pytest.mark.parametrize("version", ["0", "2", pytest.param("1", marks=pytest.mark.soak)])
@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize("start", ["nothing", "side", "shallow"])
def test_any_object_is_fetched_by_its_id(
    stand: Stand, direct: Direct, tmp_path: Path, kind: str, version: str, start: str
) -> None:
    repo, dest = stand.repo(RICH), tmp_path / "c"
    oid = repos.oid_of(repo, OBJECTS[kind])
    if start == "nothing":
        git("init", "--quiet", dest)
        git("remote", "add", "origin", stand.url(RICH), cwd=dest)
    else:
        direct.client(start, dest, url=stand.url(RICH))
    fetched = ["fetch", "--quiet", "--no-tags", "origin", f"{oid}:refs/fetched/it"]
    with stand.answers_alone(RICH):
        git(*fetched, cwd=dest, env=speak(version))
    assert_sound(dest)
    ours = git("rev-list", "--objects", "--no-object-names", "refs/fetched/it", cwd=dest).stdout
    theirs = git("rev-list", "--objects", "--no-object-names", oid, cwd=repo).stdout
    if start == "shallow":
        # Where the client's history ends it stays ended.
        assert set(ours.split()) <= set(theirs.split())
    else:
        assert set(ours.split()) == set(theirs.split())


@pytest.mark.parametrize("haves", [[], ["main~1"], ["main~100", "side/0"]])
def test_a_pack_that_may_not_be_thin_stands_alone(
    stand: Stand, tmp_path: Path, haves: list[str]
) -> None:
    """git always says thin-pack; other clients do not, and cannot complete such a pack."""
    repo, url = stand.repo(RICH), stand.url(RICH)
    wants = [repos.oid_of(repo, "main")]
    known = [repos.oid_of(repo, name) for name in haves]
    with stand.answers_alone(RICH):
        answer = asks.fetch(url, wants, haves=known, arguments=["ofs-delta"])
    client = tmp_path / "client.git"
    git("init", "--quiet", "--bare", client)
    for number, oid in enumerate(known):
        git("fetch", "--quiet", repo, f"{oid}:refs/heads/{number}", cwd=client)
    pack = client / "objects/pack/received.pack"
    pack.write_bytes(answer.pack)
    # Without --fix-thin a missing base is an error, even if the client has it.
    git("index-pack", "--strict", "--fsck-objects", pack, cwd=client)
    git("update-ref", "refs/heads/main", wants[0], cwd=client)
    assert_sound(client)


@pytest.mark.parametrize("version", VERSIONS)
def test_refs_are_listed_as_the_origin_lists_them(stand: Stand, version: str) -> None:
    env = speak(version)
    assert refs_of(stand.url(RICH), env=env) == refs_of(stand.direct(RICH), env=env)
    symrefs = [
        git("ls-remote", "--symref", url, "HEAD", env=env).stdout.replace(url, "")
        for url in (stand.url(RICH), stand.direct(RICH))
    ]
    assert symrefs[0] == symrefs[1] != ""

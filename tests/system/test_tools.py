"""The commands that change a cluster, on real processes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from goblet_router.cli import app
from goblet_testing.fleet import Fleet, until
from goblet_testing.processes import live_process
from goblet_testing.repos import make_repo
from goblet_testing.stand import HOST

pytestmark = [pytest.mark.system, pytest.mark.slow]
# Routers find within a second that it drains.
FLAGS = ("--workers", "1", "--drain-notice-seconds", "1")
REPOS = ("org/one", "org/two", "org/three")


def goblet(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_an_operator_warms_looks_ahead_purges_and_drains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The upstream is private: `warm` needs what git's credential helper knows."""
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, "/dev/null")
    with Fleet(tmp_path, nodes=2, users={"ann": "pw"}, node_flags=FLAGS) as fleet:
        fleet.origin.private = {repo: {"ann"} for repo in (*REPOS, "org/none")}
        for repo in REPOS:
            make_repo(fleet.origin.root / f"{repo}.git", commits=3, files=3)
        at = ("--router", fleet.router.base)
        secret = ("--cluster-secret-file", str(fleet.secret_file))
        keys = [f"{HOST}/{repo}" for repo in REPOS]

        refused = goblet("warm", keys[0], *at)
        assert refused.exit_code == 1
        assert "wants a credential" in refused.stderr
        monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
        monkeypatch.setenv("GIT_CONFIG_KEY_0", f"credential.{fleet.router.base}.helper")
        monkeypatch.setenv("GIT_CONFIG_VALUE_0", "!f() { echo username=ann; echo password=pw; }; f")
        warmed = goblet("warm", *keys, *at)
        assert warmed.exit_code == 0, warmed.output
        assert sorted(line.split()[0] for line in warmed.stdout.splitlines()) == sorted(keys)
        assert len(fleet.origin.packs()) == len(REPOS)
        lacking = goblet("warm", f"{HOST}/org/none", keys[0], *at)
        assert lacking.exit_code == 1
        assert f"{HOST}/org/none: 404 " in lacking.stderr
        assert keys[0] in lacking.stdout

        looked = goblet("ring", "diff", "--remove", fleet.owners(REPOS[0])[0], *at, *secret)
        assert looked.exit_code == 0, looked.output
        assert f"{keys[0]}  " in looked.stdout
        told = json.loads(goblet("ring", "diff", "--add", "c", *at, *secret, "--json").stdout)
        assert told["unasked"] == {}
        assert told["bytes"] == sum(repo["bytes"] for repo in told["repositories"])

        purged = goblet("purge", keys[0], *at, *secret)
        assert purged.exit_code == 0, purged.output
        owner = fleet.owners(REPOS[0])[0]
        assert purged.stdout.startswith(f"{keys[0]}  {owner}  ")
        assert goblet("purge", keys[0], *at, *secret).stdout == f"{keys[0]}  nobody held it\n"
        assert goblet("warm", keys[0], *at).exit_code == 0
        assert len(fleet.origin.packs()) == len(REPOS) + 1

        drained = goblet("ring", "drain", "goblet-2", *at, *secret)
        assert drained.exit_code == 0, drained.output
        assert drained.stderr.startswith("goblet-2 drains\n")
        assert drained.stderr.endswith("goblet-2 is gone\n")
        until(lambda: live_process(fleet.node("goblet-2").pid) is None)

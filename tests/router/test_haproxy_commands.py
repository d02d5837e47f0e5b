"""`goblet haproxy`, as a person types it; `sync` with a HAProxy is in tests/system."""

from pathlib import Path

from typer.testing import CliRunner

from goblet_router.cli import app
from goblet_router.haproxy.placement import Placement
from goblet_router.haproxy.render import render
from goblet_router.haproxy.settings import HAProxySettings
from goblet_shared.members import members_of

NODES = {"a": "http://10.0.0.1:80", "b": "http://10.0.0.2:80"}


def goblet(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["haproxy", *words])
    return result.exit_code, result.output


def test_render_writes_the_files_and_says_how_to_start_haproxy(tmp_path: Path) -> None:
    nodes = [word for node in NODES.items() for word in ("--node", "=".join(node))]
    code, said = goblet("render", str(tmp_path), *nodes, "--ranks", "2")
    assert code == 0, said
    assert f"haproxy -W -f {tmp_path}/haproxy.cfg" in said
    wanted = render(Placement.over(members_of(NODES)), HAProxySettings(ranks=2))
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == wanted
    code, said = goblet("render", str(tmp_path), *nodes, "--ranks", "2")
    assert "wrote nothing" in said


def test_render_reads_the_members_from_where_a_router_would(tmp_path: Path) -> None:
    file = tmp_path / "members.toml"
    file.write_text('[nodes]\na = "http://10.0.0.1:80"\n')
    code, said = goblet("render", str(tmp_path / "out"), "--members-file", str(file))
    assert code == 0, said
    assert "members: 1; wrote haproxy.cfg" in said


def test_without_members_nothing_is_written_and_a_sentence_says_what_to_give(
    tmp_path: Path,
) -> None:
    for command in ("render", "sync"):
        code, said = goblet(command, str(tmp_path / "out"))
        assert code == 1
        assert said.startswith("goblet: there are no members: name them with --node NAME=URL")
        assert not (tmp_path / "out").exists()


def test_a_router_that_is_not_there_and_a_place_that_cannot_be_written_are_named(
    tmp_path: Path,
) -> None:
    code, said = goblet("render", str(tmp_path), "--router", "http://127.0.0.1:1")
    assert code == 1
    assert said.startswith("goblet: the router's http://127.0.0.1:1/-/ring does not answer")
    (tmp_path / "file").write_text("")
    code, said = goblet("render", str(tmp_path / "file"), "--node", "a=http://h:1")
    assert code == 1
    assert "cannot be written" in said


def test_a_router_and_members_are_not_both_given(tmp_path: Path) -> None:
    code, said = goblet(
        "render", str(tmp_path), "--router", "http://h:1", "--node", "a=http://h:1"
    )  # fmt: skip
    assert code == 2
    assert "but not both" in said

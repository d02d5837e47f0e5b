"""Flags before environment before file before defaults, and one sentence for what is wrong."""

from pathlib import Path
from typing import Annotated

import pytest
import typer
from pydantic import ByteSize, Field, field_validator, model_validator
from typer.testing import CliRunner, Result

from goblet_shared.errors import GobletError
from goblet_shared.settings import ProcessSettings, WrongSetting, load, takes


class Sample(ProcessSettings):
    """One field of every supported type."""

    name: str = Field(description="what it is called")
    max_body: ByteSize = Field(default=ByteSize(64 * 2**20), description="how much a body may hold")
    wait: float = Field(default=30.0, description="seconds")
    rise: int = Field(default=3, description="good probes in a row", ge=1)
    verbose: bool = Field(default=False, description="say more")
    root: Path | None = Field(default=None, description="where files lie")
    hosts: list[str] = Field(default=["a.org", "b.org"], description="which may be asked")
    upstream: dict[str, str] = Field(
        default={"a.org": "https://a.org"}, description="where they are"
    )

    @field_validator("wait")
    @classmethod
    def _is_not_negative(cls, wait: float) -> float:
        if wait < 0:
            raise ValueError("a time cannot be negative")
        return wait

    @model_validator(mode="after")
    def _asks_somebody(self) -> "Sample":
        if not self.hosts and not self.upstream:
            raise ValueError("give hosts or upstream")
        return self


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in [*Sample.model_fields, "config"]:
        monkeypatch.delenv(f"GOBLET_{field.upper()}", raising=False)


def run(*arguments: str) -> tuple[Result, list[Sample]]:
    """Run a command of one `Sample` with these arguments."""
    seen: list[Sample] = []
    app = typer.Typer()

    @app.command()
    @takes(Sample)
    def command(settings: Sample) -> None:
        """Do what the sample says."""
        seen.append(settings)

    # Wide, so that rich breaks no line that a test looks for.
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "400"}), seen


def given(*arguments: str) -> Sample:
    result, seen = run("--name", "n", *arguments)
    assert result.exit_code == 0, result.output
    return seen[0]


def refused(*arguments: str) -> str:
    result, seen = run(*arguments)
    assert (result.exit_code, seen) == (2, [])
    assert "Traceback" not in result.output
    return result.output


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "goblet.toml"
    path.write_text(
        'name = "from file"\nmax_body = "1MiB"\nwait = 1\nrise = 5\nverbose = true\n'
        'root = "/file"\nhosts = ["f.org"]\n[upstream]\n"f.org" = "https://f.org"\n'
    )
    return path


def test_defaults_hold_where_nothing_is_given() -> None:
    settings = given()
    assert settings == Sample(name="n")
    assert (settings.max_body, settings.rise, settings.root) == (67108864, 3, None)


def test_every_type_can_be_given_by_flag() -> None:
    settings = given(
        "--max-body=3MiB",
        "--wait=0.5",
        "--rise=7",
        "--verbose",
        "--root=/r",
        "--hosts=x.org",
        "--hosts=y.org",
        "--upstream=x=https://x?a=b",
        "--upstream=y=http://y",
    )
    assert settings == Sample(
        name="n",
        max_body=ByteSize(3 * 2**20),
        wait=0.5,
        rise=7,
        verbose=True,
        root=Path("/r"),
        hosts=["x.org", "y.org"],
        upstream={"x": "https://x?a=b", "y": "http://y"},
    )


def test_every_type_can_be_given_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOBLET_MAX_BODY", "1GB")
    monkeypatch.setenv("GOBLET_WAIT", "2")
    monkeypatch.setenv("GOBLET_RISE", "1")
    monkeypatch.setenv("GOBLET_VERBOSE", "yes")
    monkeypatch.setenv("GOBLET_ROOT", "/e")
    monkeypatch.setenv("GOBLET_HOSTS", "x.org, y.org\nz.org,")
    monkeypatch.setenv("GOBLET_UPSTREAM", "x=https://x  y=http://y,z=http://z")
    assert given() == Sample(
        name="n",
        max_body=ByteSize(10**9),
        wait=2,
        rise=1,
        verbose=True,
        root=Path("/e"),
        hosts=["x.org", "y.org", "z.org"],
        upstream={"x": "https://x", "y": "http://y", "z": "http://z"},
    )


def test_every_type_can_be_given_by_file(file: Path) -> None:
    result, seen = run("--config", str(file))
    assert result.exit_code == 0, result.output
    assert seen == [
        Sample(
            name="from file",
            max_body=ByteSize(2**20),
            wait=1,
            rise=5,
            verbose=True,
            root=Path("/file"),
            hosts=["f.org"],
            upstream={"f.org": "https://f.org"},
        )
    ]


def test_flags_go_before_environment_before_file_before_defaults(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOBLET_CONFIG", str(file))
    monkeypatch.setenv("GOBLET_RISE", "6")
    monkeypatch.setenv("GOBLET_VERBOSE", "true")
    monkeypatch.setenv("GOBLET_UPSTREAM", "e=http://e")
    settings = given("--no-verbose")
    assert settings.name == "n"
    assert settings.verbose is False
    assert settings.rise == 6
    assert settings.upstream == {"e": "http://e"}
    assert settings.hosts == ["f.org"]


def test_a_flag_that_repeats_the_default_still_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOBLET_RISE", "6")
    assert given("--rise", "3").rise == 3


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOBLET_HOSTS", "")
    monkeypatch.setenv("GOBLET_RISE", "")
    assert given() == Sample(name="n")


def test_variables_that_kubernetes_injects_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOBLET_PORT", "tcp://192.0.2.1:80")
    monkeypatch.setenv("GOBLET_SERVICE_HOST", "192.0.2.1")
    assert given() == Sample(name="n")


@pytest.mark.parametrize("name", ["port", "service_host", "node_port", "port_80_tcp", "config"])
def test_no_field_may_be_called_like_a_variable_that_is_not_ours(name: str) -> None:
    with pytest.raises(TypeError, match=f"GOBLET_{name.upper()} is not ours"):
        type("Clash", (ProcessSettings,), {"__annotations__": {name: str}})


def test_constructing_settings_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOBLET_RISE", "6")
    assert Sample(name="n").rise == 3
    assert load(Sample, flags={"name": "n"}).rise == 6


def test_settings_cannot_be_changed_later() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Sample(name="n").rise = 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-body", "much"], "Invalid value for --max-body: could not parse"),
        (["--rise", "0"], "Invalid value for --rise: Input should be greater than or equal to 1"),
        (["--wait", "-1"], "Invalid value for --wait: a time cannot be negative"),
        (["--upstream", "a.org"], "Invalid value for --upstream: want NAME=URL"),
        (["--upstream", "=x"], "Invalid value for --upstream: want NAME=URL"),
        (["--upstream", "a=b", "--upstream", "a=c"], "--upstream: 'a' is given twice"),
        (["--config", "/nowhere.toml"], "Invalid value for --config: cannot read /nowhere.toml"),
        (["--unknown", "x"], "No such option: --unknown"),
    ],
)
def test_a_wrong_flag_is_a_usage_error_that_names_it(arguments: list[str], said: str) -> None:
    assert said in refused("--name", "n", *arguments)


def test_a_required_setting_that_is_missing_is_asked_for() -> None:
    assert (
        "Invalid value for --name: not given: use the flag, GOBLET_NAME, or name in the file"
        in refused()
    )


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("GOBLET_RISE", "many", "Invalid value for GOBLET_RISE: Input should be a valid integer"),
        ("GOBLET_UPSTREAM", "a.org", "Invalid value for GOBLET_UPSTREAM: want NAME=URL"),
    ],
)
def test_a_wrong_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert said in refused("--name", "n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("risse = 3", "sets 'risse', which does not exist: known are name, max_body"),
        ("rise = [", "is not valid TOML"),
        ('rise = "many"', "Invalid value for rise in"),
        ("[upstream]\na = 1", "Invalid value for upstream in"),
        ("hosts = []\nupstream = {}", "Invalid value for settings: give hosts or upstream"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    output = refused("--name", "n", "--config", str(file))
    assert said in output
    assert "settings:" in said or "wrong.toml" in output


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "binary.toml"
    file.write_bytes(b"\xff\xfe")
    assert "is not valid TOML" in refused("--name", "n", "--config", str(file))


def test_a_password_in_a_wrong_value_is_not_echoed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "hunter2" not in refused("--name", "n", "--upstream", "https://u:hunter2@a.org")
    monkeypatch.setenv("GOBLET_RISE", "https://u:hunter2@a.org")
    assert "hunter2" not in refused("--name", "n")


def test_help_is_the_reference() -> None:
    result, _ = run("--help")
    assert result.exit_code == 0
    assert "Do what the sample says." in result.output
    for name, field in Sample.model_fields.items():
        line = next(
            line for line in result.output.splitlines() if f"--{name.replace('_', '-')} " in line
        )
        assert field.description is not None
        assert field.description in line
        assert f"GOBLET_{name.upper()}" in line
    for default in (
        "64MiB",
        "(30)",
        "(3)",
        "(no)",
        "a.org b.org",
        "a.org=https://a.org",
        "must be",
    ):
        assert default in result.output
    assert "GOBLET_CONFIG" in result.output


def test_a_wrong_setting_is_one_of_our_errors_and_one_sentence() -> None:
    with pytest.raises(GobletError, match="--rise: Input should be") as wrong:
        load(Sample, flags={"name": "n", "rise": "x"})
    assert isinstance(wrong.value, WrongSetting)
    assert "\n" not in str(wrong.value)


def test_a_command_keeps_its_own_parameters() -> None:
    seen: list[tuple[Sample, str, bool]] = []
    app = typer.Typer()

    @app.command()
    @takes(Sample)
    def export(
        settings: Sample,
        repository: Annotated[str, typer.Argument()],
        force: Annotated[bool, typer.Option("--force")] = False,
    ) -> None:
        seen.append((settings, repository, force))

    result = CliRunner().invoke(app, ["--name", "n", "h.org/a", "--force", "--rise", "9"])
    assert result.exit_code == 0, result.output
    assert seen == [(Sample(name="n", rise=9), "h.org/a", True)]

"""Settings from flags, environment and a TOML file, in that order, for any command.

A command is a function of one settings value:

    @app.command()
    @takes(RouterSettings)
    def router(settings: RouterSettings) -> None: ...

Every field becomes an option; its description is the help text, so `--help` is the
reference. Only this module reads the environment: `RouterSettings(...)` does not.
"""

from __future__ import annotations

import inspect
import re
import tomllib
import types
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import typer
from pydantic import ByteSize, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from goblet_shared.errors import GobletError

PREFIX = "GOBLET_"
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A time as people write it in a setting: more than none, and not for ever."""
_CONFIG = "config"

# Beside a Service called `goblet` or `goblet-node`, Kubernetes puts GOBLET_PORT,
# GOBLET_SERVICE_HOST, GOBLET_PORT_80_TCP_ADDR, GOBLET_NODE_PORT and so on into every
# pod. Hence unknown variables are ignored, and no field may have such a name.
_KUBERNETES = re.compile(r"(^|_)(port|service_host|service_port)(_|$)")


class WrongSetting(GobletError):
    """A setting that is missing, unknown or malformed.

    `source` is what the person wrote it as: `--max-body`, `GOBLET_MAX_BODY`, or
    `max_body` in a file.
    """

    def __init__(self, problem: str, *, source: str) -> None:
        super().__init__(f"{source}: {problem}")
        self.problem = problem
        self.source = source


class ProcessSettings(BaseSettings):
    """Settings of a process. Built from keyword arguments alone; `load` adds the other sources."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        validate_default=True,
        hide_input_in_errors=True,      # a URL may carry a password
    )  # fmt: skip

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse fields whose environment variable Kubernetes may set."""
        super().__pydantic_init_subclass__(**kwargs)
        for name in cls.model_fields:
            if _KUBERNETES.search(name) or name == _CONFIG:
                raise TypeError(
                    f"{cls.__name__}.{name}: {PREFIX}{name.upper()} is not ours to read"
                )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take keyword arguments alone: `load` has merged the sources already."""
        return (init_settings,)


S = TypeVar("S", bound=ProcessSettings)


def load(settings: type[S], *, flags: Mapping[str, Any], file: Path | None = None) -> S:
    """Return settings: `flags` before the environment, before the TOML `file`, before defaults.

    A source replaces a whole field; lists and tables of several sources are not merged.

    Raises:
        WrongSetting: for the first setting that is missing, unknown or malformed.
    """
    in_file = {} if file is None else _read(file, settings)
    in_environment = _Environment(settings)()
    given = {**in_file, **in_environment, **_parsed(settings, flags)}
    try:
        return settings(**given)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
    name = str(wrong["loc"][0]) if wrong["loc"] else ""
    if name in flags:
        source = _flag(name)
    elif name in in_environment:
        source = _variable(name)
    elif name in in_file:
        source = f"{name} in {file}"
    elif not name:
        source = "settings"  # a rule about several fields
    else:
        raise WrongSetting(
            f"not given: use the flag, {_variable(name)}, or {name} in the file", source=_flag(name)
        )
    raise WrongSetting(_sentence(wrong["msg"]), source=source)


def takes(settings: type[S]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function of a settings value a typer command with one option a field.

    The settings are the function's first argument; its other parameters stay
    parameters of the command. A wrong value is a usage error (exit code 2).
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(ctx: typer.Context, **values: Any) -> None:
            flags = {
                name: values.pop(name)
                for name in list(values)
                if name in settings.model_fields and _was_typed(ctx, name)
            }
            file = values.pop(_CONFIG)
            own = {name: value for name, value in values.items() if name in extra}
            try:
                loaded = load(settings, flags=flags, file=file)
            except WrongSetting as wrong:
                raise typer.BadParameter(wrong.problem, param_hint=wrong.source) from None
            command(loaded, **own)

        _, *rest = inspect.signature(command, eval_str=True).parameters.values()
        extra = {parameter.name for parameter in rest}
        parameters = [
            inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
            *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in rest),
            *(_option(name, field) for name, field in settings.model_fields.items()),
            _config_option(),
        ]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        del run.__wrapped__  # typer would read the command's own signature through it
        return run

    return decorate


class _Environment(EnvSettingsSource):
    """`GOBLET_*`, with lists and tables written as people write them in a manifest, not as JSON."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        words = re.split(r"[\s,]+", str(value).strip(" \t\r\n,"))
        return words if _kind(field) is list else _table(words, source=_variable(field_name))


def _parsed(settings: type[S], flags: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _table(value, source=_flag(name))
        if _kind(settings.model_fields[name]) is dict and not isinstance(value, Mapping)
        else value
        for name, value in flags.items()
    }


def _table(words: list[str], *, source: str) -> dict[str, str]:
    table: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            # Not echoed: it may be a URL with a password.
            raise WrongSetting("want NAME=URL", source=source)
        if name in table:
            raise WrongSetting(f"{name!r} is given twice", source=source)
        table[name] = value
    return table


def _read(file: Path, settings: type[ProcessSettings]) -> dict[str, Any]:
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise WrongSetting(
            f"cannot read {file}: {error.strerror or error}", source=_flag(_CONFIG)
        ) from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise WrongSetting(f"{file} is not valid TOML: {error}", source=_flag(_CONFIG)) from None
    for name in values:
        if name not in settings.model_fields:
            known = ", ".join(settings.model_fields)
            raise WrongSetting(
                f"{file} sets {name!r}, which does not exist: known are {known}",
                source=_flag(_CONFIG),
            )
    return values


def _was_typed(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    """Return the parameter that typer makes an option of. pydantic, not typer, reads the value."""
    kind = _kind(field)
    written: Any = {bool: bool, list: list[str], dict: list[str]}.get(kind, str)
    option = typer.Option(
        f"{_flag(name)}/--no-{_flag(name)[2:]}" if kind is bool else _flag(name),
        help=field.description,
        metavar=None if kind is bool else _METAVARS.get(kind, "TEXT"),
        # Given so that --help shows it; what typer finds there is not used.
        envvar=_variable(name),
        show_envvar=True,
        show_default=_default(field) or False,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[written | None, option],
    )


def _config_option() -> inspect.Parameter:
    option = typer.Option(
        _flag(_CONFIG),
        help="TOML file with any of these settings; flags and environment go before it.",
        metavar="FILE",
        envvar=_variable(_CONFIG),
        show_envvar=True,
        show_default=False,
    )
    return inspect.Parameter(
        _CONFIG,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[Path | None, option],
    )


_METAVARS = {int: "INTEGER", float: "NUMBER", Path: "PATH", ByteSize: "SIZE", dict: "NAME=URL"}


def _kind(field: FieldInfo) -> Any:
    """Return the bare type of a field: `dict` for `dict[str, str]`, `Path` for `Path | None`."""
    annotation: Any = field.annotation
    if get_origin(annotation) in {Union, types.UnionType}:
        annotation = next(a for a in get_args(annotation) if a is not type(None))
    return get_origin(annotation) or annotation


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case ByteSize():
            return value.human_readable().replace(".0", "")
        case float():
            return f"{value:g}"
        case dict():
            return " ".join(f"{name}={target}" for name, target in value.items())
        case list() | tuple():
            return " ".join(value)
    return str(value)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _variable(name: str) -> str:
    return PREFIX + name.upper()


def _sentence(message: str) -> str:
    # pydantic's own words, less what it puts before the ones that a validator raised.
    return message.removeprefix("Value error, ")

"""Command-line options made from the fields of a pydantic model, each with its environment variable CONVOY_<OPTION>."""

from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from service.cli.parameters import FiniteFloat, NumberOrWord
from service.config import ServerConfig


def parameters(model: type[BaseModel]) -> list[click.Parameter]:
    """A required field becomes an argument, any other an option; `**values` of the command are the fields of `model`."""
    return [
        click.Argument([name], type=_type(field)) if field.is_required() else _option(name, field)
        for name, field in model.model_fields.items()
    ]


def shown(field: FieldInfo) -> Mapping[str, Any]:
    """What a field says of how it is shown."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def value_type(field: FieldInfo) -> Any:
    """The type of a field that is set: `int` of `int | None`, and of an integer or a word."""
    kinds = [kind for kind in _union(field) if kind is not type(None)]
    kind = kinds[0] if kinds else field.annotation
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def words(field: FieldInfo) -> list[str]:
    """The words that a field accepts beside numbers: `auto` of `int | Literal["auto"]`."""
    return [word for kind in _union(field) if get_origin(kind) is Literal for word in get_args(kind)]


def _union(field: FieldInfo) -> tuple[Any, ...]:
    """The types of a field that has one of several."""
    return get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else ()


def limits(field: FieldInfo) -> dict[str, float]:
    """The range of a number: any of `ge`, `gt`, `le`, `lt`."""
    of_number = [extra for kind in _union(field) for extra in getattr(kind, "__metadata__", ())]
    rules = [*field.metadata, *(rule for extra in of_number for rule in extra.metadata)]
    return {name: getattr(rule, name) for rule in rules for name in ("ge", "gt", "le", "lt") if hasattr(rule, name)}


def is_list(field: FieldInfo) -> bool:
    """Whether the setting is a list of texts."""
    return bool(value_type(field) == tuple[str, ...])


def _option(name: str, field: FieldInfo) -> click.Option:
    negated = field.default is True
    flag = ("--no-" if negated else "--") + name.replace("_", "-")
    extra = shown(field)
    is_flag = value_type(field) is bool
    callback = (lambda context, parameter, value: not value) if negated else _joined if is_list(field) else None
    return click.Option(
        [name, flag],
        type=None if is_flag else _type(field),
        is_flag=is_flag,
        multiple=is_list(field),
        default=False if is_flag else field.default,
        callback=callback,
        envvar="CONVOY_" + flag.removeprefix("--").upper().replace("-", "_"),
        show_envvar=True,
        show_default=extra.get("default", True),
        metavar=extra.get("metavar"),
        help=field.description,
    )


def _type(field: FieldInfo) -> click.ParamType[Any]:
    kind, within = value_type(field), limits(field)
    if is_list(field):
        return _Texts()
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    if kind is Path:
        return click.Path(path_type=Path)
    if kind is int:
        number = click.IntRange(within.get("ge"), within.get("le"))  # type: ignore[arg-type]
        return NumberOrWord(number, words(field)) if words(field) else number
    if kind is float:
        return FiniteFloat(within.get("gt", within.get("ge")), within.get("le"), min_open="gt" in within)
    return click.STRING


class _Texts(click.ParamType[tuple[str, ...]]):
    """Texts separated by commas, in an option and in its environment variable alike; the option may be repeated as well."""

    name = "text,..."
    envvar_list_splitter = ","

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """The texts without the spaces around them."""
        texts = tuple(text.strip() for text in value.split(","))
        if "" in texts:
            self.fail("a value is empty (values are separated by commas)", param, ctx)
        return texts


def _joined(_context: click.Context, _parameter: click.Parameter, values: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    return tuple(text for texts in values for text in texts)


NO_CONTROL = click.Option(["--no-control"], is_flag=True, hidden=True, envvar="CONVOY_NO_CONTROL")
"""What `--control off` was called."""


class ServeCommand(click.Command):
    """A command whose help has the headings of ServerConfig."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parses the command line; NO_CONTROL becomes the setting that it stands for."""
        rest = super().parse_args(ctx, args)
        if ctx.params.pop("no_control", False):
            ctx.params["control"] = "off"
        return rest

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes one section a heading, and `--help` last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        heading = ""
        for parameter in self.get_params(ctx):
            heading = ServerConfig.HEADINGS.get(parameter.name or "", heading) if parameter in self.params else "Help"
            record = parameter.get_help_record(ctx)
            if isinstance(parameter, click.Option) and record is not None:
                sections.setdefault(heading, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)

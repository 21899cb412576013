"""Writes service/CONFIGURATION.md from the fields of ServerConfig and Policy. `--check` only says whether it is stale."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from service.cli.config_options import is_list, limits, shown, value_type, words
from service.cli.serve import serve
from service.config import ServerConfig
from service.policy import Policy

TARGET = Path(__file__).parents[1] / "service" / "CONFIGURATION.md"

TEXT = """<!-- Made from service/config.py and service/policy.py by `make docs`: change those files. -->
# Configuration

## `convoy serve`

`convoy serve [OPTIONS] REPOSITORY`. An option wins over its environment variable; a flag's variable is
`1` or `true` to set it. Where several values are accepted, commas separate them, and the option may be given more than once:
`--host 127.0.0.1,10.0.0.5` or `--host 127.0.0.1 --host 10.0.0.5`.

{options}## `serving.toml`

How one model is served: `REPOSITORY/<model>/serving.toml`, or `<model>.toml` in the folder of `--policies`. All keys are optional.
The file is read again when it changes.

{keys}"""


def table(headings: list[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [
        headings,
        ["---"] * len(list(headings)),
        *([cell.replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in rows),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def options() -> str:
    sections: dict[str, list[list[str]]] = {}
    heading = ""
    for option in serve.params:
        if isinstance(option, click.Option) and not option.hidden:
            field = ServerConfig.model_fields[option.name or ""]
            heading = ServerConfig.HEADINGS.get(option.name or "", heading)
            is_flag = value_type(field) is bool
            default = "" if is_flag else str(shown(field).get("default", literal(field.default, quoted=False)))
            row = [f"`{option.opts[0]}`", f"`{option.envvar}`", default, accepted(field), field.description or ""]
            sections.setdefault(heading, []).append(row)
    headings = ["option", "environment variable", "default", "accepted", "what it does"]
    return "".join(f"### {heading}\n\n{table(headings, rows)}\n" for heading, rows in sections.items())


def keys() -> str:
    rows = [
        [
            f"`{name}`",
            str(shown(field).get("default") or literal(field.default, quoted=True)),
            accepted(field),
            field.description or "",
        ]
        for name, field in Policy.model_fields.items()
    ]
    return table(["key", "default", "accepted", "what it does"], rows)


def literal(value: object, *, quoted: bool) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ", ".join(f"`{each}`" for each in value)
    if isinstance(value, float):
        return f"`{value:g}`"
    return f'`"{value}"`' if isinstance(value, str) and quoted else f"`{value}`"


def accepted(field: FieldInfo) -> str:
    kind, within = value_type(field), limits(field)
    if "accepted" in shown(field):
        return str(shown(field)["accepted"])
    if is_list(field):
        return "text, several"
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if kind in (int, float):
        low = f"above {within['gt']:.0f}" if "gt" in within else f"{within['ge']:.0f}"
        word = "integer" if kind is int else "number"
        choices = "".join(f"`{each}`, or " for each in words(field))
        if "le" not in within:
            return f"{choices}{word} from {low}"
        return f"{choices}{word}, {low}{', at most' if 'gt' in within else ' to'} {within['le']:.0f}"
    return {bool: "flag", str: "text", Path: "path"}[kind]


def main() -> None:
    fresh = TEXT.format(options=options(), keys=keys())
    if "--check" not in sys.argv[1:]:
        TARGET.write_text(fresh)
    elif not TARGET.exists() or TARGET.read_text() != fresh:
        sys.exit(f"{TARGET.relative_to(TARGET.parents[1])} is stale: make docs")


main()

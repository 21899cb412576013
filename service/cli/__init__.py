"""The program `convoy`: its commands, and its errors as one line on stderr.

A command is imported when it is called: `classify` and `bench` need none of the server's packages, and `serve` none of training's.
The commands of the export stage join through the entry-point group `convoy.commands`, because service/ never imports export/.
"""

import errno
import gc
import io
import os
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import click

from service import DISTRIBUTION, compiled
from service.errors import ConvoyError

GROUP = "convoy.commands"
COMMANDS = {name: EntryPoint(name, f"service.cli.{name}:{name}", GROUP) for name in ("bench", "classify", "serve", "sign", "token")}

EXTRAS = {
    **dict.fromkeys(
        (
            "cryptography", "grpc_channelz", "grpc_health", "grpc_reflection", "h11", "jwt", "mypy_extensions", "numpy",
            "onnxruntime", "pydantic", "structlog", "watchfiles", "werkzeug",
        ),
        "cpu",
    ),
    **dict.fromkeys(
        ("jinja2", "matplotlib", "onnx", "onnx_ir", "onnxscript", "pooch", "safetensors", "scipy", "sklearn", "torch"), "export"
    ),
    "aiohttp": "remote",
    "fsspec": "remote",
    "opentelemetry": "tracing",
    "pyarrow": "parquet",
}  # fmt: skip
"""The extra that a module comes with, of those that the base installation lacks."""

_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Errors of a disk that is full, or fails: of stdout, if they name no file."""


class _Program(click.Group):
    """The commands of COMMANDS and of the entry-point group."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *COMMANDS, *entry_points(group=GROUP).names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        for entry_point in [COMMANDS[cmd_name]] if cmd_name in COMMANDS else entry_points(group=GROUP, name=cmd_name):
            try:
                command: click.Command = entry_point.load()
            except ModuleNotFoundError as error:
                return _uninstalled(cmd_name, error)
            return command
        return None


def _uninstalled(name: str, error: ModuleNotFoundError) -> click.Command:
    """A command whose extra is not installed: it is in the list, and raises `error` whatever its arguments are."""
    extra = _extra(error)
    if extra is None:
        raise error

    def refuse(**_: object) -> None:
        raise error

    return click.Command(
        name,
        callback=refuse,
        params=[click.Argument(["words"], nargs=-1, type=click.UNPROCESSED)],
        context_settings={"ignore_unknown_options": True},
        add_help_option=False,
        short_help=f"Not installed: needs the extra {extra!r}.",
    )


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name=DISTRIBUTION, prog_name="convoy", message=f"%(prog)s, version %(version)s ({compiled.build()})")
def program() -> None:
    """Convoy: from labelled images to answers over gRPC.

    \b
    A first tour:
      convoy train --data digits --network article-cnn --output run
      convoy export run --repository models --name digits
      convoy serve models
      convoy classify digit.png --model digits
    """  # noqa: D301 - \b keeps click from re-wrapping the lines


def main() -> None:
    """Runs the program: a user's error is one line on stderr and exit code 2; Ctrl-C is exit code 130."""
    _set_up_process()
    try:
        program.main(prog_name="convoy", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help())
    except Exception as error:  # noqa: BLE001 - a bug is raised again
        line, code = _explain(error)
        if isinstance(error, OSError) and error.errno in (errno.EPIPE, *_CANNOT_WRITE):
            # Python would write the rest of the output while it closes stdout.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if line:
            click.echo(f"convoy: {line}", err=True)
        sys.exit(code)
    sys.exit(0)


def _set_up_process() -> None:
    # Imports make many objects and no garbage: at the usual 700 a tenth of the start would be spent on looking for some.
    gc.set_threshold(50_000, 20, 50)
    # gRPC's C core writes lines of its own to stderr, about what we report or survive. Set the variable to see them.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # With its event engine C core reads sockets on threads of its own and wakes ours for each message; without, the thread that
    # polls reads them itself: a third less CPU for an empty call (tests/benchmarks/HISTORY.md). To be set before gRPC starts.
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
    # ONNX Runtime would report its use to its makers.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - for good: no other file may get the number of a closed stdout
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without the bar's character gets a "?" and not an error


def _explain(error: Exception) -> tuple[str, int]:
    """The line on stderr and the exit code for an error that is not a bug. Raises one that is."""
    match error:
        case ConvoyError():
            return str(error), 2
        case click.exceptions.Abort():
            return "interrupted", 130
        case click.UsageError(ctx=click.Context() as context):
            return f"{_one_line(error)} (see `{context.command_path} --help`)", 2
        case click.ClickException():
            return _one_line(error), 2
        case ModuleNotFoundError() if extra := _extra(error):
            needs = "'cpu', 'gpu' or 'cuda', one of the three" if extra == "cpu" else repr(extra)
            how = f"pip install '{DISTRIBUTION}[{extra}]', in a clone '.[{extra}]'"
            return f"package {error.name!r} is missing: install Convoy's extra {needs} ({how})", 2
        case OSError(errno=errno.EPIPE):
            return "", 1  # the reader of our output has left, as `| head` does
        case OSError(errno=code, filename=None) if code in _CANNOT_WRITE:
            return f"cannot write the output: {error.strerror}", 2
        case OSError(filename=str() | bytes() as path):
            name = os.fsdecode(path)
            return f"{name if len(name) <= 200 else name[:200] + '...'}: {error.strerror}", 2
    raise error


def _one_line(error: click.ClickException) -> str:
    return error.format_message().replace("\n", " ")


def _extra(error: ModuleNotFoundError) -> str | None:
    return EXTRAS.get((error.name or "").partition(".")[0])

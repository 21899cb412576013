"""The program `convoy`.

The commands of the export stage join through the entry-point group `convoy.commands` and are imported when they are called, so
that the server needs none of what they need.
"""

import errno
import io
import os
import sys
from importlib.metadata import entry_points
from importlib.metadata import version as package_version
from pathlib import Path

import click

from service import DISTRIBUTION
from service.cli.classify import classify
from service.cli.serve import serve
from service.errors import ConvoyError

_EXPORT_PACKAGES = {"jinja2", "torch", "onnx", "onnxscript", "onnx_ir", "pooch", "scipy", "sklearn", "matplotlib"}
_ENGINE_PACKAGES = {"onnxruntime"}
_TRACING_PACKAGES = {"opentelemetry"}


class _Program(click.Group):
    """The commands of this file and those that other parts of Convoy add."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *entry_points(group="convoy.commands").names})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            return command
        for entry_point in entry_points(group="convoy.commands", name=cmd_name):
            loaded: click.Command = entry_point.load()
            return loaded
        return None


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_version(DISTRIBUTION), prog_name="convoy")
def program() -> None:
    """Convoy: from labelled images to answers over gRPC.

    \b
    A first tour:
      convoy train --data digits --network article-cnn --output run
      convoy export run --repository models --name digits
      convoy serve models
      convoy classify digit.png --model digits
    """  # noqa: D301 - \b keeps click from re-wrapping the lines


program.add_command(serve)
program.add_command(classify)


def main() -> None:
    """Runs the program: a user's error is one line on stderr and exit code 2; Ctrl-C is exit code 130."""
    # gRPC's C core writes lines of its own to stderr, about what we report or survive. Set the variable to see them.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # With its event engine C core reads sockets on threads of its own and wakes ours for each message; without, the thread that
    # polls reads them itself: a third less CPU for an empty call (tests/benchmarks/RESULTS.md). To be set before gRPC starts.
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
    # ONNX Runtime would report its use to its makers; a server tells nobody of itself unless it was asked to.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - for good: the number of what was closed is not for another file
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without the bar's character gets a "?" and not an error
    try:
        program.main(prog_name="convoy", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(0)
    except click.exceptions.Abort:
        _leave("interrupted", 130)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help())
        sys.exit(0)
    except click.ClickException as error:
        hint = f" (see `{error.ctx.command_path} --help`)" if isinstance(error, click.UsageError) and error.ctx else ""
        _leave(error.format_message().replace("\n", " ") + hint, 2)
    except ConvoyError as error:
        _leave(str(error), 2)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in _EXPORT_PACKAGES:
            _leave(
                f"this command needs the package {missing!r}, of Convoy's extra 'export' (in a clone: pip install '.[export]')", 2
            )
        if missing in _ENGINE_PACKAGES:
            _leave(
                "onnxruntime is missing: install Convoy's extra 'cpu' or 'gpu', one of the two (in a clone: pip install '.[cpu]')",
                2,
            )
        if missing in _TRACING_PACKAGES:
            _leave("--otlp-endpoint needs Convoy's extra 'tracing' (in a clone: pip install '.[tracing]')", 2)
        raise
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EIO):
            if error.filename is None:
                raise
            name = os.fsdecode(error.filename)
            _leave(f"{name if len(name) <= 200 else name[:200] + '...'}: {error.strerror}", 2)
        # The reader of our output has left, as `| head` does, or it cannot be written; Python would try again while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:
            sys.exit(1)
        _leave(f"cannot write the output: {error.strerror}", 2)


def _leave(message: str, code: int) -> None:
    click.echo(f"convoy: {message}", err=True)
    sys.exit(code)

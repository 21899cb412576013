"""The program `convoy`.

The commands of the export stage join through the entry-point group `convoy.commands` and are imported when they are called, so
that the server needs none of what they need.
"""

import errno
import io
import json
import math
import os
import re
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import click

from service.errors import ConvoyError, FileUnreadable, UserError

_EXPORT_PACKAGES = {"jinja2", "torch", "onnx", "onnxscript", "onnx_ir", "pooch", "scipy", "sklearn", "matplotlib"}
_ENGINE_PACKAGES = {"onnxruntime"}
_TRACING_PACKAGES = {"opentelemetry"}

IMAGES_A_REQUEST = 64


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
@click.version_option(package_version("convoy"), prog_name="convoy")
def program() -> None:
    """Convoy: from labelled images to answers over gRPC.

    \b
    A first tour:
      convoy train --data digits --network article-cnn --output run
      convoy export run --repository models --name digits
      convoy serve models
      convoy classify digit.png --model digits
    """  # noqa: D301 - \b keeps click from re-wrapping the lines


class FiniteFloat(click.FloatRange):
    """A number in a range; click's own range lets NaN through."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Reads a number, or says what is accepted."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def _setting(flag: str, **options: Any) -> Callable[[Any], Any]:
    """An option of `serve`, which can be set as CONVOY_<FLAG> too."""
    variable = "CONVOY_" + flag.removeprefix("--").upper().replace("-", "_")
    return click.option(flag, envvar=variable, show_envvar=True, **{"show_default": True, **options})


@program.command()
@click.argument("repository", type=click.Path(path_type=Path))
@_setting("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0 for all.")
@_setting("--grpc-port", type=click.IntRange(0, 65535), default=8001, help="Port for gRPC; 0 takes a free one.")
@_setting("--http-port", type=click.IntRange(0, 65535), default=8002,
          help="Port for /metrics, /livez, /readyz, REST and the web page; 0 takes a free one.")  # fmt: skip
@_setting("--provider", type=click.Choice(["auto", "cuda", "cpu", "tensorrt", "openvino"]), default="auto",
          help="ONNX Runtime execution provider; auto takes CUDA where it works, else the CPU.")  # fmt: skip
@_setting("--workers", type=click.IntRange(1, 256), default=1,
          help="Processes that share the gRPC port; each has all models and is given its part of the connections.")  # fmt: skip
@_setting("--worker-start-seconds", type=FiniteFloat(0, 1e6, min_open=True), default=600.0,
          help="How long a worker of several may take to load its models before it counts as failed.")  # fmt: skip
@_setting("--policies", type=click.Path(path_type=Path),
          help="Folder of policies, <model>.toml, each in place of the model's own serving.toml: for a repository that is "
               "read-only.")  # fmt: skip
@_setting("--ready-file", type=click.Path(path_type=Path),
          help="File to write when ready: JSON with the ports and the pid. Removed at the end.")  # fmt: skip
@_setting("--max-message-bytes", type=click.IntRange(2**20, 2**31 - 1), show_default="what the models that are there take",
          help="Largest request over gRPC, and body over HTTP; found at the start if not given.")  # fmt: skip
@_setting("--lame-duck-seconds", type=FiniteFloat(0, 3600), default=1.0,
          help="After SIGTERM, how long health says NOT_SERVING while requests are still taken, so that clients and balancers "
               "can turn to other servers first. Not after Ctrl-C.")  # fmt: skip
@_setting("--drain-seconds", type=FiniteFloat(0, 3600), default=30.0,
          help="How long requests in hand may take to finish after that.")  # fmt: skip
@_setting("--transport", type=click.Choice(["auto", "fast", "public"]), default="auto",
          help="How gRPC is served: fast is one thread on gRPC's completion queue, public is grpcio's own asyncio server; "
               "auto takes fast where it works.")  # fmt: skip
@_setting("--compression", type=click.Choice(["none", "deflate", "gzip"]), default="none",
          help="What replies are compressed with, for clients that accept it.")  # fmt: skip
@_setting("--max-concurrent-streams", type=click.IntRange(1, 2**31 - 1), default=1024,
          help="Calls on one connection at a time; more wait in the client.")  # fmt: skip
@_setting("--max-connection-age-seconds", type=FiniteFloat(0, 1e6), default=0.0,
          help="Ask clients to reconnect after about this time, so that balancers spread them; 0 never does.")  # fmt: skip
@_setting("--max-connection-age-grace-seconds", type=FiniteFloat(0, 1e6), default=30.0,
          help="How long calls may go on on a connection that has reached its age.")  # fmt: skip
@_setting("--keepalive-seconds", type=FiniteFloat(0, 1e6), default=0.0,
          help="Ping a silent connection after this time; 0 leaves gRPC's default of two hours.")  # fmt: skip
@_setting("--min-ping-interval-seconds", type=FiniteFloat(0, 1e6), default=10.0,
          help="Disconnect clients that ping more often than this while nothing is sent to them; 0 allows any.")  # fmt: skip
@_setting("--channelz", is_flag=True,
          help="Offer grpc.channelz.v1.Channelz: connections, addresses and counts, to whoever can reach the port.")  # fmt: skip
@_setting(
    "--tls-cert",
    type=click.Path(path_type=Path),
    help="Server certificate (PEM); turns TLS on, for gRPC. Read again when it changes.",
)
@_setting("--tls-key", type=click.Path(path_type=Path), help="Private key of the certificate (PEM).")
@_setting("--tls-client-ca", type=click.Path(path_type=Path),
          help="CA (PEM) whose clients alone are let in: mutual TLS. Turns --no-rest on, as HTTP asks for no "
               "certificate.")  # fmt: skip
@_setting("--no-page", is_flag=True, help="Do not offer the web page at / of the HTTP port.")
@_setting("--no-rest", is_flag=True, help="Offer /metrics, /livez and /readyz over HTTP, and nothing else: no REST, no page.")
@_setting("--no-control", is_flag=True,
          help="Refuse requests that load or unload models or register shared memory: the folder alone says what is "
               "served.")  # fmt: skip
@_setting("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", help="What to log, to stderr.")
@_setting("--log-format", type=click.Choice(["text", "json"]), default="text", help="Lines for people, or JSON for programs.")
@_setting("--access-log-sample", type=FiniteFloat(0, 1), default=0.0,
          help="Share of the requests that are logged, 0 to 1: how each fared, never what was in it.")  # fmt: skip
@_setting("--otlp-endpoint", metavar="URL",
          help="OpenTelemetry collector to send spans to by OTLP over gRPC, http://HOST:PORT or https://HOST:PORT; "
               "needs the extra 'tracing'.")  # fmt: skip
@_setting("--trace-sample", type=FiniteFloat(0, 1), default=1.0,
          help="Share of the requests without a client's trace that are traced, 0 to 1; otherwise the client decides.")  # fmt: skip
def serve(no_page: bool, no_rest: bool, no_control: bool, **settings: Any) -> None:
    """Serve every model in the folder REPOSITORY (REPOSITORY/<model>/<version>/model.onnx).

    New versions are picked up while serving. SIGTERM or Ctrl-C finishes the requests in hand and ends with exit code 0; a second
    one ends at once. Each option can be set as an environment variable CONVOY_<OPTION> too; options win.
    """
    from service.config import ServerConfig
    from service.lifecycle import raise_file_limit
    from service.logs import set_up_logging

    config = ServerConfig(**settings, page=not no_page, rest=not no_rest, control=not no_control)
    set_up_logging(config.log_level, config.log_format)
    raise_file_limit()
    if config.workers > 1:
        from service.workers.supervisor import serve as run
    else:
        from service.server import serve as run
    run(config)


@program.command()
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="Name of the model.")
@click.option("--version", default="", help="Version of the model, or an alias; the server's default if not given.")
@click.option(
    "--server",
    default="127.0.0.1:8001",
    show_default=True,
    envvar="CONVOY_SERVER",
    metavar="HOST:PORT",
    help="The server.",
)
@click.option(
    "--top-k", type=click.IntRange(1, 2**31 - 1), default=5, show_default=True, help="How many labels to show for an image."
)
@click.option("--timeout", type=FiniteFloat(0, 1e6, min_open=True), default=30.0, show_default=True, help="Seconds to wait.")
@click.option(
    "--tls-ca", type=click.Path(path_type=Path), help="CA (PEM) that the server's certificate must come from; turns TLS on."
)
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Client certificate (PEM), for mutual TLS.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Private key of the client certificate (PEM).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, one line an image.")
def classify(
    images: tuple[Path, ...], model: str, version: str, server: str, top_k: int, timeout: float, as_json: bool, **tls: Path | None
) -> None:
    """Classify image files with a model of a running server.

    An image that cannot be classified is named, the others are classified all the same, and the exit code is 2.
    """
    from service.client import CallFailed, Client

    failed = 0
    with Client(server, timeout_seconds=timeout, **tls) as client:
        most = 1
        if len(images) > 1:
            try:
                most = min(IMAGES_A_REQUEST, int(client.model(model, version).limits["max_request_items"]))
            except CallFailed as error:
                raise _explained(error, server, images) from None
        requests = [images[start : start + most] for start in range(0, len(images), most)]
        while requests:
            some = requests.pop(0)
            try:
                answer = client.classify(some, model, version=version, top_k=top_k)
            except (CallFailed, UserError) as error:
                explained = _explained(error, server, some)
                if len(images) == 1 or not _of_an_image(error):
                    raise explained from None
                if len(some) > 1:  # one by one, none suffers for another
                    requests = [(path,) for path in some] + requests
                else:
                    failed += 1
                    click.echo(f"convoy: {explained}", err=True)
                continue
            for path, predictions in zip(some, answer.results, strict=True):
                _show(path, answer, predictions, as_json)
    if failed:
        raise UserError(f"{failed} of {len(images)} images could not be classified")


def _show(path: Path, answer: Any, predictions: Any, as_json: bool) -> None:
    if as_json:
        found = [{"label": p.label, "index": p.index, "probability": p.probability} for p in predictions]
        click.echo(json.dumps({"image": str(path), "model": answer.model, "version": answer.version, "predictions": found}))
        return
    click.echo(f"{path}  ({answer.model} version {answer.version})")
    width = max(len(p.label) for p in predictions)
    for p in predictions:
        click.echo(f"  {p.label:<{width}}  {p.probability:7.2%}  {'█' * round(p.probability * 40)}")


_ITEM = re.compile(r"items\[(\d+)\]")


def _too_large(error: Any) -> bool:
    return error.code == "RESOURCE_EXHAUSTED" and "the server takes at most" in error.message


def _of_an_image(error: Any) -> bool:
    """Whether it is a picture's fault that a request failed: here, where it is read, or with the server."""
    if isinstance(error, UserError):
        return isinstance(error, FileUnreadable)
    return _too_large(error) or (_ITEM.match(error.field) is not None and error.message.startswith("item "))


def _explained(error: Any, server: str, images: tuple[Path, ...]) -> ConvoyError:
    """An error that names the file, where the server named the item."""
    if isinstance(error, UserError):
        return error
    from service.client.messages import no_server

    unanswered = no_server(server, error)
    if unanswered is not None:
        return unanswered
    if _too_large(error):
        return UserError(f"{images[0]}: too large: {error.message}")
    item = _ITEM.match(error.field)
    if item is not None and int(item[1]) < len(images):
        return UserError(f"{images[int(item[1])]}: {re.sub(r'^item [0-9]+: ', '', error.message)}")
    return UserError(str(error))


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

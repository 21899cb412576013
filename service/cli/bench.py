"""`convoy bench`: asks the server what the model takes, sends the load, shows what came of it."""

import json
import math
import re
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from service.bench import report
from service.bench.images import Encoding, made_up, of_files
from service.bench.load import Load, Outcome
from service.bench.load import run as send
from service.bench.server_metrics import Snapshot, look
from service.cli.connection import unreachable
from service.cli.parameters import FiniteFloat
from service.client import CallFailed, Client
from service.errors import UserError

IN_FLIGHT = 16
IN_FLIGHT_A_CONNECTION = 8
GRPC_PORT, HTTP_PORT = 8001, 8002
MAX_SIDE = 65_535
"""A JPEG has no larger sides."""
_WIDTH = 132
"""Of the table, whatever the terminal's: a terminal breaks lines that are too long, but rich cuts figures off."""


class _Size(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 only
    """HxW in pixels."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Reads a size, or says what is accepted."""
        match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", str(value))
        if match is None:
            self.fail(f"{value!r} is not a size such as 224x224.", param, ctx)
        return int(match[1]), int(match[2])


@click.command()
@click.option("--model", required=True, help="Name of the model.")
@click.option("--version", default="", help="Version of the model, or an alias; the server's default if not given.")
@click.option(
    "--server", default="127.0.0.1:8001", show_default=True, envvar="CONVOY_SERVER", metavar="HOST:PORT", help="The server."
)
@click.option(
    "--concurrency", type=click.IntRange(1, 4096), help=f"Requests in flight, each followed by the next. Default: {IN_FLIGHT}."
)
@click.option(
    "--rate",
    type=FiniteFloat(0, 1e6, min_open=True),
    help="Requests a second that arrive at random (Poisson), answered or not; instead of --concurrency.",
)
@click.option("--stream", is_flag=True, help="Send over ClassifyStream, one stream a connection, instead of calls of their own.")
@click.option("--seconds", type=FiniteFloat(0, 86400, min_open=True), default=10.0, show_default=True, help="How long to measure.")
@click.option("--warmup", type=FiniteFloat(0, 3600), default=1.0, show_default=True, help="Seconds of the same load before.")
@click.option("--items", type=click.IntRange(1, 100_000), default=1, show_default=True, help="Images in one request.")
@click.option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(path_type=Path),
    help="An image file to send; may be given several times. Default: made-up pictures.",
)
@click.option(
    "--encoding",
    type=click.Choice(["pixels", "png", "jpeg"]),
    default="pixels",
    show_default=True,
    help="How made-up pictures are sent.",
)
@click.option("--image-size", type=_Size(), help="Size of made-up png or jpeg pictures. Default: the model's.")
@click.option(
    "--connections",
    type=click.IntRange(1, 1024),
    help=f"gRPC connections. Default: one for each {IN_FLIGHT_A_CONNECTION} in flight; {IN_FLIGHT_A_CONNECTION} with --rate.",
)
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Client processes; more than one where a single one cannot fill the server.",
)
@click.option(
    "--timeout",
    type=FiniteFloat(0, 3600, min_open=True),
    default=30.0,
    show_default=True,
    help="Deadline of each request in seconds.",
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Seed of pictures and arrivals.")
@click.option(
    "--metrics",
    "metrics_url",
    metavar="URL",
    help=f"Where the server's own figures are; `none` leaves them out. Default: http://HOST:{HTTP_PORT}/metrics for a server at "
    f"port {GRPC_PORT}, if it answers.",
)
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="PNG to draw latency by percentile in.")
@click.option(
    "--tls-ca", type=click.Path(path_type=Path), help="CA (PEM) that the server's certificate must come from; turns TLS on."
)
@click.option("--tls-cert", type=click.Path(path_type=Path), help="Client certificate (PEM), for mutual TLS.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="Private key of the client certificate (PEM).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def bench(
    model: str, version: str, server: str, concurrency: int | None, rate: float | None, stream: bool, seconds: float, warmup: float,
    items: int, images: tuple[Path, ...], encoding: Encoding, image_size: tuple[int, int] | None,
    connections: int | None, processes: int, timeout: float, seed: int, metrics_url: str | None, plot: Path | None,
    tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Load a running server, and show how long the answers took.

    A closed loop (--concurrency) finds what a server can do; random arrivals at a given rate (--rate) find how long people wait.
    With --rate a latency counts from the moment a request was to be sent, so that stalls are not hidden; what is answered after
    the end counts for the latencies, not for requests/s. Ctrl-C ends early and shows what was measured.

    \b
    Examples:
      convoy bench --model digits
      convoy bench --model digits --rate 500 --seconds 30 --plot latency.png
      convoy bench --model photos --image cat.jpg --image dog.jpg --items 8 --concurrency 32 --processes 2
    """  # noqa: D301 - \b keeps click from re-wrapping the lines
    if rate is not None and (concurrency is not None or stream):
        raise UserError("--rate is one kind of load, --concurrency and --stream are another: give --rate alone or without it")
    if image_size is not None and (images or encoding == "pixels"):
        raise UserError("--image-size goes with --encoding png or jpeg: pixels are of the model's size, files of their own")
    in_flight = concurrency or IN_FLIGHT
    if rate is None and in_flight < processes:
        raise UserError(f"{processes} processes cannot share {in_flight} requests in flight: give a higher --concurrency")
    if plot is not None and not plot.parent.is_dir():
        raise UserError(f"--plot {plot}: there is no folder {plot.parent}")
    with Client(server, timeout_seconds=timeout, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key) as client:
        target, described = client.server, _describe(client, server, model, version)
    most = described.limits["max_request_items"]
    if items > most:
        raise UserError(f"--items {items}: model {model!r} takes at most {most} images in a request")
    if image_size is not None and (max(image_size) > MAX_SIDE or math.prod(image_size) > described.limits["max_image_pixels"]):
        most = described.limits["max_image_pixels"]
        raise UserError(f"--image-size {image_size[0]}x{image_size[1]}: at most {MAX_SIDE} a side and {most} pixels are accepted")
    if images:
        requests = of_files(model, version, items, images, seed)
    else:
        height, width, channels = described.input.shape
        height, width = image_size or (height, width)
        requests = made_up(model, version, items, (height, width, channels), encoding, seed)
    load = Load(
        target=target,
        requests=requests,
        seconds=seconds,
        warmup_seconds=warmup,
        rate=rate or 0.0,
        concurrency=in_flight,
        connections=connections or (-(-in_flight // IN_FLIGHT_A_CONNECTION) if rate is None else IN_FLIGHT_A_CONNECTION),
        processes=processes,
        stream=stream,
        timeout_seconds=timeout,
        seed=seed,
        tls=_read(tls_ca, tls_key, tls_cert) if tls_ca is not None else None,
    )
    host, _, port = server.rpartition("/")[2].rpartition(":")
    # At another port is another server, and at the usual HTTP port there may be the figures of a third.
    url = metrics_url or (f"http://{host}:{HTTP_PORT}/metrics" if port == str(GRPC_PORT) else "none")
    before = _look(url, model, must=metrics_url is not None) if url != "none" else None
    outcome = _send(load)
    after = _look(url, model, must=False) if before is not None else None
    came = after.since(before) if before is not None and after is not None else None
    if not outcome.codes:
        raise UserError("nothing was measured: it ended before the warm-up did, or no request was sent in so short a time")
    if not outcome.codes["OK"]:
        raise UserError("no request was answered: " + "; ".join(f"{code}: {text}" for code, text in outcome.messages.items()))
    found = {"model": model, "version": described.version, **report.summary(load, items, outcome, came)}
    if as_json:
        click.echo(json.dumps(found, indent=2, allow_nan=False))
    else:
        console = Console(highlight=False, soft_wrap=True, width=_WIDTH)
        console.print(f"{model} version {described.version} at {server}")
        report.show(console, found, outcome)
        if after is not None and came is None:
            console.print(
                "no figures of the server itself: it was restarted meanwhile, or a version of the model unloaded", style="dim"
            )
        elif came is None and url != "none":
            console.print(f"no figures of the server itself: nothing answers at {url} (say where with --metrics)", style="dim")
        elif url == "none" and metrics_url is None:
            console.print(f"no figures of the server itself: say where with --metrics http://{host}:PORT/metrics", style="dim")
    if plot is not None:
        report.plot(plot, found, outcome)


def _read(*paths: Path | None) -> tuple[bytes | None, ...]:
    return tuple(path.read_bytes() if path is not None else None for path in paths)


def _describe(client: Client, server: str, model: str, version: str) -> Any:
    try:
        described = client.model(model, version)
    except CallFailed as error:
        raise unreachable(server, error) or error from None
    if described.contract is None:
        raise UserError(f"model {model!r} was not exported by Convoy: it takes tensors, and this program sends pictures")
    return described


def _look(url: str, model: str, *, must: bool) -> Snapshot | None:
    try:
        return look(url, model)
    except UserError:
        if must:
            raise
        return None


def _send(load: Load) -> Outcome:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("connecting, warming up", total=load.seconds)
        return send(
            load,
            on_second=lambda passed: bar.update(task, completed=passed),
            on_start=lambda: bar.update(task, description="measuring"),
        )

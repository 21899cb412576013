"""`convoy bench`: asks the server what the model takes, sends the load, prints what was measured."""

import json
import math
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from service.bench import processes, report
from service.bench.images import CHANNELS, Encoding, file_requests, synthetic_requests
from service.bench.load import Load, Outcome
from service.bench.server_metrics import Snapshot, may_carry_token, scrape
from service.cli.connection import read_token, server_options, unreachable
from service.cli.parameters import FiniteFloat, ImageSize
from service.client import CallFailed, Client, ModelInfo
from service.client.connection import ChannelSettings, read_pem
from service.client.images import read_file
from service.errors import UserError
from service.import_advice import import_advice

CONCURRENCY = 16
IN_FLIGHT_PER_CONNECTION = 8
CONNECTIONS_AT_A_RATE = 8
GRPC_PORT, HTTP_PORT = 8001, 8002
MAX_SIDE = 65_535
"""The largest side of a JPEG."""
_WIDTH = 132
"""Of the table, whatever the terminal's: a terminal wraps long lines, but rich would cut figures off."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line; for units and defaults see the options of `bench`."""

    model: str
    version: str
    server: str
    tls_ca: Path | None
    tls_cert: Path | None
    tls_key: Path | None
    token_file: Path | None
    insecure: bool
    concurrency: int | None
    rate: float | None
    stream: bool
    seconds: float
    warmup: float
    items: int
    images: tuple[Path, ...]
    encoding: Encoding
    image_size: tuple[int, int] | None
    connections: int | None
    processes: int
    timeout: float
    seed: int
    metrics_url: str | None
    plot: Path | None
    as_json: bool

    def check(self) -> None:
        """Raises UserError for options that contradict each other."""
        if self.rate is not None and (self.concurrency is not None or self.stream):
            raise UserError("--rate cannot be combined with --concurrency or --stream: they are different kinds of load")
        if self.image_size is not None and (self.images or self.encoding == "pixels"):
            raise UserError("--image-size needs --encoding png or jpeg: pixels have the model's size, files their own")
        if self.rate is None and self.in_flight < self.processes:
            raise UserError(
                f"{self.processes} processes cannot share {self.in_flight} requests in flight: give a higher --concurrency"
            )
        if self.plot is not None and not self.plot.parent.is_dir():
            raise UserError(f"--plot {self.plot}: no such folder: {self.plot.parent}")

    @property
    def in_flight(self) -> int:
        """Requests in flight of a closed loop."""
        return self.concurrency or CONCURRENCY


@click.command()
@server_options
@click.option(
    "--concurrency",
    type=click.IntRange(1, 4096),
    show_default=str(CONCURRENCY),
    help="Requests in flight, each followed by the next.",
)
@click.option(
    "--rate",
    type=FiniteFloat(0, 1e6, min_open=True),
    help="Requests per second, arriving at random (Poisson) whether or not earlier ones are answered; instead of --concurrency.",
)
@click.option("--stream", is_flag=True, help="Send over ClassifyStream, one stream per connection, instead of unary calls.")
@click.option("--seconds", type=FiniteFloat(0, 86400, min_open=True), default=10.0, show_default=True, help="How long to measure.")
@click.option("--warmup", type=FiniteFloat(0, 3600), default=1.0, show_default=True, help="Seconds of the same load before that.")
@click.option("--items", type=click.IntRange(1, 100_000), default=1, show_default=True, help="Images in one request.")
@click.option("--image", "images", multiple=True, type=click.Path(path_type=Path), show_default="synthetic images",
              help="An image file to send; may be repeated.")  # fmt: skip
@click.option("--encoding", type=click.Choice(["pixels", "png", "jpeg"]), default="pixels", show_default=True,
              help="How synthetic images are sent.")  # fmt: skip
@click.option("--image-size", type=ImageSize(MAX_SIDE), metavar="N|HxW", show_default="the model's",
              help="Size of synthetic png or jpeg images.")  # fmt: skip
@click.option("--connections", type=click.IntRange(1, 1024), help="gRPC connections.",
              show_default=f"one per {IN_FLIGHT_PER_CONNECTION} in flight, {CONNECTIONS_AT_A_RATE} with --rate")  # fmt: skip
@click.option("--processes", type=click.IntRange(1, 64), default=1, show_default=True,
              help="Client processes; use more where one cannot saturate the server.")  # fmt: skip
@click.option("--timeout", type=FiniteFloat(0, 3600, min_open=True), default=30.0, show_default=True,
              help="Deadline of each request in seconds.")  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Seed of images and arrivals.")
@click.option("--metrics", "metrics_url", metavar="URL",
              show_default=f"http://HOST:{HTTP_PORT}/metrics for a server at port {GRPC_PORT}, if it answers",
              help="The server's /metrics, for its own measurements; `none` for none.")  # fmt: skip
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="PNG file for a plot of latency by percentile.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def bench(**options: Any) -> None:
    """Load a running server and measure how long the answers take.

    A closed loop (--concurrency) finds the server's capacity; random arrivals at a given rate (--rate) find how long users wait.
    With --rate a latency counts from the moment a request was due, so that stalls are not hidden; answers after the end count for
    the latencies, not for requests/s. Ctrl-C ends early and prints what was measured.

    \b
    Examples:
      convoy bench --model digits
      convoy bench --model digits --rate 500 --seconds 30 --plot latency.png
      convoy bench --model photos --image cat.jpg --image dog.jpg --items 8 --concurrency 32 --processes 2
    """  # noqa: D301 - \b keeps click from re-wrapping the lines
    chosen = Options(**options)
    chosen.check()
    target, model = _describe(chosen)
    load = _load(chosen, target, _requests(chosen, model))
    metrics = _ServerMetrics(chosen)
    metrics.start()
    outcome = _run(load)
    server = metrics.stop()
    _check_answered(outcome)
    result = {"model": chosen.model, "version": model.version, **report.summary(load, chosen.items, outcome, server)}
    if chosen.as_json:
        click.echo(json.dumps(result, indent=2, allow_nan=False))
    else:
        console = Console(highlight=False, soft_wrap=True, width=_WIDTH)
        console.print(f"{chosen.model} version {model.version} at {chosen.server}")
        report.show(console, result, outcome)
        if metrics.note:
            console.print(f"no server metrics: {metrics.note}", style="dim")
    if chosen.plot is not None:
        report.plot(chosen.plot, result, outcome)


def _describe(options: Options) -> tuple[str, ModelInfo]:
    """The gRPC target of the server, and the model. Raises UserError if it does not take what is to be sent."""
    tls: dict[str, Any] = {"tls_ca": options.tls_ca, "tls_cert": options.tls_cert, "tls_key": options.tls_key}
    token = read_token(options.token_file)
    with Client(options.server, timeout_seconds=options.timeout, token=token, insecure=options.insecure, **tls) as client:
        try:
            model = client.model(options.model, options.version)
        except CallFailed as error:
            raise unreachable(options.server, error) or error from None
    if model.contract is None:
        _check_takes_pixels(options, model)
    return client.server, model


def _check_takes_pixels(options: Options, model: ModelInfo) -> None:
    """Raises UserError unless a model that Convoy did not export takes what is to be sent."""
    given, takes = model.input, f"{model.input.dtype} {' x '.join(map(str, model.input.shape))}"
    if given.dtype != "uint8" or len(given.shape) != 3 or given.shape[2] not in CHANNELS:
        raise UserError(
            f"model {options.model!r} was not exported by Convoy and takes no pictures but tensors, {given.name!r} of {takes}. "
            "bench does not send them: use a load generator for the Open Inference Protocol, such as NVIDIA's perf_analyzer"
            f"{import_advice(given.dtype, given.shape)}"
        )
    if options.images or options.encoding != "pixels":
        option = "--image" if options.images else f"--encoding {options.encoding}"
        raise UserError(
            f"model {options.model!r} was not exported by Convoy and takes no picture files: without {option} bench sends it raw "
            f"pixels, {given.name!r} of {takes}{import_advice(given.dtype, given.shape)}"
        )


def _requests(options: Options, model: ModelInfo) -> tuple[bytes, ...]:
    most = model.limits["max_request_items"]
    if options.items > most:
        raise UserError(f"--items {options.items}: model {options.model!r} takes at most {most} images in a request")
    if options.images:
        files = [read_file(path) for path in options.images]
        return file_requests(options.model, options.version, options.items, files, options.seed)
    height, width, channels = model.input.shape
    if options.image_size is not None:
        height, width = options.image_size
        most = model.limits["max_image_pixels"]
        if height * width > most:
            raise UserError(f"--image-size {height}x{width}: the model takes at most {most} pixels")
    return synthetic_requests(
        options.model, options.version, options.items, (height, width, channels), options.encoding, options.seed
    )


def _load(options: Options, target: str, requests: tuple[bytes, ...]) -> Load:
    connections = math.ceil(options.in_flight / IN_FLIGHT_PER_CONNECTION) if options.rate is None else CONNECTIONS_AT_A_RATE
    pem = (options.tls_ca, options.tls_key, options.tls_cert)
    settings = ChannelSettings(options.server, None, None, None, read_token(options.token_file), insecure=True)  # checked before
    return Load(
        target=target,
        requests=requests,
        seconds=options.seconds,
        warmup_seconds=options.warmup,
        rate=options.rate or 0.0,
        concurrency=options.in_flight,
        connections=options.connections or connections,
        processes=options.processes,
        stream=options.stream,
        timeout_seconds=options.timeout,
        seed=options.seed,
        tls=tuple(read_pem(path) if path is not None else None for path in pem) if options.tls_ca is not None else None,
        metadata=settings.metadata(),
        route=settings.route,
    )


class _ServerMetrics:
    """The server's own measurements between `start` and `stop`. `note` says why there are none, unless `--metrics none` did."""

    def __init__(self, options: Options) -> None:
        host, port = _host_and_port(options.server)
        scheme = "http" if options.tls_ca is None else "https"
        self._context = _tls_context(options)
        self.note = ""
        self._model = options.model
        self._required = options.metrics_url not in (None, "none")
        self._url = options.metrics_url if self._required else None
        if options.metrics_url is None and port == str(GRPC_PORT):
            self._url = f"{scheme}://{host}:{HTTP_PORT}/metrics"
        elif options.metrics_url is None:  # the usual HTTP port may belong to another server
            self.note = f"give their address with --metrics {scheme}://{host}:PORT/metrics"
        self._token = read_token(options.token_file)
        if self._url is not None and self._token is not None and not options.insecure and not may_carry_token(self._url):
            if self._required:
                raise UserError(f"the token is not sent unencrypted to {self._url}: give an https:// address, or --insecure")
            self.note = f"the token is not sent unencrypted to {self._url} (--insecure)"
            self._url = None
        self._before: Snapshot | None = None

    def start(self) -> None:
        """Raises UserError if there are no metrics at an address that the user gave."""
        self._before = self._scrape(required=self._required)

    def stop(self) -> Snapshot | None:
        after = self._scrape(required=False) if self._before is not None else None
        if self._before is None or after is None:
            if self._url is not None:
                self.note = f"cannot read {self._url} (give their address with --metrics)"
            return None
        difference = after.since(self._before)
        if difference is None:
            self.note = "the server was restarted, or a version of the model unloaded, during the load"
        return difference

    def _scrape(self, *, required: bool) -> Snapshot | None:
        if self._url is None:
            return None
        try:
            return scrape(self._url, self._model, self._context, self._token)
        except UserError:
            if required:
                raise
            return None


def _tls_context(options: Options) -> ssl.SSLContext | None:
    """What is trusted, and shown, over https: the same as over gRPC. None without --tls-ca."""
    if options.tls_ca is None:
        return None
    context = ssl.create_default_context(cafile=options.tls_ca)
    if options.tls_cert is not None:
        context.load_cert_chain(options.tls_cert, options.tls_key)
    return context


def _host_and_port(server: str) -> tuple[str, str]:
    """Of a server address; words in their place if it has none, or several."""
    if server.startswith("unix:") or "," in server:
        return "HOST", "PORT"
    host, _, port = server.rpartition("/")[2].rpartition(":")
    return re.sub("^(dns|ipv4|ipv6):", "", host), port


def _run(load: Load) -> Outcome:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("connecting, warming up", total=load.seconds)
        return processes.run(
            load,
            on_progress=lambda seconds: bar.update(task, completed=seconds),
            on_start=lambda: bar.update(task, description="measuring"),
        )


def _check_answered(outcome: Outcome) -> None:
    if not outcome.codes:
        raise UserError("nothing was measured: no request was sent between the warm-up and the end")
    if not outcome.codes["OK"]:
        raise UserError("no request was answered: " + "; ".join(f"{code}: {text}" for code, text in outcome.messages.items()))

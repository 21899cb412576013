"""`convoy serve`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from service.cli.parameters import FiniteFloat


def _setting(flag: str, **options: Any) -> Callable[[Any], Any]:
    """An option of `serve`, which can be set as CONVOY_<FLAG> too."""
    variable = "CONVOY_" + flag.removeprefix("--").upper().replace("-", "_")
    return click.option(flag, envvar=variable, show_envvar=True, **{"show_default": True, **options})


@click.command()
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
